"""The quality benchmarks: the shipped networks and ground truth, the harness with methods of ours, and the page."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import upweight

ROOT = Path(__file__).parents[1] / "benchmarks"
MODULES = ("tasks", "methods", "one", "render", "run", "rebuild", "baselines", "families")
KEYS = ("digits-head", "digits-cnn", "fashion-natural", "fashion-robust", "mnist-mlp")


@pytest.fixture(scope="module")
def bench():
    """The folder as a package of another name than the speed benchmarks' tests have."""
    spec = importlib.util.spec_from_file_location(
        "upweight_quality", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["upweight_quality"] = package
    yield SimpleNamespace(**{name: importlib.import_module(f"upweight_quality.quality.{name}") for name in MODULES})
    for name in [name for name in sys.modules if name.startswith("upweight_quality")]:
        del sys.modules[name]


def test_what_ships_is_small():
    assert sum(file.stat().st_size for file in (ROOT / "truth").rglob("*") if file.is_file()) < 15 * 2**20


@pytest.mark.parametrize("key", KEYS)
def test_shipped_truth_belongs_to_the_shipped_network(bench, key):
    task = bench.tasks.TASKS[key]
    problem, facts = bench.tasks.load_problem(task), bench.tasks.read_facts(task)
    assert problem.X.shape[0] == facts["n"] == task.spec.n
    assert problem.Xq.shape[0] == facts["m"] == task.spec.m
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(problem.model(problem.Xq), problem.yq, reduction="none").numpy()
    halves = upweight.open_truth(task.folder / "lds.h5")
    assert halves.kept.shape == (task.subsets, task.spec.n)
    assert (halves.kept.sum(1) == task.spec.n // 2).all()
    assert halves.loss.shape == (task.subsets, task.repeats, task.spec.m)
    alone = upweight.open_truth(task.folder / "loo.h5")
    assert alone.is_whole.tolist() == [True] + [False] * task.left_out
    assert ((~alone.kept[1:]).sum(1) == 1).all()
    # the first training on all examples is the network itself
    np.testing.assert_allclose(alone.loss[0, 0], losses, rtol=2e-4, atol=1e-6)
    # half of the examples teach less than all of them
    assert halves.mean().mean() > alone.mean()[0].mean()


def test_a_tenth_of_the_labels_are_wrong(bench):
    for key in KEYS:
        task = bench.tasks.TASKS[key]
        assert bench.tasks.flipped(task).sum() == task.spec.n // 10
        wrong = bench.tasks.load_problem(task, mislabelled=True)
        assert torch.equal(wrong.y, wrong.yq)
        assert wrong.X is wrong.Xq


def test_everything_can_be_made_anew(bench, tmp_path, monkeypatch):
    spec = bench.tasks.Spec(kind="head", F=64, n=120, m=20)
    task = bench.tasks.Task(
        key="tiny", title="A tiny head", spec=spec, weight_decay=1e-2, subsets=12, repeats=1, left_out=3, seeds=1
    )
    monkeypatch.setitem(bench.tasks.TASKS, "tiny", task)
    monkeypatch.setattr(bench.tasks, "TRUTH", tmp_path)
    bench.rebuild.rebuild(task)
    facts = bench.tasks.read_facts(task)
    assert set(facts["seconds"]) == {"model", "lds", "loo", "facts", "mislabelled"}
    assert upweight.open_truth(task.folder / "lds.h5").loss.shape == (12, 1, 20)
    problem = bench.tasks.load_problem(task)
    # the gradient of the objective vanishes at the weights that were found
    W, b = (value.detach().double().requires_grad_() for value in problem.model.parameters())
    loss = torch.nn.functional.cross_entropy(problem.X.double() @ W.T + b, problem.y)
    gradients = torch.autograd.grad(loss + 0.5e-2 * (W.square().sum() + b.square().sum()), (W, b))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-7  # weights are read as float32
    monkeypatch.setattr(bench.rebuild, "train", None)  # nothing is done twice
    bench.rebuild.rebuild(task)


@pytest.fixture
def attempt(bench, tmp_path, monkeypatch):
    """What the child process does, without one."""
    monkeypatch.setattr(bench.one, "SCORES", tmp_path)

    def run(key, task="digits-head"):
        told = []
        bench.one.Attempt(key, bench.tasks.TASKS[task], lambda found: told.append(dict(found)), 0.0).go()
        return told[-1]

    return run


def test_the_harness_on_the_convex_head(attempt, tmp_path):
    found = attempt("head")
    value, low, high = found["given"]["lds"]
    assert 0.98 < low <= value <= high < 1
    best = max(found["curve"], key=lambda point: point[1])
    assert found["best"]["setting"] == best[0]
    assert best[0] / 3.5 < 1e-2 < best[0] * 3.5  # the L2 of the objective is the damping that is right
    assert len(found["curve"]) >= 7
    assert found["given"]["mislabel"][0] > 0.9
    kept = np.load(tmp_path / "digits-head" / "head.given.npy")
    assert kept.shape == (400, 1000)


def test_corrected_scores_predict_what_leaving_one_out_does(attempt):
    assert attempt("head-loo-true")["given"]["loo"][0] > 0.99


def test_the_sweep_goes_beyond_its_ends(bench, monkeypatch):
    one = bench.one.Attempt("pydvl-nystroem", bench.tasks.TASKS["digits-head"], lambda found: None, 0.0)
    curve = {}
    for steps in one.rounds(curve):
        for step in steps:
            curve[step] = -abs(step - 12)  # the best lies beyond the last coarse step, 9
    assert max(curve, key=curve.__getitem__) == 12
    assert one.value(5) == pytest.approx(one.lambda_max / 300)


def test_baselines(bench):
    problem = bench.tasks.load_problem(bench.tasks.TASKS["digits-head"])
    with torch.no_grad():
        q, qq = (problem.model(X).softmax(1).numpy() for X in (problem.X, problem.Xq))
    r = q[7] - np.eye(10)[problem.y[7]]
    rq = qq[3] - np.eye(10)[problem.yq[3]]
    scores = bench.baselines.residual_product(problem)()
    assert scores[3, 7] == pytest.approx(float(r @ rq), rel=1e-5)
    x, xq = problem.X[7].numpy(), problem.Xq[3].numpy()
    cosine = bench.baselines.cosine_of_features(problem)()[3, 7]
    assert cosine == pytest.approx(float(x @ xq / np.linalg.norm(x) / np.linalg.norm(xq)), rel=1e-5)
    assert bench.baselines.nearest_pixels(problem)()[3, 7] == pytest.approx(-float(np.linalg.norm(x - xq)), rel=1e-4)


def line(lds, difference, **more):
    return {
        "setting": 0.01,
        "lds": lds,
        "ceiling": 0.8,
        "loo": [0.5, 0.4],
        "match": [1.0, 0.9],
        "difference": difference,
        **more,
    }


def results():
    facts = {"title": "A task", "n": 1000, "m": 400, "p": 29914, "accuracy": {"train": 1.0, "queries": 0.98}}
    facts |= {"lambda_max": 3.0, "weight_decay": 1e-3, "seconds": {"lds": 7200.0}}
    cost = {"task": "digits-cnn", "seconds": 2.0, "cpu": 3.0, "bytes": 2**30}
    curve = [[0.01, 0.5], [0.03, 0.4]]
    given = {**line([0.5, 0.45, 0.55], None), "setting": "auto", "value": 0.01, "mislabel": [0.9, 0.8, 0.95, 0.7]}
    del given["difference"]
    runs = [
        {
            **cost,
            "method": "newton-logits",
            "given": given,
            "best": line([0.51, 0.46, 0.56], [-0.01, -0.02, -0.001]),
            "curve": curve,
        },
        {**cost, "method": "captum-arnoldi", "best": line([0.4, 0.3, 0.5], [0.1, 0.05, 0.15]), "curve": curve},
        {**cost, "method": "kronfluence-ekfac", "best": line([0.49, 0.4, 0.6], [0.01, -0.05, 0.05]), "curve": curve},
        {"task": "digits-cnn", "method": "dattri-arnoldi", "failed": "ValueError: scores are not finite"},
    ]
    machine = {"processor": "a processor", "cores": 2, "gib": 8, "python": "3.11", "versions": {"torch": "2"}}
    return {"limit": 600, "threads": 1, "machine": machine, "tasks": {"digits-cnn": facts}, "runs": runs}


def test_the_page_says_who_leads(bench):
    page = bench.render.part(json.loads(json.dumps(results())), figure=True)
    cells = (
        "| upweight | GaussNewton, logits rows | auto = 0.01 | 0.500 [0.450, 0.550] |  | 0.500 / 0.400 | 1.00 / 0.90 |"
    )
    assert f"{cells} 0.900 [0.800, 0.950], 70% | 3.00 | 1.00 |" in page
    assert "| captum | Arnoldi, dimension 100 | 0.01 picked | 0.400 [0.300, 0.500] | +0.100 [+0.050, +0.150] |" in page
    assert "| dattri | Arnoldi, dimension 100 |  | ValueError: scores are not finite |" in page
    assert "is kronfluence's EK-FAC with 0.490: not decided, ours minus it is +0.010 [-0.050, +0.050]." in page
    assert (
        "Lines of ours that are ahead of it, decided by the paired interval: GaussNewton, logits rows, damping 0.01 picked"
        in page
    )
    assert "2.00 hours" in page
    order = [page.index(f"| {value} [") for value in ("0.510", "0.500", "0.490", "0.400")]
    assert order == sorted(order)


def family_runs():
    cost = {"task": "digits-cnn", "cpu": 3.0, "bytes": 2**30}
    return [
        {**cost, "method": "ekfac", "given": line([0.2, 0.1, 0.3], None), "best": line([0.3, 0.2, 0.4], None)},
        {**cost, "method": "kronfluence-ekfac", "best": line([0.4, 0.3, 0.5], None, family=[-0.1, -0.2, -0.05])},
        {**cost, "method": "dot", "given": line([0.15, 0.1, 0.2], None)},
        {**cost, "method": "captum-tracin", "given": line([0.14, 0.1, 0.2], None, family=[0.01, -0.1, 0.1])},
        {**cost, "method": "kronfluence-kfac", "best": line([0.4, 0.3, 0.5], None)},
    ]


def test_the_same_method_in_several_tools_stands_side_by_side(bench):
    _, table, said = bench.families.section({"runs": family_runs()})
    assert "| digits-cnn | EK-FAC | 0.300 | 3.00 | kronfluence | 0.400 | -0.100 [-0.200, -0.050] | 3.00 |" in table
    assert (
        "| digits-cnn | gradient products | 0.150 | 3.00 | captum | 0.140 | +0.010 [-0.100, +0.100] | 3.00 |" in table
    )
    assert "K-FAC |" not in table.replace("EK-FAC |", "")  # there is none of ours beside it
    assert (
        said
        == "Of 2 pairs ours is behind in 1, decided by the interval: EK-FAC of kronfluence on digits-cnn (by 0.100)."
    )
    assert bench.families.section({"runs": family_runs()[-1:]}) == []


def test_leads_are_taken_from_the_scores_of_both(bench, tmp_path):
    """Scores that are the better the less noise is in them."""
    truth = upweight.open_truth(ROOT / "truth" / "digits-cnn" / "lds.h5")
    draw = np.random.default_rng(0).standard_normal
    noise = [draw((len(truth.query_index), len(truth.train_index))) for _ in range(2)]
    change = (
        truth.loss.mean(1).mean(0) - truth.loss.mean(1)
    ).T  # [m, parts]: how much better a query is for what was kept
    better = change @ (truth.kept - truth.kept.mean(0)) + noise[0]
    folder = tmp_path / "digits-cnn"
    folder.mkdir()
    np.save(folder / "ekfac.best.npy", better)
    np.save(folder / "kronfluence-ekfac.best.npy", noise[1])
    runs = family_runs()
    bench.families.add_leads("digits-cnn", runs, tmp_path)
    mean, low, high = runs[1]["best"]["family"]
    assert 0 < low < mean < high
    wanted = upweight.lds_difference(better, noise[1], truth)
    assert [mean, low, high] == pytest.approx([wanted.mean, wanted.low, wanted.high])
    assert runs[3]["given"]["family"] == [0.01, -0.1, 0.1]  # stays where no scores are at hand


def test_the_figure_shows_every_task(bench, tmp_path):
    assert bench.render.draw(results(), tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 1000
