"""What an evaluation is made of: the scores of a run with simpler ones beside them, its refits, and the tables of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import UsageError
from .design import Design
from .scoring import Sides, make_curvature, open_scores, prepared_sides, score

if TYPE_CHECKING:
    from .evaluation import EvaluateSettings
    from .influence.attribute import Fitted, Prepared
    from .influence.curvature import Curvature
    from .influence.examples import Progress
    from .influence.kept import KeptCurvature
    from .influence.ranking import Matrix
    from .influence.scores import Scores
    from .influence.settings import AttributeSettings
    from .influence.truth import Truth
    from .models.runs import Run
    from .retraining import Mislabelled

PIXELS = "nearest images"
BASELINES = {
    "residual": "residual product",
    "cosine": "feature cosine",
    "gradient": "gradient product, head",
    "random_head": "random head",
}


@dataclass(frozen=True, slots=True, eq=False)
class RowMatrix:
    """Scores that are computed as they are read."""

    shape: tuple[int, int]
    rows: Callable[[slice], NDArray[Any]]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(self.shape[0])
        return self.rows(slice(start, stop))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Method:
    """One way to score, and its matrix."""

    name: str
    kind: str
    """"influence", or "baseline" for what knows no gradient or curvature of the network."""
    matrix: Matrix
    """[m, n]; higher: more helpful."""


class Bench:
    """A run with its scores, and simpler scores of the same examples.

    Args:
        run: The run.
        stores: Its scores; the first is its own.
        report: Told of every stage.
    """

    def __init__(self, run: Run, stores: Sequence[Path], report: Progress | None) -> None:
        self.run, self.stores, self.report = run, stores, report
        self.notes: list[str] = []
        self.main = open_scores(stores[0])
        if self.main.on_itself:
            raise UsageError(
                f"{stores[0]} scores the train set on itself alone; an evaluation needs queries that were not trained on."
            )

    @cached_property
    def settings(self) -> AttributeSettings:
        """How the main scores were made."""
        from .cache.store import open_store
        from .influence.settings import AttributeSettings

        with open_store(self.stores[0]) as held:
            return AttributeSettings.of_decisive(held.contents.config)

    @property
    def n(self) -> int:
        """Train examples."""
        return len(self.main.train)

    @cached_property
    def methods(self) -> list[Method]:
        """Every set of scores at the true labels, the main one first, then the baselines."""
        from .cache.store import variant_names

        found: dict[str, Method] = {}
        for store in self.stores:
            for variant in variant_names(store):
                scores = self.main if (store, variant) == (self.stores[0], "") else open_scores(store, variant)
                if scores.meta.get("query_label", "true") != "true":
                    continue  # the measured losses are those of the true labels
                name = method_name(scores)
                if name in found:
                    name = f"{name} ({variant or store.parent.name})"
                found[name] = Method(name=name, kind="influence", matrix=scores.matrix)
        dot = "gradient product"
        if dot not in found and not self.prepared.problem.linear:  # of a head it is among the baselines
            found[dot] = Method(name=dot, kind="influence", matrix=self._gradient_dot().matrix)
        return [*found.values(), *self._baselines()]

    def _gradient_dot(self) -> Scores:
        from .influence.attribute import Variant
        from .influence.gradient_dot import GradientDot

        return score([(self.prepared, Variant(curvature=GradientDot()))], None, self.report)[""]

    def _baselines(self) -> Iterator[Method]:
        from .influence.baselines import baseline_scores
        from .influence.solve import Inversion

        shape = (len(self.main.queries), self.n)
        damping = self.main.spectrum.damping if self.main.spectrum is not None else 0.0
        known = baseline_scores(
            self.main.queries,
            self.main.train,
            self.main.queries.label,
            Inversion(damping=damping),
            bias=self.main.meta.get("head_bias", True),
        )
        for key, rows in known.items():
            yield Method(name=BASELINES[key], kind="baseline", matrix=RowMatrix(shape, rows))
        yield Method(name=PIXELS, kind="baseline", matrix=RowMatrix(shape, self._nearness()))

    def _nearness(self) -> Callable[[slice], NDArray[Any]]:
        """Minus the Euclidean distance of the images, as the network is given them."""
        train = self.run.train.images(slice(None)).flatten(1).double().numpy()
        squares = (train**2).sum(1)

        def rows(part: slice) -> NDArray[Any]:
            x = self.run.test.images(part).flatten(1).double().numpy()
            distance: NDArray[Any] = (x**2).sum(1)[:, None] + squares - 2 * x @ train.T
            near: NDArray[Any] = -np.sqrt(np.maximum(distance, 0.0))
            return near

        return rows

    @cached_property
    def prepared(self) -> Prepared:
        """Both sides, examined as for the main scores."""
        from .influence.problem import evaluating

        run, decay = self.run, float(self.run.info["weight_decay"])
        sides = Sides(run.train, run.test, run.train.index.tolist(), run.test.index.tolist())
        with evaluating(run.model.model):
            return prepared_sides(run.model.model, sides, self.settings, decay, self.report)

    @cached_property
    def fitted(self) -> Fitted:
        """The main curvature, fitted."""
        return self._fit(self.settings)

    def _fit(self, settings: AttributeSettings) -> Fitted:
        from .influence.attribute import Variant, fit

        curvature = first_damping(make_curvature(self.prepared, replace(settings, also=())))
        return fit(self.prepared, Variant(curvature=curvature), self.report)

    def greedy(self, query: int, k: int) -> NDArray[np.int64] | None:
        """The set whose removal is expected to harm a query most, one example after the other.

        Args:
            query: Row of the query.
            k: How many.

        Returns:
            Positions in the train set; None for a curvature that does not tell what examples do together.
        """
        from .influence.errors import SolveError

        if self._kept is None:
            return None
        try:
            return np.array(self._kept.greedy(query, k)[0])
        except SolveError as error:
            self._note(f"No set is built greedily: {error}")
            return None

    def removed(self, truth: Truth) -> NDArray[np.float64] | None:
        """What the main curvature expects of taking sets away, their interaction included.

        Args:
            truth: The refits without them.

        Returns:
            n times the rise of every query's loss [J, m]; None as for `greedy`.
        """
        from .influence.groups import removed_values

        return None if self._kept is None else removed_values(self._together, truth)

    @cached_property
    def _kept(self) -> KeptCurvature | None:
        from .influence.errors import SolveError
        from .influence.groups import keep_curvature

        try:
            return keep_curvature(self._together)
        except (UsageError, SolveError) as error:
            self._note(f"Sets are not predicted through the curvature: {error}")
            return None

    @cached_property
    def _together(self) -> Fitted:
        """The curvature that tells what examples do together: where the main one is undamped, with the run's weight decay."""
        decay = float(self.run.info["weight_decay"])
        undamped = self.main.spectrum is not None and not self.main.spectrum.damping
        if not (undamped and decay):
            return self.fitted
        self._note(
            f"Sets are predicted and built with the run's weight decay, {decay:g}, as damping: the main scores have none."
        )
        return self._fit(replace(self.settings, damping=(decay,), rcond=None, absolute=None))

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def self_influences(self, wrong: Mislabelled) -> dict[str, NDArray[Any]]:
        """Orders in which to inspect the train examples of a network that was trained on wrong labels.

        Args:
            wrong: That network and its labels.

        Returns:
            By name, the self-influence of the main scores first; the loss needs no gradient at all.
        """
        import torch

        from .influence.attribute import Variant
        from .influence.gradient_dot import GradientDot
        from .influence.problem import evaluating

        run = self.run
        train = replace(run.train, labels=torch.as_tensor(wrong.labels))
        with evaluating(wrong.model):
            sides = Sides(train, None, run.train.index.tolist())
            how = replace(self.settings, also=(), leave_one_out=None)
            prepared = prepared_sides(wrong.model, sides, how, float(run.info["weight_decay"]), self.report)
            variants = [Variant(curvature=GradientDot(), name="product")]
            if how.curvature == "unrolled":  # it would take the recorded training of that network
                self._note(
                    "Wrong labels are not inspected by the unrolled scores, which belong to the run's own training."
                )
            else:
                variants.insert(0, Variant(curvature=first_damping(make_curvature(prepared, how))))
            made = score(
                [(prepared, replace(one, name=one.name if i else "")) for i, one in enumerate(variants)],
                None,
                self.report,
            )
        scored = {method_name(one): one.self_influence() for one in made.values()}
        return {**scored, "loss": prepared.train.examples.loss}


def first_damping(curvature: Curvature[Any]) -> Curvature[Any]:
    """A curvature with the first of its dampings alone: that of the main scores.

    Args:
        curvature: With one damping, several or none.

    Returns:
        The same with one.
    """
    from .influence.attribute import Variant

    return Variant(curvature=curvature).each_damping()[0].curvature


def method_name(scores: Scores) -> str:
    """What scores are called in a table: their curvature, and what it is damped or cut by.

    Args:
        scores: Any scores.

    Returns:
        As "GaussNewton, margin rows, damping 0.01".
    """
    how: Mapping[str, Any] = scores.meta.get("curvature", {})
    words = [str(how.get("name", "scores"))]
    if words == ["GradientDot"]:
        words = ["gradient cosine" if how.get("cosine") else "gradient product"]
    if how.get("rows", "logits") != "logits":
        words.append(f"{how['rows']} rows")
    if scores.spectrum is not None and scores.spectrum.damping:
        words.append(f"damping {scores.spectrum.damping:.3g}{' (auto)' if how.get('damping') == 'auto' else ''}")
    elif scores.spectrum is not None:
        words.append("undamped")
    elif "average" in how and "damping" in how:  # each run has a spectrum of its own
        words.append(f"damping {how['damping']}" if how["damping"] else "undamped")
    if how.get("leave_one_out"):
        words.append("leave-one-out")
    return (f"mean of {how['average']} runs: " if "average" in how else "") + ", ".join(words)


class Truths:
    """The refits of a run, made when they are asked for and kept in its folder.

    Args:
        run: The run.
        settings: How many of which kinds.
        workers: Refits at once.
        report: Told of every refit.
    """

    def __init__(self, run: Run, settings: EvaluateSettings, workers: int, report: Progress | None) -> None:
        self.run, self.settings, self.workers, self.report = run, settings, workers, report
        self.made: dict[str, Truth] = {}

    def lds(self) -> Truth | None:
        """Random parts of the train set."""
        how = self.settings
        if not how.lds:
            return None
        return self._truth(Design(subsets=how.lds, alpha=how.alpha, repeats=how.repeats, seed=how.seed))

    def loo(self) -> Truth | None:
        """Examples left out one at a time."""
        how, n = self.settings, len(self.run.train)
        if not how.loo:
            return None
        if how.loo > n:
            raise UsageError(f"loo is {how.loo}, and the run has {n} train examples; give at most as many.")
        chosen = np.sort(np.random.default_rng([how.seed, 1]).permutation(n)[: how.loo])
        return self._truth(Design(leave_out=tuple(chosen.tolist()), repeats=how.repeats, seed=how.seed))

    def sets(self, kept: NDArray[np.bool_]) -> Truth:
        """Sets of examples taken away.

        Args:
            kept: What each refit has [J, n]; the first row has all.

        Returns:
            The refits.
        """
        return self._truth(Design(parts=kept, repeats=self.settings.repeats, seed=self.settings.seed))

    def mislabelled(self) -> Mislabelled | None:
        """The run trained on labels of which some were changed."""
        from .retraining import mislabelled_run

        if not self.settings.mislabel:
            return None
        return mislabelled_run(self.run, self.settings.mislabel, self.settings.seed, progress=self.report)

    def _truth(self, design: Design) -> Truth:
        from .retraining import retrain_run

        overlap = self.settings.allow_overlap
        truth = retrain_run(self.run, design, workers=self.workers, allow_overlap=overlap, report=self.report)
        self.made[design.kind] = truth
        return truth
