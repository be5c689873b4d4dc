"""What a command of the command line is made of: what it is asked, what it answers, and how it is described."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import Option

if TYPE_CHECKING:
    from .influence.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one command is asked: words typed, file and defaults, put together."""

    settings: Mapping[type, Any]
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def path(self, name: str) -> Path:
        """A value that is a path."""
        return Path(self.values[name]).expanduser()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command prints."""

    data: Mapping[str, Any]
    """For --json."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One word after `upweight`."""

    help: str
    run: Callable[[Asked], Answer]
    settings: tuple[type, ...] = ()
    """Dataclasses whose fields become options."""
    hidden: frozenset[str] = frozenset()
    """Fields that this command sets itself."""
    options: tuple[Option, ...] = ()
    """Options that are no settings."""
    replay: Callable[[Asked], Path] | None = None
    """Where the file goes that holds the resolved options, beside the results."""


def plain(table: Table) -> dict[str, Any]:
    """A table for `--json`.

    Args:
        table: The table.

    Returns:
        Its title and its rows.
    """
    return {"title": table.title, "rows": table.rows()}


OVERWRITE_FILE = Option(
    name="overwrite", kind=bool, default=False, replayed=False, help="replace a file that is there already"
)

OVERWRITE = Option(
    name="overwrite",
    kind=bool,
    default=False,
    replayed=False,
    help="replace what was made under other settings; what was made under these is kept",
)
