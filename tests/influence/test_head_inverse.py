"""Which inverse a head gets, and that each of them gives the same scores: on small problems treated as large ones."""

import numpy as np
import pytest
import reference
import torch
from cases import BY_NAME, HEAD_CASES
from methods import assert_scores, pair_name, parts
from numpy.testing import assert_allclose
from upweight import LinearHead, attribute
from upweight.influence import head, head_hessian, head_inverse
from upweight.influence.head_inverse import Factored, Spectral, invert
from upweight.influence.tiles import Tiles

EPS = torch.finfo(torch.float64).eps
SINGLE, DOUBLE = torch.float32, torch.float64


@pytest.fixture
def large(monkeypatch):
    """Every problem counts as too large for all its eigenvalues, and takes many tiles."""
    monkeypatch.setattr(head_inverse, "SPECTRUM_LIMIT", 0)
    monkeypatch.setattr(head_hessian, "TILE", 8)
    monkeypatch.setattr(head_hessian, "PIECE_BYTES", 1000)


@pytest.fixture
def found(monkeypatch):
    """The inverses that are made."""
    made = []

    def noted(*args):
        made.append(invert(*args))
        return made[-1]

    monkeypatch.setattr(head, "invert", noted)
    return made


def score(case, dtype=DOUBLE, **options):
    problem = case.build(dtype=dtype)
    return attribute(
        problem.model, problem.train, problem.queries, parameters=problem.parameters, curvature=LinearHead(**options)
    )


def truth(case, dtype=DOUBLE, **options):
    ask = parts(case, dtype)
    return ask.through(reference.inverse(ask.ggn, **options))


@pytest.mark.usefixtures("large")
class TestLarge:
    @pytest.mark.parametrize("case", HEAD_CASES, ids=pair_name)
    @pytest.mark.parametrize("damping", [0.0, 1e-2])
    def test_float64_scores_are_those_of_the_loops(self, case, damping):
        assert_scores(score(case, damping=damping).matrix, truth(case, damping=damping), 1e-8)

    @pytest.mark.parametrize("case", HEAD_CASES, ids=pair_name)
    @pytest.mark.parametrize("damping", [0.0, 1e-2])
    def test_float32_scores_are_those_of_the_loops(self, case, damping):
        assert_scores(score(case, SINGLE, damping=damping).matrix, truth(case, SINGLE, damping=damping), 1e-4)

    def test_float64_is_exact_to_rounding(self):
        case = BY_NAME["head"]
        assert_scores(score(case, damping=1e-3).matrix, truth(case, damping=1e-3), 1e-12)

    @pytest.mark.parametrize("name", ["head", "two-classes", "few-examples", "dead-units", "bias-only", "fitted"])
    @pytest.mark.parametrize(("dtype", "damping"), [(DOUBLE, 0.0), (DOUBLE, 1e-2), (SINGLE, 1e-2)])
    def test_regular_problems_are_factored_in_their_own_type(self, found, name, dtype, damping):
        score(BY_NAME[name], dtype, damping=damping)
        (inverse,) = found
        assert isinstance(inverse, Factored) and inverse.dtype == dtype

    def test_float32_factor_of_a_condition_too_bad_for_it_is_not_taken(self, monkeypatch, found):
        monkeypatch.setattr(head_inverse, "SINGLE_CONDITION", 10.0)
        case = BY_NAME["head"]
        assert_scores(score(case, SINGLE, damping=1e-2).matrix, truth(case, SINGLE, damping=1e-2), 1e-6)
        assert isinstance(found[0], Factored) and found[0].dtype == DOUBLE

    @pytest.mark.parametrize("wanted", [1e-6, 1e-11])
    def test_solutions_of_a_float32_factor_are_refined_to_what_is_wanted(self, monkeypatch, found, wanted):
        monkeypatch.setattr(head_inverse, "SINGLE_ERROR", wanted)
        score(BY_NAME["head"], SINGLE, damping=1e-3)
        (inverse,) = found
        G = torch.randn(3, 7, 40, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
        H = inverse.hessian.assemble(1e-3).dense().numpy()
        want = np.linalg.solve(H, G.reshape(21, 40).numpy())
        r = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
        train = np.einsum("na,nk->akn", r.numpy(), inverse.hessian.psi.numpy()).reshape(21, 40)
        want, got = want.T @ train, inverse.solve(G, r).reshape(21, 40).numpy().T @ train
        assert inverse.dtype == SINGLE
        # of each train example's largest score; estimated from a sample, and from the first of the corrections
        assert (abs(got - want).max(0) / abs(want).max(0)).max() < 10 * wanted

    def test_a_fitted_query_does_not_underflow_in_float32(self, found):
        score(BY_NAME["head"], SINGLE, damping=1e-2)
        (inverse,) = found
        G = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
        r = torch.ones(40, 3, dtype=DOUBLE)
        tiny, plain = inverse.solve(1e-60 * G, r).numpy(), inverse.solve(G, r).numpy()
        assert_allclose(tiny, 1e-60 * plain, rtol=1e-3, atol=1e-66)

    def test_nothing_is_lost_where_cholesky_fails(self, monkeypatch, found):
        monkeypatch.setattr(Tiles, "factor_", lambda self: False)
        case = BY_NAME["head"]
        assert_scores(score(case, damping=1e-2).matrix, truth(case, damping=1e-2), 1e-8)
        assert isinstance(found[0], Spectral)

    def test_what_a_cutoff_cuts_is_cut(self, found):
        case = BY_NAME["head"]
        assert_scores(score(case, rcond=0.1).matrix, truth(case, rcond=0.1), 1e-8)
        assert isinstance(found[0], Spectral)

    def test_cutoff_below_every_eigenvalue_changes_nothing(self, found):
        case = BY_NAME["head"]
        assert_scores(score(case, rcond=1e-9).matrix, truth(case), 1e-8)
        assert isinstance(found[0], Factored)

    @pytest.mark.parametrize("damping", [0.0, 0.5])
    def test_facts_are_near_those_of_all_eigenvalues(self, damping):
        case = BY_NAME["head"]
        values = np.linalg.eigvalsh(parts(case).ggn)[::-1][:21]
        facts = score(case, damping=damping).spectrum
        assert (facts.size, facts.rank, facts.damping, facts.eigenvalues) == (21, 21, damping, None)
        assert_allclose(facts.lambda_max, values[0], rtol=1e-2)
        # an upper bound; of a damped matrix all small eigenvalues look alike, and are only told from the damping
        assert values[-1] * (1 - 1e-9) <= facts.lambda_min <= 1.5 * values[-1] + 0.01 * damping
        assert_allclose(facts.smallest_kept, facts.lambda_min + damping)
        assert_allclose(facts.condition, (facts.lambda_max + damping) / facts.smallest_kept)
        assert facts.cutoff == (0 if damping else pytest.approx(21 * EPS * values[0], rel=1e-2))

    def test_sensitivity_is_told_only_where_it_is_known(self):
        unchanged = dict.fromkeys([f"top{k}_changed_at_{f}" for k in (1, 5) for f in ("0.1x", "10x")], 0.0)
        assert score(BY_NAME["head"]).spectrum.sensitivity == unchanged
        assert score(BY_NAME["head"], damping=1e-2).spectrum.sensitivity == {}


class TestSmall:
    @pytest.mark.parametrize(("rcond", "kind"), [(None, Factored), (1e-9, Factored), (1e-2, Spectral)])
    @pytest.mark.parametrize("name", ["head", "fitted", "saturated"])
    def test_cholesky_where_nothing_is_cut(self, found, name, rcond, kind):
        case = BY_NAME[name]
        facts = score(case, rcond=rcond).spectrum
        assert isinstance(found[0], kind)
        values = np.linalg.eigvalsh(parts(case).ggn)[::-1]
        assert facts.rank == (values > (rcond or 1e-11) * values[0]).sum()
        assert (facts.rank < facts.size) is (kind is Spectral)

    @pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
    def test_small_problems_are_float64_whatever_their_type(self, found, dtype):
        score(BY_NAME["head"], dtype, damping=1e-2)
        assert found[0].dtype == DOUBLE

    def test_sensitivity_to_the_damping_is_that_of_scores_at_other_dampings(self):
        case = BY_NAME["head"]
        facts = score(case, damping=0.05).spectrum

        def first(damping):
            return np.argsort(-truth(case, damping=damping), axis=1, kind="stable")[:, :5]

        for name, factor in (("0.1x", 0.1), ("10x", 10.0)):
            changed = first(0.05)[:, 0] != first(0.05 * factor)[:, 0]
            assert facts.sensitivity[f"top1_changed_at_{name}"] == pytest.approx(changed.mean())
        assert facts.sensitivity["top5_changed_at_10x"] > 0

    def test_neighbours_across_a_cutoff_differ(self):
        facts = score(BY_NAME["head"], rcond=1e-2).spectrum
        assert set(facts.sensitivity) == {f"top{k}_changed_at_{f}" for k in (1, 5) for f in ("0.1x", "10x")}
        assert max(facts.sensitivity.values()) > 0
