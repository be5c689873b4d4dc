import numpy as np
import pytest
from sweeps import history, runs, seeds, sources
from upweight.reports.transfer_tables import Sweep
from upweight.reports.transfer_words import conclude, tally


def sentences(rows, of=()):
    return conclude(Sweep(runs(*rows), history(), sources(*of), "L2 1, PGD-20"))


def row(mean, low=np.nan, high=np.nan):
    return {"mean": mean, "low": low, "high": high}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(0.1, 0.05, 0.15), row(0.2, -0.1, 0.5)], "test accuracy is higher in 2 of 2 cells (decided: 1 higher)"),
        ([row(0.1, 0.05, 0.15), row(0.2, 0.1, 0.3)], "test accuracy is higher in 2 of 2 cells (all decided)"),
        (
            [row(0.1, 0.05, 0.15), row(-0.2, -0.3, -0.1), row(0.0, -0.1, 0.1)],
            "test accuracy is higher in 1 and lower in 1 and equal in 1 of 3 cells (decided: 1 higher, 1 lower)",
        ),
        ([row(-0.1, -0.2, 0.0)], "test accuracy is lower in 1 of 1 cell (none decided)"),
        ([row(0.1, 0.1, 0.1), row(0.1)], "test accuracy is higher in 2 of 2 cells (none decided)"),
        ([row(0.1)], "test accuracy is higher in 1 of 1 cell"),
    ],
)
def test_differences_are_counted_by_what_their_intervals_say(rows, expected):
    assert tally(rows, "accuracy") == expected


def natural_and_robust():
    """Robust is above natural by 2 points in five of six cells; in three of them the seeds agree."""
    rows, noise = [], {True: [0.0, 0.001, 0.002], False: [0.0, 0.1, -0.1]}
    for i, (k, n) in enumerate([("0", 100), ("0", 400), ("0", 1600), ("1", 100), ("1", 400), ("1", 1600)]):
        rows += seeds([0.6, 0.6, 0.6], k=k, n=n)
        gain = -0.02 if i == 5 else 0.02 + 0.01 * (i == 1)
        rows += seeds([0.6 + gain + x for x in noise[i < 3]], k=k, n=n, source="robust")
    return rows


def test_sources_are_compared_cell_by_cell():
    first, *_, last = sentences(natural_and_robust())
    assert first.startswith(
        "robust against natural: test accuracy is higher in 5 and lower in 1 of 6 cells (decided: 3 higher), "
        "the greatest +3.1 points"
    )
    assert first.endswith("at k = 0, n = 400.")
    assert "interval of the difference, paired by seed, excludes zero" in last and "3 seeds" in last


def test_one_seed_decides_nothing_and_says_so_first():
    rows = [row for row in natural_and_robust() if row["seed"] == 0]
    first, second = sentences(rows)
    assert first.startswith("There is one seed: no number here has an interval")
    assert second == "robust against natural: test accuracy is higher in 5 and lower in 1 of 6 cells."


def test_many_intervals_are_said_to_err_by_chance():
    rows = [row for n in range(20) for s in ("natural", "robust") for row in seeds([0.5, 0.6], source=s, n=100 + n)]
    assert any("Of 20 such intervals about 1" in sentence for sentence in sentences(rows))


def test_many_sources_are_counted_together():
    names = ["natural", *"abcdef"]
    rows = [r for i, s in enumerate(names) for r in seeds([0.5 + 0.01 * i, 0.52 + 0.01 * i, 0.53 + 0.01 * i], source=s)]
    assert sentences(rows)[0].startswith("The other 6 sources against natural: test accuracy is higher in 6 of 6 cells")


def test_recipes_are_compared_with_the_plain_one_and_the_leader_is_judged():
    rows = []
    for recipe, accuracy, robust, seconds in (("", 0.90, 0.2, 10.0), ("LwF 0.005", 0.88, 0.3, 40.0)):
        noise = [0.0, 0.002, -0.002] if recipe else [0.0, 0.001, 0.001]
        rows += [
            {
                "recipe": recipe,
                "seed": s,
                "test_accuracy": accuracy + x,
                "robust_accuracy": robust - x,
                "seconds": seconds,
            }
            for s, x in enumerate(noise)
        ]
    first, lead, robust, flattered, _ = sentences(rows)
    assert "flatters its lead" in flattered
    assert first == (
        "LwF 0.005 against plain, same source, k and n: test accuracy is lower in 1 of 1 cell (all decided); robust accuracy is "
        "higher in 1 of 1 cell (all decided); training took 4 times the seconds (geometric mean)."
    )
    assert lead.startswith(
        "The highest test accuracy is that of plain: 90.1%. Its lead over the next, LwF 0.005, is +2.1 points"
    )
    assert lead.endswith("decided.") and "not decided" not in lead
    assert robust.startswith("The highest robust accuracy is that of LwF 0.005: 30.0%")


def test_what_more_blocks_change_is_said_where_robustness_was_measured():
    rows = [
        {"k": k, "seed": s, "test_accuracy": 0.8 + gain + x, "robust_accuracy": 0.6 - loss}
        for k, gain, loss in (("0", 0.0, 0.0), ("3", 0.02, 0.2), ("all", 0.05, 0.5))
        for s, x in enumerate([0.0, 0.01])
    ]
    (text, _) = sentences(rows)
    assert text.startswith("From k = 0 to k = all (natural): test accuracy changes by +5.0 points")
    assert "robust accuracy changes by −50.0 points" in text


def test_the_best_radius_is_named_and_its_lead_judged():
    of = [{"source": s, "norm": "l2" if e else "", "eps": e} for s, e in (("natural", 0.0), ("a", 0.5), ("b", 1.0))]
    rows = [
        *seeds([0.70, 0.72, 0.71], source="natural"),
        *seeds([0.75, 0.76, 0.77], source="a"),
        *seeds([0.74, 0.77, 0.74], source="b"),
    ]
    text = next(s for s in sentences(rows, of) if s.startswith("The best of 3 radii"))
    assert "(L2) is 0.5: 76.0%. Its gain over 0 is +5.0 points" in text
    assert text.endswith("Its lead over 1 is +1.0 points (−4.0 to +6.0): not decided.")


def test_correlations_are_told_with_their_interval():
    of = [{"source": f"s{i}", "natural_accuracy": 0.7 + 0.05 * i} for i in range(5)]
    rows = [r for i in range(5) for r in seeds([0.6 + 0.05 * i, 0.6 + 0.05 * i + 0.01 * (i % 2)], source=f"s{i}")]
    text = next(s for s in sentences(rows, of) if s.startswith("Pearson"))
    assert "over 5 sources is 1.00; its 95% interval excludes zero in 1 of 1." in text
    few = next(s for s in sentences(rows[:6], of[:3]) if s.startswith("Pearson"))
    assert few.endswith("of too few points for an interval.")
