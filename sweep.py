"""A sweep: every source made, every run fine-tuned and attacked, and one report of them all.

Heavy modules are imported inside the functions that need them, so that the command line can show its options at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import UsageError
from .comparison import clear_report
from .models.errors import RunMismatch
from .options import ConfigError, save_config
from .sweep_plan import RunSpec, SourceSpec, Sweep
from .sweep_tables import summary, sweep_tables
from .sweep_work import Bench, Failure, Job, one_by_one, several_at_once

if TYPE_CHECKING:
    from .influence.examples import Progress
    from .influence.tables import Table

DONE, TO_DO, OTHER = "done", "to do", "other settings"
NAMED = 5
"""Most failures that are told one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What a sweep has made."""

    page: Path
    made: int
    """Runs."""
    stats: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`.

        Returns:
            Path of the page, the number of runs, and everything that stats.json holds.
        """
        return {"page": str(self.page), "runs": self.made, "stats": dict(self.stats)}

    def to_text(self) -> str:
        """For the terminal.

        Returns:
            What was found, and where the page lies.
        """
        found = [f"- {words}" for words in self.stats["conclusions"]]
        return "\n".join([summary(self.stats).to_text(), *found, f"Report: {self.page}"])


def run_sweep(
    sweep: Sweep, *, workers: int = 1, overwrite: bool = False, progress: bool | Progress | None = None
) -> SweepReport:
    """Do whatever of a sweep is not done yet, and report on all of it.

    Args:
        sweep: What `read_sweep` gave.
        workers: Runs at once, each in a process of its own; 1: here.
        overwrite: Replace sources and runs that were made with other settings.
        progress: As in `attribute`.

    Returns:
        The report.

    Raises:
        UsageError: There are to be fewer workers than one.
    """
    from .cache.lock import Lock
    from .reports.progress import reporting

    if workers < 1:
        raise UsageError(f"workers is {workers}; give a whole number of at least 1.")
    bench = Bench(sweep, overwrite=overwrite)
    check(bench)
    sweep.out.mkdir(parents=True, exist_ok=True)
    lock = Lock(sweep.out / "sweep.toml")
    try:
        save_config(sweep.out / "sweep.toml", sweep.toml)
        with reporting(progress) as report:
            failures = _do_all(bench, workers, report)
            result = _report(bench, report)
    finally:
        lock.release()
    _tell_failures(failures, result)
    assert result is not None, "without a failure every run is there"
    return result


def outlook(sweep: Sweep) -> Table:
    """Every source and run of a sweep, and how far it is; nothing is made.

    Args:
        sweep: What `read_sweep` gave.

    Returns:
        A row each.
    """
    from .reports.runs import table_of

    bench = Bench(sweep)
    _check_runs(bench)
    blank = dict.fromkeys(("recipe", "data", "n", "k", "seed"), "")
    rows = [
        {"job": "source", "name": source.name, **blank, "state": _or_other(partial(_source_state, bench, source))}
        for source in sweep.sources
    ]
    for run in sweep.runs:
        n, k, seed = "all" if run.settings.n is None else run.settings.n, run.settings.k, run.settings.seed
        facts = {"recipe": run.recipe, "data": run.data.data, "n": str(n), "k": str(k), "seed": str(seed)}
        rows.append({"job": "run", "name": run.name, **facts, "state": _or_other(partial(run_state, bench, run))})
    left = sum(row["state"] != DONE for row in rows)
    return table_of(
        rows, f"{len(sweep.runs)} runs of {len(sweep.sources)} sources; {left} of these {len(rows)} are to do"
    )


# ---- what can be refused before anything starts ------------------------------------------------------------------------------


def check(bench: Bench) -> None:
    """Refuse what cannot be done, or what is in the way, before anything starts.

    Args:
        bench: Of the sweep.
    """
    _check_runs(bench)
    if not bench.overwrite:
        for source in bench.sweep.sources:
            bench.is_made(source)
        _refuse_others(bench)


def _check_runs(bench: Bench) -> None:
    from .models.data import require_subset
    from .models.device import resolve_device
    from .models.finetune import images_asked
    from .models.robustness import require_images

    attack = bench.sweep.attack
    for run in bench.sweep.runs:
        target = bench.target(run.source, run.data)
        try:
            bench.parts(run)
            require_subset(target.train.labels, images_asked(run.settings, target))
            resolve_device(run.settings.device)
            if attack is not None:
                require_images(target.test, attack)
                resolve_device(attack.device)
        except UsageError as error:
            raise ConfigError(f"{bench.sweep.file}: {run.words}: {error}") from error
    _refuse_twins(bench)


def _refuse_twins(bench: Bench) -> None:
    """Refuse runs that would be the same but for what their numbers are called."""
    from .models.finetune import images_asked

    seen: dict[tuple[Any, ...], RunSpec] = {}
    for run in bench.sweep.runs:
        target = bench.target(run.source, run.data)
        n = images_asked(run.settings, target)
        key = (run.source.name, run.recipe, target.fingerprint, run.settings.k, n, run.settings.seed)
        if (twin := seen.setdefault(key, run)) is not run:
            raise ConfigError(
                f"{bench.sweep.file}: {twin.name} and {run.name} are one run of {n} images; leave one out."
            )


def _refuse_others(bench: Bench) -> None:
    """Refuse runs that are there, and were made with other settings."""
    others = []
    for run in bench.sweep.runs:
        try:
            run_state(bench, run)
        except RunMismatch as error:
            others.append(error)
    if others:
        more = f" {len(others) - 1} more of these runs were made with other settings." if len(others) > 1 else ""
        raise RunMismatch(f"{others[0]}{more}") from others[0]


def run_state(bench: Bench, run: RunSpec) -> str:
    """How far a run is.

    Args:
        bench: Of the sweep.
        run: One of its runs.

    Returns:
        Words; "done" when nothing is left to do.
    """
    from .models.finetune import decisive_settings
    from .models.robustness import standing_record
    from .models.runs import MODEL_FILE, PARTIAL_FILE, RUN_FILE, read_run
    from .models.training import read_partial, require_same_settings

    folder = bench.sweep.folder(run)
    begun = None if (folder / RUN_FILE).exists() else read_partial(folder / PARTIAL_FILE)
    if not bench.is_made(run.source) or (begun is None and not (folder / RUN_FILE).exists()):
        return TO_DO
    wanted = decisive_settings(bench.network(run.source), bench.target(run.source, run.data), run.settings)
    if begun is not None:
        require_same_settings(folder, begun[1]["settings"], wanted)
        return f"epoch {begun[1]['epoch']} of {wanted['epochs']}"
    require_same_settings(folder, read_run(folder).get("decisive", {}), wanted)
    if not (folder / MODEL_FILE).exists():
        return TO_DO
    attack = bench.sweep.attack
    return DONE if attack is None or standing_record(folder, attack) is not None else "to be attacked"


def _source_state(bench: Bench, source: SourceSpec) -> str:
    return DONE if bench.is_made(source) else TO_DO


def _or_other(state: Callable[[], str]) -> str:
    try:
        return state()
    except RunMismatch:
        return OTHER


# ---- doing it ----------------------------------------------------------------------------------------------------------------


def _do_all(bench: Bench, workers: int, report: Progress | None) -> list[Failure]:
    """The sources first, and then every run of those that are there."""
    sweep = bench.sweep
    states = {source: _or_other(partial(_source_state, bench, source)) for source in sweep.sources}
    failures = _do(bench, [source for source, state in states.items() if state != DONE], workers, report)
    bench.forget_sources()
    if not bench.overwrite:
        _refuse_others(bench)  # of the sources that were not there before
    without = {failure.job.name for failure in failures}
    runs = [run for run in sweep.runs if run.source.name not in without]
    jobs: list[Job] = [one for one in bench.untouched(runs) if bench.untouched_record(one) is None]
    jobs += [run for run in runs if _or_other(partial(run_state, bench, run)) != DONE]
    return [*failures, *_do(bench, jobs, workers, report)]


def _do(bench: Bench, jobs: Sequence[Job], workers: int, report: Progress | None) -> list[Failure]:
    if workers == 1 or len(jobs) < 2:
        return one_by_one(bench, jobs, report)
    return several_at_once(bench, jobs, [_epochs(bench, job) for job in jobs], workers, report)


def _epochs(bench: Bench, job: Job) -> int:
    from .models.finetune import images_asked

    if isinstance(job, RunSpec):
        return job.settings.epochs_for(images_asked(job.settings, bench.target(job.source, job.data)))
    return job.settings.epochs if isinstance(job, SourceSpec) and job.settings is not None else 1


def _tell_failures(failures: Sequence[Failure], result: SweepReport | None) -> None:
    """Raise one error that names every job that failed, of the kind of the first."""
    if not failures:
        return
    told = "; ".join(f"{failure.job.name}: {str(failure.error).rstrip('.')}" for failure in failures[:NAMED])
    more = f"; and {len(failures) - NAMED} more" if len(failures) > NAMED else ""
    rest = "no run is done" if result is None else f"{result.made} runs are done and in {result.page}"
    raise type(failures[0].error)(f"{len(failures)} of the sweep's jobs failed, and {rest}. {told}{more}.")


def _report(bench: Bench, report: Progress | None) -> SweepReport | None:
    """Tables, figures and page of the runs that are done; None: of none."""
    from .reports.transfer_page import write_transfer_report

    sweep = bench.sweep
    done = [run for run in sweep.runs if _or_other(partial(run_state, bench, run)) == DONE]
    if not done:
        return None
    out, attack = sweep.out / "report", sweep.attack
    clear_report(out)
    stats = write_transfer_report(
        *sweep_tables(bench, done),
        out,
        attack="" if attack is None else attack.attack.label,
        title=sweep.settings.title,
        dpi=sweep.settings.dpi,
        progress=report,
    )
    return SweepReport(page=out / "index.html", made=len(done), stats=stats)
