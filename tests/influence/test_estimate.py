"""What an attribution will take, against what it took: operations counted, bytes of tensors and files, sizes of matrices."""

import json

import numpy as np
import pytest
import torch
import upweight
from torch import nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from upweight.influence import attribute as attributing
from upweight.influence import calibrate, costs_head, costs_newton, gram
from upweight.influence.calibrate import growing
from upweight.influence.estimate import Estimate, Stage, shown_bytes
from upweight.influence.gradient_dot import GradientDot
from upweight.influence.problem import evaluating
from upweight.scoring import resolve

from benchmarks.measure import head_operations, newton_operations
from benchmarks.problems import Problem, Spec, make_model

GIVEN = "catch the rows", "inner products"


@pytest.fixture(autouse=True)
def no_time_is_spent(monkeypatch):
    """No test looks at seconds: each call is run twice, and large matrices are not tried."""
    monkeypatch.setattr(calibrate, "SLOT", 1e-6)
    monkeypatch.setattr(calibrate, "LARGEST", dict.fromkeys(calibrate.LARGEST, 16))
    monkeypatch.setattr(calibrate, "LARGEST_EIGEN", 16)
    monkeypatch.setattr(costs_newton, "MEASURED_FLOPS", 1e6)
    monkeypatch.setattr(costs_head, "BLOCK_NUMBERS", 2**12)


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 12),
        nn.Tanh(),
        nn.Linear(12, 5),
    ).eval()


def images(n: int, C: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.randint(C, (n,), generator=generator)


def head(F: int, C: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(F, C)).eval()


def features(n: int, F: int, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, F, generator=generator), torch.randint(C, (n,), generator=generator)


def flops(estimate: Estimate, *names: str) -> float:
    found = [stage.flops for stage in estimate.stages if stage.name in names]
    assert len(found) == len(names), [stage.name for stage in estimate.stages]
    return sum(found)


# ---- operations ----------------------------------------------------------------------------------------------------------


def test_forward_passes_are_counted_layer_by_layer():
    n, m = 40, 7
    found = upweight.estimate(small_cnn(), images(n), images(m), parameters="all", curvature=GradientDot())
    one = 2 * (64 * 9 * 4 + 64 * 12 + 12 * 5)  # positions x patch x channels, then two matrices
    check = 3 * (4 * 8 + 4)  # passes there and back of four examples, in company and alone
    assert flops(found, "read and run both sides") == (n + m + check) * one


def test_rows_and_their_products_are_counted_as_they_happen(monkeypatch):
    """A whole fit under torch's own counter; the products that numpy takes are counted where they are called."""
    n = 96
    model, train = small_cnn(), images(n)
    curvature = upweight.GaussNewton(damping=1e-2, form="dual")
    found = upweight.estimate(model, train, images(3), parameters="all", curvature=curvature)
    by_numpy = 0

    def counted(A, B):
        nonlocal by_numpy
        by_numpy += 2 * A.shape[0] * A.shape[1] * B.shape[0] // (2 if B is A else 1)
        return torch.from_numpy(A.numpy() @ B.numpy().T)

    monkeypatch.setattr(gram, "times_transposed", counted)
    with evaluating(model):
        names, last = resolve(model, "all")
        prepared = attributing.prepare(
            model, train, images(3), parameters=names, head=last, loss=None, dtype=None, device=torch.device("cpu"),
            batch_size=64, weight_decay=None,
        )  # fmt: skip
        with FlopCounterMode(display=False) as counter:
            curvature.fit(prepared.train)
    assert flops(found, *GIVEN) == pytest.approx(counter.get_total_flops() + by_numpy, rel=0.1)


def problem(spec: Spec) -> Problem:
    torch.manual_seed(0)
    if spec.kind == "head":
        data = features(spec.n, spec.F, spec.C), features(spec.m, spec.F, spec.C)
    else:
        data = images(spec.n, spec.C), images(spec.m, spec.C)
    (X, y), (Xq, yq) = data
    return Problem(spec, make_model(spec).eval(), X, y, Xq, yq)


@pytest.mark.parametrize("C", [10, 20])
def test_operations_of_the_head_are_those_of_the_benchmarks(C):
    spec = Spec(kind="head", n=3000, m=500, C=C, F=300 if C == 10 else 140)
    made = problem(spec)
    found = upweight.estimate(
        made.model, (made.X, made.y), (made.Xq, made.yq), curvature=upweight.LinearHead(damping=spec.damping)
    )
    assert flops(found, "factor", "scores") == pytest.approx(head_operations(spec), rel=0.1)


def test_operations_of_gauss_newton_are_those_of_the_benchmarks():
    spec = Spec(kind="cnn", n=600, m=500)
    made = problem(spec)
    found = upweight.estimate(
        made.model, (made.X, made.y), (made.Xq, made.yq), parameters="all", curvature=upweight.GaussNewton(damping=1e-3)
    )
    assert flops(found, "inner products", "factor", "scores") == pytest.approx(newton_operations(made), rel=0.1)


def test_operations_of_the_hessian_grow_as_its_rows():
    """A product with H costs as much for every example and every tangent."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval()

    def of(n: int) -> float:
        curvature = upweight.Hessian(damping=1.0)
        return flops(upweight.estimate(model, features(n, 6, 3), parameters="all", curvature=curvature), "Hessian")

    n, p = 50, 6 * 5 + 5 + 5 * 3 + 3
    passes = 2 * (6 * 5 + 5 * 3)  # one forward pass
    assert of(2 * n) == 2 * of(n)
    assert 4 <= of(n) / (n * p * passes) <= 9  # there and back, and each of them with its tangent


def test_a_dot_product_of_outer_products_costs_two_operations_an_input_and_an_output():
    n, m, F, C = 50, 20, 30, 4
    found = upweight.estimate(head(F, C), features(n, F, C), features(m, F, C), curvature=GradientDot())
    assert flops(found, "scores") == 2 * n * m * (F + 1 + C)


def test_a_dot_product_of_what_is_written_out_costs_two_operations_a_parameter():
    spec = Spec(kind="cnn", n=50, m=20)
    made = problem(spec)
    found = upweight.estimate(
        made.model, (made.X, made.y), (made.Xq, made.yq), parameters="all", curvature=GradientDot()
    )
    names = dict(made.model.named_parameters())
    linear = [module for module in made.model.modules() if isinstance(module, nn.Linear)]
    pairs = sum(layer.in_features + 1 + layer.out_features for layer in linear)
    written = sum(value.numel() for value in names.values()) - sum(
        value.numel() for layer in linear for value in layer.parameters()
    )
    own = upweight.estimate(
        made.model, (made.X, made.y), (made.Xq[:1], made.yq[:1]), parameters="all", curvature=GradientDot()
    )
    each = flops(own, "scores") - 2 * 50 * (pairs + written)  # reading the gradient of a query
    assert flops(found, "scores") == 2 * 50 * 20 * (pairs + written) + 20 * each


# ---- bytes and sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_scores", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_of_the_store_are_those_of_the_file(tmp_path, train_scores, dtype):
    sides = features(700, 20, 4), features(300, 20, 4)
    given = {"curvature": upweight.LinearHead(damping=[1e-2, 1e-1]), "train_scores": train_scores, "dtype": dtype}
    path = tmp_path / "influence.h5"
    found = upweight.estimate(head(20, 4), *sides, out=path, **given)
    assert list(tmp_path.iterdir()) == []
    upweight.attribute(head(20, 4), *sides, out=path, **given)
    assert found.disk == pytest.approx(path.stat().st_size, rel=0.03)
    assert upweight.estimate(head(20, 4), *sides, **given).disk == 0


CASES = {
    "head": ("head", upweight.LinearHead(damping=1e-2), "primal"),
    "few examples": ("head", upweight.LinearHead(damping=1e-2), "primal"),
    "dual": ("all", upweight.GaussNewton(damping=1e-2), "dual"),
    "margin": ("all", upweight.GaussNewton(damping=1e-2, rows="margin"), "dual"),
    "undamped": ("all", upweight.GaussNewton(damping=0.0), "dual"),
    "primal": ("6", upweight.GaussNewton(damping=1e-2), "primal"),
    "Hessian": ("6", upweight.Hessian(damping=1.0), "primal"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_matrix_has_the_size_that_is_reported_later(case):
    parameters, curvature, form = CASES[case]
    sides = images(8 if case == "few examples" else 60), images(5)
    found = upweight.estimate(small_cnn(), *sides, parameters=parameters, curvature=curvature)
    scores = upweight.attribute(small_cnn(), *sides, parameters=parameters, curvature=curvature)
    assert [(matrix.size, matrix.form) for matrix in found.matrices] == [(scores.spectrum.size, form)]


def test_memory_that_stays_is_that_of_the_tensors():
    n = 150
    model, train = small_cnn(), images(n)
    curvature = upweight.GaussNewton(damping=1e-2, form="dual")
    with evaluating(model):
        names, last = resolve(model, "all")
        prepared = attributing.prepare(
            model, train, None, parameters=names, head=last, loss=None, dtype=None, device=torch.device("cpu"),
            batch_size=64, weight_decay=None,
        )  # fmt: skip
        state = curvature.fit(prepared.train)
    kept = {s.name: s.kept for s in upweight.estimate(model, train, parameters="all", curvature=curvature).stages}
    assert kept["inner products"] == state.base.matrix.nbytes
    assert kept["factor"] == state.factor.L.nbytes
    assert kept["catch the rows"] == sum(state.base.rows.caught(block).nbytes for block in state.base.rows.blocks)


def test_levels_add_up_what_stays():
    stages = [
        Stage(name="a", seconds=1, flops=10, memory=100, kept=40),
        Stage(name="b", seconds=2, flops=20, memory=70),
        Stage(name="c", seconds=3, flops=30, memory=10, disk=5),
    ]
    found = Estimate(n=1, m=1, p=1, stages=stages, matrices=[], budget=109)
    assert found.levels() == [100, 110, 50]
    assert (found.memory, found.seconds, found.flops, found.disk, found.fits) == (110, 6, 60, 5, False)


# ---- what is shared, what does not fit -----------------------------------------------------------------------------------


def test_what_dampings_share_is_counted_once():
    def named(damping) -> list[tuple[str, str]]:
        curvature = upweight.GaussNewton(damping=damping)
        found = upweight.estimate(small_cnn(), images(30), images(5), parameters="all", curvature=curvature)
        return [(stage.name, stage.variant) for stage in found.stages]

    alone, both = named(1e-2), named([1e-2, 1e-1])
    assert both[: len(alone)] == alone
    more = [name for name, variant in both[len(alone) :] if variant == "damping=0.1"]
    assert len(more) == len(both) - len(alone)
    assert "factor" in more and "scores" in more
    assert not {"read and run both sides", "stationarity", *GIVEN} & set(more)


def test_a_matrix_that_does_not_fit_is_said_with_its_mend():
    n = 400
    given = {"parameters": "all", "curvature": upweight.GaussNewton(damping=1e-2, form="dual")}
    found = upweight.estimate(small_cnn(), images(n), images(5), memory="20MB", **given)
    assert not found.fits and found.budget == 20_000_000
    assert found.memory >= 16 * (n * 4) ** 2
    assert "This does not fit" in found.notes[0] and "rows='margin'" in found.notes[0]
    with pytest.raises(upweight.SolveError, match="margin"):
        upweight.attribute(small_cnn(), images(n), images(5), memory="20MB", **given)
    assert upweight.estimate(small_cnn(), images(n), images(5), memory="20GB", **given).fits


# ---- a dry run -----------------------------------------------------------------------------------------------------------


class Counted(Dataset):
    """Tells how many examples were read."""

    def __init__(self, n: int) -> None:
        self.n, self.read = n, 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        self.read += 1
        return torch.full((1, 8, 8), 0.1 * (i % 7)), i % 5


def test_only_a_few_examples_are_read():
    train, queries = Counted(50_000), Counted(20_000)
    model = small_cnn().train()
    found = upweight.estimate(model, train, queries, parameters="all")
    assert (found.n, found.m) == (50_000, 20_000)
    assert train.read <= 1_100 and queries.read <= 1_100
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_wrong_arguments_are_refused_as_by_the_run_itself():
    with pytest.raises(upweight.UsageError, match="has no parameter"):
        upweight.estimate(small_cnn(), images(5), parameters="nonsense")
    with pytest.raises(upweight.ShapeError, match="has label 7"):
        upweight.estimate(small_cnn(), (images(5)[0], torch.full((5,), 7)))


def test_text_and_json_say_the_same(tmp_path):
    found = upweight.estimate(small_cnn(), images(30), images(5), parameters="all", out=tmp_path / "scores.h5")
    held = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    text = found.to_text()
    assert held["total"]["disk"] == sum(stage["disk"] for stage in held["stages"]) > 0
    assert held["total"]["memory"] == max(stage["peak"] for stage in held["stages"]) == found.memory
    for stage in held["stages"]:
        assert stage["name"] in text
        assert stage["seconds"] >= 0 and np.isfinite(stage["seconds"])
    assert f"{found.matrices[0].size} x {found.matrices[0].size}" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (12_345, "12.3 kB"), (5e15, "5 PB"), (2e19, "2e+04 PB")],
)
def test_bytes_in_words(count, text):
    assert shown_bytes(count) == text


def test_sizes_grow_up_to_the_one_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(calibrate, "SLOT", 0.01)
    asked = []

    def make(size: int):
        asked.append(size)
        return lambda: None

    assert growing(make, 1) >= 0 and asked == [1]
    assert growing(make, 100) >= 0 and max(asked) == 100


@pytest.mark.parametrize("kind", [True, "loss"])
@pytest.mark.parametrize("parameters", ["head", "all"])
def test_the_leave_one_out_correction_is_a_stage_of_its_own(parameters, kind):
    make = upweight.LinearHead if parameters == "head" else upweight.GaussNewton

    def of(leave_one_out) -> tuple[list[str], float]:
        curvature = make(damping=1e-2, leave_one_out=leave_one_out)
        found = upweight.estimate(small_cnn(), images(30), images(5), parameters=parameters, curvature=curvature)
        return [stage.name for stage in found.stages], found.flops

    (names, plain), (more, corrected) = of(False), of(kind)
    assert [name for name in more if name != "leverages"] == names and "leverages" in more
    assert corrected > plain
