"""Bad input through the command line: one sentence with the mend, the right exit code, and nothing overwritten."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny
import torch
import upweight
from safetensors.torch import load_file, save_file
from tiny import done, refused, strict_json

QUICK = ("--n", 12, "--epochs", 1)


def broken_run(tmp_path, name, change):
    """A copy of a run with one file changed."""
    run = tmp_path / "run"
    shutil.copytree(tiny.run(), run)
    change(run / name)
    return run


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scramble(path):
    path.write_bytes(b"neither one nor the other, but long enough to be looked at")


@pytest.mark.parametrize("change", [cut, scramble])
@pytest.mark.parametrize(
    ("file", "code", "words"),
    [
        ("influence.h5", 4, ("stats", "{run}")),
        ("influence.h5", 4, ("query", "{run}", "--query", 1)),
        ("influence.h5", 4, ("attribute", "{run}")),
        ("influence.h5", 4, ("info", "{run}/influence.h5")),
        ("influence.h5", 4, ("report", "{run}", "--out", "{run}/../report")),
        ("model.safetensors", 3, ("attribute", "{run}", "--out", "{run}/../scores")),
        ("model.safetensors", 3, ("saliency", "{run}")),
        ("model.safetensors", 3, ("info", "{run}/model.safetensors")),
        ("model.safetensors", 3, ("fine-tune", "--source", "{run}/model.safetensors", "--out", "{run}/../new")),
        ("run.json", 3, ("attribute", "{run}", "--out", "{run}/../scores")),
        ("run.json", 3, ("fine-tune", "--data", "{data}", "--n", 40, "--epochs", 2, "--out", "{run}")),
    ],
)
def test_damaged_files(file, code, words, change, tmp_path):
    run = broken_run(tmp_path, file, change)
    before = tiny.state(tmp_path)
    sentence = refused(code, *(str(word).format(run=run, data=tiny.data()) for word in words))
    assert str(run) in sentence
    assert tiny.state(tmp_path) == before


def test_damaged_results_can_be_replaced(tmp_path):
    run = broken_run(tmp_path, "influence.h5", cut)
    done("attribute", "--overwrite", run)
    assert upweight.open_scores(run / "influence.h5").matrix.shape == (tiny.QUERIES, tiny.N)
    cut(run / "run.json")
    done("fine-tune", "--data", tiny.data(), "--n", 40, "--epochs", 2, "--out", run, "--overwrite")
    assert json.loads((run / "run.json").read_text())["n"] == 40


def test_half_a_store_is_finished_and_not_read(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny.run(), run)
    (run / "influence.h5").rename(run / "influence.h5.partial")
    for words in (("stats", run), ("query", run, "--query", 1), ("report", run, "--out", tmp_path / "page")):
        assert "Run the command that writes it again" in refused(4, *words)
    assert strict_json(done("info", run, "--json"))["store"]["complete"] is False
    done("attribute", run, "--train-scores", "--also", "damped", "predicted", "--device", "cpu")
    assert (run / "influence.h5").exists() and not (run / "influence.h5.partial").exists()


def test_runs_without_scores(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny.run(), run, ignore=shutil.ignore_patterns("*.h5"))
    for words in (("stats", run), ("query", run, "--query", 1), ("report", run, "--out", tmp_path / "page")):
        assert f"holds no scores yet; make them by `upweight attribute {run}`" in refused(4, *words)
    twice = refused(2, "report", tiny.run(), tiny.run(), "--out", tmp_path / "page")
    assert f"Two runs are called {tiny.NAMES[0]}; leave one out" in twice


def test_places_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    data = ("--data", tiny.data(), *QUICK)
    assert "File exists; choose another place" in refused(1, "fine-tune", *data, "--out", tmp_path / "file")
    assert "choose another place" in refused(4, "attribute", tiny.run(), "--out", tmp_path / "file")
    words = ("query", tiny.run(), "--query", 1, "--image", tmp_path / "folder.png")
    assert "is there already" in refused(2, *words)
    assert "Is a directory; choose another place" in refused(1, *words, "--overwrite")
    assert (tmp_path / "file").read_text() == "mine"


def npz(path, **changes):
    with np.load(tiny.data()) as held:
        arrays = {name: held[name] for name in held.files} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def with_nan(x):
    x = x.copy()
    x[3, 2, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"y": None}, "it needs the arrays x and y"),
        ({"y": np.arange(60) - 1}, "holds the label -1; labels count from 0"),
        ({"y_test": np.full(tiny.QUERIES, 10)}, "holds the label 10, outside 0 to 9; mend the labels"),
        ({"y": np.arange(59)}, "give 60 whole numbers, one for each image"),
        ({"x": "nan"}, r"x holds NaN or infinite pixels; give numbers in \[0, 1\]"),
        ({"x": "bright"}, r"x runs from 0 to 16; scale floating point pixels to \[0, 1\]"),
        ({"x_test": np.zeros((0, 8, 8), np.float32), "y_test": np.zeros(0, int)}, "give images|is empty"),
    ],
)
def test_bad_images_and_labels(changes, sentence, tmp_path):
    x = tiny.own().arrays["x"]
    odd = {"nan": with_nan(x), "bright": x * 16}
    changes = {name: odd[value] if isinstance(value, str) else value for name, value in changes.items()}
    path = npz(tmp_path / "bad.npz", **changes)
    assert re.search(sentence, refused(3, "fine-tune", "--data", path, *QUICK, "--out", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["missing", "empty", "no classes", "cut"])
def test_bad_data_folders(part, tmp_path):
    place = tmp_path / "data"
    if part == "cut":
        place = tmp_path / "data.npz"
        place.write_bytes(tiny.data().read_bytes()[:999])
    elif part != "missing":
        place.mkdir()
    if part == "no classes":
        (place / "train").mkdir()
        (place / "test").mkdir()
    sentence = refused(3, "fine-tune", "--data", place, *QUICK, "--out", tmp_path / "run")
    assert str(place) in sentence and "; " in sentence
    assert not (tmp_path / "run").exists()


def test_named_data_without_a_folder():
    assert "pass --root DIR" in refused(3, "fine-tune", "--data", "cifar10", *QUICK, "--out", "x")
    assert "There is no folder /no/such" in refused(
        3, "fine-tune", "--data", "svhn", "--root", "/no/such", "--out", "x"
    )


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--n", 9), "9 images cannot hold all 10 classes; ask for at least 10"),
        (("--n", 61), "61 images are asked for and 60 are there"),
        (("--n", 20, "--k", 10), r"k is 10, but this network has 9 residual blocks; choose 0 \(the head alone\) to 9"),
    ],
)
@pytest.mark.parametrize("command", ["fine-tune", "compare"])
def test_subsets_and_blocks_that_are_not_there(command, more, sentence, tmp_path):
    words = (command, "--data", tiny.data(), "--epochs", 1, *more, "--out", tmp_path / "out")
    assert re.search(sentence, refused(2, *words))
    assert not (tmp_path / "out").exists()


def test_blocks_beyond_the_network_in_attribute(tmp_path):
    words = ("attribute", tiny.run(), "--parameters", "blocks:10", "--out", tmp_path / "out")
    assert "k is 10, but this network has 9 residual blocks" in refused(2, *words)
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_do_not_fit(tmp_path):
    weights = load_file(tiny.run() / "model.safetensors")
    path = tmp_path / "weights.safetensors"
    save_file({name: value for name, value in weights.items() if "head" not in name}, path)
    fine_tune = ("fine-tune", "--source", path, *QUICK, "--out", tmp_path / "run")
    assert str(path) in refused(3, *fine_tune)
    assert "There is no weight file" in refused(
        3, "fine-tune", "--source", tmp_path / "none.pt", "--out", tmp_path / "run"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_weights_with_nan(tmp_path):
    from upweight.models.checkpoints import read_tensors

    tensors, header = read_tensors(tiny.run() / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, tmp_path / "weights.safetensors", metadata=header)
    words = ("fine-tune", "--source", tmp_path / "weights.safetensors", *QUICK, "--out", tmp_path / "run")
    assert "holds NaN or infinite numbers in" in refused(3, *words)


@pytest.mark.parametrize("row", [-1, tiny.QUERIES])
def test_queries_out_of_range(row):
    there = f"0 to {tiny.QUERIES - 1}"
    assert there in refused(2, "query", tiny.run(), "--query", row)
    assert there in refused(2, "saliency", tiny.run(), "--query", row)
    assert "k must be at least 1, got 0" in refused(2, "query", tiny.run(), "--query", 1, "-k", 0)
    assert "has no scores called 'dampd'; it has main, damped, predicted" in refused(
        2, "stats", tiny.run(), "--variant", "dampd"
    )


def test_results_of_other_settings_are_refused_and_kept(tmp_path):
    out = tmp_path / "out"
    shutil.copytree(tiny.comparison(), out)
    run, page = out / "runs" / tiny.NAMES[0], tmp_path / "page.toml"
    page.write_text("ranks = 5\nneighbours = 1\npixels = 10\ndpi = 30\n")
    before = tiny.state(out)
    base = ("--data", tiny.data(), "--n", tiny.N)
    for words, found in (
        ((*tiny.compare_words(), "--out", out, "--ranks", 7), ("ranks=5", "ranks=7")),
        ((*tiny.compare_words(), "--out", out, "--epochs", 3), ("epochs=2", "epochs=3")),
        (("fine-tune", *base, "--epochs", 5, "--out", run), ("epochs=2", "epochs=5")),
        (("attribute", run, "--damping", 0.1), ("damping=null", "damping=0.1")),
        (("report", run, "--config", page, "--out", out / "report"), ("runs.robust", "(not set)")),
    ):
        sentence = refused(4, *words)
        assert "--overwrite" in sentence and "--out" in sentence
        assert all(word in sentence for word in found), sentence
    assert tiny.state(out) == before


def test_files_of_others_are_never_replaced_unasked(tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    (tmp_path / "index.html").write_text("mine")
    (tmp_path / "influence.h5").write_text("mine")
    (tmp_path / "picture.png").write_text("mine")
    (tmp_path / "numbers.npz").write_text("mine")
    before = tiny.state(tmp_path)
    base = ("--data", tiny.data(), *QUICK)
    assert "that no run.json describes" in refused(4, "fine-tune", *base, "--out", tmp_path)
    assert "no report of ours" in refused(4, "report", tiny.run(), "--out", tmp_path)
    assert "influence.h5" in refused(4, "attribute", tiny.run(), "--out", tmp_path)
    assert "--overwrite" in refused(
        4, "pretrain", "--limit", 20, "--epochs", 1, "--out", tmp_path / "model.safetensors"
    )
    image = ("--image", tmp_path / "picture.png")
    assert "is there already; pass --overwrite" in refused(2, "query", tiny.run(), "--query", 1, *image)
    assert "is there already; pass --overwrite" in refused(2, "saliency", tiny.run(), *image)
    assert "is there already" in refused(2, "saliency", tiny.run(), "--npz", tmp_path / "numbers.npz")
    assert tiny.state(tmp_path) == before
