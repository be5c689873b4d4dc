"""`upweight evaluate` on a tiny run: its tables are what the kept refits say, and nothing is ever trained twice."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import upweight
from scipy.stats import pearsonr, spearmanr
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from upweight import UsageError
from upweight.cache.errors import StoreError, StoreMismatch
from upweight.evaluation import EvaluateSettings, evaluate

ASKED = EvaluateSettings(lds=10, alpha=0.8, repeats=2, loo=12, mislabel=0.2, removal=6, sizes=(1, 2))
N, QUERIES = 40, 30
WORDS = ("--lds", 10, "--alpha", 0.8, "--no-curve")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two heads on three kinds of digits, from the natural and from the robust source."""
    home = tmp_path_factory.mktemp("evaluated")
    digits = load_digits(n_class=3)
    x, y = (digits.images / 16).astype(np.float32), digits.target
    data = home / "digits.npz"
    np.savez(data, x=x[:N], y=y[:N], x_test=x[100 : 100 + QUERIES], y_test=y[100 : 100 + QUERIES])
    for name in ("natural", "robust"):
        words = ("--data", data, "--source", name, "--k", 0, "--n", N, "--epochs", 2, "--device", "cpu")
        tiny.done("fine-tune", *words, "--out", home / name)
        tiny.done("attribute", home / name, "--also", "damped", "predicted", "--device", "cpu")
    return home


@pytest.fixture(scope="module")
def run(runs):
    return runs / "natural"


@pytest.fixture(scope="module")
def found(run):
    return evaluate(run, ASKED)


def truth(run, kind):
    (file,) = (run / "truth").glob(f"{kind}-*.h5")
    return upweight.open_truth(file)


def rows(found, table):
    held = found.stats["tables"][table]["columns"]
    return [dict(zip(held, values, strict=True)) for values in zip(*held.values(), strict=True)]


def test_the_datamodeling_score_is_that_of_the_kept_refits(run, found):
    kept, scores = truth(run, "lds"), upweight.open_scores(run / "influence.h5")
    assert kept.kept.shape == (10, N) and (kept.kept.sum(1) == 32).all()
    matrix, loss = np.asarray(scores.matrix[:], dtype=np.float64), kept.loss.mean(1)
    each = [spearmanr([matrix[t][part].sum() for part in kept.kept], -loss[:, t]).statistic for t in range(len(matrix))]
    assert rows(found, "methods")[0]["lds"] == pytest.approx(np.mean(each), abs=1e-12)
    assert rows(found, "methods")[0]["lds_low"] <= np.mean(each) <= rows(found, "methods")[0]["lds_high"]


def test_baselines_stand_beside_the_scores_and_images_are_compared_as_the_network_sees_them(run, found):
    names = [row["method"] for row in rows(found, "methods")]
    assert names[0] == "LinearHead, undamped" and len(names) == len(set(names))
    assert {"LinearHead, damping 0.0005", "residual product", "feature cosine", "nearest images"} <= set(names)
    assert not any("predicted" in name for name in names)
    kept, loaded = truth(run, "lds"), upweight.models.runs.load_run(run)
    train, test = (side.images(slice(None)).flatten(1).numpy() for side in (loaded.train, loaded.test))
    near = -np.array([[np.linalg.norm(x - other) for other in train] for x in test])
    each = [
        spearmanr([near[t][part].sum() for part in kept.kept], -kept.loss.mean(1)[:, t]).statistic
        for t in range(len(test))
    ]
    assert rows(found, "methods")[names.index("nearest images")]["lds"] == pytest.approx(np.mean(each), abs=1e-6)


def test_the_curve_holds_the_scores_themselves_and_recommends_one_of_its_dampings(found):
    table = rows(found, "damping_curve")
    (given,) = [row for row in table if row["kind"] == "given"]
    assert given["value"] == 0 and given["lds"] == pytest.approx(rows(found, "methods")[0]["lds"], abs=1e-6)
    damped = {row["method"]: row["lds"] for row in rows(found, "methods")}["LinearHead, damping 0.0005"]
    near = min((row for row in table if row["kind"] == "damping"), key=lambda row: abs(np.log(row["value"] / 5e-4)))
    assert abs(near["lds"] - damped) < 0.1
    assert any("predicts best on one half" in sentence for sentence in found.stats["conclusions"])


def test_leave_one_out_is_n_times_the_measured_change(run, found):
    kept, scores = truth(run, "loo"), upweight.open_scores(run / "influence.h5")
    assert kept.kept[0].all() and (kept.kept[1:].sum(1) == N - 1).all() and len(kept.kept) == 13
    actual = N * (kept.loss[1:].mean(1) - kept.loss[0].mean(0))
    left_out = (~kept.kept[1:]).argmax(1)
    predicted = np.asarray(scores.matrix[:], dtype=np.float64)[:, left_out].T
    assert rows(found, "methods")[0]["loo_pearson"] == pytest.approx(
        pearsonr(predicted.ravel(), actual.ravel()).statistic, abs=1e-9
    )


def test_wrong_labels_are_inspected_by_the_scores_of_the_network_that_learnt_them(run, found):
    (file,) = (run / "truth").glob("mislabel-*.safetensors")
    table = {row["method"]: row for row in rows(found, "mislabel")}
    from upweight.models.runs import load_run
    from upweight.retraining import mislabelled_run

    before = file.stat().st_mtime_ns
    wrong = mislabelled_run(run, 0.2, 0)
    assert file.stat().st_mtime_ns == before and wrong.flipped.sum() == 8
    held = load_run(run)
    assert ((held.train.labels.numpy() != wrong.labels) == wrong.flipped).all()
    pair = held.train.images(slice(None)), upweight_labels(wrong)
    scores = upweight.attribute(wrong.model, pair, curvature=upweight.LinearHead())
    (name,) = [name for name in table if name.startswith("LinearHead")]
    assert table[name]["auc"] == pytest.approx(roc_auc_score(wrong.flipped, scores.self_influence()), abs=1e-9)
    assert table["loss"]["auc"] == pytest.approx(roc_auc_score(wrong.flipped, scores.train.loss), abs=1e-6)


def upweight_labels(wrong):
    import torch

    return torch.as_tensor(wrong.labels)


def test_sets_are_taken_away_and_their_rises_are_those_of_the_refits(run, found):
    kept, scores = truth(run, "sets"), upweight.open_scores(run / "influence.h5")
    matrix = np.asarray(scores.matrix[:], dtype=np.float64)
    rise = kept.loss.mean(1) - kept.loss[kept.is_whole].mean((0, 1))
    measured = {frozenset(np.flatnonzero(~part)): rise[j] for j, part in enumerate(kept.kept)}
    table = rows(found, "removal")
    assert {row["chosen"] for row in table} == {"highest scores", "greedy", "at random"} and len(table) == 6 * 3 * 2
    for row in table:
        if row["chosen"] != "highest scores":
            continue
        gone = frozenset(np.argsort(-matrix[row["query"]], kind="stable")[: row["size"]])
        assert row["actual"] == pytest.approx(measured[gone][row["query"]], abs=1e-12)
        assert row["summed"] == pytest.approx(matrix[row["query"], list(gone)].sum() / N, rel=1e-9)
    predicted = {row["predicted_by"]: row for row in rows(found, "groups")}
    assert (
        predicted["through the curvature"]["pearson"] > predicted["summed scores"]["pearson"]
    )  # damped, and the sums are not
    assert any("weight decay, 0.0005, as damping" in sentence for sentence in found.stats["conclusions"])


def test_nothing_is_done_twice(run, found):
    before = tiny.state(run)
    again = evaluate(run, ASKED)
    assert again.stats == found.stats and tiny.state(run) == before


def test_another_question_asks_before_it_replaces_the_page_and_keeps_the_refits(run, found):
    other = replace(ASKED, output="margin")
    with pytest.raises(StoreMismatch, match="--overwrite"):
        evaluate(run, other)
    before = tiny.state(run / "truth")
    changed = evaluate(run, other, out=run / "by-margin")
    assert tiny.state(run / "truth") == before
    kept, scores = truth(run, "lds"), upweight.open_scores(run / "influence.h5")
    matrix, margin = np.asarray(scores.matrix[:], dtype=np.float64), kept.margin.mean(1)
    each = [
        spearmanr([matrix[t][part].sum() for part in kept.kept], margin[:, t]).statistic for t in range(len(matrix))
    ]
    assert rows(changed, "methods")[0]["lds"] == pytest.approx(np.mean(each), abs=1e-12)


def test_further_scores_are_held_against_the_same_refits(run, found, tmp_path):
    tiny.done("attribute", run, "--curvature", "hessian", "--damping", 0.5, "--out", tmp_path / "more")
    both = evaluate(
        run, replace(ASKED, loo=0, mislabel=0.0, removal=0, sizes=()), scores=[tmp_path / "more"], out=tmp_path / "page"
    )
    assert "Hessian, damping 0.5" in [row["method"] for row in rows(both, "methods")]


def test_scores_of_another_run_are_refused(runs, run, tmp_path):
    with pytest.raises(StoreError, match="other weights"):
        evaluate(run, ASKED, scores=[runs / "robust"], out=tmp_path / "page")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lds": 9}, "fewer than 10"),
        ({"lds": -1}, "lds is -1"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"repeats": 0}, "repeats is 0"),
        ({"mislabel": 1.0}, "mislabel is 1.0"),
        ({"output": "accuracy"}, "loss or margin"),
        ({"removal": 1, "sizes": (0,)}, "sizes are 0"),
        ({"sizes": (3,)}, "removal is 0"),
        ({"lds": 0}, "Nothing is left"),
    ],
)
def test_settings_say_what_is_wrong(settings, words):
    with pytest.raises(UsageError, match=words):
        EvaluateSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loo": N + 1}, "loo is 41"),
        ({"removal": QUERIES + 1}, "31, and the run has 30"),
        ({"removal": 1, "sizes": (N,)}, "set of 40"),
        ({"lds": 10, "alpha": 0.03}, "has no example of class"),
    ],
)
def test_what_the_run_cannot_give_is_refused(run, settings, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        evaluate(run, EvaluateSettings(**{"lds": 0, "curve": False, **settings}), out=tmp_path / "page")


def test_the_command_prints_its_tables_or_one_object(runs):
    run = runs / "robust"
    text = tiny.done("evaluate", run, *WORDS)
    assert "LinearHead, undamped" in text and f"Report: {run / 'evaluation' / 'index.html'}" in text
    found = tiny.strict_json(tiny.done("evaluate", run, *WORDS, "--json"))
    assert found["stats"] == json.loads((run / "evaluation" / "stats.json").read_text())
    assert (run / "evaluation" / "evaluate.toml").exists()
    assert "--overwrite" in tiny.refused(4, "evaluate", run, *WORDS, "--seed", 1)


def test_a_run_without_scores_is_told_how_to_make_them(run, tmp_path):
    bare = tmp_path / "run"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("truth", "evaluation", "influence.h5"))
    assert "upweight attribute" in tiny.refused(4, "evaluate", bare, *WORDS)


def test_a_query_that_was_trained_on_is_refused_unless_that_is_allowed(tmp_path):
    digits = load_digits(n_class=3)
    x, y = (digits.images / 16).astype(np.float32), digits.target
    np.savez(tmp_path / "twice.npz", x=x[:N], y=y[:N], x_test=x[N - 1 : N + 20], y_test=y[N - 1 : N + 20])
    tiny.done(
        "fine-tune", "--data", tmp_path / "twice.npz", "--k", 0, "--n", N, "--epochs", 1, "--out", tmp_path / "run"
    )
    tiny.done("attribute", tmp_path / "run")
    said = tiny.refused(2, "evaluate", tmp_path / "run", *WORDS)
    assert "1 of 21 queries are train examples too" in said
    assert "LDS" in tiny.done("evaluate", tmp_path / "run", *WORDS, "--allow-overlap")


def test_there_must_be_a_worker(run, tmp_path):
    with pytest.raises(UsageError, match="workers is 0"):
        evaluate(run, ASKED, workers=0, out=tmp_path / "page")
