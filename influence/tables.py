"""A small immutable table: what every ranking and every figure is a view of."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import UsageError
from .errors import ShapeError


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Named columns of one length.

    Args:
        columns: Column name to one-dimensional array; kept in order, made read-only.
        title: One line that says what the rows are.

    Raises:
        ShapeError: A column is not one-dimensional, or the lengths differ.
    """

    columns: Mapping[str, NDArray[Any]]
    title: str = ""

    def __post_init__(self) -> None:
        frozen = {}
        for name, values in self.columns.items():
            column = np.array(values)  # a copy: freezing it must not freeze the caller's array
            if column.ndim != 1:
                raise ShapeError(f"Column {name!r} has {column.ndim} axes; a table column has one.")
            column.flags.writeable = False
            frozen[name] = column
        lengths = {name: len(column) for name, column in frozen.items()}
        if len(set(lengths.values())) > 1:
            raise ShapeError(f"The columns of a table must have one length, found {lengths}.")
        object.__setattr__(self, "columns", frozen)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.columns:
            raise UsageError(f"This table has no column {name!r}; it has {', '.join(self.columns)}.")
        return self.columns[name]

    def select(self, names: Iterable[str]) -> Table:
        """Some of the columns.

        Args:
            names: Which, in the order wanted.

        Returns:
            A table with the same title and rows.
        """
        return Table({name: self[name] for name in names}, self.title)

    def rows(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of plain Python values.

        Returns:
            One dictionary a row, in order.
        """
        lists = {name: column.tolist() for name, column in self.columns.items()}
        return [{name: values[i] for name, values in lists.items()} for i in range(len(self))]

    def to_json(self) -> str:
        """The table as one JSON object.

        Returns:
            `{"title": ..., "rows": [...]}`; NaN and infinities become null, as JSON has neither.
        """
        rows = [{name: _json_value(value) for name, value in row.items()} for row in self.rows()]
        return json.dumps({"title": self.title, "rows": rows}, allow_nan=False)

    def to_csv(self) -> str:
        """The table as CSV with a header line.

        Returns:
            Comma-separated text; floats keep the digits that read back to the same number.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()

    def to_text(self) -> str:
        """The table as aligned text for a terminal.

        Returns:
            Title (when there is one), header and rows; floats with six significant digits.
        """
        cells = [list(self.columns), *([_text(value) for value in row.values()] for row in self.rows())]
        widths = [max(len(line[j]) for line in cells) for j in range(len(self.columns))]
        left = [column.dtype.kind in "UO" for column in self.columns.values()]
        lines = [
            "  ".join(
                cell.ljust(w) if is_left else cell.rjust(w) for cell, w, is_left in zip(line, widths, left, strict=True)
            )
            for line in cells
        ]
        return "\n".join([*([self.title] if self.title else []), *(line.rstrip() for line in lines)])

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return self.to_text()


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
