"""Ground truth made: trainings on many parts of a train set, in processes, kept as they come in.

Heavy modules are imported inside the functions that need them, so that the command line can show its options at once.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import UsageError
from .design import Design
from .mislabelling import Mislabelled, mislabelled
from .processes import Ended, in_processes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .influence.examples import Progress, Source
    from .influence.truth import Truth
    from .models.refit import Fit, Trainer
    from .models.run_trainer import RunTrainer
    from .models.runs import Run

__all__ = [
    "Design",
    "Mislabelled",
    "mislabelled",
    "mislabelled_run",
    "retrain",
    "retrain_run",
    "retrain_with",
]

TRUTH_FOLDER = "truth"
"""In the folder of a run: its ground truths are kept when its scores are made anew."""
STAGE = "refit"
SHOWN = 5
"""Most ids that a message names."""


def retrain(
    fit: Fit,
    train: Source,
    queries: Source | None = None,
    *,
    subsets: int | None = None,
    alpha: float = 0.5,
    repeats: int = 2,
    leave_out: Sequence[int] | None = None,
    parts: NDArray[np.bool_] | None = None,
    seed: int = 0,
    exact: bool = False,
    settings: Mapping[str, Any] | None = None,
    workers: int = 1,
    out: str | Path | None = None,
    overwrite: bool = False,
    allow_overlap: bool = False,
    progress: bool | Progress | None = None,
) -> Truth:
    """Ground truth: train again on parts of the train set, and measure every query after each training.

    One of `subsets`, `leave_out` and `parts` says which parts. What is finished is kept in `out`: the same call goes on where
    it was stopped, and one that asks for more parts of the same kind adds them.

    Args:
        fit: A function of (kept, labels, seed): which examples to train on (bool [n]), the labels of all (int64 [n], numpy
            arrays both) and a number from which all that is random must follow, to the trained torch.nn.Module.
        train: All examples: a map-style data set of (x, y), or a pair of tensors (X, y).
        queries: Likewise; None: the train set on itself.
        subsets: Parts drawn at random; 100 where nothing else is said.
        alpha: Share of the examples in each.
        repeats: Trainings on each part, each with a seed of its own.
        leave_out: Positions of examples to leave out one at a time; the whole train set is trained on first, and every part
            with the same seeds.
        parts: Parts of your own, bool [J, n]; every part is trained on with the same seeds.
        seed: Of the draws, and of the first training of parts that share their seeds.
        exact: The fit reaches the optimum of a convex problem: it is made once a part.
        settings: What decides the results and cannot be seen in the data or the text of `fit`; plain JSON values.
        workers: Processes at once, each with one torch thread; 1 trains in this one. With more, `fit` must be found by name
            in a module.
        out: Path of an HDF5 file, resumable; None: in memory.
        overwrite: Replace a ground truth that was made otherwise.
        allow_overlap: Let queries be train examples too.
        progress: None, True for a bar on the terminal, or a function of (stage, done, total).

    Returns:
        The ground truth; trainings that diverged have NaN, and are left out of every mean.
    """
    from .models.refit import OwnTrainer
    from .reports.progress import reporting

    design = Design(
        subsets=subsets,
        alpha=alpha,
        repeats=repeats,
        leave_out=None if leave_out is None else tuple(int(i) for i in leave_out),
        parts=parts,
        seed=seed,
    )
    trainer = OwnTrainer(fit, train, queries, seed=seed, exact=exact, settings=settings)
    with reporting(progress) as report:
        return retrain_with(
            trainer,
            design,
            workers=workers,
            out=out,
            overwrite=overwrite,
            allow_overlap=allow_overlap,
            report=report,
        )


def retrain_with(
    trainer: Trainer,
    design: Design,
    *,
    workers: int = 1,
    out: str | Path | None = None,
    overwrite: bool = False,
    allow_overlap: bool = False,
    report: Progress | None = None,
) -> Truth:
    """The same with any trainer.

    Args:
        trainer: What trains.
        design: On which parts, and how often.
        workers: Processes at once.
        out: The file; None: in memory.
        overwrite: Replace a ground truth that was made otherwise.
        allow_overlap: Let queries be train examples too.
        report: Told of the refits done.

    Returns:
        The ground truth.

    Raises:
        UsageError: An argument does not fit the data.
    """
    from tempfile import TemporaryDirectory

    from .cache.truth import TruthStore

    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise UsageError(f"workers is {workers!r}; give a whole number of at least 1.")
    refits = design.refits(trainer)
    if not allow_overlap:
        _refuse_overlap(trainer)
    if out is None:
        with TemporaryDirectory(prefix="upweight-") as folder:
            return retrain_with(
                trainer, design, workers=workers, out=Path(folder) / "truth.h5", allow_overlap=True, report=report
            )
    with TruthStore.create_or_resume(out, refits, design.config(trainer), overwrite=overwrite) as store:
        jobs = [Job(j, a, refits.kept[j], int(refits.seed[j, a])) for j, a in store.pending]
        total = refits.seed.size
        count = total - len(jobs)
        if report is not None:
            report(STAGE, count, total)
        if jobs:
            _check(trainer, jobs[0], first=count == 0)

        def ended(job: Ended) -> None:
            nonlocal count
            found: Measured = job.result
            part, repeat = jobs[job.position][:2]
            store.write(part, repeat, found.loss, found.margin, diverged=found.diverged is not None)
            count += 1
            if report is not None:
                report(STAGE, count, total)

        _do(trainer, jobs, workers, ended)
        store.finish()
        return store.truth()


def retrain_run(
    run: str | Path | Run,
    design: Design,
    *,
    workers: int = 1,
    overwrite: bool = False,
    allow_overlap: bool = False,
    recipe: bool = False,
    report: Progress | None = None,
) -> Truth:
    """The same for a run, kept in RUN/truth/<kind>-<digest>.h5.

    Args:
        run: A run, or its folder.
        design: On which parts of its train set, and how often.
        workers: Processes at once.
        overwrite: Replace a damaged file.
        allow_overlap: Let test images be train images too.
        recipe: Train by the run's own recipe even where the problem is convex.
        report: Told of the refits done.

    Returns:
        The ground truth; its queries are the run's test images.
    """
    from .models.run_trainer import RunTrainer

    trainer = RunTrainer(run, recipe=recipe)
    config = design.config(trainer) | {"repeats": 1 if trainer.exact else design.repeats}
    out = _truth_file(trainer, design.kind, config, "h5")
    return retrain_with(
        trainer,
        design,
        workers=workers,
        out=out,
        overwrite=overwrite,
        allow_overlap=allow_overlap,
        report=report,
    )


def mislabelled_run(
    run: str | Path | Run, share: float, seed: int = 0, *, recipe: bool = False, progress: Progress | None = None
) -> Mislabelled:
    """Labels changed, and a run trained on them, kept in RUN/truth/mislabel-<digest>.safetensors.

    Args:
        run: A run, or its folder.
        share: Of the labels that are changed.
        seed: Of the draws.
        recipe: Train by the run's own recipe even where the problem is convex.
        progress: Told when it is done.

    Returns:
        Labels and network.
    """
    from .models.run_trainer import RunTrainer

    trainer = RunTrainer(run, recipe=recipe)
    config = {"share": share, "seed": seed, "trainer": trainer.identity()}
    if progress is not None:
        progress("mislabelled", 0, 1)
    found = mislabelled(trainer, share, seed, out=_truth_file(trainer, "mislabel", config, "safetensors"))
    if progress is not None:
        progress("mislabelled", 1, 1)
    return found


def _truth_file(trainer: RunTrainer, kind: str, config: Mapping[str, Any], ending: str) -> Path:
    from .cache.provenance import digest

    return trainer.run.path / TRUTH_FOLDER / f"{kind}-{digest(config)[:8]}.{ending}"


class Job(NamedTuple):
    """One training."""

    part: int
    repeat: int
    kept: NDArray[np.bool_]
    seed: int


class Measured(NamedTuple):
    """Every query after one training."""

    loss: NDArray[np.float64] | None
    margin: NDArray[np.float64] | None
    diverged: str | None
    """Why there is none."""


class Refitter:
    """What a process trains with.

    Args:
        trainer: A trainer, or its pickle: unpickled with the first job, so that a failure ends that job and not the process.
    """

    def __init__(self, trainer: Trainer | bytes) -> None:
        self._trainer = trainer

    def do(self, job: Job, report: Callable[[str, int, int], None] | None = None) -> Measured:
        """One training, and what it says of the queries.

        Args:
            job: The training.
            report: Not told anything: a training is one unit.

        Returns:
            Loss and margin of every query.
        """
        import numpy as np

        from .models.errors import TrainingError

        if isinstance(self._trainer, bytes):
            self._trainer = _unpickled(self._trainer)
        trainer = self._trainer
        try:
            logits = trainer.logits(trainer.fit(job.kept, trainer.train_labels, job.seed))
        except TrainingError as error:
            return Measured(None, None, str(error))
        if not np.isfinite(logits).all():
            return Measured(None, None, "The logits of a query are not finite.")
        return Measured(*measured(logits, trainer.query_labels), None)


def measured(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Loss and margin at the true labels; small losses keep their digits.

    Args:
        logits: [m, C].
        labels: [m].

    Returns:
        Losses in nats, and margins.
    """
    import torch

    from .influence.rows import cross_entropy, split_label

    z, y = torch.from_numpy(logits), torch.from_numpy(labels)
    return cross_entropy(z, y).numpy(), split_label(z, y)[0].numpy()


def _check(trainer: Trainer, job: Job, *, first: bool) -> None:
    """Whether training can be repeated; asked before the first refit of a file."""
    from .models.determinism import require_deterministic
    from .models.device import threads
    from .models.errors import NonDeterministicError, TrainingError

    if not first:
        return
    try:
        with threads(1):
            require_deterministic(trainer, job.kept, trainer.train_labels, job.seed)
    except NonDeterministicError:
        raise
    except TrainingError:  # this very part diverges, and will be counted as such
        return


def _do(trainer: Trainer, jobs: Sequence[Job], workers: int, ended: Callable[[Ended], None]) -> None:
    from .models.device import threads

    if min(workers, len(jobs)) > 1:
        make = partial(Refitter, _pickled(trainer))
        in_processes(make, jobs, workers, told=lambda *_: None, ended=ended)
        return
    refitter = Refitter(trainer)
    with threads(1):
        for i, job in enumerate(jobs):
            ended(Ended(i, refitter.do(job), None))


def _pickled(trainer: Trainer) -> bytes:
    try:
        return pickle.dumps(trainer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"What trains cannot be handed to other processes ({error}); define fit at the top level of a module, or give "
            "workers=1."
        ) from error


def _unpickled(content: bytes) -> Trainer:
    try:
        trainer: Trainer = pickle.loads(content)  # what this very program pickled
    except (AttributeError, ImportError) as error:
        raise UsageError(
            f"A worker process does not find what trains ({error}); define fit in a module that can be imported, or give "
            "workers=1."
        ) from error
    return trainer


def _refuse_overlap(trainer: Trainer) -> None:
    shared = trainer.shared()
    if not shared:
        return
    shown = ", ".join(f"{query} (train {train})" for query, train in shared[:SHOWN])
    more = f" and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
    raise UsageError(
        f"{len(shared)} of {len(trainer.query_index)} queries are train examples too: {shown}{more}; take them out of one of "
        "the two, leave the queries out to ask about the train set itself, or pass allow_overlap=True (--allow-overlap)."
    )
