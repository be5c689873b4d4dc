"""Opening an HDF5 file that may come from anyone: every object is looked at before any of its data are read.

HDF5 can point out of the file (external and soft links, virtual data sets, external raw data), run code from plug-ins (filters)
and declare more than it holds. A store needs none of it. What is here walks hard links only and refuses the rest.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from .errors import ForeignFile, StoreError

PARTIAL = ".partial"
"""Added to the name of a file that is still being written."""

MAX_OBJECTS = 10_000
MAX_DEPTH = 8
MAX_ATTRIBUTES = 1_000
MAX_AXES = 2
MAX_CHUNK_BYTES = 2**28
MAX_INFLATION = 64
"""Most that a packed data set above `SMALL` bytes may grow to, relative to the whole file."""
SMALL = 2**26

FILTERS = {
    h5py.h5z.FILTER_DEFLATE: "deflate",
    h5py.h5z.FILTER_SHUFFLE: "shuffle",
    h5py.h5z.FILTER_FLETCHER32: "fletcher32",
}
"""Filters that HDF5 itself brings: reading them loads no plug-in."""

TYPES = {
    name: (getattr(h5py.h5t, f"{stem}LE"), getattr(h5py.h5t, f"{stem}BE"))
    for name, stem in {"uint8": "STD_U8", "int64": "STD_I64", "float32": "IEEE_F32", "float64": "IEEE_F64"}.items()
}
"""The types that a data set may have, in either byte order."""


def safe_open(path: Path, kind: str) -> h5py.File:
    """Open for reading a file of unknown origin.

    Args:
        path: The file.
        kind: What the attribute `format` of its root must say.

    Returns:
        The open file; every object in it is a group or a plain data set of a known type, held by a hard link.

    Raises:
        StoreError: There is no such file, it is damaged, or it holds something that a store has no use for; `ForeignFile`
            when it is not HDF5, or of another program.
    """
    with hdf5_errors(path):
        # A file in the making is guarded by `Lock`, and stays readable meanwhile; HDF5 wants one mode for all who open a file.
        file = h5py.File(path, "r", locking=False if path.name.endswith(PARTIAL) else None)
        try:
            _check_kind(file.id, path, kind)
            size = path.stat().st_size
            for key, item in _walk(file.id, path):
                _check_attributes(item, path, key)
                if isinstance(item, h5py.h5d.DatasetID):
                    _check_dataset(item, path, key, size)
        except BaseException:
            file.close()
            raise
    return file


@contextmanager
def hdf5_errors(path: Path, advice: str = "Rebuild it with --overwrite.") -> Generator[None]:
    """Turn what HDF5 and the operating system raise into one sentence.

    Args:
        path: The file that is read or written.
        advice: The mend when the file's content is at fault.

    Yields:
        Nothing.

    Raises:
        StoreError: In place of any error of HDF5 or the operating system.
        ForeignFile: The file is not HDF5.
    """
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise StoreError(
            f"There is no file {path}; give a store, or the folder of one run that was attributed."
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError) as error:
        if "signature not found" in str(error):
            raise ForeignFile(f"{path} is not an HDF5 file; {_FREE_PATH}") from error
        raise StoreError(_sentence(path, error, advice)) from error


def _sentence(path: Path, error: Exception, advice: str) -> str:
    number = getattr(error, "errno", None)
    found = re.search(r"errno = (\d+)", str(error))  # HDF5 passes the system's error on as text
    number = number or (int(found.group(1)) if found else None)
    if number is not None and number > 0:
        return f"{path} could not be read or written: {os.strerror(number)}. {_MENDS.get(number, _OTHER_MEND)}"
    if "truncated file" in str(error):
        return f"{path} is truncated: it is shorter than it says. Copy it again. {advice}"
    if "file locking flag" in str(error) or "already open" in str(error):
        return f"{path} is open elsewhere in this process in another mode. Close it there first."
    return f"{path} is damaged ({_first_line(error)}). {advice}"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


_FREE_PATH = "give the path of a store that upweight wrote, or one that is free."
_OTHER_MEND = "Check the folder and its disk, or choose another place with --out DIR."
_MENDS = {
    errno.ENOSPC: "Free some space, or choose another place with --out DIR, and run the same command again.",
    errno.EDQUOT: "Your quota is used up: free some space, or choose another place with --out DIR.",
    errno.EFBIG: "The file system takes no larger files; choose another place with --out DIR.",
    errno.EACCES: "Choose a file or folder that you may use, with --out DIR.",
    errno.EPERM: "Choose a file or folder that you may use, with --out DIR.",
    errno.EROFS: "Choose a place that can be written to, with --out DIR.",
    errno.EAGAIN: "Another program has it open; close it there and run the same command again.",
    errno.EISDIR: "A file is needed, not a folder.",
}


def _check_kind(root: h5py.h5f.FileID, path: Path, kind: str) -> None:
    """A file of another program is told from a store that somebody tampered with."""
    found = None
    if h5py.h5a.exists(root, b"format") and _is_scalar(h5py.h5a.open(root, b"format")):
        found = h5py.File(root).attrs["format"]
    if found != kind.encode():
        raise ForeignFile(f"{path} is an HDF5 file of another program (it has no format {kind!r}); {_FREE_PATH}")


def _walk(root: h5py.h5f.FileID, path: Path) -> Iterator[tuple[str, h5py.h5g.GroupID | h5py.h5d.DatasetID]]:
    """Every object below and including the root: its path and its identifier."""
    waiting: list[tuple[str, int, h5py.h5g.GroupID]] = [("/", 0, h5py.h5g.open(root, b"/"))]
    count = 0
    while waiting:
        key, depth, group = waiting.pop()
        yield key, group
        count += group.get_num_objs()
        if count > MAX_OBJECTS or depth > MAX_DEPTH:
            raise StoreError(
                f"{path} holds too many objects or nests them in a loop; it is no store that upweight wrote."
            )
        for name in list(group):
            child = f"{key.rstrip('/')}/{_text(name, path)}"
            if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise StoreError(f"{path} holds the link {child}, and upweight follows none. Do not use this file.")
            item = h5py.h5o.open(group, name)
            if isinstance(item, h5py.h5g.GroupID):
                waiting.append((child, depth + 1, item))
            elif isinstance(item, h5py.h5d.DatasetID):
                yield child, item
            else:
                raise StoreError(f"{path} holds {child}, neither a group nor a data set. Do not use this file.")


def _check_attributes(item: h5py.h5g.GroupID | h5py.h5d.DatasetID, path: Path, key: str) -> None:
    number = h5py.h5a.get_num_attrs(item)
    if number > MAX_ATTRIBUTES:
        raise StoreError(f"{path} has {number} attributes on {key}; it is no store that upweight wrote.")
    for i in range(number):
        attribute = h5py.h5a.open(item, index=i)
        name = _text(attribute.name, path)
        if not _is_scalar(attribute):
            raise StoreError(
                f"{path} has an attribute {name} on {key} that is no plain number or text. Do not use this file."
            )


def _text(name: bytes, path: Path) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise StoreError(
            f"{path} is damaged: the name {name!r} in it is no text. Rebuild it with --overwrite."
        ) from error


def _is_scalar(attribute: h5py.h5a.AttrID) -> bool:
    """One number, truth value or text of fixed length; for text of variable length HDF5 reads its global heap, unchecked."""
    if attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
        return False
    kind = attribute.get_type()
    if kind.get_class() == h5py.h5t.STRING:
        return not kind.is_variable_str()
    return kind.get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT) or (
        kind.get_class() == h5py.h5t.ENUM and kind.get_size() == 1
    )


def _check_dataset(dataset: h5py.h5d.DatasetID, path: Path, key: str, file_size: int) -> None:
    """Refuse anything but plain numbers inside this file; the order matters: where the data lie comes before any use of them."""
    made = dataset.get_create_plist()
    if made.get_layout() not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
        raise StoreError(f"{path} takes {key} from other files (a virtual data set). Do not use this file.")
    if made.get_external_count() > 0:
        raise StoreError(f"{path} keeps the data of {key} in another file. Do not use this file.")
    filters = [made.get_filter(i) for i in range(made.get_nfilters())]
    unknown = [code for code, *_ in filters if code not in FILTERS]
    if unknown:
        raise StoreError(
            f"{path} packs {key} with the HDF5 filter {unknown[0]}; only {', '.join(FILTERS.values())} are read. "
            "Repack it without (h5repack -f NONE)."
        )
    kind = dataset.get_type()
    if not any(kind.equal(known) for pair in TYPES.values() for known in pair):
        raise StoreError(
            f"{path} holds {key} in a type that no store has; {', '.join(TYPES)} are read. Do not use this file."
        )
    if dataset.get_space().get_simple_extent_type() != h5py.h5s.SIMPLE or not 1 <= dataset.rank <= MAX_AXES:
        raise StoreError(f"{path} holds {key} with a shape that no store has. Do not use this file.")
    size = kind.get_size()
    for extent in dataset.shape:
        size *= extent
    if size > (max(SMALL, file_size * MAX_INFLATION) if filters else file_size):
        raise StoreError(
            f"{path} declares {key} with {size} bytes, and has only {file_size} in all. Do not use this file."
        )
    if made.get_layout() == h5py.h5d.CHUNKED:
        chunk = kind.get_size()
        for extent in made.get_chunk():
            chunk *= extent
        if chunk > MAX_CHUNK_BYTES:
            raise StoreError(f"{path} cuts {key} into pieces of {chunk} bytes. Repack it (h5repack).")
