"""What words and files can ask of attribution, and what is refused before any work."""

import json

import pytest
from upweight import UsageError
from upweight.influence.settings import AttributeSettings, memory_bytes


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"damping": (0.1, 0.1)}, "damping names 0.1 twice; give each value once"),
        ({"damping": ("auto", 0.1, "auto")}, "damping names auto twice"),
        ({"damping": (0.1, -0.1)}, r"damping is -0\.1; give finite numbers >= 0, or auto"),
        ({"damping": (float("nan"),)}, "damping is nan"),
        ({"damping": (float("inf"),)}, "damping is inf"),
        ({"damping": ("auto",), "curvature": "hessian"}, "no rule auto"),
        ({"damping": (0.0, 0.1), "curvature": "gradient-dot"}, "gradient-dot has no curvature to damp"),
        ({"leave_one_out": "yes"}, "leave_one_out is 'yes'; choose one of score, loss"),
        ({"leave_one_out": "score", "curvature": "hessian"}, "belongs to linear-head and gauss-newton"),
        ({"rows": "margin", "curvature": "linear-head"}, "rows belong to gauss-newton"),
        ({"rank": 7}, "rank belongs to nystroem, lanczos, lanczos-hessian; the curvature here is auto"),
        ({"width": 7, "curvature": "nystroem"}, "width belongs to projected; the curvature here is nystroem"),
        ({"rank": 0, "curvature": "lanczos"}, "rank must be at least 1, got 0"),
        ({"others": "diagonal"}, "others belongs to kfac, ekfac; the curvature here is auto"),
        ({"others": "all", "curvature": "ekfac"}, "choose one of dense, diagonal, skip"),
        ({"rtol": 0.1, "curvature": "ekfac"}, "rtol belongs to conjugate-gradient"),
        ({"rtol": 2.0, "curvature": "conjugate-gradient"}, "rtol must lie between 0 and 1, got 2.0"),
        ({"max_steps": 0, "curvature": "conjugate-gradient"}, "max_steps must be at least 1, got 0"),
        ({"damping": (0.0,), "curvature": "kfac"}, "kfac needs a damping > 0"),
        ({"curvature": "conjugate-gradient-hessian"}, "give a number"),
        ({"damping": ("auto",), "curvature": "conjugate-gradient-hessian"}, "no rule auto"),
        ({"rcond": 0.1, "curvature": "ekfac"}, "ekfac has no cutoff"),
        ({"rows": "sampled", "curvature": "projected"}, "of projected choose logits, margin, trak or label"),
        ({"rows": "trak", "curvature": "nystroem"}, "rows belong to gauss-newton, kfac, ekfac and projected"),
        ({"rcond": 0.1, "curvature": "lanczos"}, "lanczos has no cutoff"),
        ({"absolute": 0.1, "curvature": "lanczos-hessian"}, "absolute and negative belong to the hessian"),
        ({"negative": "drop", "curvature": "lanczos"}, "absolute and negative belong to the hessian"),
        ({"precision": "bf16", "curvature": "hessian"}, "precision bf16 belongs to gauss-newton"),
        ({"precision": "fp8"}, "precision is .fp8.; choose one of float32, tf32, bf16"),
        ({"memory": "plenty"}, "memory is 'plenty'; give bytes, or a size such as 8GB or 512MiB"),
    ],
)
def test_what_does_not_fit_is_refused(settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        AttributeSettings(**settings)


def test_options_of_other_curvatures_decide_nothing():
    """Else scores that were made before an option was known would count as made under other settings."""
    assert not {"rank", "width"} & set(AttributeSettings().decisive())
    told = AttributeSettings(curvature="nystroem", rank=7).decisive()
    assert told["rank"] == 7 and "width" not in told
    assert AttributeSettings.of_decisive(told) == AttributeSettings(curvature="nystroem", rank=7)
    assert AttributeSettings(curvature="lanczos", damping=("auto", 0.1)).damping == ("auto", 0.1)
    assert AttributeSettings(curvature="lanczos-hessian", negative="drop").negative == "drop"
    assert AttributeSettings(also=("block",), curvature="linear-head", rank=7).rank == 7


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("8GB", 8_000_000_000),
        ("512MiB", 512 * 1024**2),
        ("1.5 GiB", 3 * 2**29),
        ("2g", 2_000_000_000),
        ("3T", 3 * 10**12),
        ("64k", 64_000),
        ("1e9", 10**9),
        ("100 B", 100),
        (8e9, 8_000_000_000),
        pytest.param(12345, 12345, marks=pytest.mark.untyped),
        (None, None),
    ],
)
def test_memory(said, size):
    assert memory_bytes(said) == size


@pytest.mark.parametrize(
    "said", ["", "GB", "-1GB", "8 GB of it", "1.2.3GB", "8XB", 0.0, -5.0, float("nan"), float("inf")]
)
def test_memory_that_cannot_be_read(said):
    with pytest.raises(UsageError, match="give bytes, or a size such as 8GB"):
        memory_bytes(said)


def test_what_changes_no_number_is_not_decisive():
    plain = AttributeSettings().decisive()
    assert AttributeSettings(memory="8GB", batch_size=3, device="cpu").decisive() == plain
    assert json.loads(json.dumps(plain))["damping"] is None and plain["leave_one_out"] is False
    assert AttributeSettings(damping=(0.25,)).decisive() == plain | {"damping": 0.25}
    assert AttributeSettings(damping=(0.1, "auto")).decisive()["damping"] == (0.1, "auto")
    assert AttributeSettings(leave_one_out="loss").decisive()["leave_one_out"] == "loss"
