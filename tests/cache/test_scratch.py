"""Tiles beside a store: whole or absent, found under their own key alone, gone when the store is complete."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import upweight.influence.walk
from cases import BY_NAME
from numpy.testing import assert_array_equal
from upweight import GaussNewton, StoreError, attribute
from upweight.cache.scratch import Scratch
from upweight.influence import gram

KEY = {"rows": 2, "products": "float32"}


@pytest.fixture
def scratch(tmp_path):
    keeper = Scratch(tmp_path / "influence.h5", {"weights": "w"})
    keeper.open(KEY, 7)
    return keeper


def tile(seed=0, shape=(3, 4)):
    return np.random.default_rng(seed).normal(size=shape)


class TestTiles:
    def test_round_trip(self, scratch, tmp_path):
        scratch.put("gram-0", tile())
        again = Scratch(tmp_path / "influence.h5", {"weights": "w"})
        again.open(KEY, 7)
        assert_array_equal(again.get("gram-0"), tile())
        assert again.get("gram-1") is None

    def test_blocks_stay_those_of_the_first_time(self, tmp_path, scratch):
        assert Scratch(tmp_path / "influence.h5", {"weights": "w"}).open(KEY, 99) == 7

    @pytest.mark.parametrize(("identity", "key"), [({"weights": "v"}, KEY), ({"weights": "w"}, {**KEY, "rows": 3})])
    def test_another_key_sees_nothing(self, scratch, tmp_path, identity, key):
        scratch.put("gram-0", tile())
        other = Scratch(tmp_path / "influence.h5", identity)
        assert other.open(key, 5) == 5
        assert other.get("gram-0") is None
        assert_array_equal(scratch.get("gram-0"), tile())

    def test_a_tile_written_twice_is_the_last(self, scratch):
        scratch.put("gram-0", tile(0))
        scratch.put("gram-0", tile(1))
        assert_array_equal(scratch.get("gram-0"), tile(1))

    @pytest.mark.parametrize("damage", ["cut", "empty", "text", "pickle", "nan", "float32"])
    def test_a_damaged_tile_is_none(self, scratch, damage):
        scratch.put("gram-0", tile())
        (file,) = scratch.root.rglob("gram-0.npy")
        if damage == "pickle":
            np.save(file, np.array([{}], dtype=object), allow_pickle=True)
        elif damage in ("nan", "float32"):
            np.save(file, np.full((3, 4), np.nan) if damage == "nan" else tile().astype(np.float32))
        else:
            file.write_bytes({"cut": file.read_bytes()[:-8], "empty": b"", "text": b"hello"}[damage])
        assert scratch.get("gram-0") is None

    @pytest.mark.parametrize("held", ["", "{}", '{"key": 1, "block": 2}', "null"])
    def test_a_damaged_key_starts_anew(self, scratch, tmp_path, held):
        scratch.put("gram-0", tile())
        (file,) = scratch.root.rglob("key.json")
        file.write_text(held)
        again = Scratch(tmp_path / "influence.h5", {"weights": "w"})
        assert again.open(KEY, 3) == 3
        assert again.get("gram-0") is None
        assert json.loads(file.read_text())["block"] == 3

    def test_remove(self, scratch):
        scratch.put("gram-0", tile())
        scratch.remove()
        assert not scratch.root.exists()
        scratch.remove()  # nothing there is no error

    def test_no_place_to_write(self, tmp_path):
        (tmp_path / "influence.h5.tiles").write_text("in the way")
        with pytest.raises(StoreError, match=r"influence.h5.tiles: .*; make room"):
            Scratch(tmp_path / "influence.h5", {}).open(KEY, 3)


CURVATURE = GaussNewton(form="dual", damping=0.05)


class TestRuns:
    """Through the front door: a fit that was stopped takes up its tiles, and leaves none behind."""

    def run(self, path):
        problem = BY_NAME["mlp"].build()
        return attribute(
            problem.model,
            problem.train,
            problem.queries,
            parameters="all",
            curvature=CURVATURE,
            out=path,
            memory=54_000,
        )

    def test_a_stopped_gram_is_gone_on_with(self, tmp_path, monkeypatch):
        whole = self.run(tmp_path / "whole.h5").matrix[:]
        formed, form = [], gram._add_strip

        def stop_at(limit):
            def strip(rows, i, *rest):
                if i == limit:
                    raise KeyboardInterrupt
                formed.append(i)
                form(rows, i, *rest)

            return strip

        monkeypatch.setattr(gram, "_add_strip", stop_at(3))
        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path / "a.h5")
        assert formed == [0, 1, 2]
        assert len([*tmp_path.rglob("gram-*.npy")]) == 3
        monkeypatch.setattr(gram, "_add_strip", stop_at(None))
        formed.clear()
        assert_array_equal(self.run(tmp_path / "a.h5").matrix[:], whole)
        assert formed[0] == 3  # and nothing before it
        assert not [*tmp_path.rglob("*.tiles")]

    def test_other_weights_take_up_nothing(self, tmp_path, monkeypatch):
        """Twice the first layer's weights and half the second's: the very same logits of a ReLU network, other rows."""
        import torch
        from torch import nn

        torch.manual_seed(0)
        first, second = nn.Linear(4, 6), nn.Linear(6, 3)
        model = nn.Sequential(first, nn.ReLU(), second)
        X, y = torch.randn(30, 4), torch.arange(30) % 3

        def scores(path):
            options = {"parameters": "all", "curvature": CURVATURE, "out": path}
            return attribute(model, (X[:20], y[:20]), (X[20:], y[20:]), **options)

        monkeypatch.setattr(upweight.influence.walk, "write_scores", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scores(tmp_path / "a.h5")
        monkeypatch.undo()
        with torch.no_grad():
            for value, factor in ((first.weight, 2.0), (first.bias, 2.0), (second.weight, 0.5)):
                value.mul_(factor)
        wanted = scores(tmp_path / "fresh.h5").matrix[:]
        (tmp_path / "a.h5.partial").unlink()
        assert_array_equal(scores(tmp_path / "a.h5").matrix[:], wanted)

    @pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
    def test_kill_in_the_middle_of_the_gram(self, tmp_path):
        """kill -9 right after the third strip, in a process of its own."""
        program = f"""
            import os, signal, sys
            sys.path[:0] = {[str(p) for p in sys.path if "tests" in str(p)]!r}
            from upweight.cache.scratch import Scratch
            from test_scratch_run import run
            put = Scratch.put
            def counted(self, name, tile):
                put(self, name, tile)
                if name == "gram-2":
                    os.kill(os.getpid(), signal.SIGKILL)
            Scratch.put = counted
            run({str(tmp_path / "a.h5")!r})
        """
        (tmp_path / "test_scratch_run.py").write_text(
            textwrap.dedent("""
                from cases import BY_NAME
                from upweight import GaussNewton, attribute

                def run(path):
                    problem = BY_NAME["mlp"].build()
                    return attribute(problem.model, problem.train, problem.queries, parameters="all", out=path,
                                     curvature=GaussNewton(form="dual", damping=0.05), memory=54_000)
            """)
        )
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment, check=False)
        assert done.returncode == -signal.SIGKILL
        assert len([*tmp_path.rglob("gram-*.npy")]) == 3
        resumed = self.run(tmp_path / "a.h5").matrix[:]
        assert_array_equal(resumed, self.run(tmp_path / "whole.h5").matrix[:])
