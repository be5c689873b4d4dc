"""Labels changed on purpose, and the network trained on them: whose scores find the changed ones first?

Heavy modules are imported inside the functions that need them, so that the command line can show its options at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import UsageError
from .cache.errors import StoreError, StoreMismatch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from .models.refit import Trainer

FORMAT = "upweight-mislabelled"
VERSION = "1.0"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mislabelled:
    """A train set of which some labels were changed, and the network trained on it."""

    labels: NDArray[np.int64]
    """What it was trained with [n]."""
    flipped: NDArray[np.bool_]
    """Which of them are not the true ones [n]."""
    model: nn.Module
    """From inputs to logits, in evaluation mode, on the CPU."""
    meta: Mapping[str, Any]
    """How it was made, as plain JSON values."""


def flip_labels(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Give some examples, drawn at random, the label of another class, drawn at random from all others.

    Args:
        labels: The true ones.
        share: Of the examples, rounded to a whole number of them and at least one.
        seed: Of the draws.

    Returns:
        The labels.

    Raises:
        UsageError: The share does not lie between 0 and 1, or there is no other class.
    """
    import numpy as np

    from .models.device import derive_seed

    if not 0 < share < 1:
        raise UsageError(f"The share of labels to change is {share}; give one above 0 and below 1.")
    classes, rank = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise UsageError("All examples have one label; labels can be changed where there are two or more.")
    draw = np.random.default_rng(derive_seed("mislabel", seed))
    chosen = draw.permutation(len(labels))[: max(1, round(share * len(labels)))]
    found = labels.copy()
    found[chosen] = classes[(rank[chosen] + draw.integers(1, len(classes), len(chosen))) % len(classes)]
    return found


def mislabelled(
    trainer: Trainer, share: float, seed: int = 0, *, out: str | Path | None = None, overwrite: bool = False
) -> Mislabelled:
    """Change the labels of some train examples and train on all of them; what was made before is read back.

    Args:
        trainer: What trains.
        share: Of the labels that are changed.
        seed: Of the draws; the training has the trainer's own.
        out: A .safetensors file that the network is kept in; None: nowhere.
        overwrite: Replace a file that was made otherwise.

    Returns:
        Labels and network.

    Raises:
        UsageError: The trainer makes no network that the file could be read into.
    """
    import numpy as np

    from .cache.provenance import digest, plain
    from .models.device import threads

    labels = flip_labels(trainer.train_labels, share, seed)
    flipped = labels != trainer.train_labels
    config = plain({"share": share, "seed": seed, "training_seed": trainer.seed, "trainer": trainer.identity()})
    assert isinstance(config, dict)
    if out is not None:
        found = _read(Path(out), config, overwrite)
        if found is not None:
            blank = trainer.blank()
            if blank is None:
                raise UsageError(f"{out} holds weights and there is no network to fill; give the trainer a `make`.")
            blank.load_state_dict(found)
            return Mislabelled(labels=labels, flipped=flipped, model=blank.eval(), meta=config)
    with threads(1):
        fit = trainer.fit(np.ones(len(labels), dtype=np.bool_), labels, trainer.seed)
    model = trainer.network(fit).cpu().eval()
    if out is not None:
        from .models.checkpoints import write_tensors

        kept = {
            "format": FORMAT,
            "version": VERSION,
            "config": config,
            "config_digest": digest(config),
            "flipped": trainer.train_index[flipped].tolist(),
            "labels": labels[flipped].tolist(),
        }
        write_tensors(Path(out), model.state_dict(), {"upweight": json.dumps(kept)})
    return Mislabelled(labels=labels, flipped=flipped, model=model, meta=config)


def _read(path: Path, config: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Weights of a file that was made alike; None where there is none, or it may be replaced."""
    from .cache.identity import refuse_other
    from .models.checkpoints import read_tensors
    from .models.errors import CheckpointError

    if not path.exists():
        return None
    try:
        tensors, header = read_tensors(path)
        held = json.loads(header["upweight"])
        if held["format"] != FORMAT:
            raise KeyError(FORMAT)
        refuse_other(path, {"settings": held["config"]}, {"settings": config})
    except StoreMismatch:
        if overwrite:
            return None
        raise
    except (CheckpointError, KeyError, ValueError, TypeError) as error:
        raise StoreError(
            f"{path} is no file that upweight wrote for changed labels, or is damaged ({error}); take it away, or choose "
            "another name."
        ) from error
    return tensors
