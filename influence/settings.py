"""How to attribute, in words and numbers: what the command line, a TOML file and Python share. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from .. import UsageError

CURVATURES = ("auto", "linear-head", "gauss-newton", "hessian", "gradient-dot", "gradient-cosine")
ROWS = ("logits", "margin", "trak", "label", "sampled")
ALSO = ("damped", "predicted", "block")
DTYPES = ("float32", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeSettings:
    """Which parameters are analysed, with what curvature, at which label."""

    parameters: str = "head"
    """head (the last linear layer), blocks:K (the last K residual blocks and the head), all, or names separated by commas."""

    curvature: str = "auto"
    """auto (linear-head for the head, gauss-newton otherwise), linear-head, gauss-newton, hessian, gradient-dot or
    gradient-cosine."""

    damping: float | None = None
    """Added to every eigenvalue of the mean curvature; not given: 0, and for gauss-newton the weight decay or a 300th of the
    largest eigenvalue, whichever is more."""

    rows: str = "logits"
    """Factor of gauss-newton: logits (exact), margin, trak, label or sampled."""

    leave_one_out: bool = False
    """Correct gauss-newton's scores for the leverage of the example that is removed."""

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
    """Further scores of a run in the same store: damped (its weight decay as damping), predicted (queries at their predicted
    label), block (gauss-newton over all fine-tuned blocks)."""

    dtype: str | None = None
    """float32 or float64, for gradients and stored scores; not given: the model's own."""

    batch_size: int = 256
    """Examples in one pass of the network; changes no number."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("curvature", CURVATURES),
            ("rows", ROWS),
            ("query_label", ("true", "predicted")),
            ("dtype", (None, *DTYPES)),
        ):
            if getattr(self, name) not in allowed:
                shown = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise UsageError(f"{name} is {getattr(self, name)!r}; choose one of {shown}.")
        for name in self.also:
            if name not in ALSO:
                raise UsageError(f"also names {name!r}; choose among {', '.join(ALSO)}.")
        if self.curvature not in ("gauss-newton", "auto") and (self.rows != "logits" or self.leave_one_out):
            raise UsageError(f"rows and leave_one_out belong to gauss-newton; the curvature here is {self.curvature}.")
        if self.curvature not in ("hessian", "auto") and (self.absolute is not None or self.negative != "invert"):
            raise UsageError(f"absolute and negative belong to the hessian; the curvature here is {self.curvature}.")
        if self.curvature.startswith("gradient") and (self.damping or self.rcond is not None or "damped" in self.also):
            raise UsageError(
                f"{self.curvature} has no curvature to damp or cut; leave out damping, rcond and `also damped`."
            )
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {self.batch_size}.")
