"""Weight files of this package: safetensors whose header says which network they belong to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import UsageError
from .errors import CheckpointError
from .layouts import interpret
from .legacy import Unpickled, unpickle
from .zoo import Classifier, ModelSpec

FORMAT = "upweight-model"
VERSION = 1
_HEADER = "upweight"

SOURCES = ("natural", "robust")
_SHIPPED = Path(__file__).parent / "sources"


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
        shipped = self.path.parent == _SHIPPED  # the user may have a file of that name too
        path = f"upweight/models/sources/{self.path.name}" if shipped else str(self.path)
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
    return _SHIPPED / f"{name}.safetensors"


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
    content = {"format": FORMAT, "version": VERSION, "spec": model.spec.to_dict(), "metadata": dict(metadata)}
    # one entry: safetensors writes several in an order of its own, and equal models shall make equal files
    write_tensors(Path(path), model.state_dict(), {_HEADER: json.dumps(content)})


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


def assemble(spec: ModelSpec, tensors: Mapping[str, Tensor], origin: str) -> Classifier:
    """A network with given weights; nothing is allocated before names and shapes are known to fit.

    Args:
        spec: The network.
        tensors: One for each entry of its state.
        origin: The file they come from, for the message.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        CheckpointError: A tensor is missing, left over, of another shape, or not finite.
    """
    with torch.device("meta"):
        model = Classifier(spec)
    own = model.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    odd = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if missing or extra or odd:
        found = [f"lacks {len(missing)} tensors such as {missing[0]}"] if missing else []
        found += [f"has {len(extra)} others such as {extra[0]}"] if extra else []
        found += [
            f"has {n} of shape {tuple(tensors[n].shape)} instead of {tuple(own[n].shape)}" for n in sorted(odd)[:1]
        ]
        raise CheckpointError(
            f"{origin} does not fit {spec.architecture} with {spec.num_classes} classes: it {' and '.join(found)}; "
            "give the file that was made with this architecture."
        )
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(
                f"{origin} holds NaN or infinite numbers in {name}; use weights of a fit that went well."
            )
    own.update({name: value.to(own[name].dtype, copy=True) for name, value in tensors.items()})
    model.load_state_dict(own, assign=True)  # `own` knows the version of its modules, which an MNASNet asks for
    return model.eval()


def load_model(
    path_or_source: str | Path,
    *,
    architecture: str | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    beta: float | None = None,
) -> LoadedModel:
    """A network from a weight file, or one of the shipped sources by its name.

    The options are for files of others (torchvision, the robustness library, CARTL); ours hold all of it.

    Args:
        path_or_source: natural, robust, or a path.
        architecture: Name in the zoo, when it cannot be told from the weights.
        input_shape: Channels, height, width the network takes; the architecture's usual one when not given.
        mean: Of the normaliser, per channel, when the file has none.
        std: Likewise.
        beta: Factor that spectrally normalised weights (CARTL's NEFT) were scaled by; they are made plain with it.

    Returns:
        The network in evaluation mode, and what its file said.

    Raises:
        CheckpointError: The file is missing, damaged, of an unknown kind, or does not fit its architecture.
        UsageError: An option contradicts the file.
    """
    shipped = str(path_or_source) in SOURCES
    path = source_path(str(path_or_source)) if shipped else Path(path_or_source).expanduser()
    if not path.is_file():
        raise CheckpointError(f"There is no weight file {path}; give the path of one, or {' or '.join(SOURCES)}.")
    options = {"architecture": architecture, "input_shape": input_shape, "mean": mean, "std": std, "beta": beta}
    read, header = _read(path)
    if _HEADER in header:
        if given := [name for name, value in options.items() if value is not None]:
            raise UsageError(f"{path} says itself what it holds; leave {', '.join(given)} out.")
        spec, metadata = _own_header(path, header[_HEADER])
        tensors: Mapping[str, Tensor] = read.content
        facts = [f"{spec.architecture} with {spec.num_classes} classes", "normaliser from the file"]
    else:
        found = interpret(read.content, str(path), **options)  # type: ignore[arg-type]
        spec, tensors, facts, metadata = found.spec, found.tensors, list(found.facts), dict(found.numbers)
    if read.stubs:
        facts.append(f"{len(read.stubs)} kinds of objects left out ({', '.join(read.stubs[:3])})")
    return LoadedModel(
        model=assemble(spec, tensors, str(path)),
        spec=spec,
        metadata={**metadata, "found": "; ".join([*facts, f"read by {read.how}"])},
        name=str(path_or_source) if shipped else weights_name(path),
        path=path,
        sha256=file_hash(path),
    )


def weights_name(path: Path) -> str:
    """A file's name without its ending; what follows the dot of `eps0.01` in a name without one is no ending."""
    return path.stem if path.suffix[1:].isalpha() else path.name


def _read(path: Path) -> tuple[Unpickled, dict[str, str]]:
    """The content of a weight file of any kind, and the header that safetensors have."""
    if not _is_safetensors(path):
        return unpickle(path), {}
    tensors, header = read_tensors(path)
    return Unpickled(tensors, (), "safetensors"), header


def _is_safetensors(path: Path) -> bool:
    """By the name, or by a header that begins as JSON after its length."""
    with open(path, "rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _own_header(path: Path, words: str) -> tuple[ModelSpec, dict[str, Any]]:
    try:
        header = json.loads(words)
        version = header["version"] if header["format"] == FORMAT else f"of {header['format']}"
        if version != VERSION:
            raise CheckpointError(f"{path} has the format version {version}; this release reads {FORMAT} {VERSION}.")
        return ModelSpec.from_dict(header["spec"]), dict(header["metadata"])
    except (KeyError, ValueError, TypeError, IndexError, UsageError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error}); copy it again.") from error
