"""Processes that die, wait for each other, or meet a full disk; each is a real process, and imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from upweight.cache.store import Store, open_store

WRITER = """
import os, resource, signal, sys
from dataclasses import dataclass
import numpy as np
from upweight import UpweightError
from upweight.cache.layout import Grid
from upweight.cache.store import Store, VariantLayout

@dataclass
class Examples:
    index: np.ndarray
    residual = features = None

    def __len__(self):
        return len(self.index)

    @property
    def label(self):
        return self.index % 7

    prediction = label

    @property
    def loss(self):
        return self.index / 3

def create(path, m=500, n=2100, tile=(128, 512)):
    return Store.create_or_resume(
        path,
        queries=Examples(np.arange(m)),
        train=Examples(np.arange(n)),
        variants=[VariantLayout(name=""), VariantLayout(name="damping=0.01")],
        attributes={},
        config={"k": 1},
        rows_per_tile=tile[0],
        columns_per_tile=tile[1],
    )

def write(store, count=1000):
    grid = store.contents.matrix("", "queries").grid
    for i in range(grid.blocks[0]):
        for variant in store.contents.variants:  # block by block, as scores at several dampings are made
            sink = store.sink(variant)
            for j in range(grid.blocks[1]):
                if not sink.done("queries", i, j) and count > 0:
                    rows, columns = grid.slices(i, j)
                    print("tile", variant or "main", i, j, flush=True)
                    tile = np.arange(rows.start, rows.stop)[:, None] * 3.5 + np.arange(columns.start, columns.stop)
                    sink.write("queries", rows, columns, tile + len(variant) / 8, (i, j))
                    count -= 1

path = sys.argv[1]
"""
RUN = """
print("begin", flush=True)
with create(path) as store:
    print("open", flush=True)
    write(store)
    store.finish()
print("finished", flush=True)
"""


def start(code: str, path: Path | str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER + code, str(path)], stdout=subprocess.PIPE, text=True, **options
    )


def run(code: str, path: Path | str, **options) -> list[str]:
    """What a script that follows WRITER prints, once it has ended well."""
    with start(code, path, **options) as process:
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0, lines
    return lines


def scores(path: Path) -> dict[str, bytes]:
    with h5py.File(path, locking=False) as file:
        return {key: file[key][...].tobytes() for key in ("scores/queries", "variants/damping=0.01/scores/queries")}


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A run that nobody disturbed."""
    path = tmp_path_factory.mktemp("straight") / "influence.h5"
    run(RUN, path)
    return path


def finished_tiles(path: Path, straight: Path) -> set[str]:
    """Tiles that a partial file says are done, each compared with the undisturbed run."""
    found = set()
    with open_store(path, allow_partial=True) as store, open_store(straight) as whole:
        for m in store.contents.matrices:
            key = "scores/queries" if not m.variant else f"variants/{m.variant}/scores/queries"
            for i, j in np.argwhere(m.finished):
                place = m.grid.slices(i, j)
                np.testing.assert_array_equal(store.file[key][place], whole.file[key][place])
                found.add(f"tile {m.variant or 'main'} {i} {j}")
    return found


def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(tmp_path: Path, straight: Path):
    path, partial = tmp_path / "influence.h5", tmp_path / "influence.h5.partial"
    rng = np.random.default_rng(0)
    done: set[str] = set()
    for lines_before_the_kill in [
        1,
        1,
        3,
        2,
        9,
        5,
        12,
    ]:  # 1: while the file is laid out; 2: as it is opened; more: while writing
        with start(RUN, path) as process:
            said = [process.stdout.readline().strip() for _ in range(lines_before_the_kill)]
            time.sleep(rng.uniform(0, 0.004))  # somewhere inside the step that the last line announced
            process.kill()
            said += process.stdout.read().split("\n")[:-1]
        assert process.returncode == -9
        assert not path.exists()
        if partial.exists():
            begun = [line for line in said if line.startswith("tile")]
            now = finished_tiles(partial, straight)
            assert now >= done | {*begun[:-1]}  # at most the tile in flight is lost
            done = now
        else:
            assert not done
    assert len(done) > 15
    said = run(RUN, path)
    assert not done & {*said}  # nothing is computed twice
    assert said[-1] == "finished"
    assert os.listdir(tmp_path) == ["influence.h5"]
    assert scores(path) == scores(straight)
    assert path.stat().st_size == straight.stat().st_size


def test_a_second_writer_is_turned_away_and_harms_nothing(tmp_path: Path, straight: Path):
    path = tmp_path / "influence.h5"
    code = """
with create(path) as store:
    write(store, 5)
    print("holding", flush=True)
    sys.stdin.readline()
    write(store)
    store.finish()
"""
    other = """
try:
    create(path)
except UpweightError as error:
    print(type(error).__name__, error)
"""
    with start(code, path, stdin=subprocess.PIPE) as first:
        for line in first.stdout:
            if line == "holding\n":
                break
        (said,) = run(other, path)
        assert said == (
            f"StoreError {path} is being written by another process (pid {first.pid}); wait for it to end, or stop it, and run "
            "the same command again."
        )
        with open_store(path, allow_partial=True) as store:  # looking is allowed
            assert store.contents.tiles == (5, 40)
        first.communicate("go on\n")
    assert first.returncode == 0
    assert scores(path) == scores(straight)
    assert os.listdir(tmp_path) == ["influence.h5"]


def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_nothing(tmp_path: Path):
    code = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    create(path)
except UpweightError as error:
    print(type(error).__name__, error)
"""
    (said,) = run(code, tmp_path / "influence.h5")
    assert said == (
        f"StoreError {tmp_path}/influence.h5.partial could not be read or written: File too large. "
        "The file system takes no larger files; choose another place with --out DIR."
    )
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fails_midway_loses_only_the_tile_in_flight(tmp_path: Path, straight: Path):
    path = tmp_path / "influence.h5"
    code = """
try:
    with create(path) as store:
        write(store, 25)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        write(store)
except UpweightError as error:
    print(type(error).__name__, error)
"""
    said = run(code, path)
    assert said[-1].startswith(f"StoreError {path}.partial could not be read or written: File too large.")
    begun = [line for line in said if line.startswith("tile")]
    assert finished_tiles(path, straight) >= {*begun[:-1]}
    assert run(RUN, path)[-1] == "finished"
    assert scores(path) == scores(straight)


def test_a_folder_that_may_not_be_written_to(tmp_path: Path):
    code = """
os.chdir(path)
os.chmod(".", 0o555)
if os.getuid() == 0:
    os.setuid(65534)  # root may write anywhere
try:
    create("influence.h5")
except UpweightError as error:
    print(type(error).__name__, error)
"""
    (said,) = run(code, tmp_path)
    assert said == (
        "StoreError influence.h5 could not be read or written: Permission denied. "
        "Choose a file or folder that you may use, with --out DIR."
    )
    os.chmod(tmp_path, 0o755)
    assert os.listdir(tmp_path) == []


def test_looking_at_a_store_brings_no_torch(straight: Path):
    code = """
from upweight.cache.store import describe
describe(path)
print(sorted({"torch", "matplotlib", "sklearn"} & {*sys.modules}))
"""
    assert run(code, straight) == ["[]"]


def test_the_same_process_cannot_write_twice_either(tmp_path: Path):
    import stores
    from upweight.cache.errors import StoreError

    path = tmp_path / "influence.h5"
    with Store.create_or_resume(path, **stores.layout()) as store:
        with pytest.raises(StoreError, match="being written by another process"):
            Store.create_or_resume(path, **stores.layout())
        stores.write(store)
        store.finish()
