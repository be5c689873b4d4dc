import csv
import io
import json
import re
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from sweeps import history, runs, sources
from upweight import UsageError
from upweight.reports.transfer_page import write_transfer_report

ATTACK = "L2 1, PGD-20"
OF = [
    {"source": "natural", "natural_accuracy": 0.9},
    {"source": "eps 0.5", "norm": "l2", "eps": 0.5, "natural_accuracy": 0.87, "attack": ATTACK},
    {"source": "eps 1", "norm": "l2", "eps": 1.0, "natural_accuracy": 0.82, "parameters": np.nan},
]


def tables():
    """Every view has something to show; one cell lacks a seed, one run its attack."""
    rng = np.random.default_rng(0)
    recipes = [{"recipe": ""}, {"recipe": "2 hidden layers", "hidden": 2}]
    rows = [
        {**recipe, "source": s["source"], "k": k, "n": n, "seed": seed, "test_accuracy": 0.7 + 0.2 * rng.random(),
         "robust_accuracy": 0.3 * rng.random(), "robust_images": 200.0, "seconds": n / 10 + rng.random()}
        for s, recipe, (k, n), seed in product(OF, recipes, [("0", 100), ("0", 400), ("all", 100)], [0, 1])
    ][1:]  # fmt: skip
    rows[5] |= {"robust_accuracy": np.nan, "robust_images": np.nan}
    said = [
        {**{n: v for n, v in row.items() if n in ("recipe", "source", "k", "n", "seed")}, "epoch": e}
        for row in rows
        for e in (1, 9)
    ]
    return runs(*rows), history(*said), sources(*OF)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder, told, before = tmp_path_factory.mktemp("sweep") / "report", [], dict(matplotlib.rcParams)
    stats = write_transfer_report(
        *tables(), folder, attack=ATTACK, title="All at once", dpi=40, progress=lambda *what: told.append(what)
    )
    assert dict(matplotlib.rcParams) == before
    return folder, stats, told


def test_every_view_is_there(written):
    folder, stats, _ = written
    names = {
        "by-size", "difference-by-size", "by-blocks", "by-radius", "by-hidden-layers", "few-data", "recipes", "source-accuracy",
        "by-epoch",
    }  # fmt: skip
    assert {Path(figure["file"]).stem for figure in stats["figures"]} == names
    for figure in stats["figures"]:
        with Image.open(folder / figure["file"]) as image:
            assert image.format == "PNG" and np.asarray(image.convert("L")).std() > 1
    assert {"cells", "runs", "sources", "best_radius", "correlations"} < set(stats["tables"])


def test_the_page_is_whole_and_loads_nothing(written):
    folder, stats, _ = written
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<script", text)
    assert text.count('src="data:image/png;base64,') == len(stats["figures"])
    for target in re.findall(r'href="([^"]+)"', text):
        assert target == "data:," or (f'id="{target[1:]}"' in text if target[0] == "#" else (folder / target).is_file())
    for words in ("All at once", "L2 1, PGD-20 on 200 test images", "1 to 2", "What can be concluded", "Student's t"):
        assert words in text.replace("&#39;", "'")
    assert "nan" not in re.sub(r"<style>.*?</style>|base64,[^\"]+", "", text, flags=re.DOTALL).lower().split()


def test_stats_round_trip_without_nan(written):
    folder, stats, _ = written

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    assert json.loads((folder / "stats.json").read_text(encoding="utf-8"), parse_constant=refuse) == stats
    assert (stats["schema"], stats["version"]) == ("upweight-transfer-stats", 1)
    assert stats["sources"] == ["natural", "eps 0.5", "eps 1"] and stats["recipes"] == ["", "2 hidden layers"]
    assert stats["settings"] == {"title": "All at once", "dpi": 40, "attack": ATTACK}


def test_tables_are_what_the_csv_files_hold(written):
    folder, stats, _ = written
    assert {p.name for p in folder.glob("*.csv")} == {t["file"] for t in stats["tables"].values()} | {"history.csv"}
    for entry in stats["tables"].values():
        read = list(csv.DictReader(io.StringIO((folder / entry["file"]).read_text(encoding="utf-8"))))
        assert len(read) == entry["rows"] > 0 and list(read[0]) == list(entry["columns"])
        for name, values in entry["columns"].items():
            assert all(
                cell == str(v) or (v is None and cell == "nan")
                for v, cell in zip(values, (r[name] for r in read), strict=True)
            )
    assert (folder / "history.csv").read_text(encoding="utf-8").count("\n") == 1 + len(tables()[1])


def test_every_name_is_documented(written):
    text = (
        (Path(__file__).parents[2] / "docs" / "stats.md")
        .read_text(encoding="utf-8")
        .partition("# stats.json of a sweep")[2]
    )
    known = {name.strip() for span in re.findall(r"`([^`\n]+)`", text) for name in span.strip("{}").split(",")}
    _, stats, _ = written
    entries = (*stats["figures"], *stats["tables"].values(), stats["settings"])
    assert {*stats, *stats["tables"], *(name for entry in entries for name in entry)} <= known
    told = {*known, *(f"{n}{end}" for n in ("gain", "lead") for end in ("", "_low", "_high"))}
    told |= {f"{m}_{end}" for m in ("accuracy", "robust accuracy", "seconds") for end in ("mean", "low", "high")}
    for name, entry in stats["tables"].items():
        assert name in {"runs", "sources"} or set(entry["columns"]) <= told | {"quantity"}, name


def test_targets_share_the_table_of_epochs(tmp_path):
    rows = [{"data": data, "seed": seed} for data in ("digits", "mnist") for seed in (0, 1)]
    said = [{**row, "epoch": epoch} for row in rows for epoch in (1, 2)]
    stats = write_transfer_report(runs(*rows), history(*said), sources(), tmp_path, dpi=40)
    assert [figure["file"] for figure in stats["figures"]] == ["by-epoch-1.png", "by-epoch-2.png"]
    assert stats["tables"]["by_epoch"]["columns"]["data"] == ["digits"] * 2 + ["mnist"] * 2


def test_progress_counts_to_the_end(written):
    told = written[2]
    assert [done for _, done, _ in told] == list(range(told[-1][2] + 1)) and {stage for stage, *_ in told} == {"report"}


def test_a_single_run_has_a_page_without_figures(tmp_path):
    stats = write_transfer_report(runs({}), history(), sources(), tmp_path, dpi=40)
    assert stats["figures"] == [] and stats["tables"]["cells"]["columns"]["seeds"] == [1, 1, 1]
    assert stats["conclusions"] == [
        "There is one seed: no number here has an interval, and no difference is decided. All runs share the same source "
        "networks and the same test images."
    ]
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "What can be concluded" in text and "Robust accuracy</strong>" not in text


def test_the_same_sweep_gives_the_same_files(tmp_path):
    rows = [{"k": k, "seed": s, "test_accuracy": 0.8 + 0.01 * s} for k in ("0", "1") for s in (0, 1)]
    for name in ("a", "b"):
        write_transfer_report(runs(*rows), history(), sources(), tmp_path / name, dpi=40)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_words_of_others_are_escaped(tmp_path):
    odd = {"source": "<b>s</b>", "recipe": "<script>alert(1)</script>", "data": "<img src=x>"}
    write_transfer_report(
        runs(odd), history(), sources({"source": "<b>s</b>"}), tmp_path, attack="<i>", title="<u>", dpi=40
    )
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<img src=x|<b>s|<u>|<i>", text) and "&lt;b&gt;s" in text


def test_nothing_to_report_and_a_file_in_the_way_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no run to report"):
        write_transfer_report(runs(), history(), sources(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        write_transfer_report(runs({}), history(), sources(), tmp_path / "out")
