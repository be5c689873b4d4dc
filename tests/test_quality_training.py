"""Benchmarks of scores that know the training: the recorded trainings, their ground truth, a method, and the page."""

import importlib
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """The folder as a package of a name of its own."""
    spec = importlib.util.spec_from_file_location(
        "upweight_training", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["upweight_training"] = package
    names = ("training", "training_one", "training_page")
    yield SimpleNamespace(**{name: importlib.import_module(f"upweight_training.quality.{name}") for name in names})
    for name in [name for name in sys.modules if name.startswith("upweight_training")]:
        del sys.modules[name]


def fewer(recorded, m):
    """The first queries alone."""
    problem, recording = recorded
    return replace(problem, Xq=problem.Xq[:m], yq=problem.yq[:m]), recording


def losses(problem):
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(problem.model(problem.Xq), problem.yq, reduction="none").numpy()


def test_shipped_truth_is_of_the_training_that_is_recorded(bench):
    task = bench.training.RECORDED["short-mlp"]
    problem, recording = bench.training.record(task)
    assert len(recording.batches) == 60
    truths = {question: task.truth(question) for question in task.questions}
    for question, left_out in (("lds", 150), ("same-halves", 150), ("same-few", 15)):
        assert truths[question].loss.shape == (100, 2 if question == "lds" else 1, 100)
        assert ((~truths[question].kept).sum(1) == left_out).all()
    for question in ("loo", "same-loo"):
        assert truths[question].is_whole.tolist() == [True] + [False] * 40
        # the first training on all examples is the network itself
        np.testing.assert_allclose(truths[question].loss[0, 0], losses(problem), rtol=1e-3, atol=1e-5)


def test_what_is_left_out_in_place_weighs_nothing_and_moves_no_batch(bench):
    task, data = bench.training.RECORDED["short-mlp"], bench.training.short_data()
    kept = np.ones(task.n, dtype=bool)
    kept[[3, 70]] = False
    changed = data.y.numpy().copy()
    changed[~kept] = 9 - changed[~kept]
    fits = [bench.training.ShortFit(True)(kept, labels, 0).state_dict() for labels in (data.y.numpy(), changed)]
    assert all(torch.equal(*pair) for pair in zip(*(fit.values() for fit in fits), strict=True))
    stored = task.truth("same-few")
    again = bench.training.ShortFit(True)(stored.kept[5], data.y.numpy(), int(stored.seed[5, 0]))
    problem = SimpleNamespace(model=again, Xq=data.Xq, yq=data.yq)
    np.testing.assert_allclose(stored.loss[5, 0], losses(problem), rtol=1e-3, atol=1e-5)


def test_unrolled_predicts_the_same_training_without_some(bench, monkeypatch):
    monkeypatch.setattr(bench.training_one, "self_influence", lambda task, curvature: [0.9, 0.8, 1.0, 0.5])
    task = replace(bench.training.RECORDED["short-mlp"], m=20, questions=("same-few", "same-loo"))
    monkeypatch.setattr(bench.training_one, "record", lambda task: fewer(bench.training.record(task), task.m))
    told = []
    bench.training_one.attempt("unrolled", task, lambda found: told.append(dict(found)))
    found = told[-1]
    assert found["same-few"]["lds"][0] > 0.98
    assert found["same-loo"]["pearson"] > 0.99
    assert found["steps"] == found["all_steps"] == 60


def test_shipped_results_make_the_page(bench):
    results = json.loads((ROOT / "training.json").read_text())
    page = bench.training_page.part(results)
    assert page.startswith("# The training itself")
    for run in results["runs"]:
        assert f"| {run['title']} | " in page
    short = [run for run in results["runs"] if run["task"] == "short-mlp"]
    best = max(short, key=lambda run: run["same-few"]["lds"][0])
    assert best["method"] == "unrolled"
    assert f"without a few examples: Unrolled {best['same-few']['lds'][0]:.3f}, ahead of" in page
    methods = {key: name for key, (name, _) in bench.training_one.methods(bench.training.RECORDED["short-mlp"]).items()}
    assert {run["method"]: run["title"] for run in short}.items() <= methods.items()


def test_a_method_without_result_is_said(bench):
    run = {"task": "digits-cnn", "method": "unrolled", "title": "Unrolled", "failed": "over 1200 CPU s"}
    page = bench.training_page.part({"machine": {"processor": "a processor", "cores": 2}, "runs": [run]})
    assert "| Unrolled | over 1200 CPU s |" in page
