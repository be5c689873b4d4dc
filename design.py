"""Which parts of a train set are trained on again, with which seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .cache.truth_layout import Refits
    from .models.refit import Trainer

SUBSETS = 100
"""Random subsets where nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Which parts of a train set are trained on, and how often."""

    subsets: int | None = None
    """Parts drawn at random; 100 where none of the other two is given."""
    alpha: float = 0.5
    """Share of the examples in each of these."""
    leave_out: tuple[int, ...] | None = None
    """Positions of examples that are left out one at a time; the whole train set comes first."""
    parts: NDArray[np.bool_] | None = None
    """Parts of one's own: which examples each has [J, n]."""
    repeats: int = 2
    """Trainings on each part, with seeds of their own; 1 where the seed does not matter."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        given = [name for name in ("subsets", "leave_out", "parts") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} say in different ways what to train on; give one of them.")
        for name in ("subsets", "repeats"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UsageError(f"{name} is {value!r}; give a whole number of at least 1.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise UsageError(f"seed is {self.seed!r}; give a whole number of at least 0.")

    @property
    def kind(self) -> str:
        """One of "lds" (random subsets), "loo" (one left out) and "sets"."""
        return "loo" if self.leave_out is not None else "sets" if self.parts is not None else "lds"

    def config(self, trainer: Trainer) -> dict[str, Any]:
        """What decides the results of every part, whatever their number.

        Args:
            trainer: What trains.

        Returns:
            Plain JSON values.
        """
        drawn = {"alpha": self.alpha} if self.kind == "lds" else {}
        return {"kind": self.kind, **drawn, "seed": self.seed, "trainer": trainer.identity()}

    def refits(self, trainer: Trainer) -> Refits:
        """Every part and the seeds of its trainings.

        Random subsets have seeds of their own. Parts that are compared with each other, or with the whole, share theirs: the
        first is that of the trainer, so that the part that lacks nothing repeats the training it is about.

        Args:
            trainer: What trains.

        Returns:
            The refits.
        """
        import numpy as np

        from .cache.truth_layout import Refits
        from .influence.truth import random_parts, require_classes, without_each
        from .models.refit import refit_seed

        labels, n = trainer.train_labels, len(trainer.train_labels)
        r = 1 if trainer.exact else self.repeats
        if self.parts is not None:
            kept = _checked_parts(self.parts, n)
            require_classes(kept, labels)
        elif self.leave_out is not None:
            kept = without_each(n, self.leave_out)
            require_classes(kept, labels)
        else:
            kept = random_parts(labels, self.subsets or SUBSETS, self.alpha, self.seed)
        if self.kind == "lds":
            seeds = [[refit_seed(self.seed, j, a) for a in range(r)] for j in range(len(kept))]
        else:
            seeds = [[trainer.seed, *(refit_seed(self.seed, 0, a) for a in range(1, r))]] * len(kept)
        return Refits(
            kept=kept,
            seed=np.array(seeds, dtype=np.int64).reshape(len(kept), r),
            train_index=trainer.train_index,
            train_label=labels,
            query_index=trainer.query_index,
            query_label=trainer.query_labels,
        )


def _checked_parts(parts: Any, n: int) -> NDArray[np.bool_]:
    import numpy as np

    kept = np.asarray(parts)
    if kept.dtype != np.bool_ or kept.ndim != 2 or kept.shape[1] != n or not len(kept) or not kept.any(1).all():
        raise UsageError(
            f"parts is {kept.dtype} {list(kept.shape)}; give truth values [J, {n}], one row a part, with an example in each."
        )
    return kept
