from dataclasses import replace

import numpy as np
import pytest
from upweight.influence.scores import Scores
from upweight.reports.class_match import ClassMatch
from upweight.reports.conclusions import conclude
from upweight.reports.runs import group_runs
from upweight.reports.settings import ReportSettings


def sentences(runs):
    (group,) = group_runs(runs)
    return conclude(ClassMatch(group, "test", ReportSettings(ranks=5)))


def remade(run, matrix, residual_of=None):
    """The run with other scores, and with residuals that say nothing where `residual_of` is given."""
    old = run.scores[""]
    q, t = old.queries, old.train
    if residual_of is not None:
        q, t = (replace(e, residual=residual_of.standard_normal(e.residual.shape)) for e in (q, t))
    return replace(run, scores={"": Scores(matrix, q, t, spectrum=old.spectrum, meta=old.meta)})


def same_class(run, share, rng):
    """Scores that put a neighbour of the right class first for a share of the queries."""
    q, t = run.main.queries.label, run.main.train.label
    right = np.where(rng.random(len(q)) < share, 1.0, -1.0)[:, None]
    return right * (q[:, None] == t) + 0.01 * rng.random((len(q), len(t)))


def test_labels_that_do_as_well_are_named(build_all):
    first, cosine, predicted = sentences(build_all())
    assert "carries no evidence about the representation" in first
    assert "100.0% (natural) and 100.0% (robust)" in first  # the residual dot product
    assert "(with damping " in first
    assert "robust minus natural is" in cosine and "over 3 seeds" in cosine
    assert "accuracy" in predicted


def test_what_influence_adds_is_named_when_it_is_there(build_all):
    rng = np.random.default_rng(0)
    runs = [remade(run, same_class(run, 1.0, rng), residual_of=rng) for run in build_all()]
    (first, *_) = sentences(runs)
    assert "what influence adds to it is +" in first and "carries no evidence" not in first


def test_what_intervals_do_not_settle_is_left_open(build_all):
    rng = np.random.default_rng(0)
    shares = [0.02, 0.02, 0.98, 0.98]  # by seed and source: a mean gain, far from settled by two seeds
    runs = [
        remade(run, same_class(run, share, rng), residual_of=rng)
        for run, share in zip(build_all(seeds=2), shares, strict=True)
    ]
    (first, *_) = sentences(runs)
    assert "do not tell influence apart from it" in first


@pytest.mark.parametrize(("gain", "verdict"), [(0.5, "robust is higher"), (0.0, "not told apart")])
def test_sources_are_told_apart_by_the_interval_alone(build_all, gain, verdict):
    rng = np.random.default_rng(3)

    def with_features(run):
        share = 0.3 + (gain if run.source == "robust" else 0.0)
        scores = run.scores[""]
        kept = rng.random(len(scores.queries)) < share
        unit = np.eye(10)
        q = np.where(kept[:, None], unit[scores.queries.label], unit[(scores.queries.label + 1) % 10])
        examples = (replace(scores.queries, features=q), replace(scores.train, features=unit[scores.train.label]))
        return replace(run, scores={"": Scores(scores.matrix, *examples, spectrum=scores.spectrum, meta=scores.meta)})

    text = next(
        s for s in sentences([with_features(run) for run in build_all(m=200)]) if s.startswith("Feature cosine")
    )
    assert verdict in text


def test_a_single_run_is_described_without_differences(build):
    text = " ".join(sentences([build()]))
    assert "minus" not in text and "Feature cosine" in text


def test_scores_alone_support_no_sentence(build):
    run = build()
    bare = [replace(e, residual=None, features=None) for e in (run.main.queries, run.main.train)]
    assert sentences([replace(run, scores={"": Scores(run.main.matrix, *bare)})]) == []
