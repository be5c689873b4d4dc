"""The stages, composed: the only module that knows all four folders.

Heavy modules are imported inside the functions that need them, so that the command line can show its options at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import UsageError
from .influence.settings import AttributeSettings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .influence.attribute import Prepared, Variant
    from .influence.curvature import Curvature
    from .influence.examples import Progress, Source
    from .influence.problem import Loss
    from .influence.scores import Scores


def attribute(
    model: nn.Module,
    train: Source,
    queries: Source | None = None,
    *,
    parameters: str | Sequence[str] = "head",
    curvature: Curvature[Any] | None = None,
    query_label: str = "true",
    weight_decay: float | None = None,
    train_scores: bool = False,
    loss: Loss | None = None,
    dtype: torch.dtype | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    out: str | Path | None = None,
    progress: None | bool | Progress = None,
) -> Scores:
    """Which train examples, upweighted, would change the loss of each query: score[t, i] = + g_t^T H^+ g_i.

    Args:
        model: Any torch module from inputs [b, ...] to logits [b, C]; left as it was found.
        train: The examples it was fitted on: a map-style data set of (x, y), or a pair of tensors (X, y).
        queries: Likewise; None scores the train set on itself.
        parameters: "head" (the last linear layer), "blocks:3" (the last 3 residual blocks and the head), "all", or names of
            parameters or modules.
        curvature: None: `LinearHead()` for the head, `Hessian()` otherwise.
        query_label: "true" or "predicted": the label that the loss of a query is taken at.
        weight_decay: L2 penalty of the training run, when known: for the report on stationarity, never added silently.
        train_scores: Also score the train set on itself, into `scores.on_train`.
        loss: None for cross-entropy, else a twice differentiable function (logits [b, C], labels [b]) -> losses [b].
        dtype: torch.float32 or torch.float64, for gradients and stored scores; None: the model's. What the head alone needs
            is computed in float64 whatever this says.
        device: "auto", "cpu", "cuda" or "cuda:N".
        batch_size: Examples in one pass of the network (256 by default); changes no number.
        out: Path of an HDF5 store, resumable; None keeps the scores in memory.
        progress: None, True for a bar on the terminal, or a function of (stage, done, total).

    Returns:
        Scores [m, n] in nats per unit weight; positive: the example helps the query.

    Raises:
        UsageError: An option does not fit the model.
        ShapeError: Logits, labels or inputs do not fit each other.
        SolveError: Gradients depend on the batch, values are not finite, or the curvature cannot be inverted as asked.
        StoreError: `out` holds something else, or was made under other settings.
    """
    from .influence.attribute import Variant, prepare
    from .influence.problem import evaluating
    from .models.device import resolve_device
    from .reports.progress import reporter

    names, head = _resolve(model, parameters)
    report = reporter(progress)
    with evaluating(model):
        prepared = prepare(
            model,
            train,
            queries,
            parameters=names,
            head=head,
            loss=loss,
            dtype=dtype,
            device=resolve_device(device),
            batch_size=256 if batch_size is None else batch_size,
            weight_decay=weight_decay,
            progress=report,
        )
        variant = Variant(
            curvature=_default_curvature(prepared) if curvature is None else curvature,
            query_label=query_label,  # type: ignore[arg-type]  # checked by Variant
            train_scores=train_scores,
        )
        return _score(prepared, [variant], out, report)[""]


def open_scores(path: str | Path, variant: str = "") -> Scores:
    """Read scores back.

    Args:
        path: A store that `attribute(..., out=path)` or `scores.save(path)` wrote.
        variant: Name of the variant, where the store holds several.

    Returns:
        Scores whose matrix is read from disk as it is used.

    Raises:
        StoreError: There is no complete store at `path`, or none of that variant.
    """
    from .cache.store import open_scores

    return open_scores(path, variant)


def _resolve(model: nn.Module, parameters: str | Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Names of the analysed parameters, and of the head where the model has one."""
    from .models.transfer import head_name, resolve_parameters

    names = resolve_parameters(model, parameters)
    try:
        return names, head_name(model)
    except UsageError:
        return names, None  # without a linear layer there is no head; other parameters can still be analysed


def _default_curvature(prepared: Prepared) -> Curvature[Any]:
    from .influence.head import LinearHead
    from .influence.hessian import Hessian

    return LinearHead() if prepared.problem.linear and prepared.problem.loss is None else Hessian()


def _score(
    prepared: Prepared, variants: Sequence[Variant], out: str | Path | None, report: Progress | None
) -> dict[str, Scores]:
    """Fit and score every variant, into memory or into one store."""
    from .influence.attribute import ArraySink, examples, fit, sides, write_scores
    from .influence.scores import Scores

    fitted = [fit(prepared, variant, report) for variant in variants]
    queries, train = examples(prepared)
    dtype = str(prepared.problem.dtype).removeprefix("torch.")
    scores = {}
    for one in fitted:
        sink = ArraySink(sides(prepared, one.variant), dtype)
        write_scores(prepared, one, sink, report)
        meta = one.meta(prepared)
        on_train = None
        if "train" in sink.matrices:
            on_train = Scores(sink.matrices["train"], train, train, spectrum=one.spectrum, meta=meta, on_itself=True)
        if queries is None:
            assert on_train is not None  # without queries the train set is always scored on itself
            scores[one.variant.name] = on_train
        else:
            matrix = sink.matrices["queries"]
            scores[one.variant.name] = Scores(
                matrix, queries, train, spectrum=one.spectrum, meta=meta, on_train=on_train
            )
    return scores
