"""EK-FAC against the tool that made it known."""

import cases
import numpy as np
import pytest
import torch
from torch import nn
from upweight import EKFAC, KFAC, attribute


def network():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)
    )  # fmt: skip


@pytest.mark.parametrize("build", [EKFAC, KFAC])
def test_scores_are_those_of_kronfluence(build, tmp_path):
    """With the empirical Fisher neither tool draws labels.

    kronfluence takes the mean over positions for both factors, where ours has their sum over the inputs' (Grosse and Martens):
    its K-FAC eigenvalues are ours over the number of positions, so only a network without convolutions is compared for them.
    """
    pytest.importorskip("kronfluence")
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from torch.utils.data import TensorDataset

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    torch.manual_seed(0)
    model = network() if build is EKFAC else nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3))
    X, y = torch.randn(40, 1, 4, 4), torch.arange(40) % 3
    ours = attribute(
        model, (X[:30], y[:30]), (X[30:], y[30:]), parameters="all", curvature=build(damping=1e-2, rows="label")
    ).matrix
    prepared = prepare_model(model.eval(), Classification())
    analyzer = Analyzer("test", prepared, Classification(), cpu=True, output_dir=str(tmp_path), disable_tqdm=True)
    strategy = build.__name__.lower()
    train, queries = TensorDataset(X[:30], y[:30]), TensorDataset(X[30:], y[30:])
    analyzer.fit_all_factors(
        "f", train, per_device_batch_size=10, factor_args=FactorArguments(strategy=strategy, use_empirical_fisher=True)
    )
    analyzer.compute_pairwise_scores(
        "s", "f", queries, train, per_device_query_batch_size=10, per_device_train_batch_size=10,
        score_args=ScoreArguments(damping_factor=1e-2),
    )  # fmt: skip
    theirs = analyzer.load_pairwise_scores("s")["all_modules"].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * abs(theirs).max())


def test_gradients_that_are_not_kept_are_formed_again(monkeypatch):
    from upweight.influence import kronecker

    problem = cases.BY_NAME["conv"].build()

    def scored():
        return attribute(problem.model, problem.train, problem.queries, parameters="all", curvature=EKFAC()).matrix

    kept = scored()
    monkeypatch.setattr(kronecker, "KEPT_SHARE", 2**60)
    np.testing.assert_allclose(scored(), kept, rtol=1e-12)


def test_fewer_eigenvalues_are_listed_than_there_are(monkeypatch):
    from upweight.influence import kronecker_curvature

    monkeypatch.setattr(kronecker_curvature, "SHOWN", 10)
    problem = cases.BY_NAME["mlp"].build()
    spectrum = attribute(
        problem.model, problem.train, problem.queries, parameters="all", curvature=EKFAC(damping=1.0)
    ).spectrum
    assert spectrum.eigenvalues is None and spectrum.size == problem.p
    assert spectrum.condition == pytest.approx((spectrum.lambda_max + 1) / (spectrum.lambda_min + 1))
