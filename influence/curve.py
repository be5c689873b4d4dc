"""The linear datamodeling score against damping and cutoff, and the damping that one half of the parts recommends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from .. import UsageError
from .attribute import Prepared
from .coordinates import coordinates
from .correlation import Array, interval, resampled_means, scaled_ranks
from .curvature import Curvature
from .damping import each
from .errors import SolveError
from .evaluation import LEAST, Lds, LdsDifference, difference_of_sums, lds_of_sums, outcome, usable
from .side import QueryLabel, Side
from .solve import Inversion
from .sums import positions
from .tables import Table
from .truth import Output, Truth
from .work import ANY, Work

DAMPINGS = tuple(np.logspace(-8, 1, 19).tolist())  # of the largest eigenvalue, where one factorisation serves all
CUTOFFS = tuple(np.logspace(-8, -1, 8).tolist())
COARSE = tuple(np.logspace(-5, 1, 7).tolist())  # where each takes a factorisation of its own
QUERIES = 256  # scored at once

Predict = Callable[[Inversion], Array]
"""Damping or cutoff to what it predicts for each part and query."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """How well scores at each damping and cutoff predict retraining."""

    table: Table
    """kind ("given": as the curvature itself inverts; "damping"; "cutoff"), value, relative (to the largest eigenvalue), lds,
    low, high."""
    lambda_max: float
    """Largest eigenvalue."""
    given: float
    """Damping of the curvature itself; what a rule came to."""
    recommended: float
    """The damping with the highest score on one half of the parts, drawn at random."""
    score: Lds
    """Of the recommended damping, on the other half."""
    score_of_given: Lds
    """Of the given damping, on that same half."""
    gain: LdsDifference
    """Of the recommended over the given, on that half."""
    left_out: tuple[float, ...]
    """Dampings at which the curvature could not be inverted."""

    def sentence(self) -> str:
        """The recommendation in words.

        Returns:
            One sentence.
        """
        share = self.recommended / self.lambda_max
        return (
            f"Damping {self.recommended:.3g} ({share:.1g} of the largest eigenvalue) predicts best on one half of the parts; on "
            f"the other half its LDS is {_words(self.score)}, and {_words(self.score_of_given)} with the given {self.given:.3g}."
        )


def damping_curve(
    prepared: Prepared,
    curvature: Curvature[Any],
    truth: Truth,
    dampings: Sequence[float] | None = None,
    cutoffs: Sequence[float] | None = None,
    *,
    output: Output = "loss",
    query_label: QueryLabel = "true",
    resamples: int = 1000,
    seed: int = 0,
    work: Work = ANY,
) -> Curve:
    """Hold scores at many dampings and cutoffs against retraining; from one factorisation where that is possible.

    Args:
        prepared: Both sides.
        curvature: Anything with a damping; a leave-one-out correction is left out.
        truth: Parts of the train set, and what retraining on them gave.
        dampings: In the unit of the curvature; None: 1e-8 to 10 times its largest eigenvalue.
        cutoffs: Relative to the largest eigenvalue; None: 1e-8 to 0.1, where the eigenvectors are there.
        output: "loss" or "margin".
        query_label: The label that the loss of a query is taken at.
        resamples: Draws for the intervals; 0: none.
        seed: Of the draws and of the halves.
        work: Memory, keeper of tiles, whom to tell.

    Returns:
        The curve with its recommendation.

    Raises:
        UsageError: There are too few parts, the curvature has no damping, or cutoffs are asked of one without eigenvectors.
        SolveError: The curvature cannot be inverted as it is given; a damping of the grid that does not serve is left out.
    """
    used = truth.parts(usable(truth, resamples))
    sides = prepared.train, prepared.side("queries", query_label)
    predict, given, lambda_max, whole = _predictor(sides, curvature, used, work)
    if cutoffs and not whole:
        raise UsageError(
            f"Cutoffs take the eigenvectors of the curvature, and this {type(curvature).__name__} is applied without them; give "
            "dampings alone."
        )
    grid = [share * lambda_max for share in (DAMPINGS if whole else COARSE)] if dampings is None else [*dampings]
    rules = {("given", given.damping): given} | {("damping", value): Inversion(damping=value) for value in grid}
    if whole:
        shares = CUTOFFS if cutoffs is None else cutoffs
        negative = given.negative
        rules = {key: replace(rule, negative=negative) for key, rule in rules.items()}
        rules |= {("cutoff", share * lambda_max): Inversion(rcond=share, negative=negative) for share in shares}
    found, left_out = {}, []
    for key, rule in rules.items():
        try:
            found[key] = predict(rule)
        except SolveError:
            if key[0] == "given":
                raise
            left_out.append(key[1])
    table = _table(found, lambda_max, used, output, resamples, seed)
    return _recommend(found, table, lambda_max, used, output, resamples, seed, tuple(left_out))


def _predictor(
    sides: tuple[Side, Side], curvature: Curvature[Any], truth: Truth, work: Work
) -> tuple[Predict, Inversion, float, bool]:
    """What predicts at a damping; the rule of the curvature itself; its largest eigenvalue; whether cutoffs are possible."""
    train, queries = sides
    kept = np.zeros((len(truth.kept), len(train)))
    kept[:, positions(train.examples.index, truth.train_index, "train examples")] = truth.kept
    rows = positions(queries.examples.index, truth.query_index, "queries")
    weights = torch.from_numpy(kept.T).to(train.logits.device)
    there = coordinates(curvature, train, queries, work)
    if there is not None:
        sums = there.sums(weights)
        return lambda rule: there.scores(sums, rule).cpu().numpy()[:, rows], there.given, there.lambda_max, True
    if not hasattr(curvature, "damping"):
        raise UsageError(f"{type(curvature).__name__} has no damping; there is no curve to draw.")
    plain: Any = replace(curvature, damping=each(curvature.damping)[0])  # type: ignore[type-var]
    if getattr(plain, "leave_one_out", False):
        plain = replace(plain, leave_one_out=False)
    first = plain.fit(train, work=work)
    facts = plain.spectrum(first)
    given = Inversion(damping=facts.damping)

    def predict(rule: Inversion) -> Array:
        same = rule is given
        other = plain if same else replace(plain, damping=rule.damping)
        state = first if same else other.fit(train, like=first, work=work)
        return _sums_of_scores(other, state, sides, weights)[:, rows]

    return predict, given, facts.lambda_max, False


def _sums_of_scores(
    curvature: Curvature[Any], state: Any, sides: tuple[Side, Side], weights: Float[torch.Tensor, "n J"]
) -> Float[NDArray[np.float64], "J m"]:
    train, queries = sides
    parts = []
    for start in range(0, len(queries), QUERIES):
        solved = curvature.solve(state, queries, slice(start, min(start + QUERIES, len(queries))))
        parts.append(curvature.scores(state, solved, train, slice(0, len(train))).double() @ weights)
    sums: NDArray[np.float64] = torch.cat(parts).T.cpu().numpy()
    return sums


def _table(
    found: dict[tuple[str, float], Array], lambda_max: float, truth: Truth, output: Output, resamples: int, seed: int
) -> Table:
    """One row a rule; all rules see the same draws."""
    target = scaled_ranks(outcome(truth, output))
    ranks = [scaled_ranks(predicted) for predicted in found.values()]
    ends = [interval(draws) for draws in resampled_means(ranks, target, resamples, seed)]
    values = np.array([value for _, value in found])
    columns = {
        "kind": np.array([kind for kind, _ in found]),
        "value": values,
        "relative": values / lambda_max,
        "lds": np.array([float((x * target).sum(0).mean()) for x in ranks]),
        "low": np.array([low for low, _ in ends]),
        "high": np.array([high for _, high in ends]),
    }
    return Table(columns, f"LDS against damping and cutoff, over {len(truth.kept)} parts")


def _recommend(
    found: dict[tuple[str, float], Array],
    table: Table,
    lambda_max: float,
    truth: Truth,
    output: Output,
    resamples: int,
    seed: int,
    left_out: tuple[float, ...],
) -> Curve:
    """Choose on one half of the parts, report on the other."""
    order = np.random.default_rng(seed).permutation(len(truth.kept))
    one, other = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    dampings = {key: predicted for key, predicted in found.items() if key[0] != "cutoff"}
    given = next(key for key in found if key[0] == "given")
    half = truth.parts(one)
    scores = {key: lds_of_sums(predicted[one], half, output, 0).mean for key, predicted in dampings.items()}
    best = max(scores, key=lambda key: scores[key])
    rest, draws = truth.parts(other), resamples if len(other) >= LEAST else 0
    return Curve(
        table=table,
        lambda_max=lambda_max,
        given=given[1],
        recommended=best[1],
        score=lds_of_sums(found[best][other], rest, output, draws, seed),
        score_of_given=lds_of_sums(found[given][other], rest, output, draws, seed),
        gain=difference_of_sums(found[best][other], found[given][other], rest, output, draws, seed),
        left_out=left_out,
    )


def _words(score: Lds) -> str:
    known = not np.isnan(score.low)
    return f"{score.mean:.3f}" + (f" ({score.low:.3f} to {score.high:.3f})" if known else "")
