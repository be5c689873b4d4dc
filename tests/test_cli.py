"""The command line as a stranger types it: words, files, exit codes, what is printed and what is left alone."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import tiny
import torch
import upweight
from safetensors.torch import load_file, save_file
from tiny import done, strict_json
from tiny import upweight as typed
from upweight import cli, pipeline
from upweight.cli import COMMANDS, main

QUICK = ("--n", 12, "--epochs", 1)


def refused(code, *words):
    """Run a command that must fail with this code: its one sentence."""
    ran = typed(*words)
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert ran.err.startswith(f"upweight {words[0]}: ")
    assert ran.err.count("\n") == 1 and "Traceback" not in ran.err
    return ran.err


# ---- help --------------------------------------------------------------------------------------------------------------


def test_help_waits_for_nothing_heavy():
    code = """
import sys
from upweight.cli import main
for words in (["--help"], *([name, "--help"] for name in NAMES)):
    try:
        main(words)
    except SystemExit as end:
        assert end.code == 0
heavy = {"torch", "torchvision", "h5py", "matplotlib", "sklearn", "scipy", "numpy", "rich"} & set(sys.modules)
assert not heavy, heavy
""".replace("NAMES", repr(list(COMMANDS)))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for word in ("None", "%", "==SUPPRESS==", "(default: )", "typing.", "tuple["):
        assert word not in text
    for _, option in cli._bound(COMMANDS[name]):
        assert len(option.help) >= 8, option
        if option.default not in (None, (), "", False):
            assert "(default: " in text


def test_help_shows_defaults_of_the_settings(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: natural robust)" in text
    assert "--weight-decay FLOAT L2 coefficient added to every gradient of the trained part" in text
    assert "(default: 0.0005)" in text


def test_module_and_version():
    words = [sys.executable, "-m", "upweight", "--version"]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    assert ran.stdout == f"upweight {upweight.__version__}\n"


# ---- words that are wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], r"upweight: the following arguments are required: COMMAND; see `upweight --help`\."),
        (["atribute"], "invalid choice: 'atribute'"),
        (["query", "RUN", "--query", "x"], "argument --query: 'x' is not a whole number; see `upweight query --help`"),
        (["query"], "RUN and --query must be given, as words or in a --config file"),
        (["query", "RUN", "--query", "1", "--neighbours", "3"], "unrecognized arguments: --neighbours 3"),
        (
            ["query", "RUN", "--quer", "1"],
            "unrecognized arguments: --quer 1",
        ),  # a shortened word may mean another one later
        (["fine-tune"], "--out must be given"),
        (["fine-tune", "--out", "x", "--epochs", "0"], "epochs is 0; give a whole number of at least 1"),
        (["fine-tune", "--out", "x", "--momentum", "nan"], "momentum is nan"),
        (["compare", "--k", "0", "0"], "k names the same thing twice: 0 0"),
        (["compare", "--seeds", "0"], "seeds must be at least 1"),
        (["pretrain", "--out", "weights.pt"], r"end it in \.safetensors"),
        (["report", "--out", "x"], "RUN must be given"),
        (["attribute"], "Give a run folder, or a network of your own by --model, --train and --out"),
        (["attribute", "RUN", "--model", "a:b"], "the run RUN has its own"),
        (["attribute", "RUN", "--curvature", "inverse"], "choose one of auto"),
        (["attribute", "--input-shape", "3", "224"], "give channels, height and width"),
        (["stats", "RUN", "--label", "best"], "argument --label: invalid choice: 'best'"),
        (["info", "/no/such/place"], "There is nothing at /no/such/place; give a run folder"),
    ],
)
def test_wrong_words(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = typed(*words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert re.search(sentence, ran.err), ran.err
    assert list(tmp_path.iterdir()) == []


def test_none_is_a_word_for_settings_that_can_be_none(tmp_path):
    done("fine-tune", "--data", tiny.data(), "--n", "none", "--epochs", 1, "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["n"] == 60
    assert 'n = "none"' in (tmp_path / "run/fine-tune.toml").read_text()


# ---- errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "interrupted; what was finished is kept, and the same command goes on from there"),
        (MemoryError("8 GiB"), 1, r"out of memory \(8 GiB\); analyse fewer"),
        (torch.OutOfMemoryError("CUDA out of\nmemory"), 1, r"out of memory \(CUDA out of memory\)"),
        (RuntimeError("a slip\nof ours"), 1, "unexpected RuntimeError: a slip of ours; --debug shows where"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: Permission denied; choose another place"),
        (upweight.StoreMismatch("held and asked"), 4, "held and asked"),
        (upweight.SolveError("no inverse"), 1, "no inverse"),
        (upweight.ShapeError("label 10"), 3, "label 10"),
    ],
)
def test_errors_are_one_sentence_and_a_code(error, code, sentence, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(pipeline, "compare", fail)
    assert re.search(sentence, refused(code, "compare"))
    with pytest.raises(type(error)):
        main(["compare", "--debug"])


def test_notes_of_an_error_are_told(monkeypatch):
    def fail(*_, **__):
        error = upweight.StoreError("it is damaged.")
        error.add_note("while reading scores")
        raise error

    monkeypatch.setattr(pipeline, "compare", fail)
    assert refused(4, "compare") == "upweight compare: it is damaged. while reading scores\n"


def test_debug_shows_the_traceback(tmp_path):
    words = [sys.executable, "-m", "upweight", "info", str(tmp_path / "nothing"), "--debug"]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr and "UsageError: There is nothing at" in ran.stderr


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise there")
def test_a_reader_that_has_seen_enough_is_no_error():
    words = [sys.executable, "-m", "upweight", "stats", str(tiny.run()), "-k", "5"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


# ---- bad files -----------------------------------------------------------------------------------------------------------


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


# ---- TOML ----------------------------------------------------------------------------------------------------------------


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


# ---- what is printed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("query", "{run}", "--query", 3),
        ("stats", "{run}"),
        ("stats", "{named}"),  # so small that some rates have nothing to be a share of
        ("saliency", "{run}"),
        ("info", "{run}"),
        ("info", "{out}"),
        ("info", "{run}/influence.h5"),
        ("info", "{run}/model.safetensors"),
        ("fine-tune", "--data", "{data}", "--n", 40, "--epochs", 2, "--out", "{run}"),
        ("attribute", "{run}", "--train-scores", "--also", "damped", "predicted"),
        ("compare", "--config", "{out}/compare.toml"),
    ],
)
def test_json_is_one_object_and_nothing_else(words):
    places = {"run": tiny.run(), "out": tiny.comparison(), "data": tiny.data()}
    if "{named}" in words:
        places["named"] = tiny.named()
    assert strict_json(done(*(str(word).format(**places) for word in words), "--json"))


def test_query_prints_tables_text_and_csv():
    scores = upweight.open_scores(tiny.run() / "influence.h5")
    wanted = scores.top(3, 4)
    text = done("query", tiny.run(), "--query", 3, "-k", 4)
    assert text.splitlines()[1].split() == ["rank", "train_id", "score", "label"]
    assert "score in nats per unit weight" in text.splitlines()[0]
    assert done("query", tiny.run(), "--query", 3, "-k", 4, "--csv") == wanted.to_csv()
    assert strict_json(done("query", tiny.run(), "--query", 3, "-k", 4, "--json"))["rows"] == wanted.rows()
    harmful = strict_json(done("query", tiny.run(), "--query", 3, "--harmful", "--json", "--k", 2))
    assert harmful["rows"] == scores.bottom(3, 2).rows()
    every = strict_json(done("query", tiny.run(), "--query", 3, "-k", 1000, "--json"))
    assert len(every["rows"]) == tiny.N
    assert "--csv and --json" in refused(2, "query", tiny.run(), "--query", 3, "--csv", "--json")


def test_compare_prints_its_main_table():
    text = done(*tiny.compare_words(), "--out", tiny.comparison())
    assert re.search(r"test accuracy +\d+\.\d \[", text)
    assert "robust minus natural" in text
    assert text.splitlines()[-1] == f"Report: {tiny.comparison() / 'report/index.html'}"
    assert max(map(len, text.splitlines()[:-1])) <= 120


# ---- terminals -----------------------------------------------------------------------------------------------------------


def in_terminal(words, interrupt_when=None):
    """Run a command in a terminal of 80 columns: exit code and all that was shown."""
    import fcntl
    import pty
    import struct
    import termios

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-m", "upweight", *map(str, words)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    shown = b""
    while True:
        try:
            got = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not got:
            break
        shown += got
        if interrupt_when is not None and interrupt_when(shown):
            os.write(terminal, b"\x03")
            interrupt_when = None
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are there on POSIX systems alone")
def test_terminal_shows_progress_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    from upweight.models import training

    run, epochs = tmp_path / "run", 3000
    words = ("fine-tune", "--data", tiny.data(), "--n", 20, "--k", 1, "--epochs", epochs, "--out", run)
    partial = run / "fine-tune.partial.safetensors"
    code, shown = in_terminal(words, interrupt_when=lambda shown: b"left" in shown and partial.exists())
    assert code == 130
    assert re.search(rf"fine-tune .*\d+/{epochs}.*(left|in all)", shown), shown
    last = shown.rsplit("\r\n", 2)[-2]
    assert last.endswith(
        "upweight fine-tune: interrupted; what was finished is kept, and the same command goes on from there"
    )
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l"), "the cursor is shown again"
    assert "Warning" not in shown and "Traceback" not in shown
    assert partial.exists() and not (run / "run.json").exists()

    begun = []
    real = training.run_epoch

    def few(module, optimizer, batches, rate):
        begun.append(1)
        if len(begun) > 3:
            raise KeyboardInterrupt
        return real(module, optimizer, batches, rate)

    monkeypatch.setattr(training, "run_epoch", few)
    before = json.loads(read_header(partial))["epoch"]
    assert refused(130, *words)
    assert before >= 1
    assert json.loads(read_header(partial))["epoch"] == before + 3


def read_header(partial):
    from upweight.models.checkpoints import read_tensors

    return read_tensors(partial)[1]["upweight-partial-fit"]
