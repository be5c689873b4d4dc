"""Settings refuse what cannot be meant, and stay light enough for the command line."""

import dataclasses
import inspect
import subprocess
import sys

import pytest
from upweight import UsageError
from upweight.models.settings import (
    ConvertSettings,
    DataSettings,
    FineTuneSettings,
    PGDSettings,
    PretrainSettings,
    RobustnessSettings,
)

ALL = [ConvertSettings, DataSettings, PGDSettings, RobustnessSettings, PretrainSettings, FineTuneSettings]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PGDSettings(norm="l1"), "l2, linf"),
        (lambda: PGDSettings(eps=float("nan")), "eps is nan"),
        (lambda: PGDSettings(eps=-1.0), "eps is -1.0"),
        (lambda: PGDSettings(steps=-1), "steps is -1"),
        (lambda: PGDSettings(step_size=0.0), "step_size is 0.0"),
        (lambda: PGDSettings(restarts=0), "restarts is 0"),
        (lambda: PGDSettings(keep="best"), "last, loss, success"),
        (lambda: PretrainSettings(epochs=0), "epochs is 0"),
        (lambda: PretrainSettings(norm="l1"), "norm is 'l1'"),
        (lambda: PretrainSettings(warm_up=1.0), "warm_up is 1.0"),
        (lambda: PretrainSettings(learning_rate=0.0), "learning_rate is 0.0"),
        (lambda: FineTuneSettings(k=-1), "k is -1"),
        (lambda: FineTuneSettings(n=0), "n is 0"),
        (lambda: FineTuneSettings(batch_size=0), "batch_size is 0"),
        (lambda: FineTuneSettings(weight_decay=float("inf")), "weight_decay is inf"),
        (lambda: DataSettings(data=""), "data is empty"),
        (lambda: ConvertSettings(input_shape=(3, 32)), "channels, height and width"),
        (lambda: ConvertSettings(beta=0.0), "beta is 0.0"),
    ],
)
def test_refuses_in_one_sentence(make, words):
    with pytest.raises(UsageError, match=words) as caught:
        make()
    assert str(caught.value).endswith(".")


def test_epochs_follow_the_paper_unless_given():
    assert FineTuneSettings().epochs_for(1600) == 100
    assert FineTuneSettings().epochs_for(1601) == 150
    assert FineTuneSettings(epochs=7).epochs_for(5000) == 7


def test_step_size_defaults_to_two_and_a_half_radii_over_the_steps():
    assert PGDSettings(eps=2.0, steps=20).stride == pytest.approx(0.25)
    assert PGDSettings(eps=2.0, steps=20, step_size=0.5).stride == pytest.approx(0.5)


@pytest.mark.parametrize("settings", ALL)
def test_every_field_is_explained_below_it(settings):
    classes = [cls for cls in settings.__mro__ if dataclasses.is_dataclass(cls)]
    lines = [line for cls in classes for line in inspect.getsource(cls).splitlines()]
    for field in dataclasses.fields(settings):
        at = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{field.name}:"))
        assert lines[at + 1].strip().startswith('"""'), field.name


def test_settings_do_not_import_torch():
    code = "import sys, upweight.models.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
