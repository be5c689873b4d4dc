"""The stages, each of them one call: a source trained, a network fine-tuned, its predictions attributed.

Heavy modules are imported inside the functions that need them, so that the command line can show its options at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import UsageError
from .influence.settings import AttributeSettings, memory_bytes
from .models.settings import DataSettings, FineTuneSettings, PretrainSettings, RobustnessSettings
from .scoring import (
    STORE_FILE,
    Sides,
    default_curvature,
    few_threads,
    make_plan,
    make_variants,
    prepared_sides,
    resolve,
    score,
    standing_scores,
)
from .unrolling import unrolled_plan

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .influence.curvature import Curvature
    from .influence.examples import Progress, Source
    from .influence.problem import Loss
    from .influence.scores import Scores
    from .models.checkpoints import LoadedModel
    from .models.data import TargetData
    from .models.runs import Run

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """Where a fine-tuned network begins."""

    source: str = "natural"
    """natural or robust (shipped), or a checkpoint file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSettings:
    """A network that upweight knows nothing about, and its data."""

    model: str | None = None
    """PACKAGE.MODULE:FACTORY, a function without arguments that makes your network; found from the current folder too."""

    weights: str | None = None
    """Its state dict: .safetensors, or a torch file of tensors."""

    train: str | None = None
    """The examples it was fitted on: an .npz with x and y, an image folder, or the name of a data set."""

    queries: str | None = None
    """Likewise; not given: the train set on itself."""

    weight_decay: float | None = None
    """L2 penalty that it was trained with."""

    input_shape: tuple[int, ...] | None = None
    """Channels, height and width it takes, for an image folder or a named data set; an .npz goes in as it is."""

    root: str | None = None
    """Folder that holds the files of a named data set."""

    def __post_init__(self) -> None:
        if self.weight_decay is not None and not 0 <= self.weight_decay < float("inf"):
            raise UsageError(f"weight_decay is {self.weight_decay}; give a finite number >= 0.")
        if self.input_shape is not None and (len(self.input_shape) != 3 or min(self.input_shape) < 1):
            raise UsageError(
                f"input_shape is {' '.join(map(str, self.input_shape))}; give channels, height and width, as in 3 224 224."
            )


def attribute(
    model: nn.Module | Sequence[nn.Module],
    train: Source,
    queries: Source | None = None,
    *,
    parameters: str | Sequence[str] = "head",
    curvature: Curvature[Any] | Sequence[Curvature[Any]] | None = None,
    query_label: str = "true",
    weight_decay: float | None = None,
    train_scores: bool = False,
    loss: Loss | None = None,
    dtype: torch.dtype | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    memory: str | float | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    keep_curvature: bool = False,
    progress: bool | Progress | None = None,
) -> Scores:
    """Which train examples, upweighted, would change the loss of each query: score[t, i] = + g_t^T H^+ g_i.

    Args:
        model: Any torch module from inputs [b, ...] to logits [b, C]; left as it was found. Of several (a list: trainings with
            other seeds) the scores are averaged.
        train: The examples it was fitted on: a map-style data set of (x, y), or a pair of tensors (X, y).
        queries: Likewise; None scores the train set on itself.
        parameters: "head" (the last linear layer), "blocks:3" (the last 3 residual blocks and the head), "all", or names of
            parameters or modules.
        curvature: None: `LinearHead()` for the head, `GaussNewton()` otherwise; with a `loss` of yours, `Hessian()`. For
            several models one for all, or a list.
        query_label: "true" or "predicted": the label that the loss of a query is taken at.
        weight_decay: L2 penalty of the training run, when known: for the report on stationarity, never added silently.
        train_scores: Also score the train set on itself, into `scores.on_train`.
        loss: None for cross-entropy, else a twice differentiable function (logits [b, C], labels [b]) -> losses [b].
        dtype: torch.float32 or torch.float64, for gradients and stored scores; None: the model's. What the head alone needs
            is computed in float64 whatever this says.
        device: "auto", "cpu", "cuda" or "cuda:N".
        batch_size: Examples in one pass of the network (256 by default); changes no number.
        memory: Bytes that matrices and blocks of rows may take, or text such as "8GB"; None: half of what is free. Changes no
            number.
        out: Path of an HDF5 store, resumable; None keeps the scores in memory.
        overwrite: Replace a store that was made under other settings.
        keep_curvature: Keep the factored curvature with the scores, in memory, for `scores.group(ids, interaction=True)` and
            `scores.greedy`.
        progress: None, True for a bar on the terminal, or a function of (stage, done, total).

    Returns:
        Scores [m, n] in nats per unit weight; positive: the example helps the query. Where the curvature has a list of dampings
        they are those of the first; `scores.at_damping` holds all.

    Raises:
        UsageError: An option does not fit the model.
        ShapeError: Logits, labels or inputs do not fit each other.
        SolveError: Gradients depend on the batch, values are not finite, or the curvature cannot be inverted as asked.
        StoreError: `out` holds something else, or was made under other settings.
    """
    from torch import nn

    from .influence.attribute import Variant, prepare
    from .influence.groups import interacting
    from .influence.problem import evaluating
    from .models.device import resolve_device
    from .reports.progress import reporting

    if isinstance(model, list | tuple):
        if out is not None or keep_curvature:
            raise UsageError(
                "Scores of several models are averaged in memory, without their curvatures; leave out out, and call .save(path) "
                "on the average, and leave out keep_curvature."
            )
        options: dict[str, Any] = {
            "parameters": parameters,
            "query_label": query_label,
            "weight_decay": weight_decay,
            "train_scores": train_scores,
            "loss": loss,
            "dtype": dtype,
            "device": device,
            "batch_size": batch_size,
            "memory": memory,
            "progress": progress,
        }
        return _averaged(model, curvature, partial(attribute, train=train, queries=queries, **options))
    if isinstance(curvature, Sequence):
        raise UsageError(f"There are {len(curvature)} curvatures and one model; give one model a curvature of its own.")
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}; a torch.nn.Module is wanted.")
    if curvature is not None and (isinstance(curvature, type) or not hasattr(curvature, "fit")):
        raise UsageError(
            f"curvature is {curvature!r}; give an object such as upweight.LinearHead() or upweight.Hessian()."
        )
    if keep_curvature and out is not None:
        raise UsageError(
            "A store holds scores alone, and keep_curvature=True needs memory; leave out or keep_curvature out."
        )
    budget = memory_bytes(memory)
    names, head = resolve(model, parameters)
    with evaluating(model), reporting(progress) as report:
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
            curvature=default_curvature(prepared) if curvature is None else curvature,
            query_label=query_label,  # type: ignore[arg-type]  # checked by Variant
            train_scores=train_scores,
        )
        if keep_curvature:
            interacting(variant.curvature)  # before the dear part
        plan = [(prepared, one) for one in variant.each_damping()]
        return score(plan, out, report, memory=budget, overwrite=overwrite, keep_curvature=keep_curvature)[""]


def _averaged(models: Sequence[nn.Module], curvature: Any, one: Callable[..., Scores]) -> Scores:
    """The mean of the scores of several models."""
    from .influence.average import average

    each = list(curvature) if isinstance(curvature, list | tuple) else [curvature] * len(models)
    if len(each) != len(models):
        raise UsageError(f"There are {len(each)} curvatures for {len(models)} models; give one for all, or one each.")
    return average([one(model, curvature=own) for model, own in zip(models, each, strict=True)])


def pretrain(
    settings: PretrainSettings, out: Path, *, overwrite: bool = False, progress: bool | Progress | None = None
) -> dict[str, Any]:
    """Train a source network.

    Args:
        settings: Data, architecture and recipe.
        out: Path of the .safetensors file.
        overwrite: Replace a source that was made with other settings.
        progress: As in `attribute`.

    Returns:
        Its record: settings, accuracies, hash.

    Raises:
        UsageError: `out` has another ending.
    """
    from .models.pretrain import pretrain
    from .reports.progress import reporting

    if out.suffix != ".safetensors":
        raise UsageError(
            f"The weights are written as safetensors, and {out.name} says otherwise; end it in .safetensors."
        )
    with reporting(progress) as report:
        return _kept_or_made(lambda anew: pretrain(settings, out, report, overwrite=anew), overwrite)


def fine_tune(
    source: SourceSettings,
    data: DataSettings,
    settings: FineTuneSettings,
    out: Path,
    *,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> Run:
    """Fine-tune a source on a target into a run folder.

    Args:
        source: Where to begin.
        data: The target.
        settings: The recipe.
        out: The run folder.
        overwrite: Replace a run that was made with other settings.
        progress: As in `attribute`.

    Returns:
        The run.
    """
    from .models.checkpoints import load_model
    from .models.data import load_data
    from .reports.progress import reporting

    network = load_model(source.source)
    target = load_data(data, network.spec.input_shape)
    with reporting(progress) as report:
        return fine_tune_network(network, target, settings, out, report, overwrite=overwrite)


def fine_tune_network(
    network: LoadedModel,
    target: TargetData,
    settings: FineTuneSettings,
    out: Path,
    report: Progress | None,
    *,
    overwrite: bool,
) -> Run:
    """Fine-tune a network that is loaded already; a run of these very settings is kept, a begun one continued.

    Args:
        network: Where to begin.
        target: The target's train and test set.
        settings: The recipe.
        out: The run folder.
        report: Told after each epoch.
        overwrite: Replace a run that was made with other settings.

    Returns:
        The run.

    Raises:
        RunMismatch: The folder holds weights that no record describes.
    """
    from .models.errors import RunMismatch
    from .models.finetune import fine_tune
    from .models.runs import MODEL_FILE, PARTIAL_FILE, RUN_FILE

    if not overwrite and (out / MODEL_FILE).exists() and not any((out / f).exists() for f in (RUN_FILE, PARTIAL_FILE)):
        raise RunMismatch(
            f"{out} holds a {MODEL_FILE} that no {RUN_FILE} describes; choose another folder, or pass --overwrite."
        )
    return _kept_or_made(lambda anew: fine_tune(network, target, settings, out, report, overwrite=anew), overwrite)


def _kept_or_made(make: Callable[[bool], T], overwrite: bool) -> T:
    """Results of these very settings are kept, begun ones continued; others are replaced only where that is asked for."""
    from .models.errors import CheckpointError, RunMismatch

    try:
        return make(False)
    except (CheckpointError, RunMismatch):
        if not overwrite:
            raise
    return make(True)


def robustness(
    target: str | Path,
    settings: RobustnessSettings,
    data: DataSettings | None = None,
    *,
    progress: bool | Progress | None = None,
) -> dict[str, Any]:
    """Clean and adversarial accuracy of a run, kept in its folder, or of a source.

    Args:
        target: A run folder, or a source: natural, robust, or a checkpoint file.
        settings: The attack, and how many images it is measured on.
        data: What a source is tested on; a run has its own.
        progress: As in `attribute`.

    Returns:
        Both rates with their numbers of images, the attack, hashes; of a run, one record of its robustness.json.

    Raises:
        UsageError: Data are given for a run, or none for a source.
    """
    from .models.checkpoints import SOURCES
    from .models.robustness import measure_run, measure_source
    from .reports.progress import reporting

    folder = Path(target).expanduser()
    with reporting(progress) as report:
        if str(target) not in SOURCES and (folder.is_dir() or not (folder.is_file() or folder.suffix)):
            if data is not None:
                raise UsageError(f"{target} is a run folder, and a run is tested on its own data; leave the data out.")
            return measure_run(folder, settings, report)
        if data is None:
            raise UsageError(
                f"{target} is a source, and no data are named to test it on; name those it was trained on, as in "
                "--data fashion-mnist."
            )
        return measure_source(target, data, settings, report)


def attribute_run(
    run: Path | Run,
    settings: AttributeSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> dict[str, Scores]:
    """Score the test and train set of a run into its influence.h5; what is there already is not computed again.

    Args:
        run: A run folder, or a run already read.
        settings: Parameters, curvature, label.
        out: Folder for influence.h5; None: the run's own.
        overwrite: Replace scores that were made under other settings.
        progress: As in `attribute`.

    Returns:
        Scores by variant; the main one is named "".
    """
    from .influence.problem import evaluating
    from .models.runs import Run, disturbances, load_run
    from .reports.progress import reporting

    run = run if isinstance(run, Run) else load_run(run)
    out = (run.path if out is None else out) / STORE_FILE
    config = run_config(run.info, settings)
    finished = standing_scores(out, config, overwrite=overwrite)
    if finished is not None:
        return finished
    decay = float(run.info["weight_decay"])
    index = run.train.index.tolist(), run.test.index.tolist()
    sides = Sides(run.train, run.test, *index, warnings=disturbances(run.info))
    with few_threads(run.model), evaluating(run.model.model), reporting(progress) as report:
        network = run.model.model
        if settings.curvature == "unrolled":
            plan = unrolled_plan(run, settings, report)
            return score(plan, out, report, config, memory=memory_bytes(settings.memory), overwrite=overwrite)
        plan = make_plan(
            settings,
            run.info["k"],
            decay,
            lambda how: prepared_sides(network, sides, how, decay, report),
            lambda prepared: prepared,
        )
        return score(plan, out, report, config, memory=memory_bytes(settings.memory), overwrite=overwrite)


def run_config(info: Mapping[str, Any], settings: AttributeSettings) -> dict[str, Any]:
    """What decides the scores of a run.

    Args:
        info: What its run.json holds.
        settings: Parameters, curvature, label.

    Returns:
        Settings, and the hashes of weights and data.
    """
    return {
        **settings.decisive(),
        "model_sha256": info["model_sha256"],
        "data_sha256": info["data"]["fingerprint"],
    }


def attribute_own(
    own: OwnSettings,
    settings: AttributeSettings,
    out: Path,
    *,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> dict[str, Scores]:
    """Score the examples of anyone's network into OUT/influence.h5.

    Args:
        own: The network and its data.
        settings: Parameters, curvature, label.
        out: Folder to make.
        overwrite: Replace scores that were made under other settings.
        progress: As in `attribute`.

    Returns:
        Scores by variant; the main one is named "".
    """
    from .influence.problem import evaluating
    from .reports.progress import reporting

    network, sides = load_own(own, settings)
    with evaluating(network), reporting(progress) as report:
        prepared = prepared_sides(network, sides, settings, own.weight_decay, report)
        plan = [(prepared, variant) for variant in make_variants(prepared, settings, own.weight_decay)]
        out.mkdir(parents=True, exist_ok=True)
        return score(plan, out / STORE_FILE, report, memory=memory_bytes(settings.memory), overwrite=overwrite)


def load_own(own: OwnSettings, settings: AttributeSettings) -> tuple[nn.Module, Sides]:
    """Anyone's network, and its data.

    Args:
        own: Where they are.
        settings: What is asked of them.

    Returns:
        The network, train set and queries.

    Raises:
        UsageError: No network or no train set is named, or the scores of the fine-tuned blocks are asked for.
    """
    from .models.own import load_examples, load_own_model

    if own.model is None or own.train is None:
        raise UsageError("A network of your own needs --model and --train.")
    if "block" in settings.also:
        raise UsageError("The fine-tuned blocks of a network of your own are not known; name them in --parameters.")
    network = load_own_model(own.model, own.weights)
    train = load_examples(own.train, own.input_shape, "train", own.root)
    queries = None if own.queries is None else load_examples(own.queries, own.input_shape, "test", own.root)
    return network, Sides(train, queries)
