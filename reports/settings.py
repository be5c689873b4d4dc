"""What a report can be asked to do differently. No torch and no matplotlib here: the command line reads this for its help."""

from __future__ import annotations

from dataclasses import dataclass

from .. import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings:
    """How the tables and figures of one report are made."""

    title: str = "Influence of training examples, by source model"
    """Heading of the page."""
    across_k: bool = False
    """Compare runs with each other that differ in their fine-tuned blocks, instead of k by k."""
    ranks: int = 100
    """How many nearest neighbours the class-match rates go down to."""
    hits: int = 3
    """Neighbours of the query's class that count as a match in the "at least HITS of the first OF" measure."""
    of: int = 5
    """First neighbours looked at in the "at least HITS of the first OF" measure."""
    neighbours: int = 3
    """Most helpful, and most harmful, train images drawn for each query and source."""
    pixels: int = 200
    """Most blocks along one side of an influence heat map; a larger matrix is averaged block by block."""
    clip: float = 0.99
    """Quantile of the absolute block values at which the colours of the heat maps end."""
    saliency_deviations: float = 3.0
    """Input gradients are clamped to this many standard deviations before they are drawn."""
    dpi: int = 150
    """Resolution of the figures, in dots per inch."""

    def __post_init__(self) -> None:
        for name in ("ranks", "of", "hits", "neighbours", "pixels"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hits > self.of:
            raise UsageError(
                f"hits={self.hits} neighbours cannot match among the first of={self.of}; make hits at most {self.of}."
            )
        if self.ranks < self.of:
            raise UsageError(f"ranks={self.ranks} must reach the first of={self.of} neighbours; raise ranks.")
        if not 0 < self.clip <= 1:
            raise UsageError(f"clip is a quantile above 0 and up to 1, got {self.clip}.")
        if not self.saliency_deviations > 0:
            raise UsageError(f"saliency_deviations must be above 0, got {self.saliency_deviations}.")
        if not 30 <= self.dpi <= 600:
            raise UsageError(f"dpi must lie between 30 and 600, got {self.dpi}.")
