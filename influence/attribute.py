"""From a model and two sets of examples to tiles of scores: prepare once, fit every variant, write tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .. import UsageError
from .check import check_batch_independence
from .curvature import Curvature
from .damping import each, variant_name
from .examples import Examples, Progress, Reader, Source
from .per_example import gradient_plan
from .problem import Loss, Problem, make_problem
from .sensitivity import sensitivity
from .side import QueryLabel, Side, examine
from .spectrum import Spectrum
from .stationarity import NO_OPTIMUM, stationarity
from .walk import stage_name
from .work import ANY, Work

SIGN = "+ g_query^T H^+ g_train; positive = helpful: removing the example raises the query's loss by about score / n"


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Both sides examined; everything that does not depend on the curvature."""

    problem: Problem
    train: Side
    queries: Side | None
    """None: the train set is scored on itself alone."""
    facts: dict[str, Any]
    """What to state beside any score: parameters analysed, stationarity, warnings."""

    def side(self, name: str, query_label: QueryLabel) -> Side:
        """A side with its losses taken at the wanted label.

        Args:
            name: "queries" or "train".
            query_label: "true" or "predicted".

        Returns:
            The side as the rows of a matrix.
        """
        side = self.queries if name == "queries" and self.queries is not None else self.train
        if query_label == "true":
            return side
        prediction = side.logits.argmax(1)
        residual = self.problem.output_losses(side.logits, prediction)[1]
        return replace(side, target=prediction, residual=residual)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to score: a curvature and the label at which the loss of a query is taken."""

    curvature: Curvature[Any]
    query_label: QueryLabel = "true"
    train_scores: bool = False
    """Score the train set on itself too."""
    name: str = ""
    """Empty for the main scores of a run."""

    def __post_init__(self) -> None:
        if self.query_label not in ("true", "predicted"):
            raise UsageError(f"query_label must be 'true' or 'predicted', got {self.query_label!r}.")

    def each_damping(self) -> list[Variant]:
        """One variant for every damping of the curvature.

        Returns:
            The first under this variant's own name, the others called after their damping; of a single one the variant itself.
        """
        several = each(getattr(self.curvature, "damping", None))
        if len(several) == 1:
            return [self]
        names = [self.name, *map(variant_name, several[1:])]
        return [
            replace(self, curvature=replace(self.curvature, damping=damping), name=name)  # type: ignore[type-var]
            for damping, name in zip(several, names, strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A variant with its factored curvature."""

    prepared: Prepared
    variant: Variant
    state: Any
    spectrum: Spectrum | None

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of every matrix it fills, by side."""
        n = len(self.prepared.train)
        queries = self.prepared.queries
        shapes = {} if queries is None else {"queries": (len(queries), n)}
        if self.variant.train_scores or queries is None:
            shapes["train"] = (n, n)
        return shapes

    def meta(self) -> dict[str, Any]:
        """How these scores were made, ready for JSON.

        Returns:
            Curvature, label, unit, sign and the facts of the run.
        """
        curvature, told = self.variant.curvature, self.prepared.facts["warnings"]
        if getattr(curvature, "anywhere", False):
            told = [warning for warning in told if not warning.endswith(NO_OPTIMUM)]
        return {
            "curvature": curvature.settings(),
            "query_label": self.variant.query_label,
            "unit": curvature.unit,
            "sign": getattr(curvature, "sign", SIGN),
            **self.prepared.facts,
            "warnings": [*told, *curvature.warnings(self.state)],
        }


def prepare(
    model: nn.Module,
    train: Source,
    queries: Source | None,
    *,
    parameters: Sequence[str],
    head: str | None,
    loss: Loss | None,
    dtype: torch.dtype | None,
    device: torch.device,
    batch_size: int,
    weight_decay: float | None,
    train_index: Sequence[int] | None = None,
    query_index: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Read the model, check that single examples mean something to it, and run it once over both sides.

    Args:
        model: Any module from inputs [b, ...] to logits [b, C], in eval mode (`evaluating`).
        train: The train set.
        queries: The queries; None for the train set on itself.
        parameters: Names of the analysed parameters.
        head: Name of the last linear layer, when there is one.
        loss: None for cross-entropy, else a function of (logits, labels) that gives each example's loss.
        dtype: Type to compute in; None: the model's.
        device: Where to compute.
        batch_size: Examples in a forward pass.
        weight_decay: L2 penalty of the training run, when known, for the report on stationarity.
        train_index: Ids of the train examples; None: their positions.
        query_index: Ids of the queries; None: their positions.
        progress: Told after each block.

    Returns:
        Both sides, examined.

    Raises:
        UsageError: The batch size is below 1, or the weight decay is negative or not finite.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}.")
    if weight_decay is not None and not 0 <= weight_decay < float("inf"):  # catches NaN too
        raise UsageError(f"weight_decay must be a finite number >= 0, got {weight_decay}.")
    problem = make_problem(
        model, parameters, head=head, loss=loss, dtype=dtype, device=device, weight_decay=weight_decay
    )
    reader = Reader(train, "train")
    check_batch_independence(problem, reader)
    side = examine(problem, reader, index=train_index, batch_size=batch_size, progress=progress)
    others = None
    if queries is not None:
        others = examine(
            problem, Reader(queries, "queries"), index=query_index, batch_size=batch_size, progress=progress
        )
    if not problem.linear:
        plan = gradient_plan(problem, side.inputs(slice(0, min(2, len(side)))), side.num_classes)
        side = replace(side, plan=plan)
        others = None if others is None else replace(others, plan=plan)
    facts = {
        "parameters": list(parameters),
        "p": problem.p,
        "num_classes": side.num_classes,
        "n": len(side),
        "head_bias": head is not None and problem.head_parameters[1] is not None,
        "weight_decay": weight_decay,
        **stationarity(side, weight_decay),
    }
    return Prepared(problem, side, others, facts)


def fit(
    prepared: Prepared,
    variant: Variant,
    progress: Progress | None = None,
    *,
    before: Sequence[Fitted] = (),
    work: Work = ANY,
) -> Fitted:
    """Form and factor the curvature of one variant, and see how much its damping or cutoff matters.

    Args:
        prepared: Both sides.
        variant: What to score with.
        progress: Told before and after.
        before: Variants that were fitted already: what one of them at another damping has in common with this is taken over.
        work: Memory, keeper of tiles, whom to tell.

    Returns:
        The fit with the facts of its spectrum.
    """
    stage = stage_name("curvature", [variant])
    if progress is not None:
        progress(stage, 0, 1)
    curvature = variant.curvature
    akin = [one for one in before if one.prepared is prepared and _akin(one.variant.curvature, curvature)]
    state = next((one.state for one in akin if one.variant.curvature.settings() == curvature.settings()), None)
    if state is None:  # not merely another label of the queries
        state = curvature.fit(prepared.train, like=akin[0].state if akin else None, work=work)
    spectrum = curvature.spectrum(state)
    if spectrum is not None:
        spectrum = replace(spectrum, sensitivity=sensitivity(prepared, variant, state))
    if progress is not None:
        progress(stage, 1, 1)
    return Fitted(prepared, variant, state, spectrum)


def _akin(one: Curvature[Any], other: Curvature[Any]) -> bool:
    """Whether two curvatures differ in their damping alone."""
    settings, others = ({**curvature.settings(), "damping": None} for curvature in (one, other))
    return type(one) is type(other) and settings == others


def examples(prepared: Prepared) -> tuple[Examples | None, Examples]:
    """What is kept of both sides.

    Args:
        prepared: Both sides.

    Returns:
        Queries (None for the train set on itself) and train set.
    """
    return None if prepared.queries is None else prepared.queries.examples, prepared.train.examples
