"""A sweep as it runs: what it makes, keeps, refuses and reports, and that nothing is lost when it is stopped."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from tiny import done, refused, state, strict_json
from upweight.models.accuracy import natural_accuracy
from upweight.models.checkpoints import load_model
from upweight.models.data import load_data
from upweight.models.settings import DataSettings
from upweight.reports import transfer_page
from upweight.sweep import run_sweep
from upweight.sweep_plan import read_sweep

SEED = tiny.SEED
BASE = """
    k = [0, 1]
    n = [20, "all"]
    seeds = 1
    dpi = 30
    [data]
    data = "{data}"
    [fine-tune]
    epochs = 2
    device = "cpu"
"""
ATTACK = '[attack]\neps = 0.3\nsteps = 2\nimages = 20\ndevice = "cpu"\n'


@pytest.fixture
def unseen(monkeypatch):
    """A report of the tables alone, for tests that do not look at its figures."""

    def write(runs, history, sources, out, **_):
        out.mkdir(exist_ok=True)
        for name, rows in (("runs", runs), ("history", history), ("sources", sources)):
            (out / f"{name}.csv").write_text(rows.to_csv())
        return {"conclusions": [], "tables": {"cells": {"columns": {}}}}

    monkeypatch.setattr(transfer_page, "write_transfer_report", write)


def written(folder, text, name="asked.toml"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text.format(data=tiny.data()))
    return folder / name


def table(out, name):
    with open(out / "report" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(out):
    return {path.parent.name: path.read_bytes() for path in sorted((out / "runs").glob("*/model.safetensors"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sweep done in one go; nothing in its runs/ may be changed."""
    folder = tmp_path_factory.mktemp("sweep")
    file = written(folder, BASE + ATTACK)
    text = done("sweep", file, "--out", folder / "out")
    return file, folder / "out", text


def test_every_run_is_there_and_in_the_table(made):
    _, out, text = made
    assert text.splitlines()[-1] == f"Report: {out / 'report/index.html'}"
    rows = {row["run"]: row for row in table(out, "runs")}
    names = [f"{s}-digits-n{n}-k{k}-s{SEED}" for s in ("natural", "robust") for n in (20, "all") for k in (0, 1)]
    assert list(rows) == names and {path.name for path in (out / "runs").iterdir()} == set(names)
    for name, row in rows.items():
        info = json.loads((out / "runs" / name / "run.json").read_text())
        (attacked,) = json.loads((out / "runs" / name / "robustness.json").read_text())["records"]
        assert (row["source"], row["recipe"], row["data"]) == (info["source"]["name"], "", "digits.npz")
        assert (int(row["n"]), row["k"], int(row["seed"])) == (info["n"], str(info["k"]), SEED)
        measured = [info["accuracy"]["test"], info["accuracy"]["train"], attacked["pgd"], 20.0]
        columns = ("test_accuracy", "train_accuracy", "robust_accuracy", "robust_images")
        assert [float(row[name]) for name in columns] == measured
        assert attacked["attack"] == "L2 0.3, PGD-2"
        assert (row["resolution"], row["neft"], row["adversarial"], row["epochs"]) == ("nan", "nan", "False", "2")
        # a head of 48 features and ten classes; the last block has two 3x3 convolutions and their batch-norms, 48 wide
        trained = 48 * 10 + 10 + int(row["k"]) * 2 * (48 * 48 * 9 + 2 * 48)
        assert (int(row["trained_parameters"]), row["trained_blocks"]) == (trained, row["k"])
    assert {row["n"] for row in rows.values()} == {"20", "60"}


def test_figures_of_an_earlier_file_do_not_stay(made, unseen):
    file, out, _ = made
    (out / "report/stats.json").write_text(
        json.dumps({"figures": [{"file": "by-size.png"}], "tables": {"old": {"file": "old.csv"}}})
    )
    for name in ("old.csv", "mine.txt"):
        (out / "report" / name).write_text("x")
    done("sweep", file, "--out", out)
    assert not (out / "report/old.csv").exists() and not (out / "report/by-size.png").exists()
    assert (out / "report/mine.txt").exists()


def test_histories_and_sources_are_in_tables_too(made):
    _, out, _ = made
    history = table(out, "history")
    info = json.loads((out / f"runs/robust-digits-n20-k1-s{SEED}/run.json").read_text())
    mine = [row for row in history if row["run"] == f"robust-digits-n20-k1-s{SEED}"]
    assert [(int(row["epoch"]), float(row["loss"]), float(row["test_accuracy"])) for row in mine] == [
        (entry["epoch"], entry["loss"], entry["test_accuracy"]) for entry in info["history"]
    ]
    assert len(history) == 2 * 8
    natural, robust = table(out, "sources")
    assert (natural["source"], natural["norm"], natural["eps"], natural["data"]) == (
        "natural",
        "",
        "0.0",
        "fashion-mnist",
    )
    assert (robust["norm"], robust["eps"], robust["attack"]) == ("l2", "1.0", "L2 1, PGD-20")
    held = json.loads((Path(load_model("robust").path).with_suffix(".json")).read_text())
    found = [float(robust[name]) for name in ("natural_accuracy", "robust_accuracy")]
    assert found == [held["accuracy"]["natural"], held["accuracy"]["pgd"]]
    assert int(robust["parameters"]) == sum(p.numel() for p in load_model("robust").model.parameters())


def test_what_is_done_is_left_alone(made, unseen):
    file, out, text = made
    before = state(out / "runs")
    assert done("sweep", file, "--out", out).splitlines()[-1] == text.splitlines()[-1]
    done("sweep", out / "sweep.toml")  # the file beside the results replays them
    assert state(out / "runs") == before
    jobs = strict_json(done("sweep", file, "--out", out, "--dry-run", "--json"))
    assert {row["state"] for row in jobs["rows"]} == {"done"} and len(jobs["rows"]) == 2 + 8


def test_a_dry_run_makes_nothing(tmp_path):
    file = written(tmp_path / "a", BASE)
    text = done("sweep", file, "--out", tmp_path / "out", "--dry-run")
    assert text.splitlines()[0] == "8 runs of 2 sources; 8 of these 10 are to do"
    assert re.search(rf"run +robust-digits-nall-k1-s{SEED} .* all +1 +{SEED} +to do$", text, re.MULTILINE)
    assert not (tmp_path / "out").exists()


def test_another_file_keeps_what_is_the_same_and_refuses_what_is_not(tmp_path, unseen):
    small = BASE.replace('"all"', "30").replace("k = [0, 1]", "k = [0]")
    out = tmp_path / "out"
    done("sweep", written(tmp_path, small), "--out", out)
    before = state(out / "runs")
    done("sweep", written(tmp_path, small.replace("n = [20, 30]", "n = [20, 30, 40]") + ATTACK), "--out", out)
    after = state(out / "runs")
    assert {name: kept for name, kept in after.items() if name in before} == before
    assert len(after) == 6 * 3 and len(table(out, "runs")) == 6

    longer = written(tmp_path, small.replace("epochs = 2", "epochs = 3"))
    sentence = refused(4, "sweep", longer, "--out", out)
    assert "epochs=2" in sentence and "epochs=3" in sentence and "--overwrite" in sentence
    assert "3 more of these runs were made with other settings" in sentence
    assert state(out / "runs") == after
    assert "other settings" in done("sweep", longer, "--out", out, "--dry-run")
    done("sweep", longer, "--out", out, "--overwrite")
    assert {row["epochs"] for row in table(out, "runs")} == {"3"} and len(table(out, "runs")) == 4
    assert (out / f"runs/natural-digits-n40-k0-s{SEED}/run.json").exists()  # no part of this sweep


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("k = [0, 1]", "k = [0, 10]", "source natural, data .*: k is 10, but this network has 9 residual blocks"),
        ("n = [20,", "n = [9,", "source natural, data .*: 9 images cannot hold all 10 classes"),
        ("n = [20,", "n = [61,", "source natural, data .*: 61 images are asked for and 60 are there"),
        ("n = [20,", "n = [60,", f"natural-digits-n60-k0-s{SEED} and natural-digits-nall-k0-s{SEED} are one run of 60 images"),
        ("[fine-tune]", "[attack]\nimages = 31\n[fine-tune]", "31 images are asked for and the test set has 30"),
        ("[fine-tune]", "[[recipe]]\nname = 'LwF'\nlwf = 1\n[fine-tune]", "source natural, recipe LwF, .*lwf is 1.0 with k = 0"),
        ('"cpu"', '"tpu"', "There is no device 'tpu'"),
        ('"{data}"', '"nodata"', "There is no data set 'nodata'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_anything_starts(old, new, sentence, tmp_path):
    assert old in BASE
    file = written(tmp_path, BASE.replace(old, new))
    code = 2 if "nodata" in new else 3
    assert re.search(sentence, refused(code, "sweep", file, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_is_named_and_the_others_are_done(tmp_path, unseen):
    text = (
        BASE.replace('n = [20, "all"]', "n = [20]")
        + "[[recipe]]\nname = ''\n[[recipe]]\nname = 'hot'\nlearning_rate = 1e30\n"
    )
    out = tmp_path / "out"
    sentence = refused(1, "sweep", written(tmp_path, text), "--out", out)
    assert sentence.startswith("upweight sweep: 4 of the sweep's jobs failed, and 4 runs are done and in ")
    assert f"natural-digits-hot-n20-k0-s{SEED}: The fit diverged" in sentence
    assert [row["recipe"] for row in table(out, "runs")] == [""] * 4
    alone = written(tmp_path, text.replace("[[recipe]]\nname = ''\n", ""))
    assert "4 of the sweep's jobs failed, and no run is done" in refused(1, "sweep", alone, "--out", tmp_path / "alone")


SOURCES = """
    [[source]]
    name = "natural"
    data = "{data}"
    epochs = 1
    device = "cpu"
    eval_images = 30
    eval_steps = 1
    [[source]]
    name = "eps 0.3"
    adversarial = true
    eps = 0.3
    steps = 1
    data = "{data}"
    epochs = 1
    device = "cpu"
    eval_images = 30
    eval_steps = 1
"""


def test_sources_are_trained_first_and_measured_on_their_own_data(tmp_path, unseen):
    text = BASE.replace("k = [0, 1]", "k = [0]").replace('n = [20, "all"]', "n = [20]") + ATTACK + SOURCES
    out = tmp_path / "out"
    file = written(tmp_path, text)
    done("sweep", file, "--out", out)
    rows = table(out, "sources")
    assert [(row["source"], row["norm"], row["eps"]) for row in rows] == [
        ("natural", "", "0.0"),
        ("eps 0.3", "l2", "0.3"),
    ]
    target = load_data(DataSettings(data=str(tiny.data())), (1, 28, 28))
    for row in rows:
        model = load_model(out / "sources" / f"{row['source']}.safetensors").model
        assert [float(row["natural_accuracy"])] == [natural_accuracy(model, target.test, torch.device("cpu"))]
        assert (row["attack"], float(row["robust_images"])) == ("L2 0.3, PGD-2", 20)
        assert float(row["robust_accuracy"]) <= 1.0
    before = state(out)
    done("sweep", file, "--out", out)
    after = state(out)
    assert {name: kept for name, kept in after.items() if "report" not in name} == {
        name: kept for name, kept in before.items() if "report" not in name
    }
    info = json.loads((out / f"runs/natural-digits-n20-k0-s{SEED}/run.json").read_text())
    assert info["source"]["path"] == str(out / "sources/natural.safetensors")  # and not the one that is shipped

    other = written(tmp_path, text.replace("eps = 0.3\n    steps = 1", "eps = 0.2\n    steps = 1"))
    sentence = refused(4, "sweep", other, "--out", out)
    assert "eps 0.3.safetensors was made with eps=0.3; this call asks eps=0.2" in sentence and "--overwrite" in sentence
    assert state(out) == after
    told = done("sweep", other, "--out", out, "--dry-run")
    assert [line.split("  ")[-1].strip() for line in told.splitlines()[2:]] == ["done", "other settings"] * 2
    done("sweep", other, "--out", out, "--overwrite")
    assert [row["eps"] for row in table(out, "sources")] == ["0.0", "0.2"]
    changed = state(out)
    kept = [name for name in after if name.startswith("runs/natural") and changed[name] != after[name]]
    assert kept == []  # only what hangs on the changed source was made anew


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path, made, unseen):
    """Interrupted in the middle of a run, as by Ctrl-C: the same weights as in one go, and nothing is done twice."""
    file, whole, _ = made
    sweep = read_sweep(file, str(tmp_path / "out"))
    told = []

    def stop(stage, done, total):
        told.append((stage, done))
        if stage.startswith("3/8") and stage.endswith("fine-tune") and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, progress=stop)
    first = weights(tmp_path / "out")
    assert len(first) == 2
    begun = f"natural-digits-nall-k0-s{SEED}"
    text = done("sweep", file, "--out", tmp_path / "out", "--dry-run")
    assert re.search(rf"{begun} .* epoch 1 of 2$", text, re.MULTILINE)
    before = state(tmp_path / "out/runs")
    stages = []
    run_sweep(sweep, progress=lambda stage, done, total: stages.append((stage, done)))
    after = state(tmp_path / "out/runs")
    assert all(after[name] == kept for name, kept in before.items() if name.split("/")[0] in first)
    assert (f"1/6 {begun}: fine-tune", 1) in stages and (f"1/6 {begun}: fine-tune", 0) not in stages
    assert weights(tmp_path / "out") == weights(whole)


@pytest.mark.skipif(os.name == "nt", reason="signals are others there")
def test_killed_with_its_workers_it_loses_nothing_that_was_done(tmp_path, unseen):
    """Ctrl-C at the terminal, then kill -9, each with two workers at work; afterwards the same weights as in one go."""
    text = (
        BASE
        .replace("k = [0, 1]", "k = [0]")
        .replace("epochs = 2", "epochs = 100")
        .replace('[20, "all"]', "[20, 30, 40]")
    )
    file, out = written(tmp_path, text.replace("seeds", 'sources = ["natural"]\n    seeds')), tmp_path / "out"
    words = [sys.executable, "-m", "upweight", "sweep", str(file), "--workers", "2", "--out", str(out)]

    def started(pattern):
        pipe = subprocess.PIPE
        process = subprocess.Popen(words, stderr=pipe, stdout=pipe, text=True, start_new_session=True)
        deadline = time.monotonic() + 200
        while not any(out.glob(pattern)):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        return process

    process = started("runs/*/*.partial.safetensors")
    os.killpg(process.pid, signal.SIGINT)
    answer, error = process.communicate(timeout=60)
    assert (process.returncode, answer) == (130, "")
    assert error == "upweight sweep: interrupted; what was finished is kept, and the same command goes on from there\n"

    process = started("runs/*/run.json")
    process.kill()
    process.communicate(timeout=60)  # the workers hold its standard error: it ends when they have ended
    assert process.returncode == -signal.SIGKILL
    ready, before = weights(out), state(out / "runs")
    assert 1 <= len(ready) < 3
    run_sweep(read_sweep(file, str(out)))
    after = state(out / "runs")
    assert all(after[name] == kept for name, kept in before.items() if name.split("/")[0] in ready)
    run_sweep(read_sweep(file, str(tmp_path / "whole")))
    assert len(weights(out)) == 3 and weights(out) == weights(tmp_path / "whole")
