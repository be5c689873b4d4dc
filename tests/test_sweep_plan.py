"""A sweep's file: the runs it asks for, what is refused in it, and the file that replays it."""

from pathlib import Path

import pytest
from upweight.models.settings import RobustnessSettings
from upweight.options import ConfigError
from upweight.sweep_plan import read_sweep

EXAMPLES = sorted((Path(__file__).parents[1] / "examples/sweeps").glob("*.toml"))


def sweep_of(text, folder, **more):
    file = folder / "sweep.toml"
    file.write_text(text)
    return read_sweep(file, **more)


def names(sweep):
    return [run.name for run in sweep.runs]


def test_an_empty_file_is_the_smallest_sweep(tmp_path):
    sweep = sweep_of("", tmp_path)
    wanted = [
        f"{source}-digits-n400-k{k}-s{seed}"
        for source in ("natural", "robust")
        for k in (0, 1)
        for seed in (20_000_000, 20_100_000, 20_200_000)
    ]
    assert names(sweep) == wanted
    assert sweep.attack is None and sweep.out == Path("upweight-sweep")
    assert {run.recipe for run in sweep.runs} == {""}


def test_every_combination_is_a_run(tmp_path):
    text = """
        sources = ["robust", "natural"]
        k = [0, "all"]
        n = [50, "all"]
        seeds = 2
        [data]
        data = ["digits", "fashion-mnist"]
        resolution = ["none", 8]
        [fine-tune]
        epochs = 3
        weight-decay = 0
        [[recipe]]
        name = "A"
        [[recipe]]
        name = "Two layers!"
        hidden = 2
    """
    sweep = sweep_of(text, tmp_path)
    assert len(set(names(sweep))) == len(sweep.runs) == 2 * 2 * 2 * 2 * 2 * 2 * 2
    assert [source.name for source in sweep.sources] == ["robust", "natural"]
    last = sweep.runs[-1]
    assert last.name == "natural-fashion-mnist-r8-two-layers-nall-kall-s20100000"
    assert (last.settings.n, last.settings.k, last.settings.epochs, last.settings.hidden) == (None, "all", 3, 2)
    assert (last.settings.weight_decay, last.data.resolution, last.recipe) == (0.0, 8, "Two layers!")
    first = sweep.runs[0]
    assert (first.data.data, first.data.resolution, first.settings.hidden) == ("digits", None, 0)


def test_the_papers_numbers_of_seeds(tmp_path):
    text = 'seeds = "paper"\nsources = ["natural"]\nk = [0]\nn = [1600, 1601, 6400, 6401, 25600, 25601, "all"]\n'
    sweep = sweep_of(text + '[data]\ndata = "fashion-mnist"\n', tmp_path)
    counts = {}
    for run in sweep.runs:
        counts[run.settings.n] = counts.get(run.settings.n, 0) + 1
    assert counts == {1600: 20, 1601: 10, 6400: 10, 6401: 5, 25600: 5, 25601: 1, None: 1}
    assert sweep.runs[19].settings.seed == 20_000_000 + 19 * 100_000


def test_a_recipe_has_a_grid_of_its_own(tmp_path):
    text = """
        k = [0]
        seeds = 1
        [fine-tune]
        learning_rate = 0.5
        [[recipe]]
        name = "plain"
        [[recipe]]
        name = "LwF"
        k = [1, "all"]
        n = [20, 30]
        seeds = 2
        sources = ["robust"]
        lwf = 0.005
        learning_rate = 0.01
    """
    sweep = sweep_of(text, tmp_path)
    plain = [run for run in sweep.runs if run.recipe == "plain"]
    lwf = [run for run in sweep.runs if run.recipe == "LwF"]
    assert [(run.source.name, run.settings.k, run.settings.n) for run in plain] == [
        ("natural", 0, 400),
        ("robust", 0, 400),
    ]
    assert len(lwf) == 2 * 2 * 2 and {run.source.name for run in lwf} == {"robust"}
    assert {run.settings.learning_rate for run in plain} == {0.5}
    assert {(run.settings.lwf, run.settings.learning_rate) for run in lwf} == {(0.005, 0.01)}


def test_a_recipe_without_a_name_is_called_by_what_it_does(tmp_path):
    sweep = sweep_of("seeds = 1\nk = [1]\n[[recipe]]\nhidden = 0\n[[recipe]]\nhidden = 2\n", tmp_path)
    first, last = sweep.runs[0], sweep.runs[-1]
    assert (first.recipe, last.recipe) == ("", "2 hidden layers")
    assert last.name == "robust-digits-2-hidden-layers-n400-k1-s20000000"


def test_sources_of_the_sweep_itself(tmp_path):
    (tmp_path / "texture.invariant.pt").touch()
    text = f"""
        out = "made"
        [[source]]
        name = "natural"
        epochs = 2
        [[source]]
        name = "eps 0.5"
        adversarial = true
        eps = 0.5
        [[source]]
        name = "madry"
        file = "{tmp_path / "texture.invariant.pt"}"
        norm = "linf"
        eps = 4
    """
    sweep = sweep_of(text + "[[source]]\nname = 'other'\nfile = 'x.pt'\n", tmp_path)
    natural, half, madry, other = sweep.sources
    assert natural.path == "made/sources/natural.safetensors"  # not the one that is shipped
    assert natural.settings.epochs == 2 and not natural.settings.adversarial
    assert half.path == "made/sources/eps 0.5.safetensors" and half.settings.attack.label == "L2 0.5, PGD-3"
    assert (madry.settings, madry.norm, madry.eps) == (None, "linf", 4.0)
    assert (other.settings, other.norm, other.eps) == (None, None, None)
    assert names(sweep)[6].startswith("eps-0.5-digits-n400-")
    picked = sweep_of(
        f"sources = ['{tmp_path / 'texture.invariant.pt'}', 'eps 0.5']" + text.replace('out = "made"', ""), tmp_path
    )
    assert [source.name for source in picked.sources] == ["texture.invariant", "eps 0.5"]


def test_the_folder_can_be_named_outside_the_file(tmp_path):
    sweep = sweep_of("out = 'a'\n[[source]]\nname = 's'\n", tmp_path, out="~/b")
    assert sweep.out == Path.home() / "b"
    assert sweep.sources[0].path == str(Path.home() / "b/sources/s.safetensors")
    assert sweep.folder(sweep.runs[0]) == Path.home() / "b/runs" / sweep.runs[0].name


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("k = 3.5", r"sets k = 3\.5; a whole number or all, or a list of such is wanted"),
        ('k = ["most"]', r'sets k = \["most"\]; a whole number or all'),
        ("k = []", "k is an empty list; give at least one number"),
        ("k = [-1]", "k is -1; give whole numbers of at least 0, or all"),
        ("n = [0]", "n is 0; give whole numbers of at least 1, or all"),
        ("n = [20, 20]", "n names the same thing twice: 20 20"),
        ("seeds = 0", "seeds is 0; give a whole number of at least 1, or paper"),
        ('seeds = "some"', 'sets seeds = "some"; a whole number or paper is wanted'),
        ("dpi = 3", "dpi must lie between 30 and 600"),
        ("folds = 3", "sets folds, unknown to `upweight sweep`.*; it knows out, title, sources, k, n, seeds, dpi"),
        ("[atack]", "sets atack, unknown .* with the tables data, fine-tune, attack, recipe, source; it knows"),
        ("data = 'digits'", r"sets data = 'digits'; a table \[data\] is wanted"),
        ("recipe = 'LwF'", r"sets recipe = 'LwF'; tables \[\[recipe\]\] are wanted"),
        ("[data]\ndata = []", r"\[data\] sets data = \[\]; name every one once, and at least one"),
        ("[data]\ndata = 3", r"\[data\] sets data = 3; text, or a list of such is wanted"),
        ("[fine-tune]\nk = 1", r"\[fine-tune\] sets k, unknown to it; it knows images_seed, epochs, batch_size"),
        ("[fine-tune]\nepochs = 1.5", r"\[fine-tune\] sets epochs = 1\.5; a whole number is wanted"),
        ("[fine-tune]\nepochs = 0", "source natural, recipe plain, k = 0: epochs is 0; give a whole number"),

        ("[attack]\neps = -1", r"\[attack\]: eps is -1\.0; give a finite number"),
        ("[attack]\nepochs = 1", r"\[attack\] sets epochs, unknown to it; it knows norm, eps, steps"),
        ("[[recipe]]\nname = 'A'\nseed = 1", r"\[\[recipe\]\] A sets seed, unknown to it; it knows name, sources, k, n, seeds"),
        ("[[recipe]]\nname = 'A'\n[[recipe]]\nname = 'A'", "two .* called 'A'; give each a name of its own"),
        ("[[recipe]]\nname = 'a b'\n[[recipe]]\nname = 'A-b'", "both be called natural-digits-a-b-.* recipe a b.* recipe A-b"),
        ("[[source]]\nepochs = 1", r"\[\[source\]\] 1 has no name"),
        ("[[source]]\nname = '../up'", r"name is '\.\./up'; give letters, digits"),
        ("[[source]]\nname = 'a'\nepoch = 1", r"\[\[source\]\] a sets epoch, unknown to it; it knows name, file, architecture"),
        ("[[source]]\nname = 'a'\nfdm = 1", r"\[\[source\]\] a: fdm is 1\.0 in a natural training"),
        ("[[source]]\nname = 'a'\n[[source]]\nname = 'a'", "two .* called a; give each"),
        ("[[source]]\nname = 'a'\nfile = 'a.pt'\nepochs = 1", "names a file, and epochs would train one"),
        ("sources = ['robust', 'rubust']", "no source 'rubust', and there is no such file; name one of natural, robust"),
        ("[made]\ncommand = 'compare'", "holds options of `upweight compare`, not of `upweight sweep`"),
        ("k = ", "cannot be read as TOML"),
    ],
)  # fmt: skip
def test_wrong_files(text, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence) as refused:
        sweep_of(text, tmp_path)
    assert str(tmp_path / "sweep.toml") in str(refused.value)
    assert str(refused.value).count("\n") == 0


def asked(sweep):
    return sweep.settings, sweep.attack, sweep.sources, sweep.runs


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_is_a_sweep_and_replays_from_what_it_leaves(file, tmp_path):
    sweep = read_sweep(file)
    assert 10 <= len(sweep.runs) <= 100
    assert len(set(names(sweep))) == len(sweep.runs)
    assert sweep.out.parent == Path("upweight-out")
    text = file.read_text()
    assert f"upweight sweep examples/sweeps/{file.name}" in text and text.startswith("# ")
    again = sweep_of(sweep.toml, tmp_path)
    assert asked(again) == asked(sweep)
    assert again.toml == sweep.toml


def test_what_is_given_as_none_replays_as_none(tmp_path):
    text = """
        [data]
        resolution = ["none", 9]
        [attack]
        images = "none"
        [[recipe]]
        name = "x"
        epochs = "none"
        [fine-tune]
        epochs = 5
        [[source]]
        name = "s"
        eval_images = "none"
        [[source]]
        name = "f"
        file = "f.pt"
        norm = "l2"
        eps = 3
    """
    sweep = sweep_of(text, tmp_path)
    assert sweep.attack == RobustnessSettings(images=None)
    assert {run.settings.epochs for run in sweep.runs} == {None}
    assert asked(sweep_of(sweep.toml, tmp_path)) == asked(sweep)


def test_the_examples_cover_the_works():
    assert [file.stem for file in EXAMPLES] == [
        *("cartl", "few-data", "resolution", "salman", "shafahi-blocks", "shafahi-heads", "utrera")
    ]
