"""The command line as a stranger types it: words, files, exit codes, what is printed and what is left alone."""

import json
import os
import re
import subprocess
import sys

import pytest
import tiny
import torch
import upweight
from tiny import done, refused, strict_json, typed
from upweight import cli, comparison
from upweight.cli import COMMANDS, main

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

    monkeypatch.setattr(comparison, "compare", fail)
    assert re.search(sentence, refused(code, "compare"))
    with pytest.raises(type(error)):
        main(["compare", "--debug"])


def test_notes_of_an_error_are_told(monkeypatch):
    def fail(*_, **__):
        error = upweight.StoreError("it is damaged.")
        error.add_note("while reading scores")
        raise error

    monkeypatch.setattr(comparison, "compare", fail)
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


def test_json_has_no_nan(monkeypatch):
    held = {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (float("-inf"), "x", None, True)}}
    monkeypatch.setattr(cli.questions, "info", lambda path: held)
    assert strict_json(done("info", "x", "--json")) == {
        "a": None,
        "b": [1.5, None],
        "c": {"d": [None, "x", None, True]},
    }


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
    rows = [line for line in text.splitlines() if line.startswith(("test accuracy", "class match: "))]
    assert len(rows) > 8 and max(map(len, rows)) <= 120


# ---- what it will cost ---------------------------------------------------------------------------------------------------


def test_a_dry_run_of_a_run_writes_nothing():
    run = tiny.run(k=1)
    before = tiny.state(tiny.comparison())
    words = ("attribute", run, "--parameters", "all", "--also", "predicted", "--overwrite", "--dry-run")
    found = strict_json(done(*words, "--json"))
    assert tiny.state(tiny.comparison()) == before
    assert (found["n"], found["m"]) == (tiny.N, tiny.QUERIES)
    assert {stage["variant"] for stage in found["stages"]} == {"", "predicted"}
    assert found["total"]["seconds"] > 0 and found["fits"] is True
    assert found["matrices"][0]["size"] == min(tiny.N * 9, found["p"])
    text = done(*words)
    assert "write the store" in text and "predicted" in text
    assert tiny.state(tiny.comparison()) == before


def test_a_dry_run_says_that_a_store_is_there_or_in_the_way():
    run, asked = tiny.named(), ("--dry-run", "--json")
    before = tiny.state(run)
    assert "holds these scores already" in strict_json(done("attribute", run, *asked))["notes"][-1]
    assert "--overwrite" in refused(4, "attribute", run, "--query-label", "predicted", *asked)
    assert tiny.state(run) == before


def test_a_dry_run_of_a_network_of_ones_own_makes_no_folder(tmp_path):
    out = tmp_path / "run"
    config = tmp_path / "asked.toml"
    config.write_text("dry_run = true\n")
    own, words = tiny.own(), (*tiny.own().words, "--parameters", "all", "--out", out)
    before = tiny.state(own.home)
    for how in (("--dry-run",), ("--config", config)):
        found = strict_json(done(*words, *how, "--json"))
        assert (found["n"], found["m"], found["total"]["disk"] > 0) == (len(own.arrays["y"]), tiny.QUERIES, True)
    assert "no parameter" in refused(2, *own.words, "--parameters", "nonsense", "--out", out, "--dry-run")
    assert "rows='margin'" in done(*words, "--dry-run", "--memory", "2MB")
    assert not out.exists() and tiny.state(own.home) == before
