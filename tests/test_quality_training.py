"""Benchmarks of scores that know the training: the recorded trainings, their ground truth, a method, and the page."""

import importlib
import importlib.util
import json
import shutil
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
    names = ("training", "training_one", "training_page", "training_run", "training_tuned")
    yield SimpleNamespace(**{name: importlib.import_module(f"upweight_training.quality.{name}") for name in names})
    for name in [name for name in sys.modules if name.startswith("upweight_training")]:
        del sys.modules[name]


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
    kept = np.ones(len(data.y), dtype=bool)
    kept[[3, 70]] = False
    changed = data.y.numpy().copy()
    changed[~kept] = 9 - changed[~kept]
    fits = [bench.training.ShortFit(True)(kept, labels, 0).state_dict() for labels in (data.y.numpy(), changed)]
    assert all(torch.equal(*pair) for pair in zip(*(fit.values() for fit in fits), strict=True))
    stored = task.truth("same-few")
    again = bench.training.ShortFit(True)(stored.kept[5], data.y.numpy(), int(stored.seed[5, 0]))
    problem = SimpleNamespace(model=again, Xq=data.Xq, yq=data.yq)
    np.testing.assert_allclose(stored.loss[5, 0], losses(problem), rtol=1e-3, atol=1e-5)


def test_unrolled_predicts_the_same_training_without_some(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench.training_one, "self_influence", lambda task, curvature: [0.9, 0.8, 1.0, 0.5])
    task = replace(bench.training.RECORDED["short-mlp"], m=20, questions=("same-few", "same-loo"))
    monkeypatch.setattr(bench.training_one, "SCORES", tmp_path)
    told = []
    bench.training_one.attempt("unrolled", task, lambda found: told.append(dict(found)))
    found = told[-1]
    assert found["same-few"]["lds"][0] > 0.98
    assert found["same-loo"]["pearson"] > 0.99
    assert found["steps"] == found["all_steps"] == 60
    kept = np.load(bench.training_one.kept_at("unrolled", task))
    assert bench.training_one.verdicts(kept, task)["same-few"] == found["same-few"]


def test_scores_of_several_trainings_are_averaged_and_beat_the_first(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench.training_one, "SCORES", tmp_path)
    task = replace(bench.training.RECORDED["short-mlp"], m=20, questions=("lds",), mislabelled=False)
    told = []
    for key in ("unrolled", "mean-unrolled"):
        bench.training_one.attempt(key, task, lambda found: told.append(dict(found)))
    alone, mean = told[0], told[-1]
    assert len(set(mean["gain"]["alone"])) == 5  # five trainings, not one five times
    assert mean["gain"]["alone"][0] == pytest.approx(alone["lds"]["lds"][0], abs=1e-12)
    assert mean["gain"]["over_first"][0] == pytest.approx(mean["lds"]["lds"][0] - alone["lds"]["lds"][0], abs=1e-9)
    assert mean["gain"]["over_first"][1] > 0
    matrices = [
        bench.training_one.scores_of(
            *bench.training.record(task, seed), bench.training_one.methods(task)["unrolled"][1]
        )
        for seed in task.seeds
    ]
    wanted = np.mean([one.matrix for one in matrices], axis=0, dtype=np.float64)
    np.testing.assert_allclose(np.load(bench.training_one.kept_at("mean-unrolled", task)), wanted, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def brief(tmp_path_factory):
    """The folder of a run with three epochs of its training, whose finished weights are those of all hundred."""
    folder = tmp_path_factory.mktemp("brief") / "run"
    shutil.copytree(ROOT / "truth" / "fashion-natural" / "run", folder)
    told = json.loads((folder / "run.json").read_text())
    told["settings"]["epochs"] = told["decisive"]["epochs"] = 3
    (folder / "run.json").write_text(json.dumps(told))
    return folder


def test_a_run_trained_in_place_on_everything_is_the_run(bench, brief):
    run, everything = bench.training_tuned.load(brief), np.ones(400, dtype=bool)
    labels, seed = run.train.labels.numpy(), run.info["seed"]
    wanted = bench.training_tuned.trained_with(run, seed).model.model.state_dict()
    found = bench.training_tuned.FitInPlace(brief)(everything, labels, seed).state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    kept = everything.copy()
    kept[[3, 70]] = False
    without = bench.training_tuned.FitInPlace(brief)(kept, labels, seed).state_dict()
    assert not torch.equal(without["net.head.weight"], wanted["net.head.weight"])
    with pytest.raises(ValueError, match="own seed"):
        bench.training_tuned.FitInPlace(brief)(kept, labels, seed + 1)


def test_a_run_is_recorded_with_another_seed(bench, brief, monkeypatch):
    import upweight

    task = bench.training.RECORDED["fashion-natural"]
    made = bench.training_tuned.Tuned(task=SimpleNamespace(folder=brief.parent, spec=None, weight_decay=5e-4))
    assert made.first_rate() == (0.1, 1, 3)
    task = replace(task, by=made, m=2)
    assert task.seeds == (20000000, 1, 2, 3, 4)
    problem, recording = bench.training.record(task, 1)
    scores = bench.training_one.scores_of(problem, recording, lambda up, recording: up.Unrolled(recording, last=1))
    assert scores.matrix.shape == (2, 400)
    assert scores.meta["warnings"] == []  # the replay ends at the very bits of the network
    assert bench.training_one.steps_of("unrolled-1", recording) == 4
    with pytest.raises(upweight.UpweightError, match="does not end at the weights"):
        other = bench.training.record(task, 2)[1]
        bench.training_one.scores_of(problem, other, lambda up, recording: up.Unrolled(recording))
    with pytest.raises(ValueError, match="main tables"):
        made.trainer("lds", 2)


def test_shipped_truth_of_the_fine_tunings_is_of_the_queries_asked(bench):
    made = [task for task in bench.training.RECORDED.values() if task.key.startswith("fashion")]
    for task in made:
        for question in task.questions:
            truth = task.truth(question)
            assert truth.loss.shape[2] == task.m
            if question == "same-few":
                assert truth.loss.shape[:2] == (task.parts, 1)
                assert ((~truth.kept).sum(1) == 20).all()


def test_questions_are_put_to_kept_scores_again(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench.training_one, "SCORES", tmp_path)
    monkeypatch.setattr(bench.training_run, "RESULTS", tmp_path / "training.json")
    task = bench.training.RECORDED["digits-cnn"]
    path = bench.training_one.kept_at("dot", task)
    path.parent.mkdir(parents=True)
    np.save(path, np.random.default_rng(0).standard_normal((task.m, 1000)))
    old = {"lds": {"lds": [0.9, 0.9, 0.9], "ceiling": None}}
    for method in ("dot", "ekfac"):  # no scores of the second are kept
        run = {"task": task.key, "method": method, "title": method, "size": 1.0, "cpu": 1.0, **old}
        bench.training_run.put(bench.training_run.results(), run, 5)
    bench.training_run.ask_again()
    first, second = bench.training_run.results()["runs"]
    assert abs(first["lds"]["lds"][0]) < 0.2
    assert second["lds"] == old["lds"]


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


def test_the_page_says_of_a_fine_tuning_what_its_numbers_say(bench):
    def run(method, lds, few, **more):
        interval = [lds, lds - 0.01, lds + 0.01]
        asked = {"lds": {"lds": interval, "ceiling": 0.9}, "same-few": {"lds": [few, few - 0.01, few + 0.01]}}
        about = {"task": "fashion-natural", "method": method, "title": method.title(), "size": 1.0, "cpu": 32.0}
        return about | {"steps": None, "all_steps": 400} | asked | more

    def page(*runs):
        return bench.training_page.part({"machine": {"processor": "a processor", "cores": 2}, "runs": runs})

    wild = page(
        run("unrolled", 0.1, 0.1, size=50.0, steps=400),
        run("unrolled-67", 0.4, 0.2, steps=268),
        run("ekfac", 0.5, 0.15),
    )
    assert "the first 34 of 100 epochs have a rate of 0.1" in wild
    assert "LDS of 0.100, behind Ekfac with 0.500; the ceiling is 0.900" in wild
    assert "50 times as large as those of the last 268 steps" in wild
    assert "sends the training elsewhere" in wild
    assert "No method reaches more than 0.200 there" in wild
    assert "(Ekfac: 0.500)" in wild
    assert "took 1.0 CPU seconds a query" in wild
    tame = page(run("unrolled", 0.6, 0.9, steps=400), run("unrolled-67", 0.4, 0.8, steps=268), run("ekfac", 0.5, 0.15))
    assert "LDS of 0.600, ahead of Ekfac with 0.500" in tame
    assert "0.900, ahead of Ekfac with 0.150" in tame
    assert "elsewhere" not in tame


def test_the_page_says_what_a_gentle_fine_tuning_gives(bench):
    def run(method, few, halves):
        asked = {"same-few": {"lds": [few, few - 0.01, few + 0.01]}, "same-halves": {"lds": [halves, 0.5, 0.9]}}
        about = {"task": "fashion-gentle", "method": method, "title": method.title(), "size": 1.0, "cpu": 32.0}
        return about | {"steps": None, "all_steps": 400} | asked

    runs = [run("ekfac", 0.6, 0.8), run("unrolled", 0.9, 0.7)]
    page = bench.training_page.part({"machine": {"processor": "a processor", "cores": 2}, "runs": runs})
    assert page.index("| Ekfac | - | 0.800") < page.index("| Unrolled | - | 0.700")  # by the first column
    assert "The first 34 of 100 epochs have a rate of 0.01; its test accuracy is 89.6%, that of the natural" in page
    assert "Unrolled 0.900, ahead of Ekfac with 0.600; without half of them: 0.700, behind Ekfac" in page
    assert "took 2.0 CPU seconds a query" in page


@pytest.mark.parametrize(("low", "said"), [(0.01, "all of them gain"), (-0.01, "0 of 1 gain")])
def test_the_page_says_what_a_mean_gains(bench, low, said):
    gain = {"alone": [0.2, 0.4], "over_first": [0.3, low, 0.5]}
    run = {"task": "digits-cnn", "method": "mean-ekfac", "title": "EKFAC, mean of 5 trainings", "size": 1.0, "cpu": 2.0}
    run |= {"steps": None, "all_steps": 600, "lds": {"lds": [0.5, 0.4, 0.6], "ceiling": 0.9}, "gain": gain}
    page = bench.training_page.part({"machine": {"processor": "a processor", "cores": 2}, "runs": [run]})
    assert f"EKFAC 0.500 (0.300 on average of one training, +0.300 [{low:+.3f}, +0.500] over the first)" in page
    assert f"By the intervals {said}." in page


def test_a_method_without_result_is_said(bench):
    run = {"task": "digits-cnn", "method": "unrolled", "title": "Unrolled", "failed": "over 1200 CPU s"}
    page = bench.training_page.part({"machine": {"processor": "a processor", "cores": 2}, "runs": [run]})
    assert "| Unrolled | over 1200 CPU s |" in page
