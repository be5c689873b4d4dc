import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from upweight import UsageError
from upweight.reports.page import write_report
from upweight.reports.settings import ReportSettings

DOCS = Path(__file__).parents[2] / "docs" / "stats.md"
SMALL = ReportSettings(dpi=50, neighbours=2, pixels=60)


class Page(HTMLParser):
    """Every address a browser would load or offer, every id, and the words."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.linked, self.ids, self.words, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loaded += [values[name] for name in ("src", "srcset", "data") if name in values]
        if "href" in values:
            (self.loaded if tag == "link" else self.linked).append(values["href"])
        if "id" in values:
            self.ids.append(values["id"])
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


@pytest.fixture(scope="module")
def written(comparison, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "report"
    told = []
    before = dict(matplotlib.rcParams)
    stats = write_report(comparison, folder, SMALL, progress=lambda *what: told.append(what))
    assert dict(matplotlib.rcParams) == before
    return folder, stats, told


@pytest.fixture(scope="module")
def page(written):
    return Page((written[0] / "index.html").read_text(encoding="utf-8"))


def test_the_page_holds_all_it_shows(page, written):
    assert page.loaded and all(address.startswith("data:") for address in page.loaded)
    assert not page.open  # every element was closed
    text = (written[0] / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<script", text)
    assert len(page.loaded) == 1 + len(written[1]["figures"])  # and the empty icon


def test_links_lead_somewhere(page, written):
    for address in page.linked:
        if address.startswith("#"):
            assert address[1:] in page.ids
        else:
            assert (written[0] / address).is_file()
    assert len(page.ids) == len(set(page.ids))


def test_every_figure_is_a_png_and_every_table_a_csv(written):
    folder, stats, _ = written
    kinds = {Path(figure["file"]).stem.split("-digits")[0] for figure in stats["figures"]}
    assert kinds == {
        "accuracy",
        "class-match",
        "class-match-rank",
        "class-match-cumulative",
        "heat-map",
        "heat-map-classes",
        "neighbours",
        "saliency",
        "spectrum",
    }
    for figure in stats["figures"]:
        with Image.open(folder / figure["file"]) as image:
            assert image.format == "PNG" and np.asarray(image.convert("L")).std() > 1  # something is drawn
    assert {p.name for p in folder.glob("*.csv")} == {table["file"] for table in stats["tables"].values()}


def test_stats_hold_the_numbers_of_the_tables(written):
    folder, stats, _ = written
    assert json.loads((folder / "stats.json").read_text(encoding="utf-8")) == stats
    for table in stats["tables"].values():
        read = list(csv.DictReader(io.StringIO((folder / table["file"]).read_text(encoding="utf-8"))))
        assert len(read) == table["rows"] > 0
        assert list(read[0]) == list(table["columns"])
        for name, values in table["columns"].items():
            for value, cell in zip(values, (row[name] for row in read), strict=True):
                assert cell == str(value) or (value is None and cell in ("nan", "inf", "-inf"))


def test_every_name_in_stats_is_documented(written):
    stats = written[1]
    text = DOCS.read_text(encoding="utf-8")
    documented = set(re.findall(r"`([^`\n]+)`", text))
    patterns = [re.escape(name).replace(r"\*", ".*") for name in documented if "*" in name]

    def known(name):
        return name in documented or any(re.fullmatch(pattern, name) for pattern in patterns)

    names = {*stats, *stats["settings"], *(key for group in stats["groups"] for key in group)}
    listed = {key for kind in ("warnings", "figures") for entry in stats[kind] for key in entry}
    listed |= {key for table in stats["tables"].values() for key in table}
    documented |= {part.strip() for name in documented if name.startswith("{") for part in name.strip("{}").split(",")}
    assert [name for name in sorted(names | listed) if not known(name)] == []
    for name, table in stats["tables"].items():
        (section,) = re.findall(rf"\*\*{name}\*\*.*?(?=\n\n|\Z)", text, re.DOTALL)
        shared = "the same measures of every run" in section
        here = set(re.findall(r"`([^`\n]+)`", section))
        missing = [c for c in table["columns"] if c not in here and not (shared or c.startswith(("top1_", "top5_")))]
        assert missing == [], name


def test_the_documented_way_to_read_it_works(written, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path / "upweight-out" / "report"
    folder.mkdir(parents=True)
    (folder / "stats.json").write_bytes((written[0] / "stats.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(DOCS), "exec"), {})
    assert "robust minus natural" in capsys.readouterr().out


def test_the_head_states_what_was_compared(page):
    words = " ".join(" ".join(page.words).split())
    for fact in (
        "small_resnet",
        "digits",
        "LinearHead",
        "0 (pseudo-inverse), 0.0005",
        "0, 1, 2",
        "upweight 0.1.0",
        "Student's t",
    ):
        assert fact in words
    assert "The objective still has a slope of 0.20 mean gradient lengths." in words
    assert "carries no evidence about the representation" in words


def test_progress_counts_to_the_end(written):
    told = written[2]
    assert {stage for stage, _, _ in told} == {"report"}
    assert [done for _, done, _ in told] == list(range(told[-1][2] + 1))


def test_sections_follow_what_the_runs_hold(build, tmp_path):
    run = replace(build(variants=("",), on_train=False), saliency=None, train_images=None, info={})
    stats = write_report([run], tmp_path / "a", SMALL)
    assert {figure["file"] for figure in stats["figures"]} == {
        "accuracy.png",
        "class-match-k0-n60-test.png",
        "class-match-rank-k0-n60-test.png",
        "class-match-cumulative-k0-n60-test.png",
        "heat-map-k0-n60-test.png",
        "heat-map-classes-k0-n60-test.png",
        "spectrum-k0-n60.png",
    }
    assert "minus" not in " ".join(stats["groups"][0]["conclusions"])
    write_report([run], tmp_path / "b", SMALL)
    for path in (tmp_path / "a").iterdir():  # the same runs give the same files
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.fixture(scope="module")
def alone(build, tmp_path_factory):
    """The train set on itself and nothing else, from a run whose words would break a careless page."""
    folder = tmp_path_factory.mktemp("alone")
    run = build(variants=("",))
    odd = replace(
        run,
        name="<b>run</b>",
        scores={"": run.scores[""].on_train},
        class_names=[f"<script>alert({c})</script>" for c in range(10)],
        query_images=run.train_images,
        saliency=None,
        saliency_rows=None,
        info={"data": {"name": "<img src=x>"}},
    )
    return folder, write_report([odd], folder, SMALL)


def test_scores_of_the_train_set_on_itself_alone(alone):
    _, stats = alone
    assert set(stats["tables"]["class_match"]["columns"]["queries"]) == {"train"}
    assert set(stats["tables"]["accuracy"]["columns"]["set"]) == {"train"}
    neighbours = stats["tables"]["neighbours"]["columns"]
    assert all(q != i for q, i in zip(neighbours["query_id"], neighbours["train_id"], strict=True))


def test_words_of_others_are_escaped(alone):
    folder, stats = alone
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "<script" not in text and "<img src=x" not in text and "<b>run" not in text
    assert "&lt;img src=x&gt;" in text and "&lt;b&gt;run" in text
    assert stats["groups"][0]["key"] == "img-src-x-k0-n60"


def test_a_file_in_the_place_of_the_folder_is_refused(build, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        write_report([build()], tmp_path / "out", SMALL)
    assert (tmp_path / "out").read_text() == "mine"


def test_no_backend_is_chosen():
    code = "import sys, upweight.reports.page; print('matplotlib.pyplot' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
