"""Ground truth made: against the same trainings one by one, stopped, killed, shared among processes, and refused."""

import multiprocessing
import os
import subprocess
import sys
from functools import partial

import numpy as np
import own_training as own
import pytest
import small_runs
import tiny
import torch
from torch import nn
from torch.nn import functional
from upweight import StoreError, StoreMismatch, UsageError, open_truth, retrain
from upweight.design import Design
from upweight.influence.settings import AttributeSettings
from upweight.influence.truth import random_parts
from upweight.mislabelling import flip_labels
from upweight.models.errors import NonDeterministicError
from upweight.models.finetune import fine_tune
from upweight.models.refit import OwnTrainer, refit_seed
from upweight.models.run_trainer import RunTrainer
from upweight.pipeline import attribute_run
from upweight.retraining import mislabelled, mislabelled_run, retrain_run, retrain_with

TRAIN, QUERIES = (own.X, own.Y), (own.XQ, own.YQ)


def by_hand(kept, seed, fit=own.train):
    """Loss and margin of every query after one training, logit by logit."""
    model = fit(np.array(kept), own.Y.numpy(), seed)
    with torch.no_grad():
        logits = model(own.XQ).double()
    loss = functional.cross_entropy(logits, own.YQ, reduction="none")
    margin = [z[y] - torch.logsumexp(torch.cat([z[:y], z[y + 1 :]]), 0) for z, y in zip(logits, own.YQ, strict=True)]
    return loss.numpy(), torch.stack(margin).numpy()


def check(truth, fit=own.train):
    for j, kept in enumerate(truth.kept):
        for a, seed in enumerate(truth.seed[j]):
            loss, margin = by_hand(kept, int(seed), fit)
            np.testing.assert_allclose(truth.loss[j, a], loss, rtol=1e-12)
            np.testing.assert_allclose(truth.margin[j, a], margin, rtol=1e-9, atol=1e-12)


def test_random_subsets_each_have_seeds_of_their_own():
    truth = retrain(own.train, TRAIN, QUERIES, subsets=4, alpha=0.6, repeats=3, seed=5)
    np.testing.assert_array_equal(truth.kept, random_parts(own.Y.numpy(), 4, 0.6, 5))
    assert truth.seed.tolist() == [[refit_seed(5, j, a) for a in range(3)] for j in range(4)]
    assert truth.train_index.tolist() == list(range(own.N)) and truth.query_index.tolist() == list(range(own.M))
    assert truth.meta["kind"] == "lds" and truth.meta["alpha"] == pytest.approx(0.6) and truth.meta["seed"] == 5
    check(truth)


def test_leaving_out_compares_with_the_whole_under_the_same_seeds():
    truth = retrain(own.train, TRAIN, QUERIES, leave_out=[7, 2], repeats=2, seed=9)
    assert truth.kept.sum(1).tolist() == [own.N, own.N - 1, own.N - 1] and not truth.kept[1, 7] and not truth.kept[2, 2]
    assert (truth.seed == truth.seed[0]).all() and truth.seed[0, 0] == 9 and truth.seed[0, 1] != 9
    assert truth.meta["kind"] == "loo" and "alpha" not in truth.meta
    check(truth)


def test_parts_of_ones_own_and_a_convex_fit_is_made_once():
    kept = np.random.default_rng(3).random((3, own.N)) < 0.7
    truth = retrain(own.train, TRAIN, QUERIES, parts=kept, exact=True)
    np.testing.assert_array_equal(truth.kept, kept)
    assert truth.seed.shape == (3, 1) and truth.meta["kind"] == "sets"
    check(truth)


def test_without_queries_the_train_set_is_asked_about_itself():
    truth = retrain(own.train, TRAIN, subsets=2, repeats=1)
    assert truth.loss.shape == (2, 1, own.N)


def _interrupted(told, *what):
    """As Ctrl-C does, after one more refit."""
    told.append(what)
    if what[1] == 4:
        raise KeyboardInterrupt


def test_it_is_the_same_in_processes_and_goes_on_where_it_was_stopped(tmp_path):
    class Enough(Exception):
        pass

    told = []

    def stop(stage, done, total):
        told.append((stage, done, total))
        if done == 3:
            raise Enough

    words = {"train": TRAIN, "queries": QUERIES, "subsets": 4, "out": tmp_path / "truth.h5"}
    with pytest.raises(Enough):
        retrain(own.train, progress=stop, **words)
    assert told == [("refit", done, 8) for done in range(4)]
    with pytest.raises(StoreError, match="3 of 8 refits are done"):
        open_truth(tmp_path / "truth.h5")
    told.clear()
    with pytest.raises(KeyboardInterrupt):
        retrain(own.train, workers=2, progress=partial(_interrupted, told), **words)
    assert told[0] == ("refit", 3, 8) and 4 <= told[-1][1] < 8
    for process in multiprocessing.active_children():
        process.join(60)
    assert not multiprocessing.active_children(), "the workers end with the call"
    told.clear()
    truth = retrain(own.train, progress=lambda *what: told.append(what), **words)
    assert told[0][1] >= 4 and told[-1] == ("refit", 8, 8)
    check(truth)
    told.clear()
    again = retrain(own.train, progress=lambda *what: told.append(what), **words)
    assert told == [("refit", 8, 8)]
    np.testing.assert_array_equal(again.loss, truth.loss)
    more = retrain(own.train, progress=lambda *what: told.append(what), **(words | {"subsets": 5}))
    assert told[1:] == [("refit", 8, 10), ("refit", 9, 10), ("refit", 10, 10)]
    np.testing.assert_array_equal(more.loss[:4], truth.loss)
    assert len(open_truth(tmp_path / "truth.h5").kept) == 5


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import own_training as own
from upweight import retrain
if __name__ == "__main__":
    retrain(own.slow, (own.X, own.Y), (own.XQ, own.YQ), subsets=20, repeats=2, out={out!r},
            progress=lambda stage, done, total: print(done, flush=True))
"""


def test_killed_it_loses_no_more_than_what_was_under_way(tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "truth.h5"
    script.write_text(SCRIPT.format(tests=os.path.dirname(__file__), out=str(out)))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    reached = next(int(line) for line in process.stdout if int(line) >= 8)
    process.kill()
    process.communicate(timeout=60)
    told = []
    words = {"subsets": 20, "repeats": 2, "out": out, "progress": lambda *what: told.append(what[1])}
    truth = retrain(own.slow, TRAIN, QUERIES, **words)
    assert reached <= told[0] < 40
    check(truth)


def test_a_diverged_refit_is_kept_excluded_and_counted():
    truth = retrain(own.fragile, TRAIN, QUERIES, subsets=12, repeats=2)
    expected = truth.kept[:, :1] & (truth.seed % 2 == 0)
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(truth.diverged, expected)
    j = int(np.flatnonzero(expected.sum(1) == 1)[0])
    a = int(np.flatnonzero(~expected[j])[0])
    np.testing.assert_array_equal(truth.mean()[j], truth.loss[j, a])


def test_another_error_of_the_users_ends_it_and_what_was_done_stays(tmp_path):
    kept = np.ones((4, own.N), dtype=bool)
    kept[[1, 2, 3], [3, 5, 6]] = False
    with pytest.raises(RuntimeError, match="example 5 is missing"):
        retrain(own.failing, TRAIN, QUERIES, parts=kept, repeats=1, out=tmp_path / "truth.h5")
    kept[2, [5, 7]] = True, False
    told = []
    retrain(
        own.failing,
        TRAIN,
        QUERIES,
        parts=kept,
        repeats=1,
        out=tmp_path / "truth.h5",
        progress=lambda *w: told.append(w[1]),
    )
    assert told[0] == 2


def drifting(kept, labels, seed):
    model = own.train(kept, labels, seed)
    model.bias.data.add_(float(np.random.default_rng().normal()))
    return model


def test_training_that_cannot_be_repeated_is_refused_before_anything_is_kept(tmp_path):
    with pytest.raises(NonDeterministicError, match="first in bias"):
        retrain(drifting, TRAIN, QUERIES, subsets=3, out=tmp_path / "truth.h5")
    with pytest.raises(StoreError, match="0 of 6 refits"):
        open_truth(tmp_path / "truth.h5")


def test_queries_that_are_train_examples_are_refused_with_their_ids():
    mixed = torch.cat([own.XQ, own.X[[4, 9]]]), torch.cat([own.YQ, own.Y[[4, 9]]])
    with pytest.raises(
        UsageError, match=r"2 of 8 queries are train examples too: 6 \(train 4\), 7 \(train 9\); take them"
    ):
        retrain(own.train, TRAIN, mixed, subsets=2)
    assert retrain(own.train, TRAIN, mixed, subsets=2, repeats=1, allow_overlap=True).loss.shape == (2, 1, 8)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"alpha": 0.4}, "alpha=0.5; this run asks for alpha=0.4"),
        ({"seed": 1}, "seed=0; this run asks for seed=1"),
        ({"train": (own.X + 1, own.Y)}, "train_sha256"),
        ({"queries": (own.XQ, 1 - own.YQ)}, "queries_sha256"),
        ({"fit": own.fragile}, "code_sha256.*name=train"),
        ({"settings": {"rate": 0.1}}, r"settings.rate=\(not set\)"),
        ({"repeats": 1}, "repeats=2; this run asks for repeats=1"),
    ],
)
def test_a_truth_made_otherwise_is_refused(tmp_path, change, shown):
    words = {"fit": own.train, "train": TRAIN, "queries": QUERIES, "subsets": 2, "out": tmp_path / "truth.h5"}
    retrain(**words)
    with pytest.raises(StoreMismatch, match=shown):
        retrain(**(words | change))


def test_a_class_that_a_subset_loses_is_named():
    rare = torch.zeros(own.N, dtype=torch.int64)
    rare[3] = 1
    with pytest.raises(UsageError, match=r"Subset \d+ of 8 has no example of class 1"):
        retrain(own.train, (own.X, rare), QUERIES, subsets=8)
    with pytest.raises(UsageError, match="Subset 2 of 3 has no example of class 1"):
        retrain(own.train, (own.X, rare), QUERIES, leave_out=[0, 3])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"subsets": 3, "leave_out": [1]}, "subsets and leave_out say in different ways"),
        ({"leave_out": [1], "parts": np.ones((1, own.N), dtype=bool)}, "leave_out and parts"),
        ({"subsets": 0}, "subsets is 0"),
        ({"subsets": 2.5}, "subsets is 2.5"),
        ({"repeats": 0}, "repeats is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"alpha": 1.0}, "above 0 and below 1"),
        ({"workers": 0}, "workers is 0"),
        ({"leave_out": [own.N]}, f"between 0 and {own.N - 1}"),
        ({"parts": np.ones((2, 3), dtype=bool)}, rf"parts is bool \[2, 3\]; give truth values \[J, {own.N}\]"),
        ({"parts": np.ones((2, own.N))}, "parts is float64"),
        ({"parts": np.zeros((2, own.N), dtype=bool)}, "an example in each"),
        ({"fit": lambda kept, labels, seed: own.train(kept, labels, seed), "workers": 2}, "workers=1"),
    ],
)
def test_words_that_do_not_fit_are_refused(words, message):
    with pytest.raises(UsageError, match=message):
        retrain(
            **({"fit": own.train, "train": TRAIN, "queries": QUERIES, "subsets": 2} | _without_subsets(words) | words)
        )


def _without_subsets(words):
    return {"subsets": None} if {"leave_out", "parts"} & words.keys() else {}


# ---- runs ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_runs.target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_runs.source(tmp_path_factory.mktemp("source"))


def test_a_run_keeps_its_truths_in_its_folder_and_scores_made_anew_leave_them(tmp_path, source, data):
    run = fine_tune(source, data, small_runs.recipe(), tmp_path / "run")
    truth = retrain_run(run.path, Design(parts=np.ones((1, small_runs.N), dtype=bool), repeats=1))
    logits = run.model.model(run.test.images(slice(None))).detach().double()
    loss = functional.cross_entropy(logits, run.test.labels, reduction="none")
    np.testing.assert_allclose(truth.loss[0, 0], loss, rtol=1e-5, atol=1e-6)  # the run itself, in other batches
    assert truth.query_index.tolist() == run.test.index.tolist() and truth.seed.tolist() == [[3]]
    lds = retrain_run(run, Design(subsets=2, alpha=0.8, repeats=1))
    assert len(retrain_run(run, Design(subsets=3, alpha=0.8, repeats=1)).kept) == 3
    np.testing.assert_array_equal(lds.loss, retrain_run(run.path, Design(subsets=2, alpha=0.8, repeats=1)).loss)
    kinds = sorted(file.name.partition("-")[0] for file in (run.path / "truth").iterdir())
    assert kinds == ["lds", "sets"]
    before = tiny.state(run.path / "truth")
    for settings in (AttributeSettings(curvature="gradient-dot"), AttributeSettings(curvature="gradient-cosine")):
        attribute_run(run, settings, overwrite=True)
    assert tiny.state(run.path / "truth") == before
    retrain_run(run, Design(subsets=2, alpha=0.7, repeats=1))
    assert len(list((run.path / "truth").iterdir())) == 3, "another share, another file"


def test_the_head_of_a_run_is_refitted_to_its_optimum(tmp_path, source, data):
    runs = [
        fine_tune(source, data, small_runs.recipe(k=0, weight_decay=decay), tmp_path / f"{decay}")
        for decay in (0.1, 0.2)
    ]
    design = Design(leave_out=(3, 8))
    truth = retrain_with(RunTrainer(runs[0]), design, out=tmp_path / "loo.h5")
    assert truth.seed.shape == (3, 1) and not truth.diverged.any()
    assert truth.meta["trainer"]["refit"] == "convex to 1e-08"
    assert 0 < np.abs(truth.loss[1:] - truth.loss[:1]).max() < 1
    with pytest.raises(StoreMismatch, match=r"trainer\.recipe\.weight_decay=0\.1; this run asks .*weight_decay=0\.2"):
        retrain_with(RunTrainer(runs[1]), design, out=tmp_path / "loo.h5")


def test_a_run_asked_about_its_own_train_images_is_refused(tmp_path, source):
    run = fine_tune(source, small_runs.target(tmp_path, shared=[(4, 9)]), small_runs.recipe(k=0), tmp_path / "run")
    with pytest.raises(UsageError, match=r"1 of 9 queries are train examples too: 4 \(train 9\)"):
        retrain_run(run, Design(subsets=2, alpha=0.8))
    assert retrain_run(run, Design(subsets=2, alpha=0.8), allow_overlap=True).loss.shape == (2, 1, 9)


# ---- labels changed on purpose ---------------------------------------------------------------------------------------------


def test_flipped_labels_are_of_another_class_drawn_evenly():
    labels = np.random.default_rng(0).integers(0, 4, 6000) * 3
    found = flip_labels(labels, 0.25, 1)
    changed = found != labels
    assert changed.sum() == 1500 and {*found} == {0, 3, 6, 9}
    moves = np.array([[(found[changed & (labels == a)] == b).sum() for b in (0, 3, 6, 9)] for a in (0, 3, 6, 9)])
    assert (np.diag(moves) == 0).all()
    each = moves[~np.eye(4, dtype=bool)]
    assert np.abs(each - 125).max() < 4 * np.sqrt(125), "four standard errors"
    np.testing.assert_array_equal(found, flip_labels(labels, 0.25, 1))
    assert (found != flip_labels(labels, 0.25, 2)).any()


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_of_none_or_all_is_refused(share):
    with pytest.raises(UsageError, match="above 0 and below 1"):
        flip_labels(np.arange(10) % 2, share, 0)


def test_one_class_has_no_other():
    with pytest.raises(UsageError, match="one label"):
        flip_labels(np.zeros(5, dtype=np.int64), 0.2, 0)


def test_mislabelled_networks_are_trained_once_and_read_back(tmp_path, monkeypatch):
    trainer = OwnTrainer(own.train, TRAIN, QUERIES, seed=4, make=partial(nn.Linear, 3, 2))
    out = tmp_path / "wrong.safetensors"
    found = mislabelled(trainer, 0.2, 3, out=out)
    np.testing.assert_array_equal(found.labels, flip_labels(own.Y.numpy(), 0.2, 3))
    np.testing.assert_array_equal(found.flipped, found.labels != own.Y.numpy())
    expected = own.train(np.ones(own.N, dtype=bool), found.labels, 4).state_dict()
    monkeypatch.setattr(trainer, "fit", None)
    again = mislabelled(trainer, 0.2, 3, out=out)
    for name, value in expected.items():
        assert torch.equal(found.model.state_dict()[name], value) and torch.equal(again.model.state_dict()[name], value)
    np.testing.assert_array_equal(again.flipped, found.flipped)
    with pytest.raises(StoreMismatch, match=r"share=0.2; this run asks for share=0.3"):
        mislabelled(trainer, 0.3, 3, out=out)
    with pytest.raises(UsageError, match="give the trainer a `make`"):
        mislabelled(OwnTrainer(own.train, TRAIN, QUERIES, seed=4), 0.2, 3, out=out)
    out.write_bytes(out.read_bytes()[:50])
    with pytest.raises(StoreError, match="take it away"):
        mislabelled(trainer, 0.2, 3, out=out)


def test_a_run_with_changed_labels_is_kept_in_its_folder(tmp_path, source, data):
    run = fine_tune(source, data, small_runs.recipe(k=0, weight_decay=0.1), tmp_path / "run")
    found = mislabelled_run(run, 0.2)
    (file,) = (run.path / "truth").iterdir()
    assert file.name.startswith("mislabel-") and found.flipped.sum() == 3
    before = tiny.state(run.path)
    again = mislabelled_run(run.path, 0.2)
    assert tiny.state(run.path) == before
    for one, other in zip(found.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    head = RunTrainer(run).fit(np.ones(small_runs.N, dtype=bool), found.labels, 0)
    torch.testing.assert_close(found.model.net.fc.weight, head.weight.float())
