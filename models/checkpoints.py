"""Weight files of this package: safetensors whose header says which network they belong to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import UpweightError
from .errors import CheckpointError
from .zoo import Classifier, ModelSpec

FORMAT = "upweight-model"
VERSION = 1

SOURCES = ("natural", "robust")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A network with its weights, and what its file said."""

    model: Classifier
    """In evaluation mode, on the CPU."""
    spec: ModelSpec
    metadata: dict[str, Any]
    """What the file's header holds; `found` says how the file was read."""
    name: str
    path: Path
    sha256: str

    def record(self) -> dict[str, Any]:
        """Where the weights came from, as plain JSON values; the history of their fit is left to their own file."""
        metadata = {key: value for key, value in self.metadata.items() if key != "history"}
        path = f"upweight/models/sources/{self.path.name}" if self.name in SOURCES else str(self.path)
        return {"name": self.name, "path": path, "sha256": self.sha256, "metadata": metadata}


def file_hash(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal.

    Args:
        path: The file.

    Returns:
        64 digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_path(name: str) -> Path:
    """The weight file of a source that comes with the package.

    Args:
        name: natural or robust.

    Returns:
        Where it lies in the installed package.

    Raises:
        CheckpointError: There is no such source.
    """
    if name not in SOURCES:
        raise CheckpointError(
            f"There is no shipped source {name!r}; choose {' or '.join(SOURCES)}, or give a weight file."
        )
    return Path(__file__).parent / "sources" / f"{name}.safetensors"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], *, durable: bool = True
) -> None:
    """Write a safetensors file in one go: whole or not at all.

    Args:
        path: Where to; its folder is made, and a file there is replaced.
        tensors: By name.
        header: Words kept beside them.
        durable: Wait until the disk has it; not needed for what can be computed again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    packed = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata=dict(header))
    with open(temporary, "wb") as file:
        file.write(packed)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one go: whole or not at all.

    Args:
        path: Where to; a file there is replaced.
        content: Plain JSON values.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def save_model(path: str | Path, model: Classifier, metadata: Mapping[str, Any]) -> None:
    """Write a network's weights with all that is needed to build it again.

    Args:
        path: The safetensors file to write.
        model: The network.
        metadata: Plain JSON values kept in the file's header.
    """
    header = {
        "format": FORMAT,
        "version": str(VERSION),
        "spec": json.dumps(model.spec.to_dict()),
        "metadata": json.dumps(dict(metadata)),
    }
    write_tensors(Path(path), model.state_dict(), header)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a safetensors file.

    Args:
        path: The file.

    Returns:
        Tensors by name, and the words of the header.

    Raises:
        CheckpointError: The file is missing, cut off, or no safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no weight file {path}; give the path of one, or {' or '.join(SOURCES)}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # ruff: ignore[in-dict-keys]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is cut off or no safetensors file ({error}); copy it again.") from error


def fill(model: Classifier, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Put weights into a network, all of them or none.

    Args:
        model: The network.
        tensors: One for each entry of its state.
        origin: The file they come from, for the message.

    Raises:
        CheckpointError: A tensor is missing, left over, of another shape, or not finite.
    """
    own = model.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    what = f"{origin} does not fit {model.spec.architecture} with {model.spec.num_classes} classes"
    if missing or extra:
        found = [f"lacks {len(missing)} tensors such as {missing[0]}"] if missing else []
        found += [f"has {len(extra)} others such as {extra[0]}"] if extra else []
        raise CheckpointError(f"{what}: it {' and '.join(found)}; name the architecture it was made with.")
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise CheckpointError(
                f"{what}: {name} has shape {tuple(value.shape)} instead of {tuple(own[name].shape)}; "
                "name the architecture it was made with."
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(
                f"{origin} holds NaN or infinite numbers in {name}; use the weights of a fit that went well."
            )
    model.load_state_dict(dict(tensors))


def load_model(path_or_source: str | Path) -> LoadedModel:
    """A network from a weight file, or one of the shipped sources by its name.

    Args:
        path_or_source: natural, robust, or a path.

    Returns:
        The network in evaluation mode, and what its file said.

    Raises:
        CheckpointError: The file is missing, damaged, of an unknown kind, or does not fit its architecture.
    """
    shipped = str(path_or_source) in SOURCES
    path = source_path(str(path_or_source)) if shipped else Path(path_or_source).expanduser()
    tensors, header = read_tensors(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} does not say which network it belongs to; name the architecture.")
    try:
        spec = ModelSpec.from_dict(json.loads(header["spec"]))
        metadata = dict(json.loads(header["metadata"]))
    except (KeyError, ValueError, TypeError, IndexError, UpweightError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error}); copy it again.") from error
    model = Classifier(spec)
    fill(model, tensors, str(path))
    name = str(path_or_source) if shipped else path.stem
    metadata["found"] = f"{spec.architecture} with {spec.num_classes} classes from safetensors, normaliser in the file"
    return LoadedModel(model=model.eval(), spec=spec, metadata=metadata, name=name, path=path, sha256=file_hash(path))
