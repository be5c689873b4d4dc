"""Weight files of other projects, written once as files of this package, which say themselves what they hold."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import UsageError
from .checkpoints import file_hash, load_model, save_model
from .errors import CheckpointError, RunMismatch
from .settings import ConvertSettings
from .training import require_same_settings


def convert(
    checkpoint: str | Path, settings: ConvertSettings, out: str | Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Read a weight file of any known layout and write it as one that every command takes as a source.

    Args:
        checkpoint: The file; it is left as it is.
        settings: What it does not say about itself.
        out: The safetensors file to write; one that these settings made of this file is kept.
        overwrite: Replace another file.

    Returns:
        The network, how its file was read, and the numbers the file had beside the weights.

    Raises:
        UsageError: `out` is the file itself, or ends otherwise.
        RunMismatch: There is another file.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if out.suffix != ".safetensors" or out.resolve() == checkpoint.resolve():
        raise UsageError(
            f"The converted file would be {out}; end it in .safetensors, and let it be another file than {checkpoint}."
        )
    loaded = load_model(
        checkpoint,
        architecture=settings.architecture,
        input_shape=settings.shape,
        mean=settings.mean or None,
        std=settings.std or None,
        beta=settings.beta,
    )
    asked = {"sha256": loaded.sha256} | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()}
    if out.exists() and not overwrite:
        require_same_settings(out, _made_of(out), asked)
    else:
        save_model(out, loaded.model, loaded.metadata | {"converted": asked, "file": checkpoint.name})
    return {
        "out": str(out),
        "sha256": file_hash(out),
        "spec": loaded.spec.to_dict(),
        "metadata": loaded.metadata,
    }


def _made_of(out: Path) -> dict[str, Any]:
    """What an earlier call made a file of."""
    try:
        made = load_model(out).metadata.get("converted")
    except (CheckpointError, UsageError):
        made = None
    if not isinstance(made, dict):
        raise RunMismatch(
            f"{out} exists and is no converted file; pass --overwrite to replace it, or give another --out."
        )
    return made
