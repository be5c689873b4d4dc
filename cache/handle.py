"""The open store: created or resumed, written through sinks, finished, read as scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import h5py

from .. import UsageError
from ..influence.damping import Damping, damping_of
from .attributes import read_attributes
from .contents import read_contents, read_spectrum
from .errors import ForeignFile, StoreError
from .files import complete, incomplete, make_partial, partial_path
from .identity import asked_for, held_by, refuse_other
from .layout import FIELDS, FORMAT, Plan, VariantLayout, prefix
from .lock import Lock
from .safe_open import PARTIAL, hdf5_errors, safe_open
from .sink import Sink

if TYPE_CHECKING:
    from ..influence.examples import Examples
    from ..influence.scores import Scores
    from ..influence.spectrum import Spectrum

Side = Literal["queries", "train"]
DTYPES = ("float32", "float64")


class Store:
    """An open store. Use it in a `with` block, or call `close`.

    Scores taken from a store read their matrix from its file as they are used: they end with it. `open_scores` leaves its file
    open for as long as its scores are referred to.

    Make one with `Store.create_or_resume` or `open_store`.
    """

    def __init__(self, file: h5py.File, path: Path, lock: Lock | None = None) -> None:
        self.file = file
        """The open HDF5 file, checked."""
        self._lock = lock
        self._sides: dict[str, Examples] = {}
        self.path = path
        """Name of the complete file; while tiles are missing it lies at this name with ".partial" added."""
        try:
            with hdf5_errors(Path(file.filename)):
                self.contents = read_contents(file)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def create_or_resume(
        cls,
        path: str | Path,
        *,
        queries: Examples | None,
        train: Examples,
        variants: Sequence[VariantLayout],
        attributes: Mapping[str, Any],
        config: Mapping[str, Any],
        dtype: str = "float32",
        rows_per_tile: int,
        columns_per_tile: int,
        overwrite: bool = False,
    ) -> Store:
        """Open the store of a run: the complete one, the unfinished one, or a new one.

        Which it is depends on `config`, on `attributes["hashes"]`, on the type, the variants and the examples: results are
        added to, or returned, only where all of these are the same.

        Args:
            path: Name of the complete file.
            queries: The queries; None: the train set on itself.
            train: The train set.
            variants: The sets of scores it will hold.
            attributes: What holds for all of them, such as `hashes` of model and data; any JSON values.
            config: The settings that decide the scores; any JSON values.
            dtype: "float32" or "float64".
            rows_per_tile: Height of a tile; a multiple of 128 writes whole chunks.
            columns_per_tile: Width of a tile; a multiple of 512 writes whole chunks.
            overwrite: Replace a store made under other settings, or a damaged one. The old file stays until the new one is
                complete; one under the same settings is kept and continued.

        Returns:
            The store. A complete one is open for reading and all its tiles are done.

        Raises:
            StoreError: Another process is writing it, the file is damaged or not a store, or the disk is full or locked.
            StoreMismatch: It was made under other settings.
            UsageError: The type is unknown, or a name is taken.
        """
        path = Path(path)
        if dtype not in DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
        wanted = asked_for(queries, train, variants, attributes, config, dtype)
        finished = matching(path, wanted, overwrite)
        if finished is not None:
            return finished
        with hdf5_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = Lock(path)
        try:
            finished = matching(path, wanted, overwrite)  # another process may have finished it before we had the lock
            if finished is not None:
                lock.release()
                return finished
            tiles = {"rows_per_tile": rows_per_tile, "columns_per_tile": columns_per_tile}
            partial = partial_path(path)
            begun = matching(partial, wanted | {"tiles": tiles}, overwrite)
            if begun is not None:
                begun.close()
            else:
                plan = Plan(queries, train, tuple(variants), attributes, config, dtype, rows_per_tile, columns_per_tile)
                make_partial(partial, plan.size_on_disk(), plan.lay_out)
            with hdf5_errors(partial):
                return cls(h5py.File(partial, "r+", locking=False), path, lock)
        except BaseException:
            lock.release()
            raise

    def sink(self, variant: str = "") -> Sink:
        """Where the tiles of a variant go.

        Args:
            variant: Its name.

        Returns:
            An object with `done` and `write`.
        """
        return Sink(self._group(variant), self.contents, variant)

    def finish(self) -> None:
        """Mark the file complete by giving it its name, and keep it open for reading; nothing happens to a complete one.

        Raises:
            StoreError: Tiles are missing, or the disk fails; or the store was closed.
        """
        self._check_open()
        if self.file.mode == "r":
            return
        with hdf5_errors(self.path):
            self.contents = read_contents(self.file)
        if not self.contents.complete:
            raise StoreError(incomplete(self.path, *self.contents.tiles))
        complete(self.file, partial_path(self.path), self.path)
        self.close()
        self.file = safe_open(self.path, FORMAT)

    def scores(self, variant: str = "") -> Scores:
        """Scores that read their matrix from the file as they are used.

        Args:
            variant: Name of the variant.

        Returns:
            The scores, with those of the train set on itself when the file has them; the main ones also with those at further
            dampings.

        Raises:
            StoreError: There is no such variant, or tiles are missing.
        """
        from ..influence.scores import Scores  # brings torch, which `upweight info` has no use for

        group = self._group(variant)
        with hdf5_errors(Path(self.file.filename)):
            self.contents = read_contents(self.file)
            if not self.contents.complete:
                raise StoreError(incomplete(self.path, *self.contents.tiles))
            train, scores = self._examples("train"), group["scores"]
            meta = {**self.contents.shared, **read_attributes(scores)}
            facts: dict[str, Any] = {"spectrum": _spectrum(group), "meta": meta}
            further: dict[float | str, Scores]
            further = {} if variant else {damping: self.scores(name) for name, damping in self._dampings().items()}
            if "queries" not in self.contents.counts:
                return Scores(scores["train"], train, train, on_itself=True, at_damping=further, **facts)
            on_train = None
            if "train" in scores:
                on_train = Scores(scores["train"], train, train, on_itself=True, **facts)
            queries = self._examples("queries")
            return Scores(scores["queries"], queries, train, on_train=on_train, at_damping=further, **facts)

    def _dampings(self) -> dict[str, Damping]:
        """Variants that are the main scores at a further damping, in ascending order."""
        found = {name: damping_of(name) for name in self.contents.variants}
        known = {name: damping for name, damping in found.items() if damping is not None}
        return dict(sorted(known.items(), key=lambda item: (isinstance(item[1], str), item[1])))

    def close(self) -> None:
        """Close the file and let others write it; what is unfinished stays for the next `create_or_resume`."""
        try:
            with suppress(
                OSError, RuntimeError
            ):  # after a failed write: what counts was on disk before its `done` byte was set
                self.file.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    def _check_open(self) -> None:
        if not self.file:
            raise StoreError(f"The store {self.path} was closed; open it again, and use its scores while it is open.")

    def _group(self, variant: str) -> h5py.Group:
        self._check_open()
        if variant not in self.contents.variants:
            names = ", ".join(repr(name) for name in self.contents.variants)
            raise StoreError(f"{self.path} has no variant {variant!r}; it has {names}.")
        return self.file[prefix(variant) or "/"]

    def _examples(self, side: Side) -> Examples:
        from ..influence.examples import Examples

        if side not in self._sides:
            group = self.file[side]
            self._sides[side] = Examples(**{name: group[name][...] for name in FIELDS if name in group})
        return self._sides[side]


def matching(path: Path, wanted: Mapping[str, Any], overwrite: bool) -> Store | None:
    """The store at a path when it is the wanted one.

    Args:
        path: A complete or a partial file, or a free name.
        wanted: What `asked_for` gave, or its `settings` alone.
        overwrite: A store made under other settings, or a damaged one, may be replaced.

    Returns:
        The store, open for reading; None when there is none, or it may be replaced.

    Raises:
        StoreError: The file is damaged.
        ForeignFile: It is not a store, and is never replaced.
    """
    with hdf5_errors(path):
        if not path.exists():
            return None
    try:
        store = Store(safe_open(path, FORMAT), path)
        try:
            refuse_other(path, held_by(store.file, store.contents), wanted)
            if not store.contents.complete and not path.name.endswith(PARTIAL):
                raise StoreError(incomplete(path, *store.contents.tiles))
        except BaseException:
            store.close()
            raise
    except ForeignFile:
        raise
    except StoreError:
        if not overwrite:
            raise
        return None
    return store


def _spectrum(group: h5py.Group) -> Spectrum | None:
    from ..influence.spectrum import Spectrum

    facts = read_spectrum(group)
    if facts is None:
        return None
    known = {field.name for field in fields(Spectrum)}
    eigenvalues = group["spectrum/eigenvalues"][...] if "eigenvalues" in group["spectrum"] else None
    return Spectrum.from_dict({name: value for name, value in facts.items() if name in known}, eigenvalues)
