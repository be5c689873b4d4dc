"""What an attribution will take, stage by stage: seconds, operations, memory and disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of an attribution."""

    name: str
    variant: str = ""
    """Name of the scores it is for; empty for the main ones and for what all share."""
    seconds: float
    flops: float
    """Operations of matrix products, factorisations and convolutions; a multiplication with its addition counts two."""
    memory: int = 0
    """Bytes at its peak, beyond what earlier stages left behind."""
    kept: int = 0
    """Bytes that it leaves behind."""
    disk: int = 0
    """Bytes that it writes to the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """The matrix that a variant inverts."""

    variant: str
    form: Literal["primal", "dual", "none"]
    """primal: parameters; dual: rows of the train set; none: nothing is inverted."""
    size: int
    """Its rows."""
    what: str
    """What the rows are, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What an attribution will take on this machine, as far as it can be told without doing it."""

    n: int
    """Train examples."""
    m: int
    """Queries; 0 where the train set is scored on itself alone."""
    p: int
    """Analysed parameters, of the variant with the most."""
    stages: Sequence[Stage]
    matrices: Sequence[Matrix]
    budget: int
    """Bytes that the matrices may take."""
    notes: Sequence[str] = field(default=())
    """Sentences: what does not fit and its mend, and what cannot be told beforehand."""

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def flops(self) -> float:
        """Of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def disk(self) -> int:
        """Bytes of the store."""
        return sum(stage.disk for stage in self.stages)

    @property
    def memory(self) -> int:
        """Bytes at the peak of all stages, beyond the model and the data."""
        return max(self.levels(), default=0)

    def levels(self) -> list[int]:
        """Memory at the peak of each stage.

        Returns:
            Bytes, what earlier stages keep included.
        """
        held, out = 0, []
        for stage in self.stages:
            out.append(held + stage.memory)
            held += stage.kept
        return out

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the budget."""
        return self.memory <= self.budget

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON.

        Returns:
            Stages, totals, matrices, budget and notes.
        """
        stages = [asdict(stage) | {"peak": level} for stage, level in zip(self.stages, self.levels(), strict=True)]
        total = {"seconds": self.seconds, "flops": self.flops, "memory": self.memory, "disk": self.disk}
        return {
            "n": self.n,
            "m": self.m,
            "p": self.p,
            "stages": stages,
            "total": total,
            "matrices": [asdict(matrix) for matrix in self.matrices],
            "budget": self.budget,
            "fits": self.fits,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """A table for a terminal.

        Returns:
            One line a stage, the totals, and what to know about them.
        """
        lines = [["stage", "seconds", "operations", "memory", "disk"]]
        for stage, level in zip(self.stages, self.levels(), strict=True):
            name = stage.name + (f" ({stage.variant})" if stage.variant else "")
            lines.append(_line(name, stage.seconds, stage.flops, level, stage.disk))
        lines.append(_line("total", self.seconds, self.flops, self.memory, self.disk))
        widths = [max(len(line[j]) for line in lines) for j in range(len(lines[0]))]
        table = [
            "  ".join([
                line[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True)),
            ])
            for line in lines
        ]
        queries = f"{self.m:,} queries" if self.m else "on itself"
        title = f"{self.n:,} train examples, {queries}, {self.p:,} parameters; nothing is computed or written yet"
        return "\n".join([title, *(line.rstrip() for line in table), *self._sentences()])

    def _sentences(self) -> list[str]:
        said = []
        for matrix in self.matrices:
            name = f" ({matrix.variant})" if matrix.variant else ""
            if matrix.form == "none":
                said.append(f"Nothing is inverted{name}: {matrix.what}.")
            else:
                said.append(
                    f"The matrix that is inverted{name}: {matrix.size:,} x {matrix.size:,}, {matrix.form}: {matrix.what}."
                )
        said.append(f"Memory: {shown_bytes(self.memory)} of a budget of {shown_bytes(self.budget)}.")
        return [*said, *self.notes]


def shown_bytes(count: float) -> str:
    """A number of bytes in words.

    Args:
        count: How many.

    Returns:
        Two or three digits and a unit.
    """
    unit = 0
    while count >= 999.5 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {UNITS[unit]}"


def _line(name: str, seconds: float, flops: float, memory: int, disk: int) -> list[str]:
    digits = 0 if seconds >= 100 else 1 if seconds >= 10 else 2
    return [
        name,
        f"{seconds:,.{digits}f}",
        f"{flops:.1e}" if flops else "0",
        shown_bytes(memory),
        shown_bytes(disk) if disk else "",
    ]
