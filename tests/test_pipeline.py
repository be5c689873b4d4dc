"""The stages composed: what a comparison leaves, that it is what the parts give, and that nothing is done twice."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import upweight
from upweight import StoreError, StoreMismatch, UsageError, comparison, pipeline
from upweight.influence.settings import AttributeSettings
from upweight.models import training
from upweight.models.errors import RunMismatch
from upweight.models.runs import load_run
from upweight.models.settings import DataSettings, FineTuneSettings
from upweight.reports.settings import ReportSettings

PAGE = ReportSettings(ranks=5, neighbours=1, pixels=10, dpi=30)
RECIPE = FineTuneSettings(n=tiny.N, epochs=2, device="cpu")
WHAT = comparison.CompareSettings(k=(0, 1), seeds=1)


def compare(out, *, settings=WHAT, recipe=RECIPE, page=PAGE, **options):
    data = DataSettings(data=str(tiny.data()))
    return comparison.compare(replace(settings, out=str(out)), data, recipe, page, **options)


@pytest.fixture
def copy(tmp_path):
    """A comparison that may be changed."""
    shutil.copytree(tiny.comparison(), tmp_path / "out")
    return tmp_path / "out"


class Counted:
    """A function that counts its calls, and may stop the process at one of them."""

    def __init__(self, real, stop_at=None):
        self.real, self.stop_at, self.calls = real, stop_at, 0

    def __call__(self, *args, **options):
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        return self.real(*args, **options)


def never(*_, **__):
    raise AssertionError("this was done already, or must not begin")


# ---- what a comparison leaves -------------------------------------------------------------------------------------------


def test_comparison_leaves_what_was_promised():
    out = tiny.comparison()
    assert {path.name for path in out.iterdir()} == {"compare.toml", "report", "runs"}
    assert {path.name for path in (out / "runs").iterdir()} == set(tiny.NAMES)
    for name in tiny.NAMES:
        found = {f.name for f in (out / "runs" / name).iterdir()}
        # tests share these folders, and some run single stages in them, which leave their options behind
        assert found - {"fine-tune.toml", "attribute.toml"} == {"model.safetensors", "run.json", "influence.h5"}
    assert {"index.html", "stats.json"} <= {path.name for path in (out / "report").iterdir()}
    stats = json.loads((out / "report/stats.json").read_text())
    assert [group["k"] for group in stats["groups"]] == [0, 1]
    assert set(stats["inputs"]) == set(tiny.NAMES)


def test_sources_are_given_the_same_images_and_first_head():
    one, other = (load_run(tiny.run(source)) for source in ("natural", "robust"))
    assert one.train.index.tolist() == other.train.index.tolist()
    assert set(one.train.labels.tolist()) == set(range(10))


@pytest.mark.parametrize(
    ("variant", "curvature", "options"),
    [
        ("", upweight.LinearHead(), {}),
        ("damped", upweight.LinearHead(damping=5e-4), {}),
        ("predicted", upweight.LinearHead(), {"query_label": "predicted"}),
    ],
)
@pytest.mark.parametrize(("source", "k"), [("natural", 0), ("robust", 1)])
def test_stored_scores_are_those_of_the_public_call(source, k, variant, curvature, options):
    """Influence is read off the head even where a block was fine-tuned, as in the paper."""
    run, stored = load_run(tiny.run(source, k)), upweight.open_scores(tiny.run(source, k) / "influence.h5", variant)
    fresh = upweight.attribute(
        run.model.model, run.train, run.test, curvature=curvature, weight_decay=5e-4, train_scores=True, **options
    )
    scale = np.abs(fresh.matrix).max()
    np.testing.assert_allclose(stored.matrix[:], fresh.matrix, rtol=1e-6, atol=1e-6 * scale)
    if variant != "predicted":
        np.testing.assert_allclose(stored.on_train.matrix[:], fresh.on_train.matrix, rtol=1e-6, atol=1e-6 * scale)
    else:
        assert stored.on_train is None
    assert stored.train.index.tolist() == run.train.index.tolist()  # positions in the data set, not in the subset
    assert stored.meta["weight_decay"] == pytest.approx(5e-4)
    assert stored.meta["warnings"] == fresh.meta["warnings"]


def test_block_scores_stand_beside_those_of_the_head():
    with pytest.raises(StoreError, match="no variant 'block'"):
        upweight.open_scores(tiny.run(k=0) / "influence.h5", "block")
    block = upweight.open_scores(tiny.run(k=1) / "influence.h5", "block")
    assert block.meta["curvature"]["name"] == "GaussNewton"
    assert block.meta["p"] > upweight.open_scores(tiny.run(k=1) / "influence.h5").meta["p"]


# ---- nothing is done twice ------------------------------------------------------------------------------------------------


def test_second_call_does_nothing_again(copy, monkeypatch):
    before = tiny.state(copy)
    for module, name in ((training, "run_epoch"), (comparison, "_view"), (pipeline, "score")):
        monkeypatch.setattr(module, name, never)
    told = []
    report = compare(copy, progress=lambda *what: told.append(what))
    assert tiny.state(copy) == before
    assert report.stats == json.loads((copy / "report/stats.json").read_text())
    assert told == []
    assert compare(copy, overwrite=True).stats == report.stats  # what was made under these settings is kept
    assert tiny.state(copy) == before


def test_lost_scores_are_made_again_and_nothing_else(copy, monkeypatch):
    lost = copy / "runs" / tiny.NAMES[1] / "influence.h5"
    held = upweight.open_scores(lost).matrix[:]
    before = tiny.state(copy)
    lost.unlink()
    monkeypatch.setattr(training, "run_epoch", never)
    monkeypatch.setattr(comparison, "_view", never)  # the report shows the same numbers: it stays
    compare(copy)
    after = tiny.state(copy)
    assert {name for name in after if after[name] != before[name]} == {str(lost.relative_to(copy))}
    np.testing.assert_array_equal(upweight.open_scores(lost).matrix[:], held)


def test_report_is_kept_and_a_lost_page_made_again(tmp_path, monkeypatch):
    report = comparison.make_report([tiny.run()], tmp_path, PAGE)
    page, before = report.page.read_bytes(), tiny.state(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(comparison, "_view", never)
        assert comparison.make_report([tiny.run()], tmp_path, PAGE).stats == report.stats
    assert tiny.state(tmp_path) == before
    report.page.unlink()
    comparison.make_report([tiny.run()], tmp_path, PAGE)
    assert report.page.read_bytes() == page


def test_interrupted_comparison_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "make_report", lambda folders, *_, **__: folders)
    one = replace(WHAT, k=(0,))
    epochs = Counted(training.run_epoch, stop_at=3)  # two epochs of the first source, one of the second
    monkeypatch.setattr(training, "run_epoch", epochs)
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, settings=one)
    first = tiny.state(tmp_path / "runs" / tiny.NAMES[0])
    epochs.stop_at = None
    compare(tmp_path, settings=one)
    assert epochs.calls == 4
    assert tiny.state(tmp_path / "runs" / tiny.NAMES[0]) == first
    for name in (tiny.NAMES[0], tiny.NAMES[2]):
        held = tmp_path / "runs" / name / "model.safetensors"
        assert held.read_bytes() == (tiny.comparison() / "runs" / name / "model.safetensors").read_bytes()


# ---- what is refused, and when --------------------------------------------------------------------------------------------


@pytest.fixture
def untouchable(monkeypatch):
    """No dear step may begin."""
    monkeypatch.setattr(comparison, "fine_tune_network", never)


@pytest.mark.usefixtures("untouchable")
def test_wrong_plans_are_refused_before_the_first_run(tmp_path):
    with pytest.raises(UsageError, match="k is 10, but this network has 9 residual blocks"):
        compare(tmp_path, settings=replace(WHAT, k=(0, 10)))
    with pytest.raises(UsageError, match="k is -1"):
        compare(tmp_path, settings=replace(WHAT, k=(0, -1)))
    twin = tmp_path / "natural.safetensors"
    shutil.copy(tiny.run() / "model.safetensors", twin)
    with pytest.raises(UsageError, match="Two sources are called natural; rename one"):
        compare(tmp_path, settings=replace(WHAT, sources=("natural", str(twin))))
    assert [path.name for path in tmp_path.iterdir()] == ["natural.safetensors"]


@pytest.mark.usefixtures("untouchable")
def test_report_in_the_way_is_found_before_the_first_run(copy):
    before = tiny.state(copy)
    with pytest.raises(
        StoreMismatch, match=r"report holds results for ranks=5; this run asks for ranks=6.*--overwrite"
    ):
        compare(copy, page=replace(PAGE, ranks=6))
    with pytest.raises(StoreMismatch, match=r"runs\.robust-k0-s20100000=\(not set\)"):
        compare(copy, settings=replace(WHAT, k=(0,), seeds=2))
    (copy / "report/stats.json").write_text("{")
    with pytest.raises(StoreError, match=r"stats\.json is damaged or of another kind"):
        compare(copy)
    (copy / "report/stats.json").unlink()
    with pytest.raises(StoreError, match=r"index\.html is no report of ours"):
        compare(copy)
    (copy / "report").rename(copy / "kept")
    assert {k.replace("kept", "report"): v for k, v in tiny.state(copy).items()}.items() <= before.items()


def test_overwriting_replaces_what_differs(copy, monkeypatch):
    old = {file["file"] for file in json.loads((copy / "report/stats.json").read_text())["figures"]}
    (copy / "report/notes.txt").write_text("mine")
    runs = tiny.state(copy / "runs")
    epochs = Counted(training.run_epoch)
    monkeypatch.setattr(training, "run_epoch", epochs)
    compare(copy, settings=replace(WHAT, sources=("natural",), k=(0,)), page=replace(PAGE, ranks=6), overwrite=True)
    assert epochs.calls == 0 and tiny.state(copy / "runs") == runs  # the runs fit: the report alone is made anew
    stats = json.loads((copy / "report/stats.json").read_text())
    assert stats["settings"]["ranks"] == 6 and list(stats["inputs"]) == [tiny.NAMES[0]]
    there = {path.name for path in (copy / "report").glob("*.png")}
    assert there == {file["file"] for file in stats["figures"]} and old - there  # no figure of the old report is left
    assert (copy / "report/notes.txt").read_text() == "mine"


def test_run_of_other_settings_is_replaced_only_when_asked(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny.run(), run)
    source, data = pipeline.SourceSettings(), DataSettings(data=str(tiny.data()))
    before = tiny.state(run)
    with pytest.raises(RunMismatch, match="was made with epochs=2; this call asks epochs=3"):
        pipeline.fine_tune(source, data, replace(RECIPE, epochs=3), run)
    pipeline.fine_tune(source, data, RECIPE, run, overwrite=True)
    assert tiny.state(run) == before
    assert (
        pipeline.fine_tune(source, data, replace(RECIPE, epochs=3), run, overwrite=True).info["settings"]["epochs"] == 3
    )
    how = AttributeSettings(train_scores=True, also=("damped", "predicted"))
    with pytest.raises(StoreMismatch, match="model_sha256"):
        pipeline.attribute_run(run, how)
    pipeline.attribute_run(run, how, overwrite=True)


def test_interrupted_replacement_goes_on(tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(tiny.run(), run)
    call = (pipeline.SourceSettings(), DataSettings(data=str(tiny.data())), replace(RECIPE, epochs=5), run)
    epochs = Counted(training.run_epoch, stop_at=3)
    monkeypatch.setattr(training, "run_epoch", epochs)
    with pytest.raises(KeyboardInterrupt):
        pipeline.fine_tune(*call, overwrite=True)
    epochs.stop_at = None
    pipeline.fine_tune(*call, overwrite=True)
    assert epochs.calls == 5


def test_without_weight_decay_there_are_no_damped_scores(tmp_path):
    settings = replace(WHAT, sources=("natural",), k=(0,))
    report = compare(tmp_path, settings=settings, recipe=replace(RECIPE, weight_decay=0.0, n=12))  # report and all
    assert set(report.stats["tables"]["scores"]["columns"]["variant"]) == {"main", "predicted"}
    assert "influence_damped" not in report.to_text()
    run = tmp_path / "runs" / tiny.NAMES[0]
    with pytest.raises(UsageError, match="it has none; leave `damped` out"):
        pipeline.attribute_run(run, AttributeSettings(also=("damped",)), out=tmp_path / "more")


# ---- a network of one's own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["--parameters", "all", "--curvature", "hessian", "--damping", 1e-2, "--negative", "drop", "--dtype", "float64"],
         {"parameters": "all", "curvature": upweight.Hessian(damping=1e-2, negative="drop"), "dtype": torch.float64}),
        (["--parameters", "1.weight,3", "--curvature", "gradient-cosine"],
         {"parameters": ["1.weight", "3"], "curvature": upweight.GradientDot(cosine=True)}),
        (["--parameters", "all", "--damping", 0.1, "--leave-one-out", "score"],
         {"parameters": "all", "curvature": upweight.GaussNewton(damping=0.1, leave_one_out=True)}),
        (["--parameters", "all", "--damping", 0.1, "--leave-one-out", "loss"],
         {"parameters": "all", "curvature": upweight.GaussNewton(damping=0.1, leave_one_out="loss")}),
        (["--damping", 0.1, "--leave-one-out", "loss"],
         {"curvature": upweight.LinearHead(damping=0.1, leave_one_out="loss")}),
        (["--query-label", "predicted", "--rcond", 1e-6, "--train-scores"],
         {"query_label": "predicted", "curvature": upweight.LinearHead(rcond=1e-6), "train_scores": True}),
    ],
)  # fmt: skip
def test_own_network_is_scored_as_in_memory(tmp_path, words, options):
    own = tiny.own()
    tiny.done(*own.words, *words, "--out", tmp_path)
    stored = upweight.open_scores(tmp_path / "influence.h5")
    x = {name: torch.from_numpy(array) for name, array in own.arrays.items()}
    fresh = upweight.attribute(own.model, (x["x"], x["y"]), (x["x_test"], x["y_test"]), **options)
    np.testing.assert_allclose(stored.matrix[:], fresh.matrix, rtol=1e-6, atol=1e-6 * np.abs(fresh.matrix).max())
    assert stored.matrix.dtype == fresh.matrix.dtype
    assert (stored.on_train is None) == (fresh.on_train is None)
    assert stored.meta["curvature"] == fresh.meta["curvature"]


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"model": "tiny_own_network"}, UsageError, r"write it as package\.module:function"),
        ({"model": "tiny_own_network:not_a_module"}, UsageError, "gives a int"),
        ({"train": None}, UsageError, "needs --model and --train"),
        ({"train": "digits"}, UsageError, "say what size your network takes"),
    ],
)
def test_own_network_that_cannot_be_had(tmp_path, changed, error, words):
    home = tiny.own().home
    settings = {"model": "tiny_own_network:make", "train": str(home / "train.npz")} | changed
    with pytest.raises(error, match=words):
        pipeline.attribute_own(pipeline.OwnSettings(**settings), AttributeSettings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_own_network_has_no_known_blocks(tmp_path):
    settings = pipeline.OwnSettings(model="tiny_own_network:make", train=str(tiny.own().home / "train.npz"))
    with pytest.raises(UsageError, match="name them in --parameters"):
        pipeline.attribute_own(settings, AttributeSettings(also=("block",)), tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"weight_decay": -1.0}, {"weight_decay": float("nan")}, {"input_shape": (3, 224)}, {"input_shape": (0, 1, 1)}],
)
def test_own_settings_are_checked_at_birth(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        pipeline.OwnSettings(**wrong)


# ---- GPU -------------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_gpu_attributes_and_draws_saliency_as_the_cpu_does(tmp_path):
    from upweight import questions

    how = AttributeSettings(train_scores=True, also=("damped", "block"), device="cpu")
    found = {}
    for device in ("cpu", "cuda"):
        scores = pipeline.attribute_run(tiny.run(k=1), replace(how, device=device), out=tmp_path / device)
        table = questions.saliency(tiny.run(k=1), npz=tmp_path / f"{device}.npz", device=device)
        found[device] = ({name: one.matrix[:] for name, one in scores.items()}, table)
    for name, matrix in found["cpu"][0].items():
        np.testing.assert_allclose(found["cuda"][0][name], matrix, rtol=1e-4, atol=1e-4 * np.abs(matrix).max())
    with np.load(tmp_path / "cpu.npz") as one, np.load(tmp_path / "cuda.npz") as other:
        scale = np.abs(one["gradients"]).max()
        np.testing.assert_allclose(other["gradients"], one["gradients"], rtol=1e-4, atol=1e-4 * scale)
    np.testing.assert_allclose(found["cuda"][1]["loss"], found["cpu"][1]["loss"], rtol=1e-4)
