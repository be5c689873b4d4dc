from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from upweight.reports.panels import in_percent, places, roomy, size, vertical


def test_panels_make_a_block_where_their_words_do():
    keys = [(row, column) for row in ("digits", "mnist") for column in ("k = 0", "k = 1", "k = 3")]
    spots, shape = places(keys)
    assert shape == (2, 3) and spots["mnist", "k = 1"] == (1, 1)
    spots, shape = places([("digits", "k = 0"), ("mnist", "k = 1")])
    assert shape == (2, 2) and spots["mnist", "k = 1"] == (1, 1)  # the others stay empty


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (9, (3, 3)), (13, (4, 4))])
def test_panels_of_one_kind_fill_their_rows(count, shape):
    spots, found = places([(str(i), "") for i in range(count)])
    assert found == shape and len(set(spots.values())) == count
    assert size([(str(i), "") for i in range(count)], ["a"])[1] < 10


def test_tick_labels_do_not_touch():
    spots = [(0.0, "100"), (0.2, "200"), (0.5, "400"), (1.1, "1,600"), (1.4, "60,000")]
    kept = roomy(spots)
    assert kept[0] == 0 and kept[-1] == 4
    for left, right in pairwise(kept):
        gap = spots[right][0] - spots[left][0]
        assert gap > 0.06 * (len(spots[left][1]) + len(spots[right][1])) / 2
    assert roomy([(0.0, "0"), (1.0, "1"), (2.0, "2")]) == [0, 1, 2]


def row(mean, low=np.nan, high=np.nan, minus=""):
    return {"mean": mean, "low": low, "high": high, "minus": minus}


def limits(rows, heights=(), share=True):
    ax = Figure().subplots()
    vertical(ax, rows, heights, share=share)
    return ax, ax.get_ylim()


def test_wide_bars_do_not_press_the_means_together():
    _, (low, high) = limits([row(0.80, -0.4, 2.0), row(0.84, 0.82, 0.86)])
    assert low < 0.80 < 0.84 < high and high - low < 0.2
    _, (low, high) = limits([row(0.5, 0.48, 0.52), row(0.6, 0.55, 0.65)])
    assert low < 0.48 and high > 0.65  # these fit


def test_axes_hold_levels_and_the_zero_of_differences():
    _, (low, high) = limits([row(0.8), row(0.82)], [0.5])
    assert low < 0.5
    _, (low, high) = limits([row(0.3, minus="natural"), row(0.32, minus="natural")])
    assert low < 0 < high
    _, (low, high) = limits([row(1.0), row(0.99)])
    assert high <= 1.02


def test_seconds_of_several_sizes_are_logarithmic():
    assert limits([row(1.0), row(50.0)], share=False)[0].get_yscale() == "log"
    assert limits([row(1.0), row(2.0)], share=False)[0].get_yscale() == "linear"
    assert limits([row(0.0), row(50.0)], share=False)[0].get_yscale() == "linear"


def test_percent_has_the_digits_it_needs():
    ticks = in_percent()
    assert [ticks(x) for x in (0.8, 0.825, 0.07, 1.0)] == ["80%", "82.5%", "7%", "100%"]
    assert in_percent("")(-0.05) == "−5"
