"""The training of a run, replayed: to the very bits of the run, and differentiated step by step."""

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tiny
import torch
import upweight
from numpy.testing import assert_allclose
from torch import nn
from upweight import Unrolled, UsageError
from upweight.models.runs import load_run

BASE = ("--n", 20, "--epochs", 2, "--batch-size", 8, "--device", "cpu")
RECIPES = {
    "head": ("--k", 0),
    "block": ("--k", 1),
    "all statistics, images changed": ("--k", 1, "--bn-statistics", "all", "--shift", 1, "--flip"),
    "lwf after the head": ("--k", 1, "--lwf", 0.1, "--head-first", 0.5),
    "dropout": ("--k", 1, "--hidden", 1, "--hidden-width", 6, "--head-dropout", 0.5, "--head-batch-norm"),
}
SMOOTH = ["head", "lwf after the head", "dropout"]
"""Whose derivatives are held against re-runs: head-first steps, a further term of the loss, draws of dropout, batch-norm."""


@cache
def made(name):
    out = tiny.folder() / "recorded" / name.replace(" ", "-").replace(",", "")
    tiny.done("fine-tune", "--data", tiny.data(), *BASE, *RECIPES[name], "--out", out)
    return load_run(out)


def scored(run, recording, m=3, **options):
    queries = run.test.images(slice(0, m)), run.test.labels[:m]
    return upweight.attribute(
        run.model.model, run.train, queries,
        parameters=recording.trained, curvature=Unrolled(recording), device="cpu", **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_replay_ends_at_the_bits_of_the_run(name):
    run = made(name)
    scores = scored(run, upweight.open_recording(run, device="cpu"))
    assert not [warning for warning in scores.meta["warnings"] if "replayed" in warning]
    assert np.isfinite(scores.matrix).all() and (scores.matrix != 0).all()
    assert set(scores.meta["parameters"]) == {n for n, p in recorded_names(run) if p}


def recorded_names(run):
    """Which parameters the run moved: those that differ from the source, and the head."""
    from upweight.models.runs import read_source

    before = read_source(run).model.state_dict()
    for name, value in run.model.model.named_parameters():
        yield name, name not in before or value.shape != before[name].shape or not torch.equal(value, before[name])


@pytest.mark.parametrize("name", SMOOTH)
def test_derivative_of_a_runs_own_steps(name):
    """Float64 throughout: torch's SGD over the run's steps, example weights moved a little; rectifiers may bend on the way."""
    run = made(name)
    recording = upweight.open_recording(run, device="cpu")
    recording.start = {k: v.double() if v.is_floating_point() else v for k, v in recording.start.items()}
    got = scored(run, recording, dtype=torch.float64).matrix
    direction = torch.linspace(-1, 1, 20, dtype=torch.float64)
    ends = [rerun(run, recording, 1 + h * direction) for h in (1e-6, -1e-6)]
    want = -20 * (ends[0] - ends[1]) / 2e-6
    assert_allclose(got @ direction.numpy(), want, rtol=0, atol=1e-3 * abs(want).max())


def rerun(run, recording, eps):
    """Losses of the first three queries after the run's steps with other example weights."""
    buffers = {name for name, _ in recording.model.named_buffers()}
    state = {name: value.clone() for name, value in recording.start.items()}
    theta = {name: nn.Parameter(state[name]) for name in recording.trained}
    optimizer = torch.optim.SGD(theta.values(), 0.1, recording.momentum, weight_decay=recording.weight_decay)
    assert buffers.isdisjoint(theta)
    for epoch in range(recording.stretches):
        with recording.conditions(epoch):
            for step in recording.steps(epoch):
                optimizer.zero_grad()
                (eps[step.rows] * step.losses({**state, **theta})).mean().backward()
                optimizer.param_groups[0]["lr"] = step.rate
                optimizer.step()
    with torch.no_grad():
        logits = recording.logits({**state, **theta}, run.test.images(slice(0, 3)).double())
        return nn.functional.cross_entropy(logits, run.test.labels[:3], reduction="none").numpy()


class TestCommandLine:
    def test_same_as_python(self):
        run = made("block")
        out = tiny.folder() / "recorded" / "unrolled"
        told = tiny.done(
            "attribute", run.path, "--curvature", "unrolled", "--also", "predicted", "--device", "cpu", "--out", out
        )
        assert "name: Unrolled" in told
        scores = upweight.open_scores(out / "influence.h5")
        want = scored(run, upweight.open_recording(run, device="cpu")).matrix
        assert_allclose(np.array(scores.matrix[:3]), want, rtol=0, atol=1e-5 * abs(want).max())
        assert list(scores.train.index) == run.train.index.tolist()
        predicted = upweight.open_scores(out / "influence.h5", "predicted")
        assert predicted.meta["query_label"] == "predicted"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--last", 0), "last must be at least 1"),
            (("--damping", 0.1), "has no curvature to damp or cut"),
            (("--also", "block"), "only predicted ones are made"),
            (("--dry-run",), "has no estimate"),
        ],
    )
    def test_refused(self, words, said):
        assert said in tiny.refused(2, "attribute", made("block").path, "--curvature", "unrolled", *words)

    def test_network_of_ones_own_has_no_record(self, tmp_path):
        said = tiny.refused(2, *tiny.own().words, "--curvature", "unrolled", "--out", tmp_path / "o")
        assert "upweight.Recording takes the training down" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"adversarial": True}, "trained on attacked images"),
        ({"neft": 1.0}, r"trained with scaled weights \(neft\)"),
        ({"lwf": 0.1, "lwf_distance": "l2"}, "trained with lwf_distance l2"),
    ],
)
def test_recipes_that_have_no_derivative(change, words):
    run = made("block")
    info = copy.deepcopy(dict(run.info))
    info["settings"] |= change
    with pytest.raises(UsageError, match=words):
        upweight.open_recording(replace(run, info=info))


def test_another_seed_is_another_training():
    run = made("head")
    info = copy.deepcopy(dict(run.info))
    info["settings"]["seed"] = 1
    with pytest.raises(upweight.SolveError, match="does not end at the weights of the model"):
        scored(run, upweight.open_recording(replace(run, info=info), device="cpu"))
