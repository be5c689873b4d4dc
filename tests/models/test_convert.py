"""Files of other projects become files of ours, which hold all that was said about them."""

import pytest
import torch
from tiny import done, refused, strict_json
from upweight.models.checkpoints import file_hash, load_model
from upweight.models.zoo import build

MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 2.0)
NORMALISER = ("--mean", *MEAN, "--std", *STD)


@pytest.fixture
def theirs(tmp_path):
    """A state dictionary as CARTL writes one, spectral normalisation and all, and the network it belongs to."""
    torch.manual_seed(0)
    model = build("wrn_10_1", num_classes=4, mean=MEAN, std=STD).eval()
    state = dict(model.net.state_dict())
    W = state.pop("fc.weight")
    u, v = torch.ones(4) / 2, torch.ones(64) / 8
    state |= {"fc.weight_orig": W * 3, "fc.weight_u": u, "fc.weight_v": v}
    with torch.no_grad():
        model.net.fc.weight.copy_(0.4 * W / (u @ W @ v))
    torch.save(state, tmp_path / "wrn_cifar10_4_0.01-best")
    return tmp_path / "wrn_cifar10_4_0.01-best", model


def test_converted_file_needs_nothing_said_again(tmp_path, theirs):
    path, model = theirs
    out = tmp_path / "source.safetensors"
    held = strict_json(done("convert", path, *NORMALISER, "--beta", 0.4, "--out", out, "--json"))
    assert held["sha256"] == file_hash(out)
    assert held["spec"]["architecture"] == "wrn_10_1"
    assert "folded in with beta 0.4" in held["metadata"]["found"]
    loaded = load_model(out)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x), model(x), rtol=1e-5, atol=1e-5)  # one division by sigma in float64
    assert loaded.metadata["converted"]["sha256"] == file_hash(path)
    assert loaded.metadata["file"] == path.name
    told = done("info", out)
    assert "wrn_10_1" in told
    assert "wrn_cifar10_4_0.01-best" in told


def test_same_call_keeps_the_file_and_another_is_refused(tmp_path, theirs):
    path, _ = theirs
    out = tmp_path / "source.safetensors"
    words = ("convert", path, *NORMALISER, "--out", out)
    done(*words, "--beta", 0.4)
    made = out.stat().st_mtime_ns
    done(*words, "--beta", 0.4)
    assert out.stat().st_mtime_ns == made
    assert "was made with beta=0.4; this call asks beta=1.0" in refused(4, *words, "--beta", 1)
    before = load_model(out).model.net.fc.weight
    done(*words, "--beta", 1, "--overwrite")
    torch.testing.assert_close(load_model(out).model.net.fc.weight, before * 2.5)
    out.write_bytes(b"something else")
    assert "is no converted file; pass --overwrite" in refused(4, *words, "--beta", 1)


@pytest.mark.parametrize(
    ("code", "words", "sentence"),
    [
        (3, ("{file}", "--out", "{out}"), "give beta"),
        (3, ("{file}", "--beta", "1", "--out", "{out}"), "has no normaliser; give the mean and std"),
        (2, ("{file}", "--beta", "-1", *NORMALISER, "--out", "{out}"), "beta is -1.0; give a finite number > 0"),
        (2, ("{file}", "--beta", "1", *NORMALISER, "--out", "x.pt"), "end it in .safetensors"),
        (2, ("{file}", "--beta", "1", "--mean", "0", "--std", "1", "--out", "{out}"), "1 means and 1 deviations"),
        (3, ("nowhere.pt", "--out", "{out}"), "There is no weight file nowhere.pt"),
        (2, ("natural", "--beta", "1", "--out", "{out}"), "leave beta out"),
    ],
)
def test_what_cannot_be_converted_leaves_nothing(tmp_path, monkeypatch, theirs, code, words, sentence):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "source.safetensors"
    said = refused(code, "convert", *(str(word).format(file=theirs[0], out=out) for word in words))
    assert sentence in said
    assert [file.name for file in tmp_path.iterdir()] == [theirs[0].name]
