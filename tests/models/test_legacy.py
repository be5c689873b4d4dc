"""Pickles are read without running them, in the old format and in the new, whole, cut or garbled."""

import contextlib
import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from upweight.models import legacy
from upweight.models.errors import CheckpointError
from upweight.models.legacy import unpickle


class Touch:
    """Unpickled as written, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.fixture
def dilled(monkeypatch):
    """An object that pickles as dill pickles a function: by globals of a module that is not there when it is read."""
    names = ("_create_function", "_create_code", "_load_type")
    module = types.ModuleType("dill._dill")
    for name in names:
        function = types.FunctionType((lambda *a: None).__code__, {}, name)
        function.__module__, function.__qualname__ = "dill._dill", name
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "dill", types.ModuleType("dill"))
    monkeypatch.setitem(sys.modules, "dill._dill", module)

    class Code:
        def __reduce__(self):
            return module._create_code, (1, 0, b"\x90", ("x",))

    class Function:
        def __reduce__(self):
            return module._create_function, (Code(), {"a": 1}), {"state": {"seen": [1]}}, None, iter([("k", 1)])

    return Function()


WEIGHTS = OrderedDict(
    a=torch.arange(6.0).view(2, 3),
    transposed=torch.arange(6.0).view(2, 3).t(),
    part=torch.arange(20, dtype=torch.int64)[5:9],
    half=torch.ones(3, dtype=torch.float16),
    flag=torch.tensor([True, False]),
    single=torch.tensor(7.5, dtype=torch.float64),
    empty=torch.zeros(0, 4),
    parameter=torch.nn.Parameter(torch.full((2,), 3.0)),
)


def save(path, content, new_format):
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    return path


@pytest.mark.parametrize("new_format", [True, False])
def test_nothing_a_file_names_is_run(tmp_path, new_format, dilled, monkeypatch):
    marker = tmp_path / "ran"
    weights = OrderedDict(WEIGHTS)
    weights.shared = "an attribute, as state dictionaries have one"
    content = {
        "model": weights,
        "evil": Touch(str(marker)),
        "schedule": dilled,
        "epoch": 3,
        "args": {"lr": 0.1, "names": {"x"}},
    }
    path = save(tmp_path / "old.pt", content, new_format)
    marker.unlink(missing_ok=True)
    for name in ("dill", "dill._dill"):
        monkeypatch.delitem(sys.modules, name)
    found = unpickle(path)
    assert not marker.exists()
    assert "dill" not in sys.modules
    assert found.how == "the reader that runs nothing a pickle names"
    assert {"dill._dill._create_function", "dill._dill._create_code"} <= set(found.stubs)
    assert any(name.endswith(".touch") or name.endswith("getattr") for name in found.stubs)
    assert found.content["epoch"] == 3
    assert found.content["args"] == {"lr": 0.1, "names": {"x"}}
    for name, value in WEIGHTS.items():
        got = found.content["model"][name]
        assert got.dtype == value.dtype
        assert torch.equal(got, value.detach()), name


@pytest.mark.parametrize("new_format", [True, False])
def test_tame_files_are_left_to_torch(tmp_path, new_format):
    found = unpickle(save(tmp_path / "tame.pt", {"model": WEIGHTS}, new_format))
    assert found.how == "torch.load(weights_only=True)"
    assert found.stubs == ()
    assert torch.equal(found.content["model"]["transposed"], WEIGHTS["transposed"])


def test_views_of_one_storage_share_it_in_the_file_and_nowhere_else(tmp_path):
    base = torch.arange(10.0)
    content = {"model": {"a": base[:4], "b": base[2:]}, "evil": Touch(str(tmp_path / "ran"))}
    found = unpickle(save(tmp_path / "views.pt", content, False))
    assert torch.equal(found.content["model"]["a"], base[:4])
    found.content["model"]["a"][2] = -1
    assert torch.equal(found.content["model"]["b"], base[2:])


def refused(tmp_path, data):
    path = tmp_path / "bad.pt"
    path.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"bad\.pt is cut off or no weight file of torch \(.+\); copy it again\.$"
    ):
        unpickle(path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x02", b"PK\x03\x04", b"{}", pickle.dumps({"a": 1}), bytes(300)])
def test_garbage_is_refused(tmp_path, data):
    refused(tmp_path, data)


@pytest.mark.parametrize("new_format", [True, False])
def test_every_truncation_is_refused(tmp_path, new_format):
    content = {"model": {"w": torch.ones(40)}, "evil": Touch(str(tmp_path / "ran"))}
    whole = save(tmp_path / "whole.pt", content, new_format).read_bytes()
    for keep in range(0, len(whole) - 1, max(1, len(whole) // 60)):
        refused(tmp_path, whole[:keep])
    assert not (tmp_path / "ran").exists()


def old_file():
    buffer = io.BytesIO()
    torch.save(
        {"m": {"w": torch.arange(12.0).view(3, 4)}, "evil": Touch("ran")}, buffer, _use_new_zipfile_serialization=False
    )
    return buffer.getvalue()


OLD = old_file()


@settings(deadline=None, max_examples=150, derandomize=True)
@given(place=st.integers(0, len(OLD) - 1), value=st.integers(0, 255))
def test_a_garbled_byte_is_read_or_refused_but_never_run(tmp_path_factory, place, value):
    folder = tmp_path_factory.mktemp("garbled", numbered=True)
    path = folder / "bad.pt"
    path.write_bytes(OLD[:place] + bytes([value]) + OLD[place + 1 :])
    try:
        found = unpickle(path)
    except CheckpointError:
        return
    assert found.stubs or found.how.startswith("torch.load")
    assert not Path("ran").exists()


def with_pickle(tmp_path, body, numbers=b"\0" * 16):
    """A new-format file around a hand-written pickle."""
    path = tmp_path / "bad.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", body)
        archive.writestr("x/data/0", numbers)
    return path


def tensor_pickle(size, stride, offset=0, storage="FloatStorage"):
    def number(value):
        return b"L%dL\n" % value

    def group(values):
        return b"(" + b"".join(number(v) for v in values) + b"t"

    pid = b"(Vstorage\nctorch\n" + storage.encode() + b"\nV0\nVcpu\nI4\ntQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + number(offset) + group(size) + group(stride) + b"I00\nNtR"
    return b"\x80\x02}Vw\n" + call + b"s."


def test_hand_written_tensor_is_read(tmp_path):
    found = unpickle(with_pickle(tmp_path, tensor_pickle([2, 2], [2, 1])))
    assert torch.equal(found.content["w"], torch.zeros(2, 2))


@pytest.mark.parametrize(
    "body",
    [
        tensor_pickle([5], [1]),  # beyond the numbers
        tensor_pickle([2**40], [0]),  # a small storage seen as a large tensor
        tensor_pickle([2], [1], offset=-1),
        tensor_pickle([2], [-1]),
        tensor_pickle([2, 2], [1]),
        tensor_pickle([1], [1], storage="QInt8Storage"),
        b"\x80\x02\x82\x01.",  # an extension of the process that reads
        b"\x80\x02cbuiltins\neval\n(V1+1\ntR}b.",
    ],
)
def test_hand_written_pickles_cannot_reach_beyond(tmp_path, body):
    path = with_pickle(tmp_path, body)
    try:
        content = unpickle(path).content
    except CheckpointError:
        return
    assert type(content).__name__ == "_Stub"  # eval was named and did nothing


class Naive(legacy._Reader):
    dispatch = pickle._Unpickler.dispatch


def test_functions_of_the_reader_cannot_be_changed_by_a_file(tmp_path, monkeypatch):
    body = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}V__defaults__\n(I1\nI2\nts\x86b."
    with contextlib.suppress(CheckpointError):
        unpickle(with_pickle(tmp_path, body))
    assert legacy._view.__defaults__ is None
    monkeypatch.setattr(legacy, "_Reader", Naive)
    try:  # the same file does change them where states are not dropped
        unpickle(with_pickle(tmp_path, body))
        assert legacy._view.__defaults__ == (1, 2)
    finally:
        legacy._view.__defaults__ = None


def test_compressed_archives_are_refused(tmp_path):
    path = tmp_path / "bad.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", tensor_pickle([2], [1]))
        archive.writestr("x/data/0", bytes(10**6))
    with pytest.raises(CheckpointError, match="compressed"):
        unpickle(path)
