"""What the numbers of a sweep allow one to say, in words computed from them, and what the seeds leave open."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .labels import number, percent, percentage_points
from .transfer_accuracy import ALL, SourceAccuracy
from .transfer_cells import MEASURED, PLAIN, Cell, Row, cell_of
from .transfer_sources import best_radii, part
from .transfer_tables import Sweep

MANY = 4
"""From more sentences of one kind on, they become one that counts."""
FLATTERED = "What is highest or best was picked by the very runs that it is judged by, which flatters its lead."
INTERVALS = 20
"""Number of intervals from which on it is said how many exclude zero by chance."""
LEAST_WIDTH = 1e-9
"""Width from which on an interval is one."""
QUANTITY = {"accuracy": "test accuracy"}
PLACE = ("data", "resolution", "recipe", "source", "k", "n")


def conclude(sweep: Sweep) -> list[str]:
    """What can and what cannot be said.

    Args:
        sweep: The runs.

    Returns:
        Sentences; none of a kind that the runs lack the data for.
    """
    sentences = [*_sources(sweep), *_recipes(sweep), *_blocks(sweep), *_radii(sweep), *_correlations(sweep)]
    if any("lead over" in sentence for sentence in sentences):
        sentences.append(FLATTERED)
    ordered = [_seeds(sweep), *sentences] if seeds_words(sweep) == "1" else [*sentences, _seeds(sweep)]
    return [sentence for sentence in ordered if sentence]


def seeds_words(sweep: Sweep) -> str:
    """How many seeds there are.

    Args:
        sweep: The runs.

    Returns:
        "3", or "5 to 20".
    """
    counts = {len(runs) for runs in sweep.cells.values()}
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def tally(rows: Sequence[Row], measure: str) -> str:
    """How often one thing is above another, and how often the seeds decide it.

    Args:
        rows: Differences.
        measure: Key of MEASURES.

    Returns:
        A clause.
    """
    counts = {
        "higher": sum(row["mean"] > 0 for row in rows),
        "lower": sum(row["mean"] < 0 for row in rows),
        "equal": sum(row["mean"] == 0 for row in rows),
    }
    held = " and ".join(f"{word} in {count}" for word, count in counts.items() if count)
    text = f"{QUANTITY.get(measure, measure)} is {held} of {len(rows)} {'cell' if len(rows) == 1 else 'cells'}"
    if not any(np.isfinite(row["low"]) for row in rows):
        return text
    up, down = (sum(verdict(row) == sign for row in rows) for sign in (1, -1))
    sides = ", ".join(f"{count} {word}" for word, count in (("higher", up), ("lower", down)) if count)
    decided = "all decided" if len(rows) in {up, down} else f"decided: {sides}" if sides else "none decided"
    return f"{text} ({decided})"


def verdict(row: Row) -> int:
    """What the seeds decide.

    Args:
        row: An estimate with its limits.

    Returns:
        1 where the interval is above zero, -1 where it is below, 0 where it holds zero, or is none at all: seeds that happen to
        agree to the last image have an interval of no width, which says nothing of other seeds.
    """
    if not row["high"] - row["low"] > LEAST_WIDTH:
        return 0
    return int(row["low"] > 0) - int(row["high"] < 0)


def _sources(sweep: Sweep) -> list[str]:
    """Every source against the first."""
    first, *others = sweep.sources
    rows = {measure: sweep.from_first_source(measure) for measure in MEASURED}
    if len(others) > MANY:
        clauses = [tally(found, measure) for measure, found in rows.items() if found]
        found = [f"The other {len(others)} sources against {first}: {'; '.join(clauses)}."] if clauses else []
    else:
        found = [
            f"{source} against {first}: {'; '.join(clauses)}."
            for source in others
            if (
                clauses := [
                    _clause(sweep, measure, mine) for measure in MEASURED if (mine := _of(rows[measure], source))
                ]
            )
        ]
    intervals = sum(bool(np.isfinite(row["low"])) for of_measure in rows.values() for row in of_measure)
    if intervals >= INTERVALS:
        found.append(f"Of {intervals} such intervals about {round(intervals / 20)} exclude zero by chance alone.")
    return found


def _of(rows: Iterable[Row], source: str) -> list[Row]:
    return [row for row in rows if row["source"] == source]


def _clause(sweep: Sweep, measure: str, rows: Sequence[Row]) -> str:
    """The tally, with the greatest of the differences that are decided."""
    decided = [row for row in rows if verdict(row)]
    if len(decided) < 2:
        return tally(rows, measure)
    most = max(decided, key=lambda row: abs(row["mean"]))
    where = sweep.words(cell_of(most), [name for name in PLACE if name != "source"])
    return f"{tally(rows, measure)}, the greatest {_difference(most)}{f' at {where}' if where else ''}"


def _recipes(sweep: Sweep) -> list[str]:
    """Every recipe against the plain one, and which arm leads."""
    recipes = sweep.values("recipe")
    if len(recipes) < 2:
        return []
    base = "" if "" in recipes else recipes[0]
    found = []
    for recipe in (r for r in recipes if r != base):
        cells = [cell for cell in sweep.cells if cell.recipe == recipe]
        rows = {m: _rows(sweep.difference(cell, cell._replace(recipe=base), m) for cell in cells) for m in MEASURED}
        clauses = [tally(mine, measure) for measure, mine in rows.items() if mine]
        if cost := _cost(sweep, cells, base):
            clauses.append(f"training took {number(cost)} times the seconds (geometric mean)")
        if clauses:
            found.append(f"{recipe} against {base or PLAIN}, same source, k and n: {'; '.join(clauses)}.")
    leaders = [
        _leader(sweep, target, n, measure)
        for target in sweep.values("target")
        for n in _ends(sweep.values("n", [cell for cell in sweep.cells if cell.target == target]))
        for measure in MEASURED
    ]
    return [*(found if len(found) <= MANY else []), *(leaders if len(leaders) <= 2 * MANY else [])]


def _ends(values: Sequence[int]) -> list[int]:
    """The first and the last."""
    return list(dict.fromkeys((values[0], values[-1])))


def _cost(sweep: Sweep, cells: Iterable[Cell], base: str) -> float:
    pairs = [(sweep.mean(cell, "seconds"), sweep.mean(cell._replace(recipe=base), "seconds")) for cell in cells]
    ratios = [a["mean"] / b["mean"] for a, b in pairs if a and b and a["mean"] > 0 and b["mean"] > 0]
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else 0.0


def _leader(sweep: Sweep, target: tuple[str, float | None], n: int, measure: str) -> str:
    """The arm and k of the highest mean on one target at one size."""
    held = [c for c in sweep.cells if c.target == target and c.n == n and sweep.by_seed(c, measure)]
    if len(held) < 2:
        return ""
    means = {cell: row["mean"] for cell in held if (row := sweep.mean(cell, measure))}
    best, second = sorted(means, key=lambda cell: -means[cell])[:2]
    words = [sweep.words(cell, ["source", "recipe", "k"]) for cell in (best, second)]
    where = sweep.words(best, ["data", "resolution", "n"])
    what = f"{QUANTITY.get(measure, measure)}{f' at {where}' if where else ''}"
    lead = f"Its lead over the next, {words[1]}, {_decided(sweep.difference(best, second, measure))}."
    return f"The highest {what} is that of {words[0]}: {percent(means[best])}. {lead}"


def _blocks(sweep: Sweep) -> list[str]:
    """What every arm gains and loses from the fewest to the most fine-tuned blocks, at the greatest n."""
    found = []
    for rest in dict.fromkeys(cell._replace(k="", n=0) for cell in sweep.cells):
        cells = [cell for cell in sweep.cells if cell._replace(k="", n=0) == rest]
        cells = [cell for cell in cells if cell.n == max(c.n for c in cells)]
        if len(cells) < 2 or not sweep.has("robust accuracy"):
            continue
        few, many = cells[0], cells[-1]
        rows = _rows(sweep.difference(many, few, measure) for measure in MEASURED)
        parts = [f"{QUANTITY.get(row['measure'], row['measure'])} changes by {_difference(row)}" for row in rows]
        where = sweep.words(few, ["source", "data", "resolution", "recipe", "n"]) or few.source
        if parts:
            found.append(f"From k = {few.k} to k = {many.k} ({where}): {', '.join(parts)}.")
    return found if len(found) <= MANY else []


def _radii(sweep: Sweep) -> list[str]:
    """Which radius is best for each target, and whether the seeds can tell."""
    rows = [row for row in best_radii(sweep).rows() if row["measure"] == "accuracy"]
    if not rows:
        return []
    if len(rows) > MANY:
        inner = sum(row["eps"] > row["least_eps"] for row in rows)
        gains, leads = (sum(verdict(part(row, name)) > 0 for row in rows) for name in ("gain", "lead"))
        text = (
            f"The best radius is above the least one on {inner} of {len(rows)} lines (target, k, n, norm); its gain over the "
            f"least is decided on {gains}, its lead over the second best on {leads}."
        )
        return [text]
    found = []
    for row in rows:
        where = sweep.words(cell_of(row), ["data", "resolution", "recipe", "k", "n"])
        best = (
            f"The best of {row['radii']} radii ({row['family']}{f'; {where}' if where else ''}) is {number(row['eps'])}"
        )
        gain, lead = part(row, "gain"), part(row, "lead")
        over = f" Its gain over {number(row['least_eps'])} {_decided(gain)}." if row["eps"] != row["least_eps"] else ""
        found.append(
            f"{best}: {percent(row['mean'])}.{over} Its lead over {number(row['second_eps'])} {_decided(lead)}."
        )
    return found


def _correlations(sweep: Sweep) -> list[str]:
    rows = [
        row
        for row in SourceAccuracy(sweep).correlations().rows()
        if row["sources"] == ALL and row["quantity"] == "natural_accuracy" and np.isfinite(row["pearson"])
    ]
    if not rows:
        return []
    shares = [row["pearson"] for row in rows]
    decided = sum(verdict(row) != 0 for row in rows)
    points = max(row["points"] for row in rows)
    spread = (
        f"{min(shares):.2f}" if len(rows) == 1 else f"{min(shares):.2f} to {max(shares):.2f} in {len(rows)} settings"
    )
    text = f"Pearson's correlation of source and transfer accuracy over {points} sources is {spread}".replace("-", "−")
    if not any(np.isfinite(row["low"]) for row in rows):
        return [f"{text}, of too few points for an interval."]
    return [f"{text}; its 95% interval excludes zero in {decided} of {len(rows)}."]


def _seeds(sweep: Sweep) -> str:
    words = seeds_words(sweep)
    same = "the same source networks and the same test images"
    if words == "1":
        return (
            f"There is one seed: no number here has an interval, and no difference is decided. All runs share {same}."
        )
    text = (
        "Decided means that the 95% interval of the difference, paired by seed, excludes zero; seeds that agree to the last "
        f"image decide nothing. A cell has {words} seeds, which speak of other subsets and training runs, with {same}."
    )
    single = sum(len(runs) == 1 for runs in sweep.cells.values())
    return f"{text} {single} of {len(sweep.cells)} cells have one seed and no interval." if single else text


def _decided(row: Row | None) -> str:
    """Whether a difference is decided."""
    if row is None or not np.isfinite(row["mean"]):
        return "is unknown: they share no seed"
    if not np.isfinite(row["low"]):
        return f"is {percentage_points(row['mean'])}, without an interval"
    return f"is {_difference(row)}: {'decided' if verdict(row) else 'not decided'}"


def _difference(row: Row) -> str:
    mean, low, high = (percentage_points(row[name]) for name in ("mean", "low", "high"))
    return (
        mean
        if row["low"] != row["low"]
        else f"{mean} ({low.removesuffix(' points')} to {high.removesuffix(' points')})"
    )


def _rows(found: Iterable[Row | None]) -> list[Row]:
    return [row for row in found if row is not None]
