"""Ground truth on disk: one HDF5 file an experiment, which takes one refit after another, in any order."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from .errors import StoreError
from .files import complete, data_to_disk, find, incomplete, make_partial, partial_path
from .lock import Lock
from .provenance import plain
from .safe_open import hdf5_errors, safe_open
from .truth_layout import DIVERGED, DONE, FORMAT, OUTPUTS, PENDING, Held, Refits, lay_out, read_held, size_on_disk
from .truth_merge import goes_on, grown, identity, read_parts

if TYPE_CHECKING:
    from ..influence.truth import Truth

__all__ = ["Refits", "TruthStore", "open_truth"]


def open_truth(path: str | Path) -> Truth:
    """Read a ground truth back.

    Args:
        path: The file of a complete one.

    Returns:
        All of its parts, in memory.

    Raises:
        StoreError: There is none, it is damaged, not a ground truth, not to be trusted, or incomplete.
    """
    found, final = find(Path(path))
    with safe_open(found, FORMAT) as file, hdf5_errors(found):
        held = read_held(file)
        if found != final or PENDING in held.state:
            raise StoreError(incomplete(final, *held.done, "refits"))
        return _truth(file, held, np.arange(len(held.state)))


class TruthStore:
    """An open ground truth, and the parts of it that were asked for. Use it in a `with` block, or call `close`.

    A refit reaches the disk before its state is set, so a state that is set can be believed.

    Make one with `TruthStore.create_or_resume`.
    """

    def __init__(self, file: h5py.File, path: Path, asked: Refits, lock: Lock | None = None) -> None:
        self.file = file
        """The open HDF5 file, checked."""
        self.path = path
        """Name of the complete file; while refits are missing it lies at this name with ".partial" added."""
        self._lock = lock
        try:
            with hdf5_errors(Path(file.filename)):
                held = read_held(file)
                place = {key: row for row, key in enumerate(held.refits.keys)}
                self._rows = np.array([place[key] for key in asked.keys], dtype=np.int64)
                self._state = held.state
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TruthStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def create_or_resume(
        cls,
        path: str | Path,
        refits: Refits,
        config: Mapping[str, Any],
        attributes: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> TruthStore:
        """Open the file of an experiment: the complete one, the unfinished one, or a new one.

        A file grows: what it holds of the same experiment stays in it, whatever parts are asked for now, and those that it
        lacks are added.

        Args:
            path: Name of the complete file.
            refits: The parts that are asked for.
            config: What decides the results: what is trained, and how the parts were drawn; any JSON values.
            attributes: Whatever else is to be said about them.
            overwrite: Replace a ground truth that was made otherwise, or a damaged one, once the new one is complete.

        Returns:
            The store. One that has all that is asked for is open for reading.

        Raises:
            StoreError: Another process is writing it, the file is damaged or not a ground truth, or the disk is full or locked.
            StoreMismatch: It is of other examples, or was made under other settings.
        """
        path = Path(path)
        wanted = identity(plain(config), refits)
        finished = cls._finished(path, wanted, refits, overwrite)
        if finished is not None:
            return finished
        with hdf5_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = Lock(path)
        try:
            finished = cls._finished(path, wanted, refits, overwrite)  # perhaps before we had the lock
            if finished is not None:
                lock.release()
                return finished
            partial = partial_path(path)
            found = {file: read_parts(file, wanted, overwrite) for file in (partial, path)}
            begun = found[partial]
            if begun is None or not goes_on(begun[0], refits):
                every, known = grown(refits, [one for one in found.values() if one is not None])
                make_partial(
                    partial,
                    size_on_disk(every),
                    lambda file: lay_out(file, every, config, attributes or {}, known),
                )
            with hdf5_errors(partial):
                return cls(h5py.File(partial, "r+", locking=False), path, refits, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _finished(cls, path: Path, wanted: Mapping[str, Any], refits: Refits, overwrite: bool) -> TruthStore | None:
        """The complete file, where it has all that is asked for."""
        found = read_parts(path, wanted, overwrite)
        if found is None or not {*refits.keys} <= {*found[0].refits.keys}:
            return None
        return cls(safe_open(path, FORMAT), path, refits)

    @property
    def pending(self) -> list[tuple[int, int]]:
        """Part and repeat of every refit that is still to be done, of those that were asked for."""
        return [(int(j), int(a)) for j, a in np.argwhere(self._state[self._rows] == PENDING)]

    def write(
        self,
        part: int,
        repeat: int,
        loss: Float[NDArray[np.float64], " m"] | None,
        margin: Float[NDArray[np.float64], " m"] | None,
        *,
        diverged: bool = False,
    ) -> None:
        """Put a refit in its place; it is on disk when this returns.

        Args:
            part: Which part it was trained on, of those that were asked for.
            repeat: Which of the trainings on it.
            loss: Loss of every query.
            margin: Margin of every query.
            diverged: There are no such numbers: the training came to nothing.

        Raises:
            StoreError: The file is complete, or the disk fails.
        """
        if self.file.mode == "r":
            raise StoreError(f"{self.path} is complete and read-only; ask `pending` before writing a refit.")
        with hdf5_errors(Path(self.file.filename)):
            row = int(self._rows[part])
            if not diverged:
                for name, values in zip(OUTPUTS, (loss, margin), strict=True):
                    numbers = np.ascontiguousarray(values, dtype="<f8")
                    assert numbers.shape == self.file[name].shape[1:], "one number a query"
                    # past HDF5's buffers: what these hold back on a full disk crashes the process at its end
                    self.file[name].id.write_direct_chunk((row * self._state.shape[1] + repeat, 0), numbers.tobytes())
                data_to_disk(self.file[OUTPUTS[0]])
            self._state[row, repeat] = DIVERGED if diverged else DONE
            self.file["state"].id.write_direct_chunk((0, 0), self._state.tobytes())  # its only chunk

    def finish(self) -> None:
        """Mark the file complete by giving it its name, and keep it open for reading; nothing happens to a complete one.

        Raises:
            StoreError: Refits are missing, or the disk fails.
        """
        if self.file.mode == "r":
            return
        if PENDING in self._state:
            raise StoreError(incomplete(self.path, int((self._state != PENDING).sum()), self._state.size, "refits"))
        complete(self.file, partial_path(self.path), self.path)
        self.close()
        self.file = safe_open(self.path, FORMAT)

    def truth(self) -> Truth:
        """What was asked for.

        Returns:
            The ground truth, in memory.

        Raises:
            StoreError: Refits are missing.
        """
        with hdf5_errors(Path(self.file.filename)):
            if self.pending:
                total = len(self._rows) * self._state.shape[1]
                raise StoreError(incomplete(self.path, total - len(self.pending), total, "refits"))
            return _truth(self.file, read_held(self.file), self._rows)

    def close(self) -> None:
        """Close the file and let others write it; what is unfinished stays for the next `create_or_resume`."""
        try:
            with suppress(
                OSError, RuntimeError
            ):  # after a failed write: what counts was on disk before its state was set
                self.file.close()
        finally:
            if self._lock is not None:
                self._lock.release()


def _truth(file: h5py.File, held: Held, rows: NDArray[np.int64]) -> Truth:
    from ..influence.truth import Truth

    J, r, m = held.refits.shape
    outputs = {name: file[name][...].astype(np.float64).reshape(J, r, m)[rows] for name in OUTPUTS}
    state = held.state[rows]
    for name, values in outputs.items():
        if not np.isfinite(values[state == DONE]).all():
            raise StoreError(
                f"{file.filename} is damaged: a refit that is done has no {name}. Rebuild it with --overwrite."
            )
        values[state != DONE] = np.nan
    return Truth(
        kept=held.refits.kept[rows],
        seed=held.refits.seed[rows],
        train_index=held.refits.train_index,
        query_index=held.refits.query_index,
        meta={**held.shared, **held.config},
        **outputs,
    )
