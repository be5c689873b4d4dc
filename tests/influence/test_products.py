"""The mean curvature times vectors against the dense matrices of the loops."""

from __future__ import annotations

import cases
import pytest
import reference
import torch
from cases import BY_NAME, CASES
from methods import pair_name, parts
from numpy.testing import assert_allclose
from torch import nn
from upweight import SolveError, UsageError
from upweight.influence import products as products_module
from upweight.influence import row_products
from upweight.influence.attribute import prepare
from upweight.influence.problem import evaluating
from upweight.influence.products import Products
from upweight.influence.row_products import RowProducts, mean_products
from upweight.influence.work import Work


def train_side(problem, batch_size=256, **options):
    """The train set of a case, examined; the head is the problem's own where its name says so."""
    head = None
    if len({name.rpartition(".")[0] for name in problem.names}) == 1 and problem.parameters == "head":
        head = problem.names[0].rpartition(".")[0]
    with evaluating(problem.model):
        return prepare(
            problem.model, problem.train, None, parameters=problem.names, head=head, dtype=None,
            device=torch.device("cpu"), batch_size=batch_size, weight_decay=None, **{"loss": None, **options},
        ).train  # fmt: skip


def some_vectors(p, b=5):
    return torch.randn(p, b, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES, ids=pair_name)
@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_products_are_those_of_the_dense_matrix(case, kind):
    problem = case.build()
    side, V = train_side(problem, batch_size=8), some_vectors(problem.p)
    with evaluating(problem.model):
        got = Products(side, kind)(V)
    assert got.dtype == torch.float64
    dense = parts(case).ggn if kind == "ggn" else parts(case).hessian
    want = torch.from_numpy(dense) @ V
    assert_allclose(got, want, rtol=0, atol=1e-12 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("ways", ["parts", "rows", "mixed"])
@pytest.mark.parametrize("case", [case for case in CASES if not case.head], ids=pair_name)
def test_products_through_the_rows_are_the_same(case, ways, monkeypatch):
    problem = case.build()
    side, V = train_side(problem, batch_size=8), some_vectors(problem.p)
    if ways != "mixed":
        monkeypatch.setattr(row_products, "_ways", lambda side, *rest: dict.fromkeys(side.plan.layers, ways))
    monkeypatch.setattr(row_products, "FLIGHT_BYTES", 2000)  # a few examples at a time
    with evaluating(problem.model):
        operator = mean_products(side, columns=5)
        assert isinstance(operator, RowProducts)
        got = operator(V)
    want = torch.from_numpy(parts(case).ggn) @ V
    assert_allclose(got, want, rtol=0, atol=1e-12 * max(1.0, float(want.abs().max())))


def test_groups_and_layers_that_run_twice_go_through_the_rows():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
            self.norm = nn.LayerNorm(5)
            self.out = nn.Linear(100, 3)

        def forward(self, x):
            x = torch.tanh(self.grouped(torch.tanh(self.grouped(x))))
            return self.out(self.norm(x).flatten(1))

    g = torch.Generator().manual_seed(0)
    model = Odd().double()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=g, dtype=torch.float64))
    X = torch.randn(9, 4, 5, 5, generator=g, dtype=torch.float64)
    names = tuple(name for name, _ in model.named_parameters())[::-1]  # in an order that is not the model's
    problem = cases.Problem(
        model=model, train=(X, torch.arange(9) % 3), queries=(X, torch.arange(9) % 3),
        parameters=names, names=names, num_classes=3,
    )  # fmt: skip
    side, V = train_side(problem), some_vectors(problem.p)
    with evaluating(model):
        operator = mean_products(side, columns=5)
        assert isinstance(operator, RowProducts) and operator.pairs
        assert_allclose(operator(V), Products(side)(V), rtol=0, atol=1e-12)


def test_few_vectors_and_many_classes_go_through_torch_func():
    side = train_side(BY_NAME["mlp"].build())
    assert isinstance(mean_products(side, columns=1), Products)
    assert isinstance(mean_products(side, columns=1, sweeps=2), RowProducts)  # what was caught is kept
    assert isinstance(mean_products(side, columns=1, sweeps=2, work=Work(memory=1)), Products)
    assert isinstance(mean_products(side, "hessian", columns=9), Products)


def test_float32_network_gives_float32_accuracy():
    case = BY_NAME["mlp"]
    problem = case.build(dtype=torch.float32)
    side, V = train_side(problem), some_vectors(problem.p)
    with evaluating(problem.model):
        got = Products(side)(V)
    want = torch.from_numpy(reference.mean_ggn(problem)) @ V
    assert_allclose(got, want, atol=2e-6 * float(want.abs().max()))


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_batches_and_chunks_of_vectors_change_nothing(kind, monkeypatch):
    problem = BY_NAME["conv"].build()
    V = some_vectors(problem.p)
    with evaluating(problem.model):
        want = Products(train_side(problem), kind)(V)
        monkeypatch.setattr(products_module, "TANGENT_BYTES", 1)  # one vector at a time
        got = Products(train_side(problem, batch_size=4), kind)(V)
    assert_allclose(got, want, rtol=0, atol=1e-13)


def test_another_loss_has_a_hessian_and_no_gauss_newton_matrix():
    problem = BY_NAME["mlp"].build()

    def squared(logits, y):
        return ((logits - nn.functional.one_hot(y, 3)) ** 2).sum(1)

    side = train_side(problem, loss=squared)
    with evaluating(problem.model):
        H = Products(side, "hessian")(torch.eye(problem.p, dtype=torch.float64))
        net = reference.Network(problem)

        def mean_loss(theta):
            return sum(squared(net.logits(theta, x)[None], y[None])[0] for x, y in zip(*problem.train, strict=True))

        want = torch.autograd.functional.hessian(mean_loss, net.theta) / problem.n
    assert_allclose(H, want, rtol=0, atol=1e-12)
    with pytest.raises(UsageError, match="take 'hessian'"):
        Products(side)


@pytest.mark.untyped
def test_kind_is_checked():
    with pytest.raises(UsageError, match="'fisher'"):
        Products(train_side(BY_NAME["head"].build()), "fisher")


class Unbatchable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Odd(nn.Module):
    def forward(self, x):
        return Unbatchable.apply(x)


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_a_layer_that_torch_func_cannot_take_is_told(kind):
    problem = BY_NAME["mlp"].build()
    side = train_side(problem)
    problem.model.append(Odd().double())
    with evaluating(problem.model), pytest.raises(SolveError, match=r"Sequential failed inside torch\.func"):
        Products(side, kind)(some_vectors(problem.p))
