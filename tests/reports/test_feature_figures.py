import numpy as np
import pytest
from upweight.reports.feature_shift import draw_shifts, relative, shift_table
from upweight.reports.visualize import Ascents, ascents_table, draw_ascents


def shifts(scale, n=200):
    rng = np.random.default_rng(round(scale))
    names = ("l2", "mean_abs", "l2_size", "mean_abs_size")
    return {name: scale * (1 + ("size" in name)) * rng.gamma(2.0, size=n) for name in names}


@pytest.fixture
def two():
    return {"natural": shifts(3.0), "robust": shifts(1.0)}


def test_the_table_has_the_numbers_of_numpy(two):
    table = shift_table(two, "title")
    assert len(table) == 2 * 2 * 2
    for row in table.rows():
        values = two[row["source"]][row["distance"]]
        if row["scale"] == "relative":
            values = values / two[row["source"]][f"{row['distance']}_size"]
        assert row["images"] == 200
        assert row["mean"] == pytest.approx(values.mean())
        assert row["max"] == pytest.approx(values.max())
        for name, q in (("q05", 5), ("q25", 25), ("q50", 50), ("q75", 75), ("q95", 95)):
            assert row[name] == pytest.approx(np.percentile(values, q))


def test_features_that_are_all_zero_have_no_relative_distance(two):
    two["robust"]["l2_size"][:3] = 0
    assert np.isnan(relative(two["robust"], "l2")[:3]).all()
    counts = {(r["source"], r["distance"], r["scale"]): r["images"] for r in shift_table(two, "").rows()}
    assert counts["robust", "l2", "relative"] == 197 and counts["robust", "l2", "absolute"] == 200
    draw_shifts(two, "l2", 10, "mirror")


@pytest.mark.parametrize("distance", ["l2", "mean_abs"])
def test_bins_are_common_and_hold_every_image(two, distance):
    figure = draw_shifts(two, distance, 12, "shift by up to 2 pixels")
    for i, ax in enumerate(figure.axes):
        lines = [patch for patch in ax.patches if not patch.get_fill()]
        assert len(lines) == 2
        edges = [line.get_data().edges for line in lines]
        np.testing.assert_array_equal(*edges)
        assert len(edges[0]) == 13
        for line, held in zip(lines, two.values(), strict=True):
            values = held[distance] / held[f"{distance}_size"] if i else held[distance]
            counts = np.histogram(values, edges[0])[0]
            assert counts.sum() == 200
            np.testing.assert_allclose(line.get_data().values, counts / 200)
        medians = [line.get_xdata()[0] for line in ax.lines]
        wanted = [np.median(h[distance] / h[f"{distance}_size"] if i else h[distance]) for h in two.values()]
        assert medians == pytest.approx(wanted)
    word = {"l2": "Euclidean distance", "mean_abs": "mean absolute difference"}[distance]
    assert word in figure.axes[0].get_xlabel()
    assert "200 images, each changed once: shift by up to 2 pixels" in figure.get_supxlabel()


def ascents(name, seed, units=(3, 5)):
    rng = np.random.default_rng(seed)
    starts = rng.random((2, 1, 4, 4)).astype(np.float32)
    return Ascents(
        name=name,
        units=np.array(units),
        chosen="as named",
        starts=starts,
        images=np.clip(starts[:, None] + rng.normal(size=(2, 2, 1, 4, 4)), 0, 1).astype(np.float32),
        before=rng.random((2, 2)),
        after=1 + rng.random((2, 2)),
    )


def test_units_stand_under_their_images():
    made = [ascents("natural", 0), ascents("robust, 2 hidden layers", 1, (7, 1))]
    table = ascents_table(made, ["row 4 (cat)", "noise 0"], "title")
    row = table.rows()[6]  # the second network, its second start, its first unit
    assert (row["source"], row["start"], row["unit"]) == ("robust, 2 hidden layers", "noise 0", 7)
    assert row["after"] == made[1].after[1, 0]
    assert row["moved"] == pytest.approx(np.linalg.norm(made[1].images[1, 0] - made[1].starts[1]), rel=1e-6)
    figure = draw_ascents(made, ["row 4 (cat)", "noise 0"], "what was done")
    (ax,) = figure.axes
    assert len(ax.images) == 2 + 2 * 4
    said = [text.get_text() for text in ax.texts]
    assert [text for text in said if text.startswith("unit")] == [f"unit {u}" for u in (3, 5, 3, 5, 7, 1, 7, 1)]
    rises = [text for text in said if " → " in text]
    assert rises[4] == f"{made[1].before[0, 0]:.3g} → {made[1].after[0, 0]:.3g}"
    assert "what was done" in said and "noise 0" in said
    # the picture above the words of the second network's second start and first unit is that of its ascent
    place = next(t for t in ax.texts if t.get_text() == rises[6]).get_position()[0]
    shown = [i for i in ax.images if i.get_extent()[0] < place < i.get_extent()[1]]
    shown = max(shown, key=lambda i: i.get_extent()[2])  # rows count downwards
    np.testing.assert_allclose(shown.get_array()[..., 0], made[1].images[1, 0, 0])
