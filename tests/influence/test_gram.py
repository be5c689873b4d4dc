"""The Gram matrix in strips: memory, resume and precision change nothing beyond what they say."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import reference
import torch
from cases import BY_NAME
from methods import assert_scores, parts
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from upweight import GaussNewton, SolveError, UsageError, attribute
from upweight.influence import gram as gram_module
from upweight.influence import newton
from upweight.influence.attribute import Variant, fit, prepare
from upweight.influence.gram import pulled_back, pushed, rounded
from upweight.influence.problem import evaluating
from upweight.influence.work import Work


class Keeper:
    """A keeper of tiles in memory that counts."""

    def __init__(self, block: int | None = None) -> None:
        self.tiles: dict[str, np.ndarray] = {}
        self.keys: list[dict] = []
        self.block = block

    def open(self, key, block):
        self.keys.append(dict(key))
        self.block = block if self.block is None else self.block
        return self.block

    def get(self, name):
        return self.tiles.get(name)

    def put(self, name, tile):
        self.tiles[name] = tile.copy()


def network(sizes=(6, 8, 5, 3), seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    layers = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(scale * torch.randn(value.shape, generator=g))
    return model


def data(n, m=7, width=6, seed=1, classes=3):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n + m, width, generator=g)
    y = torch.arange(n + m) % classes
    return (X[:n], y[:n]), (X[n:], y[n:])


def prepared(model, train, queries, **options):
    defaults = {
        "parameters": [name for name, _ in model.named_parameters()], "head": None, "loss": None, "dtype": None,
        "device": torch.device("cpu"), "batch_size": 64, "weight_decay": None,
    }  # fmt: skip
    return prepare(model, train, queries, **{**defaults, **options})


def matrix(model, sides, curvature, work):
    with evaluating(model):
        return fit(prepared(model, *sides), Variant(curvature=curvature), work=work).state.base


DUAL = GaussNewton(form="dual", damping=0.01)


class TestTiles:
    def test_what_was_kept_is_not_formed_again(self, monkeypatch):
        model, sides = network(), data(10)
        keeper = Keeper(block=4)
        whole = matrix(model, sides, DUAL, Work(tiles=keeper))
        assert sorted(keeper.tiles) == ["gram-0", "gram-1", "gram-2"]
        assert [tile.shape for _, tile in sorted(keeper.tiles.items())] == [(8, 8), (8, 16), (4, 20)]
        del keeper.tiles["gram-1"]
        formed = []
        form = gram_module._add_strip
        monkeypatch.setattr(gram_module, "_add_strip", lambda rows, i, *rest: (formed.append(i), form(rows, i, *rest)))
        again = matrix(model, sides, DUAL, Work(tiles=keeper))
        assert formed == [1]
        assert_array_equal(again.matrix, whole.matrix)

    def test_kept_tiles_are_believed(self):
        """Else nothing would be gained by keeping them."""
        model, sides = network(), data(10)
        keeper = Keeper(block=4)
        matrix(model, sides, DUAL, Work(tiles=keeper))
        keeper.tiles["gram-1"] *= 0.999
        changed = matrix(model, sides, DUAL, Work(tiles=keeper)).matrix
        assert_array_equal(changed[8:16, :16], keeper.tiles["gram-1"])
        assert_array_equal(changed[:16, 8:16], keeper.tiles["gram-1"].T)

    def test_another_question_has_another_key(self):
        model, sides = network(), data(10)
        keys = []
        for curvature in (
            DUAL,
            GaussNewton(form="dual", rows="margin", damping=0.01),
            GaussNewton(form="dual", damping=0.0),
        ):
            keeper = Keeper()
            matrix(model, sides, curvature, Work(tiles=keeper))
            keys += keeper.keys
        other = Keeper()
        matrix(
            network(seed=5), sides, DUAL, Work(tiles=other)
        )  # other weights give other logits, and so other cotangents
        assert len({str(key) for key in [*keys, *other.keys]}) == 4

    def test_tiles_of_the_wrong_shape_are_formed_anew(self):
        model, sides = network(), data(10)
        keeper = Keeper(block=4)
        whole = matrix(model, sides, DUAL, Work(tiles=keeper)).matrix
        keeper.tiles["gram-2"] = np.zeros((2, 2))
        assert_array_equal(matrix(model, sides, DUAL, Work(tiles=keeper)).matrix, whole)

    def test_progress_counts_strips(self):
        told = []
        matrix(
            network(), data(10), DUAL, Work(tiles=Keeper(block=4), told=lambda done, total: told.append((done, total)))
        )
        assert told == [(1, 3), (2, 3), (3, 3)]


class TestMemory:
    @pytest.mark.parametrize("budget", [30_000, 200_000, 10**9])
    def test_a_budget_changes_no_number(self, budget):
        """Down to one example a block, nothing kept, and rows written out layer by layer for every product."""
        model, sides = network((6, 40, 30, 3)), data(21)
        wanted = matrix(model, sides, DUAL, Work(memory=10**9))
        found = matrix(model, sides, DUAL, Work(memory=budget))
        assert_allclose(found.matrix, wanted.matrix, rtol=1e-5, atol=1e-6 * float(wanted.matrix.abs().max()))
        if budget == 30_000:
            assert found.rows.block == 1 and len(found.rows._kept) < 21

    def test_rows_are_parts_where_there_is_no_room_for_them(self):
        """A convolution's rows are larger than what they are made of; both ways give the same products."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(6, 12, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).double()
        X, y = torch.randn(14, 6, 4, 4, dtype=torch.float64), torch.arange(14) % 3
        sides = (X[:9], y[:9]), (X[9:], y[9:])
        roomy, tight = (matrix(model, sides, DUAL, Work(memory=memory)) for memory in (10**9, 150_000))
        assert dict(roomy.rows.plan.ways)["0"] == "rows" and dict(tight.rows.plan.ways)["0"] == "parts"
        assert_allclose(tight.matrix, roomy.matrix, rtol=1e-11)

    @pytest.mark.parametrize(("form", "mend"), [("dual", "margin"), ("primal", "fewer examples or parameters")])
    def test_what_does_not_fit_is_refused_before_the_work(self, form, mend, monkeypatch):
        monkeypatch.setattr(newton, "gram", None)
        with pytest.raises(SolveError, match=f"Gauss-Newton matrix of .* GiB.*{mend}"):
            matrix(network(), data(10), GaussNewton(form=form), Work(memory=1_000))


class TestDampings:
    def test_a_list_forms_one_matrix(self, monkeypatch):
        calls = []
        form = newton.gram
        monkeypatch.setattr(newton, "gram", lambda *args: calls.append(args) or form(*args))
        model, (train, queries) = network(), data(10)
        several = attribute(
            model, train, queries, parameters="all", curvature=GaussNewton(form="dual", damping=[1e-2, "auto", 1.0])
        )
        assert len(calls) == 1
        for damping in (1e-2, "auto", 1.0):
            alone = attribute(
                model, train, queries, parameters="all", curvature=GaussNewton(form="dual", damping=damping)
            )
            assert_scores(several.at_damping[damping].matrix, alone.matrix, 1e-5)

    def test_an_undamped_entry_makes_all_of_them_exact(self):
        """Products of float32 rows are float32; without damping they are formed in float64, for the whole list."""
        model, sides = network(), data(10)
        assert matrix(model, sides, DUAL, Work()).products == "float32"
        assert matrix(model, sides, GaussNewton(form="dual", damping=0.0), Work()).products == torch.float64
        with evaluating(model):
            both = prepared(model, *sides)
            first = fit(both, Variant(curvature=DUAL))
            second = fit(both, Variant(curvature=GaussNewton(form="dual", damping=0.0)), before=[first])
        assert second.state.base.products == torch.float64


def test_an_undamped_inverse_of_float32_rows_finds_the_rank():
    """40 parameters in 240 rows: a float32 Gram matrix would keep some hundred directions of noise."""
    model = network((
        6,
        4,
        3,
    )).float()  # 43 parameters; one logit direction is blind, and tanh units cannot be told apart from it
    sides = data(120)
    scores = attribute(model, *sides, parameters="all", curvature=GaussNewton(form="dual", damping=0.0))
    wanted = attribute(
        model.double(),
        *((X.double(), y) for X, y in sides),
        parameters="all",
        curvature=GaussNewton(form="primal", damping=0.0),
    )
    assert scores.spectrum.size == 240
    assert scores.spectrum.rank == wanted.spectrum.rank < 43


class TestApplied:
    @pytest.mark.parametrize("name", ["mlp", "conv", "head"])
    def test_the_matrix_applied_without_being_formed(self, name):
        problem = BY_NAME[name].build()
        base = matrix_of(problem)
        X = torch.randn(base.size, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert_allclose(pushed(base.rows, pulled_back(base.rows, X)), base.matrix @ X, rtol=1e-10, atol=1e-12)


def matrix_of(problem):
    with evaluating(problem.model):
        both = prepared(problem.model, problem.train, problem.queries, parameters=problem.names)
        return fit(both, Variant(curvature=DUAL)).state.base


class TestPrecision:
    @pytest.mark.parametrize(("kind", "bits"), [("tf32", 10), ("bf16", 7)])
    def test_numbers_are_rounded_to_nearest(self, kind, bits):
        values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).exp()
        exponent = torch.floor(torch.log2(values.double()))
        unit = 2.0 ** (exponent - bits)
        error = (rounded(values[:, None], kind)[:, 0].double() - values.double()).abs()
        assert bool((error <= unit / 2 * (1 + 1e-6)).all())
        assert bool((error > unit / 4).any())  # it is rounded at all
        assert bool((rounded(values[:, None], kind).double()[:, 0] / unit % 1 == 0).all())

    @pytest.mark.parametrize("kind", ["tf32", "bf16"])
    def test_the_error_that_is_told_is_the_error_there_is(self, kind):
        """Of the train examples that were sampled, against scores of a float64 network."""
        model, (train, queries) = network((6, 30, 20, 3), scale=0.5), data(40)
        options = {"parameters": "all", "train_scores": True}
        got = attribute(
            model, train, queries, curvature=GaussNewton(form="dual", damping=0.05, precision=kind), **options
        )
        (said,) = [warning for warning in got.meta["warnings"] if kind in warning]
        exact = attribute(
            model.double(), (train[0].double(), train[1]), (queries[0].double(), queries[1]),
            curvature=GaussNewton(form="dual", damping=0.05), **options,
        )  # fmt: skip
        rows = np.linspace(0, 39, 16).astype(int)
        error = abs(got.on_train.matrix - exact.on_train.matrix)[rows].max(1) / abs(exact.on_train.matrix)[rows].max(1)
        told = float(said.split("largest score error is ")[1].split()[0])
        assert told == pytest.approx(error.max(), rel=0.1)
        assert told > (1e-5 if kind == "tf32" else 1e-4)  # smaller would mean that nothing was rounded

    def test_too_coarse_is_refused(self):
        model, sides = network((6, 4, 3)), data(120)  # 43 parameters: all other directions are rounding
        with pytest.raises(SolveError, match=r"too coarse for a damping of 1e-06.*float32"):
            attribute(
                model, *sides, parameters="all", curvature=GaussNewton(form="dual", damping=1e-6, precision="bf16")
            )

    @pytest.mark.untyped
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"precision": "fp8"}, "precision must be"),
            ({"precision": "bf16", "damping": 0.0}, "bf16 products need damping > 0"),
            ({"precision": "bf16", "rcond": 1e-3}, "no cutoff"),
            ({"precision": "tf32", "rows": "sampled"}, "span the gradient"),
        ],
        ids=str,
    )
    def test_impossible_settings(self, options, words):
        with pytest.raises(UsageError, match=words):
            GaussNewton(**options)

    def test_the_primal_form_has_no_use_for_it(self):
        problem = BY_NAME["mlp"].build()
        with pytest.raises(UsageError, match=r"primal.*precision='bf16'"):
            attribute(
                problem.model, problem.train, problem.queries, parameters="all", curvature=GaussNewton(precision="bf16")
            )


def test_a_solution_that_does_not_solve_is_refused(monkeypatch):
    from upweight.influence.damped import Cholesky

    solve = Cholesky.solve
    monkeypatch.setattr(Cholesky, "solve", lambda self, M: solve(self, M) * (1 + 1e-4))
    model, sides = network(), data(10)
    with pytest.raises(SolveError, match="relative residual of"):
        attribute(model, *sides, parameters="all", curvature=DUAL)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_only_a_factor_is_needed_for_the_facts(name, monkeypatch):
    """What a large matrix is told of by a few steps of Lanczos, beside all its eigenvalues."""
    monkeypatch.setattr(newton, "SPECTRUM_LIMIT", 0)
    ask = parts(BY_NAME[name])
    scores = attribute(
        ask.problem.model, ask.problem.train, ask.problem.queries, parameters=ask.problem.parameters,
        curvature=GaussNewton(form="dual", damping=0.05),
    )  # fmt: skip
    assert_scores(scores.matrix, ask.through(reference.inverse(ask.ggn, damping=0.05)), 1e-8)
    largest = np.linalg.eigvalsh(ask.ggn)[-1]
    assert scores.spectrum.lambda_max == pytest.approx(largest, rel=1e-6)
    assert scores.spectrum.condition == pytest.approx((largest + 0.05) / (scores.spectrum.lambda_min + 0.05))
    assert set(scores.spectrum.sensitivity) == {f"top{k}_changed_at_{by}x" for k in (1, 5) for by in ("0.1", "10")}
