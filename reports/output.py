"""Where a report's figures and tables go: files beside the page, and the parts the page is made of."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from .. import UsageError
from ..influence.tables import Table
from .runs import stack
from .style import smaller, to_png

LONG = 24
"""Lines from which on the table of a sweep is folded."""

Cell = str | tuple[str, str]
"""Words of a table's cell, or words and the smaller words below them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """Words of the page."""

    text: str
    tone: str = ""
    """"" or "lead", for the sentence that matters most."""
    kind: str = "paragraph"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure of the page."""

    file: str
    data: str
    """data: URI."""
    alt: str
    caption: str
    width: int
    """Width it is best seen at, in CSS pixels."""
    height: int
    kind: str = "picture"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of the page, its cells already in words."""

    caption: str
    head: Sequence[str]
    body: Sequence[Sequence[Cell]]
    file: str
    """CSV with the same numbers."""
    folded: bool = False
    spans: Sequence[tuple[str, int]] = ()
    """Headings above the headings, and how many columns each of them covers."""
    kind: str = "grid"


Part = Paragraph | Picture | Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading with what is below it."""

    anchor: str
    heading: str
    parts: Sequence[Part] = ()
    sections: Sequence[Section] = ()


@dataclass(slots=True, eq=False)
class Output:
    """The folder of one report.

    Args:
        folder: Made when it is not there.
        dpi: Resolution of the figures.
    """

    folder: Path
    dpi: int
    tables: dict[str, list[Table]] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise UsageError(f"{self.folder} is a file; the report needs a folder, so name another one.") from error

    def picture(self, name: str, drawn: Figure, alt: str, caption: str) -> Picture:
        """Write a figure as PNG.

        Args:
            name: File name without its ending.
            drawn: The figure.
            alt: What it shows, for those who cannot see it.
            caption: Words below it.

        Returns:
            The part of the page, with the picture inside.
        """
        png = to_png(drawn, self.dpi)
        file = f"{name}.png"
        (self.folder / file).write_bytes(png)
        self.figures.append({"file": file, "caption": caption, "bytes": len(png)})
        width, height = (round(96 * inches) for inches in drawn.get_size_inches())
        data = "data:image/png;base64," + base64.b64encode(smaller(png)).decode("ascii")
        return Picture(file=file, data=data, alt=alt, caption=caption, width=width, height=height)

    def add(self, name: str, table: Table) -> str:
        """Keep a table for its CSV; tables of one name are put below each other.

        Args:
            name: File name without its ending.
            table: The numbers.

        Returns:
            Name of the CSV file.
        """
        self.tables.setdefault(name, []).append(table)
        return f"{name}.csv"

    def write_tables(self) -> dict[str, Any]:
        """Write every CSV.

        Returns:
            For stats.json: by name the title, the file and the columns.
        """
        written: dict[str, Any] = {}
        for name, parts in self.tables.items():
            full = [part for part in parts if len(part)] or parts[:1]
            table = stack(full)
            (self.folder / f"{name}.csv").write_text(table.to_csv(), encoding="utf-8")
            columns = {column: _plain(values) for column, values in table.columns.items()}
            written[name] = {"title": table.title, "file": f"{name}.csv", "rows": len(table), "columns": columns}
        return written

    def write_page(self, template: str, page: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
        """Write stats.json and index.html, the page last.

        Args:
            template: File in templates/.
            page: What it shows.
            stats: The numbers.
        """
        text = json.dumps(stats, allow_nan=False, ensure_ascii=False)
        (self.folder / "stats.json").write_text(text + "\n", encoding="utf-8")
        environment = Environment(
            loader=PackageLoader(__package__, "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        html = environment.get_template(template).render(page)
        (self.folder / "index.html").write_text(html, encoding="utf-8")


def _plain(values: np.ndarray) -> list[Any]:
    """Values as JSON has them: what is not finite becomes null."""
    if values.dtype.kind != "f":
        plain: list[Any] = values.tolist()
        return plain
    return [value if np.isfinite(value) else None for value in values.tolist()]


def grid(table: Table, head: Mapping[str, str], file: str, caption: str, *, folded: bool = False) -> Grid:
    """Columns of a table as a part of the page.

    Args:
        table: The numbers.
        head: Column to heading, in the order shown.
        file: CSV with the same numbers.
        caption: Words above it.
        folded: Shown only when opened.

    Returns:
        The part.
    """
    body = [[_cell(row[name]) for name in head] for row in table.rows()]
    return Grid(caption=caption, head=list(head.values()), body=body, file=file, folded=folded)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    return str(value)
