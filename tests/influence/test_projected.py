"""Projected rows: the formula for the very matrix that was drawn, convergence to exact rows, and what a seed means."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import BY_NAME
from low_rank import digits_like, score
from methods import assert_scores, parts
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from upweight import GaussNewton, SolveError, UsageError
from upweight.influence import projection as projection_module
from upweight.influence import rowset
from upweight.influence.projected import Projected
from upweight.influence.projection import Projection

F64 = torch.float64


def drawn(p, width, kind, seed=0):
    return torch.cat([piece for _, piece in Projection.of(p, width, kind, seed).pieces(F64)])


class TestDraws:
    @pytest.mark.parametrize("kind", ["rademacher", "gaussian", "orthogonal"])
    def test_mean_of_many_is_the_identity(self, kind):
        total = sum(drawn(6, 4, kind, seed) @ drawn(6, 4, kind, seed).T for seed in range(400)) / 400
        assert_allclose(total, np.eye(6), atol=0.15)  # 1 / sqrt(4 x 400), three times over

    def test_entries_are_what_they_are_called(self):
        P = drawn(5000, 9, "rademacher") * 3
        assert_array_equal(P.abs(), torch.ones_like(P))
        assert abs(float(P.mean())) < 0.02
        G = drawn(5000, 9, "gaussian") * 3
        assert abs(float(G.mean())) < 0.02 and float(G.var()) == pytest.approx(1, abs=0.03)
        assert float((G**4).mean()) == pytest.approx(3, abs=0.2)
        Q = drawn(30, 7, "orthogonal")
        assert_allclose(Q.T @ Q, np.eye(7) * 30 / 7, atol=1e-12)

    @pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
    def test_pieces_are_all_different_and_a_seed_gives_them_again(self, kind, monkeypatch):
        monkeypatch.setattr(projection_module, "PIECE", 16)
        pieces = [piece for _, piece in Projection.of(100, 32, kind, 3).pieces(F64)]
        assert [len(piece) for piece in pieces] == [16] * 6 + [4]
        assert not any(torch.equal(a, b) for a, b in pairwise(pieces[:-1]))
        assert_array_equal(torch.cat(pieces), drawn(100, 32, kind, 3))
        assert not torch.equal(pieces[0], Projection.of(100, 32, kind, 4).pieces(F64).__next__()[1])

    def test_application_is_the_product(self, monkeypatch):
        monkeypatch.setattr(projection_module, "PIECE", 16)
        G = torch.randn(5, 100, generator=torch.Generator().manual_seed(0), dtype=F64)
        for kind in ("rademacher", "gaussian", "orthogonal"):
            assert_allclose(Projection.of(100, 32, kind, 0).apply(G), G @ drawn(100, 32, kind), atol=1e-12)


class TestScores:
    @pytest.mark.parametrize("width", [7, 500], ids=["primal", "dual"])
    @pytest.mark.parametrize("rows", ["trak", "margin", "logits", "label"])
    @pytest.mark.parametrize("name", ["bare-linear", "mlp"])
    def test_they_are_the_formula_for_the_matrix_that_was_drawn(self, name, rows, width):
        case = BY_NAME[name]
        ask = parts(case)
        got = score(ask.problem, Projected(rows=rows, width=width, damping=0.1)).matrix
        P = drawn(ask.problem.p, width, "rademacher").numpy()
        H = ask.kinds[rows].sum(axis=0)
        G, Gq = ask.G_train, ask.G_query
        order = _plan_order(ask.problem)
        H, G, Gq = H[np.ix_(order, order)], G[:, order], Gq[:, order]
        want = Gq @ P @ np.linalg.inv(P.T @ H @ P + 0.1 * np.eye(width)) @ P.T @ G.T
        assert_scores(got, want, 1e-8)

    def test_error_falls_as_one_over_the_root_of_the_width(self):
        problem = digits_like()
        exact = score(problem, GaussNewton(rows="trak", damping=1e-1)).matrix
        widths, errors = (32, 128, 512, 2048, 8192), []
        for width in widths:
            got = [score(problem, Projected(width=width, damping=1e-1, seed=seed)).matrix for seed in range(3)]
            errors.append(np.mean([np.linalg.norm(one - exact) for one in got]) / np.linalg.norm(exact))
        slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
        assert -0.65 < slope < -0.4, (slope, errors)
        assert errors[-1] < 0.1 < errors[0]

    @pytest.mark.parametrize("rows", ["trak", "logits"])
    def test_orthogonal_at_full_width_is_exact(self, rows):
        problem = digits_like()
        exact = score(problem, GaussNewton(rows=rows, damping=1e-2)).matrix
        got = score(problem, Projected(rows=rows, width=problem.p, draw="orthogonal", damping=1e-2)).matrix
        assert_scores(got, exact, 1e-8)
        half = score(problem, Projected(rows=rows, width=problem.p // 2, draw="orthogonal", damping=1e-2)).matrix
        assert np.linalg.norm(half - exact) > 0.05 * np.linalg.norm(exact)

    def test_blocks_of_rows_and_batches_change_nothing(self, monkeypatch):
        problem = digits_like()
        want = score(problem, Projected(width=40, damping=1e-2)).matrix
        monkeypatch.setattr(rowset, "BLOCK_BYTES", 30_000)  # 3 examples
        assert_scores(score(problem, Projected(width=40, damping=1e-2), batch_size=7).matrix, want, 1e-9)

    def test_dampings_share_one_projection(self, monkeypatch):
        problem = digits_like()
        calls, matrix = [], Projected._matrix
        monkeypatch.setattr(Projected, "_matrix", lambda *args: (calls.append(1), matrix(*args))[1])
        scores = score(problem, Projected(width=60, damping=["auto", 0.1]))
        assert len(calls) == 1
        assert_allclose(
            scores.at_damping[0.1].matrix, score(problem, Projected(width=60, damping=0.1)).matrix, rtol=1e-12
        )
        assert scores.spectrum.damping == pytest.approx(scores.spectrum.lambda_max / 1000)

    def test_spectrum_is_that_of_the_projected_rows(self):
        ask = parts(BY_NAME["mlp"])
        facts = score(ask.problem, Projected(rows="margin", width=9, damping=0.1)).spectrum
        order = _plan_order(ask.problem)
        P = drawn(ask.problem.p, 9, "rademacher").numpy()
        values = np.linalg.eigvalsh(P.T @ ask.kinds["margin"].sum(axis=0)[np.ix_(order, order)] @ P)
        assert_allclose(facts.eigenvalues, values[::-1], atol=1e-12)
        assert facts.size == facts.rank == 9


def _plan_order(problem):
    """Where in theta the columns of written rows lie: weight and bias of a layer side by side, output by output."""
    own = dict(problem.model.named_parameters())
    order, at, layers = [], 0, {}
    for name in problem.names:
        layers.setdefault(name.rpartition(".")[0], []).append(
            np.arange(at, at + own[name].numel()).reshape(len(own[name]), -1)
        )
        at += own[name].numel()
    for columns in layers.values():
        order.append(np.concatenate(columns, axis=1).ravel())
    return np.concatenate(order)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": "sampled"}, "rows must be one of trak, margin, logits, label, got 'sampled'"),
        pytest.param(
            {"draw": "fft"},
            "draw must be one of rademacher, gaussian, orthogonal, got 'fft'",
            marks=pytest.mark.untyped,
        ),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"damping": 0.0}, "Projected needs a finite damping > 0, got 0.0"),
        ({"damping": [0.1, float("nan")]}, "Projected needs a finite damping > 0, got nan"),
    ],
)
def test_settings_are_checked(options, said):
    with pytest.raises(UsageError, match=said):
        Projected(**options)


def test_what_cannot_be_projected_is_refused():
    problem = BY_NAME["mlp"].build()
    with pytest.raises(UsageError, match="with another loss use Hessian"):
        score(problem, Projected(), loss=lambda logits, y: nn.functional.cross_entropy(logits, y, reduction="none"))
    with pytest.raises(SolveError, match="lower the width"):
        score(problem, Projected(width=10_000), memory=1000)
    with pytest.raises(UsageError, match="43 parameters have no 44 orthogonal directions"):
        score(problem, Projected(width=44, draw="orthogonal"))


def test_trak_as_released_approaches_exact_trak_rows_like_ours(tmp_path):
    """It scores the margin of a query, ours its loss: one factor a query, which no correlation sees."""
    trak = pytest.importorskip("trak", reason="TRAK is not installed")
    problem, width, damping = digits_like(), 512, 1e-2
    single = problem.to(torch.float32)
    model = single.model.eval()
    traker = trak.TRAKer(
        model, "image_classification", problem.n, save_dir=tmp_path, device="cpu", proj_dim=width,
        use_half_precision=False, lambda_reg=problem.n * damping * width / problem.p, logging_level=40,
    )  # fmt: skip
    state = model.state_dict()
    traker.load_checkpoint(state, model_id=0)
    traker.featurize(batch=single.train, num_samples=problem.n)
    traker.finalize_features()
    traker.start_scoring_checkpoint(exp_name="q", checkpoint=state, model_id=0, num_targets=problem.m)
    traker.score(batch=single.queries, num_samples=problem.m)
    theirs = np.array(traker.finalize_scores(exp_name="q")).T
    exact = score(single, GaussNewton(rows="trak", damping=damping)).matrix
    ours = score(single, Projected(width=width, damping=damping)).matrix

    def likeness(got):
        """Correlation with exact rows, query by query."""
        return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(got, exact, strict=True)])

    assert likeness(ours) > 0.8 and likeness(ours) > likeness(theirs) - 0.05, (likeness(ours), likeness(theirs))
