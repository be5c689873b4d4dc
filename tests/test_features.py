"""visualize and feature-shift, as they are typed."""

import csv
import json

import numpy as np
import pytest
import tiny
import torch
from upweight.models.checkpoints import load_model

FAST = ("--data", tiny.data(), "--device", "cpu")
LOOK = (*FAST, "--steps", "3", "--most-active", "2", "--starts", "1")


def test_visualize_draws_and_saves_what_it_says(tmp_path):
    image, npz = tmp_path / "seen.png", tmp_path / "seen.npz"
    run = tiny.run("robust")
    said = json.loads(tiny.done("visualize", "natural", run, *LOOK, "--image", image, "--npz", npz, "--json"))
    assert image.read_bytes()[:4] == b"\x89PNG"
    held = np.load(npz)
    assert len(said["rows"]) == 2 * 2 * 2
    for row in said["rows"]:
        name = row["source"]
        unit = held[f"{name}.units"].tolist().index(row["unit"])
        start = 1 if row["start"] == "noise 0" else 0
        network = load_model(name if name == "natural" else run / "model.safetensors").model
        images = torch.stack([
            torch.tensor(held[f"{name}.starts"][start]),
            torch.tensor(held[f"{name}.images"][start, unit]),
        ])
        entering = []
        hook = network.net.head.register_forward_pre_hook(lambda _, given, kept=entering: kept.append(given[0]))
        with torch.no_grad():
            network(images)
        hook.remove()
        before, after = entering[0][:, row["unit"]].tolist()  # what enters the head is the penultimate layer
        assert (row["before"], row["after"]) == (pytest.approx(before, abs=1e-5), pytest.approx(after, abs=1e-5))
        assert row["after"] >= row["before"]
        assert "most active on average" in row["chosen"]
    assert {name.partition(".")[0] for name in held} == {"natural", run.name}


def test_visualize_is_the_same_again(tmp_path):
    images = [tmp_path / "a.png", tmp_path / "b.png"]
    words = ("visualize", "natural", *LOOK, "--units", "4", "1", "--rows", "3", "--seed", "2")
    said = [tiny.done(*words, "--image", image) for image in images]
    assert said[0] == said[1] and images[0].read_bytes() == images[1].read_bytes()
    assert "as named" in said[0] and "row 3" in said[0]


def test_feature_shift_says_what_it_measured(tmp_path):
    image, numbers, table = (tmp_path / f"shift.{ending}" for ending in ("png", "npz", "csv"))
    files = ("--image", image, "--npz", numbers, "--csv", table)
    said = json.loads(tiny.done("feature-shift", "natural", "robust", *FAST, "--rotate", "20", *files, "--json"))
    held = np.load(numbers)
    assert len(held["robust.l2"]) == tiny.QUERIES
    for row in said["rows"]:
        values = held[f"{row['source']}.{row['distance']}"]
        if row["scale"] == "relative":
            values = values / held[f"{row['source']}.{row['distance']}_size"]
        assert row["q50"] == pytest.approx(np.median(values)) and row["images"] == tiny.QUERIES
    with table.open() as file:
        assert [float(row["mean"]) for row in csv.DictReader(file)] == [row["mean"] for row in said["rows"]]
    assert "shift by up to 2 pixels, rotation by up to 20 degrees" in said["title"]
    assert image.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("code", "words", "sentence"),
    [
        (2, ("visualize", "natural", "natural"), "Two networks are called natural"),
        (2, ("visualize", "natural", "--units", "48"), "no unit 48; the penultimate layer has 48, numbered 0 to 47"),
        (2, ("visualize", "natural", "--rows", "99"), "Row 99 is out of range"),
        (2, ("visualize", "natural", "--most-active", "99"), "99 units are asked for"),
        (2, ("visualize", "natural", "--image", "seen.jpg"), "should end in .png"),
        (3, ("visualize", "nowhere"), "There is no weight file nowhere"),
        (3, ("visualize", "EMPTY"), "holds no finished run"),
        (2, ("feature-shift", "natural", "--shift", "0"), "give at least one of them"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, code, words, sentence):
    words = [str(tmp_path) if word == "EMPTY" else word for word in words]
    image = () if "--image" in words or words[0] != "visualize" else ("--image", tmp_path / "seen.png")
    assert sentence in tiny.refused(code, *words, *FAST, *image)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_kept(tmp_path):
    file = tmp_path / "seen.png"
    file.write_bytes(b"mine")
    assert "--overwrite" in tiny.refused(2, "visualize", "natural", *LOOK, "--image", file)
    assert file.read_bytes() == b"mine"
    tiny.done("visualize", "natural", *LOOK, "--image", file, "--overwrite")
    assert file.read_bytes() != b"mine"
