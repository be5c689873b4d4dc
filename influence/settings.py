"""How to attribute, in words and numbers: what the command line, a TOML file and Python share. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from .. import UsageError

CURVATURES = ("auto", "linear-head", "hessian", "gradient-dot", "gradient-cosine")
DTYPES = ("float32", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeSettings:
    """Which parameters are analysed, with what curvature, at which label."""

    parameters: str = "head"
    """head (the last linear layer), blocks:K (the last K residual blocks and the head), all, or names separated by commas."""

    curvature: str = "auto"
    """auto (linear-head for the head, hessian otherwise), linear-head, hessian, gradient-dot or gradient-cosine."""

    damping: float = 0.0
    """Added to every eigenvalue of the mean curvature."""

    rcond: float | None = None
    """Cutoff of the pseudo-inverse relative to the largest eigenvalue; not given: size times rounding unit."""

    absolute: float | None = None
    """Cutoff in the unit of the curvature, instead of a relative one; hessian only."""

    negative: str = "invert"
    """What to do with negative eigenvalues beyond the cutoff: invert or drop; hessian only."""

    query_label: str = "true"
    """Label that a query's loss is taken at: true or predicted."""

    train_scores: bool = False
    """Score the train set on itself too."""

    also: tuple[str, ...] = ()
    """Further scores in the same store: damped (the run's weight decay as damping) and predicted (queries at their predicted
    label)."""

    dtype: str | None = None
    """float32 or float64, for gradients and stored scores; not given: the model's own."""

    batch_size: int = 256
    """Examples in one pass of the network; changes no number."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("curvature", CURVATURES),
            ("query_label", ("true", "predicted")),
            ("dtype", (None, *DTYPES)),
        ):
            if getattr(self, name) not in allowed:
                shown = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise UsageError(f"{name} is {getattr(self, name)!r}; choose one of {shown}.")
        for name in self.also:
            if name not in ("damped", "predicted"):
                raise UsageError(f"also is {name!r}; choose damped, predicted or both.")
        if self.curvature not in ("hessian", "auto") and (self.absolute is not None or self.negative != "invert"):
            raise UsageError(f"absolute and negative belong to the hessian; the curvature here is {self.curvature}.")
        if self.curvature.startswith("gradient") and (self.damping or self.rcond is not None or "damped" in self.also):
            raise UsageError(f"{self.curvature} has no curvature to damp or cut; leave damping and rcond out.")
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {self.batch_size}.")
