"""upweight: which training examples, upweighted, would change a fine-tuned network's prediction.

    scores[t, i] = + g_t^T H^+ g_i        rows t: queries, columns i: train examples, nats per unit of weight

positive: example i is helpful to query t (a proponent); removing i raises the loss of t by about scores[t, i] / n.

The public names below are imported on first use, so that `import upweight` and `upweight --help` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache.errors import StoreError, StoreMismatch
    from .cache.truth import open_truth
    from .dry_run import estimate
    from .evaluation import evaluate
    from .influence.average import average
    from .influence.conjugate_gradient import ConjugateGradient
    from .influence.ekfac import EKFAC
    from .influence.errors import ShapeError, SolveError
    from .influence.estimate import Estimate
    from .influence.evaluation import lds, lds_difference, mislabel
    from .influence.gauss_newton import GaussNewton
    from .influence.gradient_dot import GradientDot
    from .influence.head import LinearHead
    from .influence.hessian import Hessian
    from .influence.kfac import KFAC
    from .influence.lanczos import Lanczos
    from .influence.nystroem import Nystroem
    from .influence.projected import Projected
    from .influence.recording import Recording
    from .influence.removal import loo
    from .influence.scores import Scores
    from .influence.tables import Table
    from .influence.truth import Truth
    from .influence.unrolled import Unrolled
    from .models.errors import CheckpointError, DataError
    from .pipeline import attribute
    from .retraining import retrain
    from .scoring import open_scores
    from .unrolling import open_recording

__version__ = "0.1.0"


class UpweightError(Exception):
    """Base of every error that upweight raises on purpose: one sentence with what was found, what was wanted, the mend."""


class UsageError(UpweightError, ValueError):
    """An argument does not fit what it is applied to: an unknown name, k beyond the blocks, a query out of range."""


_HOME = {
    "attribute": ".pipeline",
    "open_scores": ".scoring",
    "retrain": ".retraining",
    "open_truth": ".cache.truth",
    "Truth": ".influence.truth",
    "estimate": ".dry_run",
    "Estimate": ".influence.estimate",
    "LinearHead": ".influence.head",
    "Hessian": ".influence.hessian",
    "GaussNewton": ".influence.gauss_newton",
    "GradientDot": ".influence.gradient_dot",
    "KFAC": ".influence.kfac",
    "EKFAC": ".influence.ekfac",
    "Nystroem": ".influence.nystroem",
    "Lanczos": ".influence.lanczos",
    "Projected": ".influence.projected",
    "ConjugateGradient": ".influence.conjugate_gradient",
    "Unrolled": ".influence.unrolled",
    "Recording": ".influence.recording",
    "open_recording": ".unrolling",
    "evaluate": ".evaluation",
    "lds": ".influence.evaluation",
    "lds_difference": ".influence.evaluation",
    "loo": ".influence.removal",
    "mislabel": ".influence.evaluation",
    "average": ".influence.average",
    "Scores": ".influence.scores",
    "Table": ".influence.tables",
    "ShapeError": ".influence.errors",
    "SolveError": ".influence.errors",
    "StoreError": ".cache.errors",
    "StoreMismatch": ".cache.errors",
    "CheckpointError": ".models.errors",
    "DataError": ".models.errors",
}

__all__ = [
    # the one call, and reading its result back
    "attribute",
    "open_scores",
    "average",
    "Scores",
    "Table",
    # what retraining says
    "retrain",
    "open_truth",
    "Truth",
    # what it will cost
    "estimate",
    "Estimate",
    # curvatures
    "LinearHead",
    "Hessian",
    "GaussNewton",
    "GradientDot",
    "KFAC",
    "EKFAC",
    "Nystroem",
    "Lanczos",
    "Projected",
    "ConjugateGradient",
    # the training itself
    "Unrolled",
    "Recording",
    "open_recording",
    # scores held against retraining
    "evaluate",
    "lds",
    "lds_difference",
    "loo",
    "mislabel",
    # errors
    "UpweightError",
    "UsageError",
    "CheckpointError",
    "DataError",
    "ShapeError",
    "SolveError",
    "StoreError",
    "StoreMismatch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
