"""Trainings that are recorded: some networks, every step of theirs, and what was found out by training them again.

The ground truth of the short training lies in benchmarks/truth/short-mlp. The other networks are tasks of the main tables, with
their ground truth of the first queries; of the fine-tuned ones `same-few.h5` comes on top. `python -m
benchmarks.quality.training` makes what is not there, and with `--anew` all of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..problems import Problem, Recipe, Spec, descend, digits, make_model
from .tasks import MISLABELLED, SEED, TASKS, TRUTH, Data, read_data
from .training_tuned import Tuned

SUBSETS, LEFT_OUT, FEW = 100, 40, 0.05
TRAININGS = 5  # that scores are averaged over
MOMENTUM = 0.9


class Made(Protocol):
    """A training of which every step is known, and that can be made again."""

    @property
    def seed(self) -> int:
        """Of the network that the scores are of."""

    @property
    def labels(self) -> np.ndarray:
        """Of the train set."""

    def record(self, seed: int) -> tuple[Problem, Any]:
        """The network as a problem with all its queries, and its recording."""

    def trainer(self, question: str, m: int) -> Any:
        """What trains it again for a ground truth of the first m queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What is asked of a recorded training."""

    key: str
    title: str
    m: int
    """Queries: the first ones."""
    by: Made
    windows: tuple[int, ...]
    """Parts of the training, from its end, that are differentiated alone; in stretches of `Recording`, epochs of a run."""
    every: int
    """Stretches that one checkpoint stands for."""
    questions: tuple[str, ...]
    """Names of the ground truths."""
    made: tuple[str, ...] = ()
    """Those of them that are made here; the others are the main tables'."""
    parts: int = SUBSETS
    """Random parts of the train set in each of those."""
    means: tuple[str, ...] = ()
    """Methods whose scores are averaged over several trainings too."""
    picked: float | None = None
    """Damping of GaussNewton that is best on these ground truths, of half decades."""
    mislabelled: bool = False
    """Whether it is trained on some wrong labels too, which self-influence has to find."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the trainings that scores are averaged over; the first is its own."""
        return self.by.seed, *range(SEED + 1, SEED + TRAININGS)

    def truth(self, question: str) -> Any:
        """What retraining gave for the queries asked here."""
        from upweight.cache.truth import open_truth

        found, m = open_truth(TRUTH / self.key / f"{question}.h5"), self.m
        own = {name: getattr(found, name)[..., :m] for name in ("loss", "margin")}
        return replace(found, **own, query_index=found.query_index[:m])


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """Stochastic gradient descent from random weights, with a plain loop."""

    recipe: Recipe
    make: Callable[[], nn.Module]
    data: Callable[[], Data]
    seed: int = SEED

    @property
    def labels(self) -> np.ndarray:
        """Of the train set."""
        return self.data().y.numpy()

    def record(self, seed: int, labels: Tensor | None = None) -> tuple[Problem, Any]:
        """The network trained on all examples, and its `upweight.Recording`; with other labels where some are given."""
        import upweight

        data, recipe = self.data(), self.recipe
        y = data.y if labels is None else labels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            start = self.make().train()
            state = torch.get_rng_state()
            batches = [rows for _ in range(recipe.epochs) for rows in torch.randperm(len(y)).split(recipe.batch)]
            torch.set_rng_state(state)
            recording = upweight.Recording(
                start, (data.X, y), batches, recipe.rate, momentum=MOMENTUM, weight_decay=recipe.weight_decay
            )
            descend(start, data.X, y, recipe)
        spec = Spec(kind="mlp", n=len(y), m=len(data.yq))  # all parameters are analysed
        return Problem(spec, start.eval(), data.X, y, data.Xq, data.yq, recipe.weight_decay), recording

    def trainer(self, question: str, m: int) -> Any:
        """What trains the short network again, for `upweight.retraining`."""
        from upweight.models.refit import OwnTrainer

        data, in_place = self.data(), question.startswith("same")
        settings = {"recipe": asdict(self.recipe), "in_place": in_place}
        queries = data.Xq[:m], data.yq[:m]
        return OwnTrainer(
            ShortFit(in_place), (data.X, data.y), queries, seed=self.seed, settings=settings, make=self.make
        )


def short_model() -> nn.Module:
    """A smooth network: no rectifier, no maximum."""
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def short_data() -> Data:
    """The first of the digits, as rows of pixels."""
    (images, labels), (n, m) = digits(), (300, 100)
    x, y = torch.from_numpy(images).float(), torch.from_numpy(labels).long()
    return Data(x[:n], y[:n], x[n : n + m], y[n : n + m])


def tuned(key: str, *, m: int, **about: Any) -> Recorded:
    """The fine-tuning of a task of the main tables."""
    title = f"A fine-tuning: Fashion-MNIST to digits, {TASKS[key].source} source, 400 steps, {m} queries"
    return Recorded(key=key, title=title, m=m, by=Tuned(task=TASKS[key]), every=4, means=("newton", "ekfac"), **about)


GENTLE = replace(TASKS["fashion-natural"], key="fashion-gentle", title="The same with smaller steps")
"""`upweight fine-tune --k 1 --n 400 --seed 20000000 --learning-rate 0.01`: a run folder, and no part in the main tables."""
SHORT = Own(recipe=Recipe(epochs=10), make=short_model, data=short_data)
_CNN = TASKS["digits-cnn"]
assert _CNN.recipe is not None
RECORDED = {
    task.key: task
    for task in (
        Recorded(
            key="short-mlp",
            title="A short training: MLP 64-32-10 (tanh) on 300 digits, 60 steps",
            m=100,
            by=SHORT,
            windows=(1, 2, 4),
            every=1,
            questions=("lds", "loo", "same-halves", "same-few", "same-loo"),
            made=("lds", "loo", "same-halves", "same-few", "same-loo"),
            means=("unrolled", "unrolled-4", "newton", "ekfac", "along"),
            picked=0.1,
            mislabelled=True,
        ),
        tuned("fashion-natural", m=32, windows=(16, 67), questions=("lds", "same-few"), made=("same-few",), parts=40),
        tuned("fashion-robust", m=16, windows=(67,), questions=("lds",)),
        Recorded(
            key=GENTLE.key,
            title="A gentle fine-tuning: as the natural one, at a tenth of its rate, 400 steps, 16 queries",
            m=16,
            by=Tuned(task=GENTLE),
            windows=(67,),
            every=4,
            questions=("same-few", "same-halves"),
            made=("same-few", "same-halves"),
            parts=40,
        ),
        Recorded(
            key="digits-cnn",
            title="A long training from random weights: the CNN on digits, 600 steps, 32 queries",
            m=32,
            by=Own(recipe=_CNN.recipe, make=partial(make_model, _CNN.spec), data=partial(read_data, "digits-cnn")),
            windows=(2, 4, 8, 16),
            every=2,
            questions=("lds",),
            means=("newton", "ekfac", "along", "unrolled-8"),
        ),
    )
}


# ------------------------------------------------------------------------------------------------------------- training


def record(task: Recorded, seed: int | None = None) -> tuple[Problem, Any]:
    """The network with the queries asked here, trained with its own seed or another, and its recording."""
    problem, recording = task.by.record(task.by.seed if seed is None else seed)
    return replace(problem, Xq=problem.Xq[: task.m], yq=problem.yq[: task.m]), recording


@dataclass(frozen=True, slots=True)
class ShortFit:
    """Trains the short network on part of its train set."""

    in_place: bool
    """Batches stay as they are with all examples, and those left out weigh nothing; otherwise batches are filled up."""

    def __call__(self, kept: np.ndarray, labels: np.ndarray, seed: int) -> nn.Module:
        data, y, part = SHORT.data(), torch.from_numpy(np.asarray(labels, dtype=np.int64)), torch.from_numpy(kept)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = SHORT.make()
            (descend_in_place if self.in_place else descend)(model, data.X, y, SHORT.recipe, part)
        return model.eval()


def descend_in_place(model: nn.Module, X: Tensor, y: Tensor, recipe: Recipe, kept: Tensor) -> None:
    """`descend` with every batch, and what its sum is divided by, as they are when nothing is left out."""
    options = {"lr": recipe.rate, "momentum": MOMENTUM, "weight_decay": recipe.weight_decay}
    optimizer = torch.optim.SGD(model.parameters(), **options)
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(y)).split(recipe.batch):
            optimizer.zero_grad()
            losses = nn.functional.cross_entropy(model(X[rows]), y[rows], reduction="none")
            (losses * kept[rows]).mean().backward()
            optimizer.step()


# --------------------------------------------------------------------------------------------------------- ground truth


def design(task: Recorded, question: str) -> Any:
    """What is left out for a question."""
    from upweight.influence.truth import random_parts
    from upweight.retraining import Design

    if question == "lds":
        return Design(subsets=task.parts, repeats=2)
    labels = task.by.labels
    if question in ("loo", "same-loo"):
        drawn = np.random.default_rng(SEED).permutation(len(labels))[:LEFT_OUT]
        return Design(leave_out=tuple(sorted(drawn.tolist())), repeats=2 if question == "loo" else 1)
    share = 0.5 if question == "same-halves" else 1 - FEW
    return Design(parts=random_parts(labels, task.parts, share, SEED), repeats=1)


def wrong_labels(task: Recorded) -> tuple[Tensor, np.ndarray]:
    """Labels of the train set of which a tenth are wrong, and which."""
    from upweight.mislabelling import flip_labels

    labels = task.by.labels
    changed = flip_labels(labels, MISLABELLED, SEED)
    return torch.from_numpy(changed), changed != labels


def rebuild(task: Recorded, *, workers: int = 1, anew: bool = False) -> None:
    """The ground truth of a recorded training that is made here; what is there is kept."""
    from upweight.retraining import retrain_with

    folder = TRUTH / task.key
    path = folder / "seconds.json"
    if anew:
        for old in (path, *(folder / f"{question}.h5" for question in task.made)):
            old.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    for question in task.made:
        if question in seconds:
            continue
        start = time.perf_counter()
        retrain_with(
            task.by.trainer(question, task.m), design(task, question), workers=workers, out=folder / f"{question}.h5"
        )
        seconds[question] = round(time.perf_counter() - start, 1)
        path.write_text(json.dumps(seconds, indent=1) + "\n")
        print(f"{task.key}: {question}, {seconds[question]} s", flush=True)


def rebuild_all(*, workers: int = 1, anew: bool = False) -> None:
    """Of every recorded training."""
    for task in RECORDED.values():
        rebuild(task, workers=workers, anew=anew)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(RECORDED), help="only these, separated by commas")
    parser.add_argument("--anew", action="store_true", help="begin with nothing")
    words = parser.parse_args()
    for name in words.tasks.split(","):
        rebuild(RECORDED[name], anew=words.anew)
