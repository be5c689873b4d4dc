"""Progress on standard error: stage, done of total and time left on a terminal; nothing when it is not one."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Report = Callable[[str, int, int], None]


def reporter(progress: bool | Report | None) -> Report | None:
    """What a stage tells its progress to.

    Args:
        progress: A function, which is used as it is; True for bars on standard error where that is a terminal; None or False
            for silence.

    Returns:
        A function of (stage, done, total), or None.
    """
    if callable(progress):
        return progress
    if not progress or not sys.stderr.isatty():
        return None
    return Bars()


class Bars:
    """One bar for the stage under way; a finished stage leaves its line behind."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._stage = ""
        self._task: TaskID | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage or self._bar is None or self._task is None:
            self.close()
            self._stage = stage
            self._bar = Progress(
                TextColumn("{task.description:<44}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(stage, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Leave the terminal as it should be."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
