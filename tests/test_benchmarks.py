"""The harness of benchmarks/ on problems of a few parameters: its reference, its counts and its page, without the other tools."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """The folder as a package, whatever the working directory is."""
    spec = importlib.util.spec_from_file_location(
        "upweight_bench", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["upweight_bench"] = package
    for name in ("problems", "reference", "measure", "methods", "render", "one"):
        setattr(package, name, importlib.import_module(f"upweight_bench.{name}"))
    yield package
    for name in [name for name in sys.modules if name.startswith("upweight_bench")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def head(bench):
    return bench.problems.build(bench.problems.Spec(kind="head", F=5, n=40, m=6, C=3))


def dense(problem):
    """Scores from the whole Hessian by autograd, for a network that is linear in its parameters."""
    problem = problem.to(torch.float64)
    names = [name for name, _ in problem.model.named_parameters()]
    shapes = [problem.model.get_parameter(name).shape for name in names]
    theta = torch.cat([problem.model.get_parameter(name).detach().flatten() for name in names])

    def loss(theta, x, y):
        values = theta.split([shape.numel() for shape in shapes])
        values = {name: value.view(shape) for name, value, shape in zip(names, values, shapes, strict=True)}
        return torch.nn.functional.cross_entropy(torch.func.functional_call(problem.model, values, (x[None],)), y[None])

    def gradients(X, y):
        return torch.stack([
            torch.autograd.functional.jacobian(lambda v, i=i: loss(v, X[i], y[i]), theta) for i in range(len(y))
        ])

    def objective(v):
        return sum(loss(v, *pair) for pair in zip(problem.X, problem.y, strict=True)) / len(problem.y)

    H = torch.autograd.functional.hessian(objective, theta) + problem.spec.damping * torch.eye(len(theta)).double()
    return (gradients(problem.Xq, problem.yq) @ torch.linalg.solve(H, gradients(problem.X, problem.y).T)).numpy()


def test_both_references_are_the_dense_scores(bench, head):
    expected = dense(head)
    scale = abs(expected).max()
    double = head.to(torch.float64)
    assert abs(bench.reference.scores(head) - expected).max() < 1e-10 * scale
    assert abs(bench.reference.network_scores(double) - expected).max() < 1e-10 * scale


def test_convolutions_in_parts_are_the_whole_jacobian(bench):
    torch.manual_seed(0)
    layers = (
        torch.nn.Conv2d(2, 3, 3, stride=2, padding=1),
        torch.nn.BatchNorm2d(3),
        torch.nn.Flatten(),
        torch.nn.Linear(12, 4),
    )
    model = torch.nn.Sequential(*layers).double().eval()
    X, cotangents = torch.randn(5, 2, 4, 4).double(), torch.randn(5, 2, 4).double()
    whole = bench.reference.pulled_back(model, X, cotangents)
    parts = bench.reference.pulled_back(model, X, cotangents, large=53)  # the weight of the convolution has 54 entries
    gram, in_parts = (sum(J.flatten(0, 1) @ J.flatten(0, 1).T for J in found) for found in (whole, parts))
    torch.testing.assert_close(gram, in_parts, rtol=1e-12, atol=1e-12)


def test_our_methods_meet_the_reference(bench, head):
    expected = bench.reference.scores(head)
    for key, error in (("head32", 1e-4), ("head64", 1e-10)):
        scores = bench.methods.METHODS[key].prepare(head)()
        assert bench.measure.compare(scores, expected)["error"] < error


def test_a_saved_problem_is_the_same_problem(bench, head, tmp_path):
    bench.problems.save(head, tmp_path)
    again = bench.problems.load(tmp_path)
    assert again.spec == head.spec
    assert torch.equal(again.model(again.X), head.model(head.X))


def test_rank_correlation_is_over_train_examples(bench):
    a = np.array([[1.0, 2, 3], [1, 2, 3]])
    assert bench.measure.spearman(a, np.array([[10.0, 20, 30], [3, 2, 1]])) == pytest.approx(0)
    assert bench.measure.spearman(a, 5 * a) == pytest.approx(1)
    assert bench.measure.compare(np.full((1, 2), np.nan), np.ones((1, 2))) == {"error": None, "spearman": None}


def test_counted_operations(bench, head):
    D = 2 * 6  # contrasts times features and constant
    assert bench.measure.head_operations(head.spec) == pytest.approx(
        3 * 40 * 36 + D**3 / 3 + 2 * D * D * 6 + 2 * D * 40 * 6
    )
    # one linear layer, ghost: <x, x'> and R x R products of outputs; R = 2 rows an example
    ghost = 40**2 * (6 + 4 * 3) + 2 * 40 * 6 * (6 + 2 * 3)
    assert bench.measure.newton_operations(head) == pytest.approx(ghost + 80**3 / 3 + 2 * 80**2 * 6)


def results(bench):
    problem = {"kind": "head", "n": 40, "m": 6, "C": 3, "F": 784, "width": 16, "blocks": 1, "damping": 1e-3}
    good = {"seconds": 2.0, "cpu": 3.0, "bytes": 2**30, "gemm": 1e9, "gemm_cpu": 5e8, "error": 1e-6, "spearman": 0.5}
    good |= {"operations": 1e9, "repeats": 1, "series": "compared", "problem": problem, "p": 2355}
    runs = [{**good, "method": "head32"}, {**good, "method": "pydvl-direct32", "seconds": 10.0, "bytes": 2**31}]
    runs.append({"failed": "over 5 s", "method": "captum-naive", "series": "compared", "problem": problem, "p": 2355})
    runs.append({**good, "method": "head32", "series": "head, train examples n"})
    machine = {"processor": "a processor", "cores": 2, "gib": 8, "python": "3.11", "versions": {"torch": "2"}}
    return {"sizes": "quick", "limit": 5, "threads": 2, "machine": machine, "runs": runs}


def test_the_page_says_what_was_measured(bench, tmp_path):
    bench.render.write(tmp_path, speed=json.loads(json.dumps(results(bench))))
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| upweight | LinearHead | float32 | yes | 2.00 | 3.00 | 1.00 | 1e-06 | 0.5000 | 2.0 | 1.5 |" in page
    assert "| captum | Naive, all p directions | float32 | yes | over 5 s |" in page
    assert "| head, F = 784, float32: x GEMM | at most 1.4 | 2.0 (CPU 1.5) | no |" in page
    assert "| 7 to 12 times faster | 5.0 (CPU 1.0) | no |" in page
    assert (tmp_path / "benchmarks.png").stat().st_size > 1000
