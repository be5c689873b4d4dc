"""How to attribute, in words and numbers: what the command line, a TOML file and Python share. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from .. import UsageError

LOW_RANK = ("nystroem", "lanczos", "lanczos-hessian")
KRONECKER = ("kfac", "ekfac")
CONJUGATE = ("conjugate-gradient", "conjugate-gradient-hessian")
CURVATURES = (
    "auto",
    "linear-head",
    "gauss-newton",
    "hessian",
    *LOW_RANK,
    *KRONECKER,
    *CONJUGATE,
    "projected",
    "unrolled",
    "gradient-dot",
    "gradient-cosine",
)
OWNED = {
    "rank": LOW_RANK,
    "width": ("projected",),
    "others": KRONECKER,
    "rtol": CONJUGATE,
    "max_steps": CONJUGATE,
    "last": ("unrolled",),
}
"""Options of some curvatures alone: they decide nothing for others, and their defaults are no part of what those are told by."""
ROWS = ("logits", "margin", "trak", "label", "sampled")
OTHERS = ("dense", "diagonal", "skip")
LEAVE_ONE_OUT = ("score", "loss")
ALSO = ("damped", "predicted", "block")
DTYPES = ("float32", "float64")
PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeSettings:
    """Which parameters are analysed, with what curvature, at which label."""

    parameters: str = "head"
    """head (the last linear layer), blocks:K (the last K residual blocks and the head), all, or names separated by commas."""

    curvature: str = "auto"
    """auto (linear-head for the head, gauss-newton otherwise), linear-head, gauss-newton, hessian, kfac, ekfac,
    conjugate-gradient, conjugate-gradient-hessian, nystroem, lanczos, lanczos-hessian, projected, unrolled (the derivative of
    the run's own training, in all that it trained), gradient-dot or gradient-cosine."""

    damping: tuple[float | Literal["auto"], ...] = ()
    """Added to every eigenvalue of the mean curvature; auto is three weight decays or a 1,000th of the largest eigenvalue,
    whichever is more, of the head alone the weight decay, and for kfac and ekfac a tenth of the mean eigenvalue. Of several the
    first makes the main scores, the others stand beside them (damping=0.01). Not given: 0 for linear-head and hessian, auto
    otherwise."""

    rows: str = "logits"
    """Factor of gauss-newton, kfac, ekfac and projected: logits (exact), margin, trak, label, or sampled (not projected)."""

    rank: int = 100
    """Eigenvectors of nystroem, lanczos and lanczos-hessian."""

    width: int = 2048
    """Columns of the random matrix of projected."""

    others: str = "dense"
    """What kfac and ekfac do with parameters of no Linear or Conv2d: dense (the exact block of each layer), diagonal (one by one)
    or skip (leave them out)."""

    rtol: float = 1e-6
    """Residual to which conjugate-gradient solves for each query, relative to its gradient."""

    max_steps: int = 1000
    """Steps of conjugate-gradient after which a query that is not solved is an error."""

    last: int | None = None
    """Epochs at the end of the training that unrolled goes back through; not given: all."""

    leave_one_out: str | None = field(default=None, metadata={"switch": "score"})
    """Correct linear-head's or gauss-newton's scores for the leverage of the example that is removed: score (one Newton step), or
    loss (the query's loss at the logits that this step moves)."""

    rcond: float | None = None
    """Cutoff of the pseudo-inverse relative to the largest eigenvalue; not given: size times rounding unit."""

    absolute: float | None = None
    """Cutoff in the unit of the curvature, instead of a relative one; hessian only."""

    negative: str = "invert"
    """What to do with negative eigenvalues beyond the cutoff: invert or drop; hessian and lanczos-hessian only."""

    query_label: str = "true"
    """Label that a query's loss is taken at: true or predicted."""

    train_scores: bool = False
    """Score the train set on itself too."""

    also: tuple[str, ...] = ()
    """Further scores of a run in the same store: damped (its weight decay as damping), predicted (queries at their predicted
    label), block (gauss-newton over all fine-tuned blocks)."""

    dtype: str | None = None
    """float32 or float64, for gradients and stored scores; not given: the model's own."""

    precision: str = "float32"
    """In which gauss-newton multiplies float32 rows: float32, or tf32 or bf16 on the tensor cores of a GPU, whose score error is
    then measured and told."""

    batch_size: int = 256
    """Examples in one pass of the network; changes no number."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    memory: str | None = None
    """Memory that matrices and blocks of rows may take, as 8GB or 512MiB; not given: half of what is free; changes no number."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("curvature", CURVATURES),
            ("rows", ROWS),
            ("others", OTHERS),
            ("leave_one_out", (None, *LEAVE_ONE_OUT)),
            ("query_label", ("true", "predicted")),
            ("dtype", (None, *DTYPES)),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in allowed:
                shown = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise UsageError(f"{name} is {getattr(self, name)!r}; choose one of {shown}.")
        for name in self.also:
            if name not in ALSO:
                raise UsageError(f"also names {name!r}; choose among {', '.join(ALSO)}.")
        if self.curvature not in ("gauss-newton", "projected", *KRONECKER, "auto") and self.rows != "logits":
            raise UsageError(
                f"rows belong to gauss-newton, kfac, ekfac and projected; the curvature here is {self.curvature}."
            )
        if self.curvature == "projected" and self.rows == "sampled":
            raise UsageError(
                "rows sampled belong to gauss-newton, kfac and ekfac; of projected choose logits, margin, trak or label."
            )
        if self.curvature not in ("gauss-newton", "auto") and self.precision != "float32":
            raise UsageError(
                f"precision {self.precision} belongs to gauss-newton; the curvature here is {self.curvature}."
            )
        if self.curvature not in ("linear-head", "gauss-newton", "auto") and self.leave_one_out:
            raise UsageError(
                f"leave_one_out belongs to linear-head and gauss-newton; the curvature here is {self.curvature}."
            )
        signed = ("hessian", "auto") if self.absolute is not None else ("hessian", "lanczos-hessian", "auto")
        if self.curvature not in signed and (self.absolute is not None or self.negative != "invert"):
            raise UsageError(f"absolute and negative belong to the hessian; the curvature here is {self.curvature}.")
        if self.curvature in (*LOW_RANK, *KRONECKER, *CONJUGATE, "projected") and self.rcond is not None:
            raise UsageError(f"{self.curvature} has no cutoff; leave out rcond, and damp it.")
        if self.curvature.startswith("gradient") and (
            any(self.damping) or self.rcond is not None or "damped" in self.also
        ):
            raise UsageError(
                f"{self.curvature} has no curvature to damp or cut; leave out damping, rcond and `also damped`."
            )
        self._check_unrolled()
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {self.batch_size}.")
        memory_bytes(self.memory)
        self._check_owned()
        self._check_damping()

    def _check_unrolled(self) -> None:
        if self.curvature != "unrolled":
            return
        if any(self.damping) or self.rcond is not None:
            raise UsageError("unrolled has no curvature to damp or cut; leave out damping and rcond.")
        if set(self.also) - {"predicted"}:
            raise UsageError("Beside unrolled scores only predicted ones are made; leave the rest of `also` out.")

    def _check_owned(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for name, owners in OWNED.items():
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}.")
            # beside the block's scores, which are gauss-newton's, an option is meant for the others
            if value != defaults[name] and self.curvature not in owners and "block" not in self.also:
                raise UsageError(f"{name} belongs to {', '.join(owners)}; the curvature here is {self.curvature}.")

    def _check_damping(self) -> None:
        for i, damping in enumerate(self.damping):
            if not isinstance(damping, str) and not 0 <= damping < float("inf"):  # catches NaN too
                raise UsageError(f"damping is {damping}; give finite numbers >= 0, or auto.")
            if damping in self.damping[:i]:
                raise UsageError(f"damping names {damping} twice; give each value once.")
        if not 0 < self.rtol < 1:  # catches NaN too
            raise UsageError(f"rtol must lie between 0 and 1, got {self.rtol}.")
        if 0 in self.damping and self.curvature in (*KRONECKER, *CONJUGATE):
            raise UsageError(f"{self.curvature} needs a damping > 0; give a positive number.")
        if self.curvature == "conjugate-gradient-hessian" and not self.damping:
            raise UsageError(
                "conjugate-gradient-hessian needs a damping that makes the Hessian positive; give a number."
            )
        if "auto" in self.damping and self.curvature in ("hessian", "conjugate-gradient-hessian"):
            raise UsageError(
                "There is no rule auto for the damping of a hessian, which may be indefinite; give numbers."
            )

    def decisive(self) -> dict[str, Any]:
        """What decides the scores.

        Returns:
            Every setting but those that change no number, and those of other curvatures, ready for JSON; a single damping is a
            number.
        """
        damping = self.damping if len(self.damping) > 1 else next(iter(self.damping), None)
        told = {**asdict(self), "damping": damping, "leave_one_out": self.leave_one_out or False}
        idle = ["device", "batch_size", "memory", *(n for n, owners in OWNED.items() if self.curvature not in owners)]
        return {name: value for name, value in told.items() if name not in idle}

    @classmethod
    def of_decisive(cls, told: Mapping[str, Any]) -> AttributeSettings:
        """The settings of scores that are there.

        Args:
            told: What `decisive` gave, and anything else; settings that were not known then have their defaults.

        Returns:
            The settings, without those that change no number.
        """
        names = {field.name for field in fields(cls)}
        held: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in told.items() if name in names
        }
        damping = held.get("damping")
        held["damping"] = damping if isinstance(damping, tuple) else () if damping is None else (damping,)
        held["leave_one_out"] = held.get("leave_one_out") or None
        return cls(**held)


def memory_bytes(memory: str | float | None) -> int | None:
    """A budget of memory in bytes.

    Args:
        memory: A number of bytes, or text: a number with B, kB, MB, GB, TB (powers of 1,000), KiB, MiB, GiB or TiB (of 1,024).

    Returns:
        Whole bytes; None where none is named.

    Raises:
        UsageError: It cannot be read, or is not positive.
    """
    if memory is None:
        return None
    number, unit = memory, ""
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kmgt]?i?b?)\s*", memory, flags=re.IGNORECASE)
        number, unit = found.groups() if found else ("nan", "")
    try:
        size = float(number) * _unit(unit.lower())
    except (TypeError, ValueError):
        size = float("nan")
    if not 1 <= size < float("inf"):  # catches NaN too
        raise UsageError(f"memory is {memory!r}; give bytes, or a size such as 8GB or 512MiB.")
    return int(size)


def _unit(unit: str) -> int:
    prefix = unit.removesuffix("b").removesuffix("i")
    base = 1024 if "i" in unit else 1000
    return base ** ("kmgt".index(prefix) + 1) if prefix else 1
