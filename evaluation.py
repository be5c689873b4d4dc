"""Are the scores of a run right? The run is trained again on parts of its train set, and every score is held against that.

Heavy modules are imported inside the functions that need them, so that the command line can show its options at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import UsageError, __version__
from .cache.errors import StoreError
from .comparison import clear_report
from .scoring import few_threads, store_of

if TYPE_CHECKING:
    from .influence.examples import Progress
    from .models.runs import Run

FOLDER = "evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """How often a run is trained again, on what, and what is made of it."""

    lds: int = 100
    """Random parts of the train set to train on again, for the linear datamodeling score; 0: none."""

    alpha: float = 0.5
    """Share of the train examples in each of these parts."""

    repeats: int = 2
    """Trainings on each part, from different seeds; a convex head needs but one."""

    loo: int = 0
    """Train examples, drawn at random, that are left out one at a time; 0: none."""

    mislabel: float = 0.0
    """Share of the labels to change at random before training anew, to see which scores find them; 0: none."""

    removal: int = 0
    """Queries whose most helpful sets of train examples are taken away; 0: none."""

    sizes: tuple[int, ...] = ()
    """Sizes of these sets; not given: 2, 5, 10 and 20 in a hundred of the train examples."""

    output: str = "loss"
    """What is held against the scores: the loss or the margin of a query."""

    curve: bool = True
    """Also the linear datamodeling score at other dampings and cutoffs, from one factorisation."""

    allow_overlap: bool = False
    """Go on where a query is a train image too, as in data sets with duplicates."""

    seed: int = 0
    """Of all draws."""

    def __post_init__(self) -> None:
        for name in ("lds", "loo", "removal"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; give a whole number of at least 0.")
        if 0 < self.lds < 10:
            raise UsageError(
                f"lds is {self.lds}: of fewer than 10 subsets there is no interval worth the name; give at least 10, or 0 "
                "for none."
            )
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha is {self.alpha}; give a share above 0 and below 1.")
        if not 0 <= self.mislabel < 1:
            raise UsageError(f"mislabel is {self.mislabel}; give a share from 0 to below 1.")
        if self.repeats < 1:
            raise UsageError(f"repeats is {self.repeats}; give a whole number of at least 1.")
        if self.output not in ("loss", "margin"):
            raise UsageError(f"output is {self.output!r}; choose loss or margin.")
        if any(size < 1 for size in self.sizes):
            raise UsageError(f"sizes are {' '.join(map(str, self.sizes))}; give whole numbers of at least 1.")
        if self.sizes and not self.removal:
            raise UsageError("sizes are those of sets that are taken away, and removal is 0; give removal as well.")
        if not (self.lds or self.loo or self.mislabel or self.removal):
            raise UsageError("Nothing is left to evaluate; give lds, loo, mislabel or removal.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Where the page of an evaluation lies, and its numbers."""

    page: Path
    stats: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`.

        Returns:
            Path of the page, and everything that stats.json holds.
        """
        return {"page": str(self.page), "stats": dict(self.stats)}

    def to_text(self) -> str:
        """For the terminal.

        Returns:
            The main tables, what they say, and where the page lies.
        """
        from .reports.summary import evaluation_summary

        tables = [table.to_text() for table in evaluation_summary(self.stats)]
        return "\n\n".join([*tables, *self.stats["conclusions"], f"Report: {self.page}"])


def evaluate(
    run: str | Path | Run,
    settings: EvaluateSettings | None = None,
    *,
    scores: Sequence[str | Path] = (),
    out: str | Path | None = None,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> Evaluation:
    """Train a run again on parts of its train set, and hold its scores and simpler ones against what comes out.

    Every refit is kept in RUN/truth, whatever becomes of the scores, and is used again by the next call.

    Args:
        run: A run folder with influence.h5, or a run already read.
        settings: How many refits of which kinds; None: 100 half-subsets, twice each.
        scores: Further stores of scores of the same run, to be held against the same refits.
        out: Folder of the page and its tables; None: RUN/evaluation.
        workers: Refits at once, each in a process of its own.
        overwrite: Replace a page of another evaluation; refits are never replaced.
        progress: As in `attribute`.

    Returns:
        The page and its numbers.

    Raises:
        UsageError: There are no workers, or settings do not fit the run.
        StoreError: There are no scores, they are of another run, or `out` holds something else.
    """
    from .evaluation_bench import Bench, Truths
    from .evaluation_tables import tabulate
    from .models.runs import Run, load_run
    from .reports.evaluation import write_evaluation
    from .reports.progress import reporting

    settings = settings or EvaluateSettings()
    if workers < 1:
        raise UsageError(f"workers is {workers}; give a whole number of at least 1.")
    run = run if isinstance(run, Run) else load_run(Path(run).expanduser())
    folder = run.path / FOLDER if out is None else Path(out).expanduser()
    stores = [store_of(run.path), *(store_of(Path(path).expanduser()) for path in scores)]
    inputs = [_identity(run, store) for store in stores]
    wanted = json.loads(json.dumps({"upweight": __version__, **asdict(settings), "inputs": inputs}))
    standing = _standing(folder, wanted, overwrite=overwrite)
    if standing is not None:
        return Evaluation(page=folder / "index.html", stats=standing)
    with few_threads(run.model), reporting(progress) as report:
        bench = Bench(run, stores, report)
        found = tabulate(bench, Truths(run, settings, workers, report), settings)
        found = replace(found, settings={name: value for name, value in wanted.items() if name != "upweight"})
        stats = write_evaluation(found, folder)
    return Evaluation(page=folder / "index.html", stats=stats)


def _identity(run: Run, store: Path) -> str:
    """Name of what a store says of this run; one of other weights or data is refused."""
    from .cache.provenance import digest
    from .cache.store import open_store

    with open_store(store) as held:
        config = held.contents.config
    for name, own in (("model_sha256", run.info["model_sha256"]), ("data_sha256", run.info["data"]["fingerprint"])):
        held_by_it = config.get(name)
        if own not in (held_by_it if isinstance(held_by_it, list) else [held_by_it]):  # of an average: one of its runs
            what = "weights" if name.startswith("model") else "data"
            raise StoreError(
                f"{store} holds scores of other {what} than those of {run.path}; score this run by `upweight attribute`, or "
                "name another store."
            )
    return digest(config)[:16]


def _standing(folder: Path, wanted: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """The numbers of the page in a folder when it is the one asked for; another one is refused, or cleared away."""
    from .cache.identity import refuse_other

    file = folder / "stats.json"
    if not file.exists():
        if (folder / "index.html").exists() and not overwrite:
            raise StoreError(f"{folder / 'index.html'} is no page of ours; choose another folder, or pass --overwrite.")
        return None
    try:
        try:
            stats: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            held = {"upweight": stats["upweight"], **stats["settings"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{file} is damaged or of another kind ({error}); pass --overwrite, or choose another folder."
            ) from error
        refuse_other(folder, {"settings": held}, {"settings": dict(wanted)})
    except StoreError:
        if not overwrite:
            raise
        clear_report(folder)
        return None
    return stats if (folder / "index.html").exists() else None
