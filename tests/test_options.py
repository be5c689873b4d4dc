"""Options from words and TOML files, and the file beside the results that replays them."""

import json
import re
import tomllib

import numpy as np
import pytest
import tiny
import upweight
from tiny import done, refused
from upweight import pipeline

QUICK = ("--n", 12, "--epochs", 1)


def test_file_gives_options_and_words_win(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(f'data = "{tiny.data()}"\nn = 12\nepochs = 3\nweight-decay = 1\nout = "{tmp_path / "run"}"\n')
    done("fine-tune", "--config", config, "--epochs", 2)
    settings = json.loads((tmp_path / "run/run.json").read_text())["settings"]
    assert (settings["n"], settings["epochs"], settings["weight_decay"]) == (12, 2, 1.0)


def test_switches_of_a_file_can_be_taken_back(tmp_path, monkeypatch):
    got = []
    monkeypatch.setattr(pipeline, "attribute_run", lambda run, how, **_: got.append(how) or {})
    config = tmp_path / "run.toml"
    config.write_text(f'run = "{tmp_path}"\ntrain_scores = true\nalso = ["damped"]\n')
    done("attribute", "--config", config)
    done("attribute", "--config", config, "--no-train-scores", "--also", "predicted")
    assert [(how.train_scores, how.also) for how in got] == [(True, ("damped",)), (False, ("predicted",))]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("n = ", "cannot be read as TOML"),
        ("learning = 0.1", "sets learning, unknown to `upweight fine-tune`; it knows out, overwrite, source, data"),
        ("n = 1.5", "sets n = 1.5; a whole number is wanted"),
        ("n = true", "sets n = true; a whole number is wanted"),
        ("n = [1]", r"sets n = \[1\]; a whole number is wanted"),
        ('learning_rate = "fast"', 'sets learning_rate = "fast"; a number is wanted'),
        ("download = 1", "sets download = 1; true or false is wanted"),
        ("data = 3", "sets data = 3; text is wanted"),
        ("epochs = -1", r"run\.toml: epochs is -1; give a whole number"),
        ('[made]\ncommand = "attribute"', "holds options of `upweight attribute`, not of `upweight fine-tune`"),
        (b"\xff\xfe", "cannot be read as TOML"),
        (None, "cannot be read as TOML"),
    ],
)
def test_wrong_files_of_options(text, sentence, tmp_path):
    config = tmp_path / "run.toml"
    if text is not None:
        config.write_bytes(text if isinstance(text, bytes) else text.encode())
    ran = refused(3, "fine-tune", "--config", config, "--out", tmp_path / "run")
    assert re.search(sentence, ran) and str(config) in ran
    assert not (tmp_path / "run").exists()


def test_wrong_words_beside_a_file_are_wrong_words(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("n = 12\n")
    refused(2, "fine-tune", "--config", config, "--epochs", 0, "--out", tmp_path / "run")


def test_choices_hold_in_files_too(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('label = "best"\n')
    assert "choose one of true, predicted" in refused(3, "stats", tiny.run(), "--config", config)


def test_every_stage_replays_from_the_file_beside_its_results(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    base = ("--data", tiny.data(), "--n", 20, "--epochs", 2, "--k", 1, "--seed", 7, "--source", "robust")
    done("fine-tune", *base, "--learning-rate", 0.05, "--out", first)
    done("fine-tune", "--config", first / "fine-tune.toml", "--out", again)
    one, other = (json.loads((run / "run.json").read_text()) for run in (first, again))
    assert (one["model_sha256"], one["digest"]) == (other["model_sha256"], other["digest"])

    done("attribute", first, "--damping", 1e-3, "--train-scores", "--dtype", "float64", "--also", "predicted")
    done("attribute", "--config", first / "attribute.toml", "--out", tmp_path / "scores")
    for variant in ("", "predicted"):
        one, other = (upweight.open_scores(run / "influence.h5", variant) for run in (first, tmp_path / "scores"))
        np.testing.assert_array_equal(one.matrix[:], other.matrix[:])
    assert other.meta["curvature"]["damping"] == pytest.approx(1e-3)

    done(
        "report",
        first,
        "--ranks",
        5,
        "--title",
        'A "title" \\ with \x7f signs ü',
        "--dpi",
        30,
        "--out",
        tmp_path / "page",
    )
    done("report", "--config", tmp_path / "page/report.toml", "--out", tmp_path / "page2")
    one, other = (json.loads((tmp_path / page / "stats.json").read_text()) for page in ("page", "page2"))
    assert one == other and one["settings"]["title"].endswith("\x7f signs ü")


def test_pretraining_replays(tmp_path):
    from upweight.models.settings import PretrainSettings

    words = ("--data", tiny.data(), "--epochs", 1, "--eval-images", 5, "--eval-steps", 1, "--steps", 1, "--eps", 0.5)
    done("pretrain", *words, "--adversarial", "--eval-images", "none", "--out", tmp_path / "a.safetensors")
    assert tomllib.loads((tmp_path / "a.toml").read_text())["eval_images"] == "none"
    done("pretrain", "--config", tmp_path / "a.toml", "--out", tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    before = tiny.state(tmp_path)
    done("pretrain", "--config", tmp_path / "a.toml", "--overwrite")  # made under these settings already
    assert tiny.state(tmp_path) == before
    sentence = refused(4, "pretrain", "--config", tmp_path / "a.toml", "--seed", PretrainSettings().seed + 1)
    assert "seed=0" in sentence and "--overwrite" in sentence
    assert tiny.state(tmp_path) == before
    done("pretrain", "--config", tmp_path / "a.toml", "--seed", 1, "--overwrite")
    assert tomllib.loads((tmp_path / "a.toml").read_text())["seed"] == 1


def test_the_replay_file_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("fine-tune", "--data", tiny.data(), *QUICK, "--out", "run")
    text = (tmp_path / "run/fine-tune.toml").read_text()
    held = tomllib.loads(text)
    assert held["made"] == {"command": "fine-tune", "upweight": upweight.__version__, "folder": str(tmp_path)}
    assert held["out"] == "run"
    assert not {"overwrite", "json", "debug", "config"} & held.keys()
    assert "epochs" in held and "root" not in held  # what has no value is left out


def test_a_file_written_by_hand_is_left_alone(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "fine-tune.toml").write_text("# my own words\nn = 12\nepochs = 1\n")
    done("fine-tune", "--config", run / "fine-tune.toml", "--data", tiny.data(), "--out", run)
    assert (run / "fine-tune.toml").read_text().startswith("# my own words")
