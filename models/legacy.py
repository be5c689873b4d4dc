"""Weight files that are pickles, read without running anything they hold.

`torch.load(weights_only=True)` comes first. What it refuses (files saved with dill, or with objects beside the weights)
goes through a reader of our own that knows how to make plain containers and descriptions of tensors; every other global
a file names becomes an inert stand-in. There is no third way.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .errors import CheckpointError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Unpickled(NamedTuple):
    """What a file holds."""

    content: Any
    stubs: tuple[str, ...]
    """Globals the file names that were replaced by stand-ins."""
    how: str
    """How it was read, in words."""


class _Stub:
    """Stands in for whatever a file names; takes part in its construction and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Stub:
        return object.__new__(_Stub)

    def __call__(self, *_: object, **__: object) -> _Stub:
        return self

    def __setitem__(self, _: object, __: object) -> None: ...

    def append(self, _: object) -> None:
        """Do nothing."""

    def extend(self, _: object) -> None:
        """Do nothing."""

    def add(self, _: object) -> None:
        """Do nothing."""


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    shift: int
    """First element, within the storage the file holds."""


class _View(NamedTuple):
    """A tensor still to be made: shape and strides over a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _view(storage: object, offset: object, size: object, stride: object, *_: object) -> _View:
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise pickle.UnpicklingError("a tensor is not described by a storage, a size and strides")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor's offset, size and strides are not whole numbers")
    return _View(storage, offset, size, stride)  # type: ignore[arg-type]


def _first(data: object, *_: object) -> object:
    return data


def _container(kind: type) -> Callable[..., object]:
    def make(*arguments: object) -> object:
        return kind(*arguments)

    return make


_KNOWN: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _container(dict),
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_tensor"): _view,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch", "Size"): _container(tuple),
    **{
        (module, kind.__name__): _container(kind)
        for module in ("builtins", "__builtin__")
        for kind in (dict, list, set)
    },
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


class _Reader(pickle._Unpickler):
    """The pure Python unpickler, whose every way to a global leads through `find_class`."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.stubs: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        """Look a global up in the short list; nothing is imported."""
        known = _KNOWN.get((module, name))
        if known is None:
            self.stubs.append(f"{module}.{name}")
            return _Stub
        return known

    def load_build(self) -> None:
        """Drop the state of an object: it could only reach attributes, and nothing here needs any."""
        self.stack.pop()  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}

    def get_extension(self, code: int) -> None:
        """Refuse registered extensions, which would come from this process."""
        raise pickle.UnpicklingError(f"the file uses the extension {code}")

    def persistent_load(self, pid: Any) -> object:
        """Describe a storage; its numbers are read later."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise pickle.UnpicklingError("a storage is of an unknown kind")
        view = pid[5] if len(pid) > 5 else None
        return _Storage(pid[1], str(pid[2]), int(view[1]) if view else 0)


@dataclass(slots=True)
class _Parsed:
    content: Any
    stubs: list[str]
    storages: dict[str, bytearray] = field(default_factory=dict)


def _parse_zip(path: Path) -> _Parsed:
    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist()]
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise pickle.UnpicklingError("the archive is compressed, which torch never does")
        main = next((name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")), None)
        if main is None:
            raise pickle.UnpicklingError("the archive holds no data.pkl")
        folder = main.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("the numbers are big-endian")
        reader = _Reader(io.BytesIO(archive.read(main)))
        parsed = _Parsed(reader.load(), reader.stubs)
        for name in names:
            if name.startswith(f"{folder}data/"):
                parsed.storages[name.removeprefix(f"{folder}data/")] = bytearray(archive.read(name))
        return parsed


def _parse_stream(path: Path) -> _Parsed:
    """The format of torch before 1.6: pickles one after another, then the numbers of each storage."""
    with open(path, "rb") as file:
        if _Reader(file).load() != _LEGACY_MAGIC or _Reader(file).load() != _LEGACY_PROTOCOL:
            raise pickle.UnpicklingError("it does not begin as torch's files do")
        system = _Reader(file).load()
        if not isinstance(system, dict) or not system.get("little_endian", True):
            raise pickle.UnpicklingError("the numbers are big-endian")
        reader = _Reader(file)
        kinds: dict[str, torch.dtype] = {}
        load = reader.persistent_load

        def remember(pid: Any) -> object:
            storage = load(pid)
            if isinstance(storage, _Storage):
                kinds[storage.key] = storage.dtype
            return storage

        reader.persistent_load = remember  # type: ignore[method-assign]
        parsed = _Parsed(reader.load(), reader.stubs)
        for key in _Reader(file).load():
            (count,) = struct.unpack("<q", file.read(8))
            length = count * kinds[str(key)].itemsize
            data = file.read(length) if 0 <= length <= path.stat().st_size else b""
            if len(data) != length:
                raise EOFError("the file ends inside the numbers of a tensor")
            parsed.storages[str(key)] = bytearray(data)
        return parsed


def _tensor(view: _View, storages: dict[str, bytearray]) -> Tensor:
    dtype = view.storage.dtype
    if 0 in view.size:
        return torch.empty(view.size, dtype=dtype)
    data = storages[view.storage.key]
    start = view.storage.shift + view.offset
    last = start + sum((size - 1) * stride for size, stride in zip(view.size, view.stride, strict=True))
    if max(last + 1, math.prod(view.size)) * dtype.itemsize > len(data):
        raise EOFError("a tensor reaches beyond its numbers")
    return torch.frombuffer(data, dtype=dtype).as_strided(view.size, view.stride, start).clone()


def _with_tensors(content: Any, storages: dict[str, bytearray], depth: int = 0) -> Any:
    """Dictionaries with their tensors made; other containers stay as they are, since weights lie in dictionaries."""
    if isinstance(content, _View):
        return _tensor(content, storages)
    if isinstance(content, dict) and depth < 4:  # {"model": {"key": tensor}} is two deep; cycles end here
        return {key: _with_tensors(value, storages, depth + 1) for key, value in content.items()}
    return content


def unpickle(path: Path) -> Unpickled:
    """What a weight file of torch holds, old or new.

    Args:
        path: The file.

    Returns:
        Its dictionaries and tensors, on the CPU.

    Raises:
        CheckpointError: It is no such file, or is cut off.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its storages
            return Unpickled(
                torch.load(path, map_location="cpu", weights_only=True), (), "torch.load(weights_only=True)"
            )
    except Exception:
        pass
    try:
        parsed = _parse_zip(path) if zipfile.is_zipfile(path) else _parse_stream(path)
        content = _with_tensors(parsed.content, parsed.storages)
    except Exception as error:  # a damaged pickle can fail in any way
        lookup = isinstance(error, LookupError)  # its text is the key alone
        reason = "it does not read as a pickle" if lookup else str(error) or type(error).__name__
        raise CheckpointError(f"{path} is cut off or no weight file of torch ({reason}); copy it again.") from error
    return Unpickled(content, tuple(sorted(set(parsed.stubs))), "the reader that runs nothing a pickle names")
