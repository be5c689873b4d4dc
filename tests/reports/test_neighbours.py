from dataclasses import replace

import numpy as np
import pytest
from upweight.reports.neighbours import Neighbours, draw_neighbours, one_per_class, shown_rows
from upweight.reports.runs import group_runs
from upweight.reports.settings import ReportSettings

SETTINGS = ReportSettings(neighbours=2)


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def pictures(figure):
    return [np.asarray(image.get_array())[..., 0].flat[0] for ax in figure.axes for image in ax.images]


def test_one_query_of_every_class_in_order():
    assert one_per_class(np.array([4, 2, 4, 9, 2])).tolist() == [1, 0, 3]


def test_shown_rows_follow_the_saliency_where_runs_agree(build):
    a, b = build("natural"), build("robust")
    (group,) = group_runs([a, b])
    assert shown_rows(group).tolist() == a.saliency_rows.tolist()
    chosen = np.array([5, 6])
    (group,) = group_runs([replace(a, saliency_rows=chosen), replace(b, saliency_rows=chosen)])
    assert shown_rows(group).tolist() == [5, 6]
    (group,) = group_runs([replace(a, saliency_rows=chosen), b])
    assert shown_rows(group).tolist() == one_per_class(a.main.queries.label).tolist()


def test_rows_are_what_the_scores_say(build):
    run = build()
    (group,) = group_runs([run])
    table = Neighbours(group, SETTINGS).frame()
    row = int(run.saliency_rows[3])
    for variant, name in (("", "main"), ("damped", "damped")):
        for direction, ask in (("helpful", run.scores[variant].top), ("harmful", run.scores[variant].bottom)):
            found = [
                (r["rank"], r["train_id"], r["score"], r["train_class"])
                for r in table.rows()
                if (r["row"], r["variant"], r["direction"]) == (row, name, direction)
            ]
            asked = ask(row, 2)
            assert found == [(r["rank"], r["train_id"], r["score"], str(r["label"])) for r in asked.rows()]
    assert set(table["query_id"]) <= set(range(1000, 1050))


def test_pictures_are_those_of_the_ids_in_the_table(build):
    run = build()
    n, m = len(run.main.train), len(run.main.queries)
    shades = np.arange(n) / n
    marked = replace(
        run,
        train_images=np.broadcast_to(shades[:, None, None, None], (n, 1, 2, 2)).astype(np.float32),
        query_images=np.ones((m, 1, 2, 2), np.float32),
        saliency_rows=np.array([7]),
    )
    (group,) = group_runs([marked])
    drawn = pictures(Neighbours(group, SETTINGS).plot())
    ids = [*run.main.top(7, 2)["train_id"], *run.main.bottom(7, 2)["train_id"]]
    positions = [run.main.train.index.tolist().index(i) for i in ids]
    assert drawn == pytest.approx([*shades[positions], 1.0], abs=1e-6)


def test_helpful_examples_of_another_class_are_marked(build):
    run = build()
    labels = run.main.queries.label
    row = next(
        t
        for t in range(len(labels))
        if (run.main.top(t, 2)["label"] != labels[t]).any() and (run.main.bottom(t, 2)["label"] != labels[t]).all()
    )
    (group,) = group_runs([replace(run, saliency_rows=np.array([row]))])
    said = texts(Neighbours(group, SETTINGS).plot())
    wrong = [str(c) for c in run.main.top(row, 2)["label"] if c != labels[row]]
    assert [text for text in said if text.startswith("≠")] == [f"≠ {c}" for c in wrong]


def test_without_pictures_there_is_a_table_and_no_figure(build):
    (group,) = group_runs([replace(build(), train_images=None)])
    view = Neighbours(group, SETTINGS)
    assert not view and len(view.frame()) == 10 * 2 * 2 * 3


def test_one_query_is_drawn_from_a_table(build):
    run = build()
    top, bottom = run.main.top(3, 4), run.main.bottom(3, 4)
    images = np.random.default_rng(0).random((4, 3, 8, 8))
    figure = draw_neighbours(
        run.query_images[3],
        images,
        top,
        class_names=run.class_names,
        query_label=0,
        query_caption="query 3",
        below=(images, bottom),
    )
    said = texts(figure)
    assert "Most helpful train examples for query 3, nats per unit weight" in said
    assert "Most harmful train examples for query 3, nats per unit weight" in said
    assert len(figure.axes[0].images) == 9
    assert figure.axes[0].images[0].get_array().shape == (8, 8, 3)


def test_long_names_and_unnamed_classes_fit(build):
    run = build()
    figure = draw_neighbours(
        run.query_images[0], run.train_images[:2], run.main.top(0, 2), class_names=["a class of many words"] * 3
    )
    assert all(len(text) < 16 for text in texts(figure) if "nats" not in text)
