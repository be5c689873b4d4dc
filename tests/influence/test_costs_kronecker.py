"""What approximations by layers and iterations are said to take."""

import pytest
from cases import BY_NAME
from upweight import EKFAC, KFAC, ConjugateGradient, estimate
from upweight.influence import calibrate


@pytest.fixture(autouse=True)
def no_time_is_spent(monkeypatch):
    """No test looks at seconds: each call is run twice, and large matrices are not tried."""
    monkeypatch.setattr(calibrate, "SLOT", 1e-6)
    monkeypatch.setattr(calibrate, "LARGEST", dict.fromkeys(calibrate.LARGEST, 16))
    monkeypatch.setattr(calibrate, "LARGEST_EIGEN", 16)


@pytest.mark.parametrize("name", ["conv", "head"])
@pytest.mark.parametrize(
    ("curvature", "stages"),
    [
        (KFAC(), ["Kronecker factors", "train gradients", "scores"]),
        (EKFAC(others="skip", rows="label"), ["Kronecker factors", "train gradients", "scores"]),
        (ConjugateGradient(), ["preconditioner", "train gradients", "solve and score"]),
        (ConjugateGradient(curvature="hessian", damping=2.0), ["preconditioner", "train gradients", "solve and score"]),
    ],
)
def test_every_stage_is_counted(name, curvature, stages):
    problem = BY_NAME[name].build()
    found = estimate(problem.model, problem.train, problem.queries, parameters=problem.parameters, curvature=curvature)
    assert [stage.name for stage in found.stages][2:] == stages
    assert all(stage.seconds > 0 for stage in found.stages) and found.memory > 0
    assert bool(found.notes) == isinstance(curvature, ConjugateGradient)
