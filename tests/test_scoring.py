"""Settings on their way to curvatures, and several sets of scores in one store, through the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import upweight
from cases import BY_NAME
from tiny import done, refused, strict_json
from upweight import (
    EKFAC,
    KFAC,
    ConjugateGradient,
    GaussNewton,
    GradientDot,
    Hessian,
    Lanczos,
    LinearHead,
    Nystroem,
    Projected,
    UsageError,
    pipeline,
    scoring,
)
from upweight.influence.settings import AttributeSettings

DAMPINGS = (1e-2, 0.0, 0.5)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A network of one's own scored at three dampings."""
    out = tmp_path_factory.mktemp("dampings")
    done(*tiny.own().words, "--damping", *DAMPINGS, "--dtype", "float64", "--train-scores", "--out", out)
    return out


# ---- a list of dampings ----------------------------------------------------------------------------------------------------


def test_each_damping_of_a_store_is_a_run_of_its_own(store, tmp_path):
    scores = upweight.open_scores(store / "influence.h5")
    assert list(scores.at_damping) == [0.01, 0.0, 0.5]
    for damping in DAMPINGS:
        alone = tmp_path / str(damping)
        done(*tiny.own().words, "--damping", damping, "--dtype", "float64", "--train-scores", "--out", alone)
        alone = upweight.open_scores(alone / "influence.h5")
        held = scores.at_damping[damping]
        scale = np.abs(alone.matrix[:]).max()
        np.testing.assert_allclose(held.matrix[:], alone.matrix[:], rtol=0, atol=1e-9 * scale)
        np.testing.assert_allclose(
            held.on_train.matrix[:],
            alone.on_train.matrix[:],
            rtol=0,
            atol=1e-9 * np.abs(alone.on_train.matrix[:]).max(),
        )
        assert held.meta["curvature"] == alone.meta["curvature"]


@pytest.mark.parametrize(
    ("said", "damping"),
    [("main", 0.01), ("damping=0.01", 0.01), ("damping=0.5", 0.5), ("damping=5e-1", 0.5), ("damping=0", 0.0)],
)
def test_questions_of_one_damping(store, said, damping):
    wanted = upweight.open_scores(store / "influence.h5").at_damping[damping]
    table = strict_json(done("query", store, "--query", 3, "--variant", said, "--json"))
    assert [row["train_id"] for row in table["rows"]] == wanted.top(3)["train_id"].tolist()
    assert [row["score"] for row in table["rows"]] == pytest.approx(wanted.top(3)["score"].tolist())
    facts = strict_json(done("stats", store, "--variant", said, "--json"))["spectrum"]["rows"]
    assert {row["fact"]: row["value"] for row in facts}["damping"] == damping


@pytest.mark.parametrize("said", ["damping=0.2", "damping=auto", "damping=much"])
def test_a_damping_that_is_not_there(store, said):
    sentence = refused(2, "query", store, "--query", 3, "--variant", said)
    assert f"no scores called '{said}'; it has main, damping=0, damping=0.5." in sentence


def test_info_names_every_damping(store):
    held = strict_json(done("info", store, "--json"))["store"]["variants"]
    assert {name: facts["curvature"]["damping"] for name, facts in held.items()} == {
        "main": 0.01,
        "damping=0": 0.0,
        "damping=0.5": 0.5,
    }


def test_the_list_is_replayed(store, tmp_path):
    assert "damping = [0.01, 0.0, 0.5]" in (store / "attribute.toml").read_text()
    done("attribute", "--config", store / "attribute.toml", "--out", tmp_path)
    for damping, scores in upweight.open_scores(tmp_path / "influence.h5").at_damping.items():
        same = upweight.open_scores(store / "influence.h5").at_damping[damping]
        np.testing.assert_array_equal(scores.matrix[:], same.matrix[:])


def test_other_lists_are_refused_and_memory_is_no_setting(store):
    before = tiny.state(store)
    words = (*tiny.own().words, "--dtype", "float64", "--train-scores", "--out", store)
    assert "--overwrite" in refused(4, *words, "--damping", *DAMPINGS[:2])
    assert tiny.state(store) == before
    done(*words, "--damping", *DAMPINGS, "--memory", "1GB")
    assert {name: state for name, state in tiny.state(store).items() if name.endswith(".h5")}.items() <= before.items()


def test_dampings_stand_beside_the_other_scores_of_a_run_and_in_its_report(tmp_path):
    run = tmp_path / tiny.NAMES[1]
    shutil.copytree(tiny.run(k=1), run, ignore=shutil.ignore_patterns("*.h5"))
    done("attribute", run, "--damping", 1e-2, 0.1, "--also", "damped", "predicted", "block")
    scores = pipeline.attribute_run(run, AttributeSettings(damping=(1e-2, 0.1), also=("damped", "predicted", "block")))
    assert list(scores) == ["", "block", "damped", "damping=0.1", "predicted"]
    assert list(scores[""].at_damping) == [1e-2, 0.1]
    given = {name: one.meta["curvature"]["damping"] for name, one in scores.items()}
    assert given == {"": 1e-2, "damping=0.1": 0.1, "damped": pytest.approx(5e-4), "predicted": 1e-2, "block": "auto"}
    done("report", run, "--ranks", 5, "--neighbours", 1, "--pixels", 10, "--dpi", 30, "--out", tmp_path / "page")
    stats = json.loads((tmp_path / "page/stats.json").read_text())
    assert "damping=0.1" in stats["tables"]["scores"]["columns"]["variant"]


def test_another_label_of_the_queries_needs_no_fit(tmp_path, monkeypatch):
    fits, real = [], LinearHead.fit
    monkeypatch.setattr(
        LinearHead, "fit", lambda self, *args, **options: fits.append(self) or real(self, *args, **options)
    )
    done(*tiny.own().words, "--damping", 0.1, 0.2, "--also", "predicted", "--out", tmp_path)
    assert fits == [LinearHead(damping=0.1), LinearHead(damping=0.2)]


# ---- from settings to a curvature ------------------------------------------------------------------------------------------


def prepared(case="head"):
    problem = BY_NAME[case].build()
    problem.model.eval()
    sides = scoring.Sides(problem.train, None)
    parameters = "head" if case == "head" else "all"
    return scoring.prepared_sides(problem.model, sides, AttributeSettings(parameters=parameters), None, None)


@pytest.mark.parametrize(
    ("case", "settings", "curvature"),
    [
        ("head", {}, LinearHead()),
        ("mlp", {}, GaussNewton()),
        ("head", {"damping": (0.1, 0.2)}, LinearHead(damping=(0.1, 0.2))),
        ("mlp", {"damping": (0.1, "auto")}, GaussNewton(damping=(0.1, "auto"))),
        ("mlp", {"damping": (0.0,), "curvature": "hessian"}, Hessian()),
        ("mlp", {"damping": (1.0, 2.0), "curvature": "hessian"}, Hessian(damping=(1.0, 2.0))),
        ("head", {"damping": (0.1,), "leave_one_out": "score"}, LinearHead(damping=0.1, leave_one_out=True)),
        ("head", {"damping": (0.1,), "leave_one_out": "loss"}, LinearHead(damping=0.1, leave_one_out="loss")),
        ("mlp", {"leave_one_out": "score"}, GaussNewton(leave_one_out=True)),
        ("mlp", {"leave_one_out": "loss"}, GaussNewton(leave_one_out="loss")),
        ("head", {"damping": ("auto",)}, LinearHead(damping="auto")),
        ("mlp", {"curvature": "gradient-cosine"}, GradientDot(cosine=True)),
        ("mlp", {"curvature": "nystroem", "rank": 7}, Nystroem(rank=7)),
        ("mlp", {"curvature": "lanczos", "damping": (0.1, "auto")}, Lanczos(damping=(0.1, "auto"))),
        (
            "mlp",
            {"curvature": "lanczos-hessian", "negative": "drop", "damping": (1.0,)},
            Lanczos(curvature="hessian", negative="drop", damping=1.0),
        ),
        ("mlp", {"curvature": "projected", "rows": "trak", "width": 64}, Projected(rows="trak", width=64)),
        ("mlp", {"curvature": "projected"}, Projected(rows="logits")),
        ("head", {"curvature": "kfac", "others": "skip"}, KFAC(others="skip")),
        (
            "mlp",
            {"curvature": "ekfac", "rows": "label", "damping": (0.1, "auto")},
            EKFAC(rows="label", damping=(0.1, "auto")),
        ),
        ("mlp", {"curvature": "conjugate-gradient", "rtol": 1e-3}, ConjugateGradient(rtol=1e-3)),
        (
            "mlp",
            {"curvature": "conjugate-gradient-hessian", "damping": (1.0,), "max_steps": 7},
            ConjugateGradient(curvature="hessian", damping=1.0, max_steps=7),
        ),
    ],
)
def test_settings_become_a_curvature(case, settings, curvature):
    made = scoring.make_curvature(prepared(case), AttributeSettings(**settings))
    assert type(made) is type(curvature) and made.settings() == curvature.settings()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"rows": "margin"},
            "rows belong to gauss-newton, kfac, ekfac and projected; the curvature here is linear-head",
        ),
        ({"absolute": 1e-3}, "belong to the hessian; the curvature here is linear-head"),
    ],
)
def test_what_the_resolved_curvature_does_not_know_is_refused(settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        scoring.make_curvature(prepared(), AttributeSettings(**settings))


# ---- the circumstances of a fit --------------------------------------------------------------------------------------------


class Asked(GradientDot):
    """Keeps what its fit was given."""

    def fit(self, train, *, like=None, work):
        work.told(1, 4)
        Asked.memory = work.memory
        return super().fit(train, like=like)


def test_a_fit_is_given_its_budget_and_whom_to_tell():
    problem, told = BY_NAME["head"].build(), []
    options = {"curvature": Asked(), "progress": lambda *what: told.append(what)}
    for memory, size in (("2GB", 2 * 10**9), (5e8, 5 * 10**8), (None, None)):
        upweight.attribute(problem.model, *(problem.train, problem.queries), memory=memory, **options)
        assert Asked.memory == size
        assert ("gram", 1, 4) in told
    with pytest.raises(UsageError, match="memory is '8 bananas'"):
        upweight.attribute(problem.model, *(problem.train, problem.queries), memory="8 bananas", **options)
    assert "memory is 'none at all'; give bytes" in refused(
        2, *tiny.own().words, "--memory", "none at all", "--out", "x"
    )


# ---- words and files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Settings that a command arrives at."""
    got = []
    monkeypatch.setattr(pipeline, "attribute_run", lambda run, how, **_: got.append(how) or {})
    return got


@pytest.mark.parametrize(
    ("text", "damping", "leave_one_out"),
    [
        ("damping = 0.001", (0.001,), None),
        ("damping = [0.001, 'auto', 1]", (0.001, "auto", 1.0), None),
        ("damping = 'auto'", ("auto",), None),
        ("damping = []", (), None),
        ("leave-one-out = 'loss'", (), "loss"),
        ("leave_one_out = true", (), "score"),  # a switch in older files
        ("leave_one_out = false", (), None),
    ],
)
def test_files_say_it_too(tmp_path, asked, text, damping, leave_one_out):
    config = tmp_path / "run.toml"
    config.write_text(f"{text}\n")
    done("attribute", tmp_path, "--config", config)
    done("attribute", "--config", tmp_path / "attribute.toml")  # and the file that replays it
    assert [(how.damping, how.leave_one_out) for how in asked] == 2 * [(damping, leave_one_out)]


def test_words_say_it(tmp_path, asked):
    done("attribute", tmp_path, "--damping", "1e-3", "auto", "0.01", "--leave-one-out", "score", "--memory", "512MiB")
    (how,) = asked
    assert (how.damping, how.leave_one_out, how.memory) == ((1e-3, "auto", 0.01), "score", "512MiB")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--damping", "0.1", "run"), "'run' is not a number or auto (a run folder goes before the options)"),
        (("--damping", "1", "1.0"), "damping names 1.0 twice"),
        (("--damping", "-1"), "damping is -1.0; give finite numbers >= 0, or auto"),
        (("--damping", "nan"), "damping is nan"),
        (("--damping", "auto", "--curvature", "hessian"), "no rule auto"),
        (("--leave-one-out", "often"), "leave_one_out is 'often'; choose one of score, loss"),
    ],
)
def test_wrong_words(tmp_path, words, sentence):
    assert sentence in refused(2, "attribute", tmp_path, *words)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("damping = 'much'", 'sets damping = "much"; a number or auto, or a list of such is wanted'),
        ("damping = [0.1, true]", "sets damping = [0.1, true]; a number or auto, or a list of such is wanted"),
        ("leave_one_out = 1", "sets leave_one_out = 1; text is wanted"),
    ],
)
def test_wrong_files(tmp_path, text, sentence):
    config = tmp_path / "run.toml"
    config.write_text(f"{text}\n")
    assert sentence in refused(3, "attribute", tmp_path, "--config", config)
