"""Progress on standard error: stage, done of total and time left on a terminal; nothing when it is not one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

Report = Callable[[str, int, int], None]

LASTING = 1.0
"""Seconds from which on a stage leaves its line behind when it is done."""


@contextmanager
def reporting(progress: bool | Report | None) -> Generator[Report | None]:
    """What a stage tells its progress to; the terminal is as it was at the end, however that comes.

    Args:
        progress: A function, which is used as it is; True for bars on standard error where that is a terminal; None or False
            for silence.

    Yields:
        A function of (stage, done, total), or None.
    """
    if callable(progress) or not progress or not sys.stderr.isatty():
        yield progress if callable(progress) else None
        return
    bars = Bars()
    try:
        yield bars
    finally:
        bars.close()


def prefixed(report: Report | None, name: str) -> Report | None:
    """Progress of one piece of work among several.

    Args:
        report: Told of all of them; None: nobody is.
        name: Of this one, put before its stages.

    Returns:
        A function of (stage, done, total), or None.
    """
    if report is None:
        return None
    return lambda stage, done, total: report(f"{name}: {stage}", done, total)


class Bars:
    """One bar for the stage under way; a stage that took its time leaves its line behind."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._stage = ""
        self._task = TaskID(0)
        self._began = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is.

        Args:
            stage: Its name; another one ends the stage before.
            done: Units done.
            total: Units in all.
        """
        if stage != self._stage or self._bar is None:
            self.close()
            self._stage, self._bar, self._began = stage, _bar(), monotonic()
            self._task = self._bar.add_task(stage, total=total, word="")
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, word="left" if done < total else "in all")
        if done >= total:
            self.close()

    def close(self) -> None:
        """Leave the terminal as it should be."""
        if self._bar is not None:
            self._bar.live.transient = monotonic() - self._began < LASTING
            self._bar.stop()
            self._bar = None


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=10),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[word]:<6}", table_column=Column(no_wrap=True)),
        console=Console(stderr=True),
        expand=True,
    )


class Steps:
    """Counts pieces of work for a progress function; told at once that none is done.

    Args:
        report: The function; None: nobody is told.
        stage: Name of the work.
        total: Pieces in all.
    """

    def __init__(self, report: Report | None, stage: str, total: int) -> None:
        self._report, self._stage, self._total, self._done = report, stage, total, 0
        self._tell()

    def __call__(self) -> None:
        """One more piece is done."""
        self._done += 1
        self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            self._report(self._stage, self._done, self._total)
