from dataclasses import fields

import pytest
from upweight.models.settings import FineTuneSettings, recipe_label

ORDINARY = {
    *("k", "n", "seed", "images_seed", "epochs", "batch_size", "learning_rate", "momentum", "weight_decay"),
    *("cache_mb", "evaluate_every", "device"),
}
"""What every recipe has, or what changes no weight."""

CASES = {
    "hidden": ({"hidden": 2}, "2 hidden layers"),
    "hidden_width": ({"hidden": 1, "hidden_width": 32}, "1 hidden layer of 32"),
    "head_batch_norm": ({"hidden": 1, "head_batch_norm": True}, "1 hidden layer with batch-norm"),
    "head_dropout": ({"hidden": 1, "head_dropout": 0.5}, "1 hidden layer with dropout 0.5"),
    "head_first": ({"head_first": 0.25}, "head first 0.25"),
    "lwf": ({"lwf": 0.005, "k": 1}, "LwF 0.005"),
    "lwf_distance": ({"lwf": 0.005, "k": 1, "lwf_distance": "l2"}, "LwF 0.005 L2"),
    "neft": ({"neft": 0.4}, "NEFT 0.4"),
    "bn_affine": ({"bn_affine": False}, "affine frozen"),
    "bn_statistics": ({"bn_statistics": "none"}, "statistics none"),
    "fresh": ({"fresh": True, "k": 1}, "fresh blocks"),
    "adversarial": ({"adversarial": True}, "adversarial L2 1 PGD-3"),
    "norm": ({"adversarial": True, "norm": "linf"}, "adversarial Linf 1 PGD-3"),
    "eps": ({"adversarial": True, "eps": 0.25}, "adversarial L2 0.25 PGD-3"),
    "steps": ({"adversarial": True, "steps": 7}, "adversarial L2 1 PGD-7"),
    "step_size": ({"adversarial": True, "step_size": 0.5}, "adversarial L2 1 PGD-3 step 0.5"),
    "shift": ({"shift": 2}, "shift 2"),
    "flip": ({"flip": True}, "flip"),
    "rotate": ({"rotate": 7.5}, "rotate 7.5"),
    "counting": ({"counting": "cartl", "k": 1}, "k as CARTL counts"),
}


@pytest.mark.parametrize(("options", "label"), CASES.values(), ids=CASES)
def test_what_a_recipe_does_otherwise_is_named(options, label):
    assert recipe_label(FineTuneSettings(**options)) == label


def test_every_setting_of_a_recipe_has_words():
    assert {field.name for field in fields(FineTuneSettings)} - ORDINARY == set(CASES)


def test_a_plain_recipe_has_none():
    assert recipe_label(FineTuneSettings(k="all", n=50, epochs=3, learning_rate=1e-3, batch_size=8, seed=1)) == ""


def test_what_comes_with_a_recipe_is_not_named_again():
    lwf = FineTuneSettings(k=1, lwf=0.005)
    assert recipe_label(FineTuneSettings(**lwf.recipe())) == "LwF 0.005"  # as run.json has it: all of it written out
    other = FineTuneSettings(k=1, lwf=0.005, bn_statistics="trained", head_first=0.0, neft=0.6)
    assert recipe_label(other) == "LwF 0.005, head first 0, NEFT 0.6, statistics trained"
