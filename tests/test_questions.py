"""What can be asked of a finished run, as Python calls."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import upweight
from upweight import UsageError, questions
from upweight.influence.input_gradient import input_gradient
from upweight.models.errors import CheckpointError, DataError
from upweight.models.runs import load_run

PNG = b"\x89PNG\r\n"


def drawn(monkeypatch):
    """What is handed to the drawing of neighbours."""
    from upweight.reports import neighbours

    calls, real = [], neighbours.draw_neighbours

    def draw(*args, **options):
        calls.append((args, options))
        return real(*args, **options)

    monkeypatch.setattr(neighbours, "draw_neighbours", draw)
    return calls


# ---- query ---------------------------------------------------------------------------------------------------------------


def test_query_is_a_ranking_with_its_unit_and_classes():
    scores = upweight.open_scores(tiny.run() / "influence.h5")
    table = questions.query(tiny.run(), 4, 3)
    assert list(table.columns) == ["rank", "train_id", "score", "label"]  # the digits' names say no more than the label
    assert table.rows() == scores.top(4, 3).rows()
    true, predicted = scores.queries.label[4], scores.queries.prediction[4]
    assert table.title.endswith(f"query 4 (class {true}, predicted {predicted}); score in nats per unit weight")
    assert questions.query(tiny.run(), 4, 3, harmful=True).rows() == scores.bottom(4, 3).rows()
    assert questions.query(tiny.run() / "influence.h5", 4, 3).rows() == table.rows()


def test_query_names_classes_where_they_have_names():
    table = questions.query(tiny.named(), 0, 6)
    assert list(table.columns) == ["rank", "train_id", "score", "label", "class"]
    assert [("cat", "dog")[label] for label in table["label"]] == table["class"].tolist()
    assert "(class cat, " in table.title


def test_query_of_a_variant():
    damped = upweight.open_scores(tiny.run() / "influence.h5", "damped")
    assert questions.query(tiny.run(), 2, variant="damped").rows() == damped.top(2).rows()
    with pytest.raises(UsageError, match="has no scores called ''; it has main, damped, predicted"):
        questions.query(tiny.run(), 2, variant="")


@pytest.mark.parametrize("harmful", [False, True])
def test_query_draws_the_images_of_a_run(tmp_path, monkeypatch, harmful):
    calls = drawn(monkeypatch)
    questions.query(tiny.run(), 5, 3, harmful=harmful, image=tmp_path / "q.png")
    assert (tmp_path / "q.png").read_bytes().startswith(PNG)
    (((query, images, table), options),) = calls
    x = tiny.own().arrays
    np.testing.assert_allclose(query, x["x_test"][5][None])
    for pictures, shown in ((images, table), options["below"]):
        np.testing.assert_allclose(
            pictures, x["x"][shown["train_id"]][:, None]
        )  # the ids are positions in the data set
    assert options["query_label"] == x["y_test"][5]
    scores = upweight.open_scores(tiny.run() / "influence.h5")
    assert (table.rows(), options["below"][1].rows()) == (scores.top(5, 3).rows(), scores.bottom(5, 3).rows())


def test_query_draws_the_images_of_an_own_network_from_anywhere(tmp_path, monkeypatch):
    home = tiny.own().home
    out = tmp_path / "scores"
    monkeypatch.chdir(home)
    words = [
        word.name if isinstance(word, Path) else word for word in tiny.own().words
    ]  # relative, as typed in that folder
    tiny.done(*words, "--out", out)
    monkeypatch.chdir(tmp_path)
    calls = drawn(monkeypatch)
    questions.query(out, 5, 2, image=tmp_path / "q.png")
    ((query, images, table), _) = calls[0]
    np.testing.assert_allclose(query[0], tiny.own().arrays["x_test"][5])
    np.testing.assert_allclose(images[:, 0], tiny.own().arrays["x"][table["train_id"]])


@pytest.mark.parametrize("train", ["pets", "digits"])
def test_query_draws_named_data_of_an_own_network(tmp_path, monkeypatch, train):
    """An image folder and a data set by name; here without queries of its own, so that self is left out."""
    data = tiny.named().parent / "pets" if train == "pets" else "digits"
    tiny.own()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their_images.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))\n"
    )
    out = tmp_path / "run"
    if train == "digits":
        monkeypatch.setattr("upweight.models.datasets.DIGITS_POOL", 40)
    tiny.done("attribute", "--model", "their_images:make", "--train", data, "--input-shape", 3, 4, 4, "--out", out)
    calls = drawn(monkeypatch)
    table = questions.query(out, 1, 3, image=tmp_path / "q.png")
    assert 1 not in table["train_id"]
    assert calls[0][0][1].shape[0] == 3


def test_query_draws_scores_of_a_run_that_lie_elsewhere(tmp_path, monkeypatch):
    tiny.done("attribute", tiny.run(), "--out", tmp_path / "scores")
    calls = drawn(monkeypatch)
    questions.query(tmp_path / "scores", 5, 2, image=tmp_path / "q.png")
    np.testing.assert_allclose(calls[0][0][0], tiny.own().arrays["x_test"][5][None])


def test_query_image_refuses_what_it_cannot_draw(tmp_path):
    upweight.open_scores(tiny.own_run() / "influence.h5").save(tmp_path / "influence.h5")
    with pytest.raises(UsageError, match=r"has no attribute\.toml that says where its images lie"):
        questions.query(tmp_path, 0, image=tmp_path / "q.png")
    run = tmp_path / "run"
    shutil.copytree(tiny.own_run(), run)
    other = tmp_path / "other.npz"
    np.savez(other, x=tiny.own().arrays["x"][:50], y=tiny.own().arrays["y"][:50])
    text = (run / "attribute.toml").read_text()
    (run / "attribute.toml").write_text(text.replace(str(tiny.own().home / "train.npz"), str(other)))
    with pytest.raises(UsageError, match=r"train images of .* are no longer those that were scored"):
        questions.query(run, 0, image=tmp_path / "q.png")
    assert not (tmp_path / "q.png").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("q.jpg", r"should end in \.png"), ("none/q.png", "There is no folder"), ("there.png", "pass --overwrite")],
)
def test_files_that_cannot_be_written(name, words, tmp_path):
    (tmp_path / "there.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match=words):
        questions.query(tiny.run(), 0, image=tmp_path / name)
    assert (tmp_path / "there.png").read_bytes() == b"mine"
    questions.query(tiny.run(), 0, image=tmp_path / "there.png", overwrite=True)
    assert (tmp_path / "there.png").read_bytes().startswith(PNG)


# ---- stats ---------------------------------------------------------------------------------------------------------------


def test_stats_are_the_tables_of_the_scores():
    scores = upweight.open_scores(tiny.run() / "influence.h5", "damped")
    tables = questions.stats(tiny.run(), 7, variant="damped", label="predicted")
    assert list(tables) == [
        "class_match_queries",
        "at_least_queries",
        "class_match_train",
        "at_least_train",
        "spectrum",
    ]
    assert tables["class_match_queries"].rows() == scores.class_match(7, "predicted").rows()
    assert tables["at_least_train"].rows() == scores.on_train.at_least(label="predicted").rows()
    assert tables["class_match_queries"].title.startswith(f"{tiny.QUERIES} queries: share of")
    assert tables["class_match_train"].title.startswith("The train set on itself, self left out: share of")
    facts = dict(zip(tables["spectrum"]["fact"], tables["spectrum"]["value"], strict=True))
    assert facts["damping"] == pytest.approx(5e-4)
    assert "top1_changed_at_10x" in facts


def test_stats_of_a_train_set_on_itself(tmp_path):
    words = [word for word in tiny.own().words if "queries" not in str(word)]
    tiny.done(*words, "--out", tmp_path)
    tables = questions.stats(tmp_path)
    assert list(tables) == ["class_match_train", "at_least_train", "spectrum"]


def test_stats_of_a_method_without_a_curvature(tmp_path):
    tiny.done("attribute", tiny.run(), "--curvature", "gradient-cosine", "--out", tmp_path)
    assert "spectrum" not in questions.stats(tmp_path)


def test_brief_fits_a_terminal():
    for table in questions.stats(tiny.run(), 30).values():
        assert max(map(len, questions.brief(table).to_text().splitlines())) <= 120
    match = questions.brief(questions.stats(tiny.run(), 5)["class_match_queries"])
    assert list(match.columns)[:5] == ["rank", "rate", "low", "high", "cumulative"]
    assert {"chance", "residual", "cosine", "gradient", "random_head"} <= set(match.columns)


# ---- saliency ------------------------------------------------------------------------------------------------------------


def test_saliency_is_the_input_gradient(tmp_path):
    table = questions.saliency(tiny.run(), [3, 1], npz=tmp_path / "s.npz", image=tmp_path / "s.png", device="cpu")
    run = load_run(tiny.run())
    wanted = input_gradient(run.model.model, run.test.images([3, 1]), run.test.labels[[3, 1]])
    with np.load(tmp_path / "s.npz") as held:
        np.testing.assert_array_equal(held["gradients"], wanted.numpy())
        assert held["rows"].tolist() == [3, 1]
    assert table["query"].tolist() == [3, 1]
    np.testing.assert_allclose(table["gradient_norm"], wanted.flatten(1).norm(dim=1).numpy(), rtol=1e-6)
    assert (tmp_path / "s.png").read_bytes().startswith(PNG)


def test_saliency_takes_one_query_of_each_class():
    table = questions.saliency(tiny.run())
    assert table["label"].tolist() == sorted(set(tiny.own().arrays["y_test"].tolist()))
    assert "nats per unit of pixel" in table.title


@pytest.mark.parametrize("method", ["smoothgrad", "integrated"])
def test_saliency_by_captum(method):
    pytest.importorskip("captum")
    table = questions.saliency(tiny.run(), [0], method=method)
    assert table["gradient_norm"][0] > 0


def test_saliency_of_what_is_no_run():
    with pytest.raises(
        UsageError,
        match="of a network of your own or of several runs; saliency is drawn for runs of `upweight fine-tune`",
    ):
        questions.saliency(tiny.own_run())


# ---- info ----------------------------------------------------------------------------------------------------------------


def test_info_of_everything_that_is_written():
    held = questions.info(tiny.run())
    assert held["run"]["k"] == 0 and held["store"]["complete"]
    assert list(held["store"]["variants"]) == ["main", "damped", "predicted"]
    assert questions.info(tiny.comparison())["runs"] == sorted(str(tiny.comparison() / "runs" / n) for n in tiny.NAMES)
    assert questions.info(tiny.run() / "model.safetensors")["spec"]["num_classes"] == 10
    assert questions.info(tiny.run() / "influence.h5")["examples"]["train"]["count"] == tiny.N
    assert "run" not in questions.info(tiny.own_run())
    json.dumps(held, allow_nan=False)


def test_info_of_a_report(tmp_path):
    folder = tiny.comparison() / "report"
    held = questions.info(folder)["report"]
    assert held == questions.info(folder / "stats.json")["report"]
    assert set(held["inputs"]) == set(tiny.NAMES)
    assert held["tables"]["accuracy.csv"].startswith("Accuracy")
    (tmp_path / "stats.json").write_text("[]")
    with pytest.raises(DataError, match=r"stats\.json is damaged, or no stats\.json of a report"):
        questions.info(tmp_path)


def test_info_of_nothing(tmp_path):
    with pytest.raises(UsageError, match="There is nothing at"):
        questions.info(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="holds no finished run"):
        questions.info(tmp_path)


def test_outline_shows_everything_once():
    nested = {"a": {"b": 1, "c": []}, "long": list(range(20)), "short": [1, 2], "empty": "", "none": None}
    assert questions.outline(nested).splitlines() == [
        "a:",
        "  b: 1",
        "  c: -",
        "long: 0, 1, 2, 3, 4, 5, ... (20 in all)",
        "short: 1, 2",
        "empty: -",
        "none: None",
    ]
