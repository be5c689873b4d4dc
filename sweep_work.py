"""The jobs of a sweep: what one of them does, and how several are done at once.

Heavy modules are imported inside the functions that need them, so that the command line can show its options at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import UpweightError
from .models.settings import DataSettings, FineTuneSettings
from .pipeline import fine_tune_network, pretrain
from .processes import Ended, in_processes
from .scoring import few_threads
from .sweep_plan import RunSpec, SourceSpec, Sweep

if TYPE_CHECKING:
    from .influence.examples import Progress
    from .models.checkpoints import LoadedModel
    from .models.data import TargetData
    from .models.zoo import Classifier

TRAINING = frozenset({"pretrain", "fine-tune"})
"""Stages whose units are epochs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Untouched:
    """A source as it is, measured under the sweep's attack on the data that it was trained for."""

    source: SourceSpec
    data: DataSettings

    @property
    def name(self) -> str:
        """What it is, for messages."""
        return f"{self.source.name} itself"


Job = SourceSpec | RunSpec | Untouched


class Failure(NamedTuple):
    """A job that could not be done."""

    job: Job
    error: BaseException


class Parts(NamedTuple):
    """What a run trains."""

    parameters: int
    blocks: int


class Bench:
    """Networks and data of a sweep, each of them read once in a process.

    Args:
        sweep: The sweep.
        overwrite: Replace what was made with other settings.
    """

    def __init__(self, sweep: Sweep, *, overwrite: bool = False) -> None:
        self.sweep, self.overwrite = sweep, overwrite
        self._networks: dict[str, LoadedModel] = {}
        self._made: dict[str, bool] = {}
        self._outlines: dict[str, Classifier] = {}
        self._targets: dict[tuple[DataSettings, tuple[int, int, int]], TargetData] = {}
        self._parts: dict[tuple[str, int, FineTuneSettings], Parts] = {}

    def forget_sources(self) -> None:
        """Look at the sources anew: their files may have been made or replaced."""
        self._networks.clear()
        self._made.clear()

    def is_made(self, source: SourceSpec) -> bool:
        """Whether a source is there; one of other settings is refused."""
        from .models.pretrain import standing_source

        if source.settings is None:
            return True
        if source.name not in self._made:
            self._made[source.name] = standing_source(source.settings, source.path) is not None
        return self._made[source.name]

    def _is_own_data(self, source: SourceSpec, data: DataSettings) -> bool:
        """Whether a source that is there was trained for these very data."""
        own = self.network(source).metadata.get("data", {}).get("fingerprint")
        return bool(own == self.target(source, data).fingerprint)

    def network(self, source: SourceSpec) -> LoadedModel:
        """A source, under the name that the sweep gives it."""
        from .models.checkpoints import load_model

        if source.name not in self._networks:
            self._networks[source.name] = replace(load_model(source.path), name=source.name)
        return self._networks[source.name]

    def outline(self, source: SourceSpec) -> Classifier:
        """A network of the source's architecture; of one that the sweep trains, with any weights."""
        from .models.device import seeded
        from .models.zoo import build, default_input_shape

        if source.settings is None:
            return self.network(source).model
        if source.name not in self._outlines:
            name = source.settings.architecture
            channels = default_input_shape(name)[0]
            with seeded("outline"):  # the caller's random numbers are left alone
                made = build(name, num_classes=2, mean=(0.0,) * channels, std=(1.0,) * channels)
            self._outlines[source.name] = made.eval()
        return self._outlines[source.name]

    def target(self, source: SourceSpec, data: DataSettings) -> TargetData:
        """A data set, fitted to what a source takes."""
        from .models.data import load_data

        key = data, self.outline(source).spec.input_shape
        if key not in self._targets:
            self._targets[key] = load_data(*key)
        return self._targets[key]

    def parts(self, run: RunSpec) -> Parts:
        """What a run trains; what its settings ask of the network and cannot have is refused."""
        from .models.finetune import network_to_train
        from .models.transfer import block_names

        classes = len(self.target(run.source, run.data).class_names)
        key = run.source.name, classes, replace(run.settings, seed=0, n=None)
        if key not in self._parts:
            model, parts = network_to_train(self.outline(run.source), classes, key[2])
            blocks = sum(any(p.startswith(f"{b}.") for p in parts.parameters) for b in block_names(model))
            self._parts[key] = Parts(sum(p.numel() for p in model.parameters() if p.requires_grad), blocks)
        return self._parts[key]

    def do(self, job: Job, report: Progress | None) -> None:
        """One job, whatever of it is left to do."""
        from .models.robustness import measure_network, measure_run

        if isinstance(job, SourceSpec):
            assert job.settings is not None, "only sources to be trained are jobs"
            pretrain(job.settings, Path(job.path), overwrite=self.overwrite, progress=report)
            return
        network, target = self.network(job.source), self.target(job.source, job.data)
        attack = self.sweep.attack
        with few_threads(network):
            if isinstance(job, RunSpec):
                folder = self.sweep.folder(job)
                run = fine_tune_network(network, target, job.settings, folder, report, overwrite=self.overwrite)
                if attack is not None:
                    measure_run(run, attack, report)
            elif attack is not None:
                measure_network(network, target, attack, self._untouched_file(job), report)

    def untouched(self, runs: Sequence[RunSpec]) -> list[Untouched]:
        """Sources to measure under the sweep's attack: those whose runs are given the very data they were trained for."""
        if self.sweep.attack is None:
            return []
        pairs = dict.fromkeys((run.source, run.data) for run in runs)
        return [Untouched(source=source, data=data) for source, data in pairs if self._is_own_data(source, data)]

    def untouched_record(self, job: Untouched) -> dict[str, Any] | None:
        """How a source fares under the sweep's attack, where that was measured."""
        from .models.robustness import standing_network

        if self.sweep.attack is None:
            return None
        network, target = self.network(job.source), self.target(job.source, job.data)
        return standing_network(network, target, self.sweep.attack, self._untouched_file(job))

    def _untouched_file(self, job: Untouched) -> Path:
        return self.sweep.out / "sources" / f"{job.source.name}.robustness.json"


def bearable() -> tuple[type[BaseException], ...]:
    """Errors that end one job and leave the others be."""
    import torch

    return (UpweightError, MemoryError, torch.OutOfMemoryError)


def one_by_one(bench: Bench, jobs: Sequence[Job], report: Progress | None) -> list[Failure]:
    """Do jobs here, in their order.

    Args:
        bench: What is loaded already.
        jobs: What to do.
        report: Told of every stage of each.

    Returns:
        The jobs that could not be done.
    """
    from .reports.progress import prefixed

    failures = []
    for i, job in enumerate(jobs):
        try:
            bench.do(job, prefixed(report, f"{i + 1}/{len(jobs)} {job.name}"))
        except bearable() as error:
            failures.append(Failure(job, error))
    return failures


# ---- several at once -------------------------------------------------------------------------------------------------------


def several_at_once(
    bench: Bench, jobs: Sequence[Job], epochs: Sequence[int], workers: int, report: Progress | None
) -> list[Failure]:
    """Do jobs in processes of their own; what they have finished, and each begun fit up to its last epoch, is kept.

    Args:
        bench: Of the sweep; each process makes one like it.
        jobs: What to do.
        epochs: Of each of them, for the progress.
        workers: Processes at once.
        report: Told of the epochs done in all.

    Returns:
        The jobs that could not be done.
    """
    tally, failed = _Tally(report, epochs), dict[int, BaseException]()

    def ended(job: Ended) -> None:
        if job.error is not None:
            failed[job.position] = job.error
        tally(job.position, "", 0)

    make = partial(Bench, bench.sweep, overwrite=bench.overwrite)
    in_processes(make, jobs, workers, told=tally, ended=ended, bearable=bearable())
    return [Failure(jobs[position], error) for position, error in sorted(failed.items())]


class _Tally:
    """Epochs of all jobs together; a job that is over counts as a whole, however it ended."""

    def __init__(self, report: Progress | None, epochs: Sequence[int]) -> None:
        self.report, self.epochs, self.done = report, epochs, [0] * len(epochs)

    def __call__(self, position: int, stage: str, units: int) -> None:
        if stage and stage not in TRAINING:
            return
        self.done[position] = units if stage else self.epochs[position]
        if self.report is not None:
            self.report(f"epochs of {len(self.epochs)} jobs", sum(self.done), sum(self.epochs))
