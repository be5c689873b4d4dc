"""Several runs of one recipe: the mean of their scores is that of their stores, nothing is scored twice, and what has no mean is
refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import upweight
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits
from tiny import done, refused, strict_json
from upweight import UsageError, averaging
from upweight.averaging import attribute_runs
from upweight.cache import sink
from upweight.cache import store as stores
from upweight.cache.errors import StoreError
from upweight.evaluation import EvaluateSettings, evaluate
from upweight.influence.settings import AttributeSettings

N, QUERIES, SEEDS = 30, 25, (0, 1, 2)
TUNE = ("--k", 0, "--epochs", 3, "--device", "cpu")
HOW = ("--damping", 0.01, 0.1, "--train-scores")
SETTINGS = AttributeSettings(damping=(0.01, 0.1), train_scores=True)


def data(folder, name="digits.npz", **changes):
    """40 digits of three kinds to train on, 25 to ask."""
    digits = load_digits(n_class=3)
    x, y = (digits.images / 16).astype(np.float32), digits.target
    arrays = {"x": x[:40], "y": y[:40], "x_test": x[100 : 100 + QUERIES], "y_test": y[100 : 100 + QUERIES]}
    np.savez(folder / name, **(arrays | changes))
    return folder / name


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Three trainings on the same images, and what can be averaged with none of them; nothing is scored."""
    home = tmp_path_factory.mktemp("averaged")
    same, few = data(home), ("--n", N)
    for seed in SEEDS:
        done("fine-tune", "--data", same, *few, *TUNE, "--seed", seed, "--images-seed", 5, "--out", home / f"s{seed}")
    odd = {
        "other-images": ("--data", same, *few, "--seed", 3),
        "fewer": ("--data", same, "--n", 20, "--seed", 3, "--images-seed", 5),
        "deeper": ("--data", same, *few, "--seed", 3, "--images-seed", 5, "--k", 1),
        "longer": ("--data", same, *few, "--seed", 3, "--images-seed", 5, "--epochs", 4),
    }
    for name, words in odd.items():
        done("fine-tune", *TUNE, *words, "--out", home / name)
    return home


@pytest.fixture
def runs(home, tmp_path):
    """Copies without scores."""
    for seed in SEEDS:
        shutil.copytree(home / f"s{seed}", tmp_path / f"s{seed}")
    return [tmp_path / f"s{seed}" for seed in SEEDS]


@pytest.fixture(scope="module")
def averaged(home, tmp_path_factory):
    """The runs, scored and averaged as a stranger does it: in a process of its own."""
    folder = tmp_path_factory.mktemp("strange")
    for seed in SEEDS:
        shutil.copytree(home / f"s{seed}", folder / f"s{seed}")
    words = ["attribute", "s0", "s1", "s2", *map(str, HOW), "--average", "mean"]
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "upweight", *words],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("mean: the mean over 3 runs\nmain:\n  queries: 25\n  train: 30\n")
    return folder


class Counted:
    """Counts the calls of a function."""

    def __init__(self, real):
        self.real, self.calls = real, []

    def __call__(self, *args, **options):
        self.calls.append(args)
        return self.real(*args, **options)


def of(folder, variant=""):
    return upweight.open_scores(folder / "influence.h5", variant)


# ---- the mean ------------------------------------------------------------------------------------------------------------


def test_average_is_the_mean_of_the_stores_of_the_runs(averaged):
    every = [averaged / f"s{seed}" for seed in SEEDS]
    for variant in ("", "damping=0.1"):
        mean, each = of(averaged / "mean", variant), [of(run, variant) for run in every]
        wanted = np.mean([np.asarray(one.matrix[:], dtype=np.float64) for one in each], axis=0)
        assert np.ptp([one.matrix[0, 0] for one in each]) > 0
        assert_array_equal(mean.matrix[:], wanted.astype(np.float32))
        wanted = np.mean([np.asarray(one.on_train.matrix[:], dtype=np.float64) for one in each], axis=0)
        assert_array_equal(mean.on_train.matrix[:], wanted.astype(np.float32))
        assert_allclose(mean.queries.loss, np.mean([one.queries.loss for one in each], axis=0), rtol=1e-14)
        assert_array_equal(mean.train.index, each[0].train.index)
        assert mean.queries.features is None  # those of different networks have no mean
    assert [*of(averaged / "mean").at_damping] == [0.01, 0.1]


def test_store_says_which_runs_it_is_the_mean_of(averaged):
    held = strict_json(done("info", averaged / "mean", "--json"))["store"]
    hashes = [json.loads((averaged / f"s{seed}/run.json").read_text())["model_sha256"] for seed in SEEDS]
    assert [(one["run"], one["seed"], one["model_sha256"]) for one in held["averaged"]] == [
        (f"s{seed}", seed, held_hash) for seed, held_hash in zip(SEEDS, hashes, strict=True)
    ]
    assert held["config"]["model_sha256"] == sorted(hashes)
    assert held["config"]["damping"] == [0.01, 0.1]
    main = held["variants"]["main"]
    assert main["curvature"].items() >= {"name": "LinearHead", "average": 3, "damping": 0.01}.items()
    assert main["sign"].startswith("mean over 3 of: + g_query")
    assert main["unit"] == "nats per unit weight" and "differ" not in " ".join(main["warnings"])


def test_rows_of_one_size(averaged):
    each = [averaged / f"s{seed}" for seed in SEEDS]
    assert "--unit-rows says how scores are averaged" in refused(2, "attribute", each[0], "--unit-rows")
    done("attribute", *each, "--damping", 0.01, 0.1, "--train-scores", "--average", averaged / "unit", "--unit-rows")
    config = strict_json(done("info", averaged / "unit", "--json"))["store"]["config"]
    assert config["unit_rows"] is True
    found = np.asarray(of(averaged / "unit").matrix[:], dtype=np.float64)
    rows = [np.asarray(of(run).matrix[:], dtype=np.float64) for run in each]
    wanted = sum(one / np.sqrt((one**2).mean(1, keepdims=True)) for one in rows) / 3
    assert_allclose(found, wanted, rtol=1e-6)
    sentence = refused(4, "attribute", *each, "--damping", 0.01, 0.1, "--train-scores", "--average", averaged / "unit")
    assert "unit_rows" in sentence


def test_average_is_asked_as_any_scores(averaged, monkeypatch):
    monkeypatch.chdir(averaged.parent)
    mean = averaged / "mean"
    text = done("query", mean, "--query", 3, "-k", 2, "--variant", "damping=0.1", "--image", averaged / "three.png")
    assert str(of(mean, "damping=0.1").top(3, 2)).splitlines()[2:] == text.splitlines()[2:]
    assert (averaged / "three.png").stat().st_size > 1000
    assert "their true class" in done("stats", mean, "-k", 1)
    assert "a report shows runs" in refused(2, "report", mean, "--out", averaged / "page")
    assert "of several runs" in refused(2, "saliency", mean)


def test_runs_of_several_recipes_are_averaged_with_a_warning(home, runs):
    shutil.copytree(home / "longer", runs[0].parent / "longer")
    mean = attribute_runs([runs[0], runs[0].parent / "longer"], AttributeSettings(), runs[0].parent / "mean")[""]
    assert mean.meta["warnings"][0] == "The averaged runs differ in more than their seeds: in epochs."


# ---- nothing twice -------------------------------------------------------------------------------------------------------


def never(*_, **__):
    raise AssertionError("this was done already")


def test_second_call_scores_and_writes_nothing(averaged, monkeypatch):
    monkeypatch.chdir(averaged)
    before = tiny.state(averaged)
    monkeypatch.setattr(averaging, "attribute_run", never)
    monkeypatch.setattr(sink.Sink, "write", never)
    done("attribute", "--config", "mean/attribute.toml")
    every = [averaged / f"s{seed}" for seed in SEEDS]
    again = attribute_runs(every[::-1], SETTINGS, averaged / "mean", overwrite=True)  # their order is of no matter
    assert again[""].matrix.shape == (QUERIES, N)
    assert tiny.state(averaged) == before


def test_what_a_run_was_scored_by_is_taken_as_it_is(runs, monkeypatch):
    done("attribute", runs[1], *HOW)
    before = tiny.state(runs[1])
    monkeypatch.setattr(averaging, "attribute_run", Counted(averaging.attribute_run))
    done("attribute", *runs, *HOW, "--average", runs[0].parent / "mean")
    assert [args[0] for args in averaging.attribute_run.calls] == [runs[0], runs[2]]
    assert tiny.state(runs[1]) == before


def test_interrupted_average_goes_on_with_the_block_it_was_at(runs, monkeypatch):
    out, seen = runs[0].parent / "mean", []
    monkeypatch.setattr(stores, "SAVED_ROWS", 10)  # three blocks of 25 queries

    def stop(stage, done, total):
        seen.append((stage, done, total))
        if stage == "average: write queries" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attribute_runs(runs, AttributeSettings(), out, progress=stop)
    assert {"1/3 s0: score queries", "3/3 s2: score queries"} <= {stage for stage, _, _ in seen}
    assert [file.name for file in out.glob("influence.h5*") if file.suffix != ".lock"] == ["influence.h5.partial"]
    before = [tiny.state(run) for run in runs]
    monkeypatch.setattr(averaging, "attribute_run", never)
    monkeypatch.setattr(sink.Sink, "write", Counted(sink.Sink.write))
    written = sink.Sink.write
    monkeypatch.setattr(sink.Sink, "write", lambda *args: written(*args))
    mean = attribute_runs(runs, AttributeSettings(), out)[""]
    assert [args[2] for args in written.calls] == [slice(20, 25)]
    assert_array_equal(mean.matrix[:], upweight.average([of(run) for run in runs]).matrix)
    assert [tiny.state(run) for run in runs] == before


# ---- what has no average -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("s0", "--average", "mean"), "taken over several runs, and one is given; name at least two"),
        (("--average", "mean"), "taken over several runs, and none is given"),
        (("s0", "s1"), "2 run folders are given; say by --average OUT"),
        (("s0", "s1", "--out", "mean"), "2 run folders are given; say by --average OUT"),
        (("s0", "s1", "--average", "mean", "--out", "x"), "leave --out out"),
        (("s0", "./s0", "--average", "mean"), "s0 and s0 hold the same weights; name each run once"),
        (("s0", "s1", "--average", "longer"), "longer is a run, whose own scores lie there"),
        (("s0", "s1", "--average", "mean", "--model", "a:b"), "the run s0 has its own"),
        (("s0", "s1", "--average", "mean", "--also", "predicted"), "leave `predicted` out"),
        (("s0", "s1", "--average", "mean", "--query-label", "predicted"), "leave `predicted` out"),
        (("s0", "s1", "other-images", "--average", "mean"), r"image \d+ is a train image of (s0|other-images) alone"),
        (("s0", "fewer", "--average", "mean"), "s0 has 30 train images, fewer has 20"),
        (("s0", "deeper", "--average", "mean"), "s0 has k = 0, deeper has k = 1"),
        (("s0", "s1", "--average", "mean", "--damping", "-1"), "damping is -1"),
        (
            ("s0", "s1", "--average", "mean", "--curvature", "unrolled", "--also", "damped"),
            "leave the rest of `also` out",
        ),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_words_that_have_no_average(words, sentence, dry, home, monkeypatch):
    monkeypatch.chdir(home)
    before = tiny.state(home)
    assert re.search(sentence, refused(2, "attribute", *words, *dry))
    assert tiny.state(home) == before


def test_runs_that_are_not_there(home, monkeypatch):
    monkeypatch.chdir(home)
    before = tiny.state(home)
    assert "nowhere holds no finished run" in refused(3, "attribute", "s0", "nowhere", "--average", "mean")
    assert tiny.state(home) == before


def test_scores_of_other_settings_are_kept_until_overwriting_is_asked_for(runs):
    out = runs[0].parent / "mean"
    done("attribute", runs[2], "--damping", 1)
    before = tiny.state(out.parent)
    said = refused(4, "attribute", *runs, *HOW, "--average", out)
    assert f"{runs[2]}/influence.h5 holds results for damping=1" in said and "all runs scored alike" in said
    assert tiny.state(out.parent) == before  # found before the first run was scored
    done("attribute", *runs, "--damping", 1, "--average", out)
    assert f"{out}/influence.h5 holds results for damping=1" in refused(4, "attribute", *runs, *HOW, "--average", out)
    assert f"{out}/influence.h5 holds" in refused(4, "attribute", *runs[:2], "--damping", 1, "--average", out)
    done("attribute", *runs, *HOW, "--average", out, "--overwrite")
    assert [[*of(folder).at_damping] for folder in (out, runs[2])] == [[0.01, 0.1]] * 2


# ---- what it will cost ---------------------------------------------------------------------------------------------------


def test_a_dry_run_adds_up_the_runs_that_are_to_be_scored(runs):
    out, folder = runs[0].parent / "mean", runs[0].parent
    done("attribute", runs[0], *HOW)
    before = tiny.state(folder)
    words = ("attribute", *runs, *HOW, "--dry-run", "--json")
    found, one = strict_json(done(*words, "--average", out)), strict_json(done(*words[:1], runs[1], *words[4:]))
    *stages, mean = found["stages"]
    assert mean["name"] == "average the runs"
    assert [stage["flops"] for stage in stages] == [2 * stage["flops"] for stage in one["stages"]]
    assert sum(stage["disk"] for stage in stages) == 2 * one["total"]["disk"] > mean["disk"] > 0
    assert found["notes"][-1].startswith("2 of the 3 runs are still to be scored")
    assert tiny.state(folder) == before
    done("attribute", *runs, *HOW, "--average", out)
    found = strict_json(done(*words, "--average", out))
    assert [stage["name"] for stage in found["stages"]] == ["average the runs"]
    assert "holds this average already" in found["notes"][-1]


# ---- held against retraining ---------------------------------------------------------------------------------------------


def test_an_average_is_held_against_the_refits_of_its_runs_and_of_no_other(averaged, home, tmp_path):
    asked = EvaluateSettings(lds=10, alpha=0.8, curve=False)
    found = evaluate(averaged / "s1", asked, scores=[averaged / "mean"], out=tmp_path / "page")
    held = found.stats["tables"]["methods"]["columns"]
    row = held["method"].index("mean of 3 runs: LinearHead, damping 0.01")
    assert "mean of 3 runs: LinearHead, damping 0.1" in held["method"]
    (truth,) = (averaged / "s1/truth").glob("lds-*.h5")
    wanted = upweight.lds(of(averaged / "mean"), upweight.open_truth(truth))
    assert held["lds"][row] == pytest.approx(wanted.mean, abs=1e-12)
    other = tmp_path / "longer"
    shutil.copytree(home / "longer", other)
    done("attribute", other)
    with pytest.raises(StoreError, match="other weights"):
        evaluate(other, asked, scores=[averaged / "mean"], out=tmp_path / "other")


# ---- the images ----------------------------------------------------------------------------------------------------------


def test_file_of_an_earlier_version_names_its_run_as_text(averaged, tmp_path):
    folder = tmp_path / "scores"
    done("attribute", averaged / "s0", "--out", folder)
    text = (folder / "attribute.toml").read_text()
    older = text.replace(f'run = ["{averaged / "s0"}"]', f'run = "{averaged / "s0"}"')
    assert older != text
    (folder / "attribute.toml").write_text(older)
    done("query", folder, "--query", 1, "--image", tmp_path / "one.png")
    done("attribute", "--config", folder / "attribute.toml")


def test_pictures_and_labels_are_compared_where_the_files_differ(home, tmp_path):
    """Data of other files are averaged over only where nothing was changed; the first change is named."""
    with np.load(home / "digits.npz") as held:
        x, y, x_test, y_test = (held[name].copy() for name in ("x", "y", "x_test", "y_test"))
    used = json.loads((home / "s0/run.json").read_text())["data"]["train_index"]
    unused = next(i for i in range(40) if i not in used)
    changes = {
        "picture": ({"x": x, "at": used[4]}, f"train image {used[4]} is not the same picture in"),
        "query": ({"x_test": x_test, "at": 7}, "query 7 is not the same picture in"),
        "label": (
            {"y_test": y_test, "at": 3},
            rf"query 3 is of class {y_test[3]} in .*s0 and of class {(y_test[3] + 1) % 3} in",
        ),
        "idle": ({"x": x, "at": unused}, "differ in images which neither was trained on or is asked"),
        "asked": ({"x_test": x_test[:-1], "y_test": y_test[:-1]}, "has 25 queries, .* has 24"),
        "classes": ({"y": np.append(y[:-1], 3)}, "has 3 classes, .* has 4"),
    }
    for name, (change, sentence) in changes.items():
        at = change.pop("at", None)
        arrays = {key: value.copy() for key, value in change.items()}
        if at is not None:
            (key,) = arrays
            arrays[key][at] = (arrays[key][at] + 1) % 3 if key.startswith("y") else 1 - arrays[key][at]
        words = ("--data", data(tmp_path, f"{name}.npz", **arrays), "--n", N, *TUNE, "--seed", 1, "--images-seed", 5)
        done("fine-tune", *words, "--out", tmp_path / name)
        with pytest.raises(UsageError, match=sentence):
            attribute_runs([home / "s0", tmp_path / name], AttributeSettings(), tmp_path / "mean")
    assert not (tmp_path / "mean").exists() and not (home / "s0/influence.h5").exists()


def test_seed_of_the_images_decides_them_alone(home):
    infos = [json.loads((home / f"s{seed}/run.json").read_text()) for seed in SEEDS]
    other = json.loads((home / "other-images/run.json").read_text())
    assert len({tuple(info["data"]["train_index"]) for info in infos}) == 1
    assert len({info["model_sha256"] for info in infos}) == 3
    assert other["data"]["train_index"] != infos[0]["data"]["train_index"]
    assert "images_seed" not in other["settings"]  # as in runs that were made before there was one
    assert "images_seed is -1" in refused(2, "fine-tune", "--images-seed", -1, "--out", Path("never-made"))
