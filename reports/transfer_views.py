"""What is drawn of a sweep: a view is there when its axis takes at least two values on some line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .panels import Key
from .style import strokes
from .transfer_cells import MEASURED, Row, cell_of, pick
from .transfer_curves import Axis, Curves, Level
from .transfer_lines import MOST, arm_curves, drawn_sources, enough, share, size_axis
from .transfer_tables import Sweep

IMAGES = "train images n, logarithmic"
BLOCKS = "fine-tuned blocks k, from the last"
PER_CLASS = "train images a class, logarithmic"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A figure of the page, and what is said about it."""

    name: str
    """Of its picture, and of its table where no other is given."""
    heading: str
    curves: Curves
    caption: str
    table: str = ""
    """Name of the table that it shares with other views."""


def by_size(sweep: Sweep) -> View:
    """Accuracy against the size of the train set (Utrera et al., Figure 2).

    Args:
        sweep: The runs.

    Returns:
        Lines: arms; panels: k.
    """
    rows = sweep.means(["accuracy"])
    curves = arm_curves(sweep, rows, "Test accuracy by train images", size_axis(rows, "n", IMAGES), _by_k(sweep))
    caption = "Test accuracy against the number of train images."
    return View(name="by-size", heading="Size of the train set", curves=curves, caption=caption)


def difference_by_size(sweep: Sweep) -> View:
    """Difference from the first source against the size of the train set (Utrera et al., Figure 3).

    Args:
        sweep: The runs.

    Returns:
        Lines: k; panels: recipe and source.
    """
    first, recipes = sweep.sources[0], sweep.values("recipe")
    rows = sorted(sweep.from_first_source("accuracy"), key=lambda row: recipes.index(row["recipe"]))
    lines = {(k, ""): f"k = {k}" for k in sweep.values("k")}

    def panel(row: Row) -> Key:
        return sweep.words(cell_of(row), ["data", "resolution", "recipe"]), f"{row['source']} minus {first}"

    curves = Curves(
        title=f"Difference in test accuracy from {first}, by train images",
        rows=rows,
        axis=size_axis(rows, "n", IMAGES),
        panel=panel,
        line=lambda row: (row["k"], ""),
        labels=lines,
        strokes=strokes(list(lines)),
        share=share,
    )
    caption = f"What each source gains over {first} in test accuracy, paired by seed: above zero it does better."
    return View(
        name="difference-by-size", heading=f"Difference from {first} by size", curves=enough(curves), caption=caption
    )


def by_blocks(sweep: Sweep) -> View:
    """Accuracies against k (Shafahi et al., Figure 1; CARTL), with the level of the source that nothing was done to.

    Args:
        sweep: The runs.

    Returns:
        Lines: arms; panels: measure and n.
    """
    order = sweep.values("k")
    axis = Axis(label=BLOCKS, of=lambda row: order.index(row["k"]), ticks=list(enumerate(order)))
    curves = arm_curves(sweep, sweep.means(MEASURED), "Accuracies by fine-tuned blocks", axis, ["n"])
    curves = replace(curves, levels=_untouched(sweep, curves), level_label="the source itself")
    caption = (
        "Accuracy against the number of residual blocks that were fine-tuned; the values of k stand at even distances."
    )
    if curves.levels:
        caption += " Dashed: the source itself on its own data, with nothing fine-tuned."
    return View(name="by-blocks", heading="Fine-tuned blocks", curves=curves, caption=caption)


def few_data(sweep: Sweep) -> View:
    """Accuracies and cost against images a class (Shafahi et al., Figures 3 and 8).

    Args:
        sweep: The runs.

    Returns:
        Lines: arms; panels: measure and k. Empty where there is one recipe and no attack: `by_size` shows it all.
    """
    rows = (
        sweep.means([*MEASURED, "seconds"]) if sweep.has("robust accuracy") or len(sweep.values("recipe")) > 1 else []
    )
    classes = {c.data: float(row.get("classes", np.nan)) for c, runs in sweep.cells.items() for row in runs.values()}
    if known := all(count > 0 for count in classes.values()):
        rows = [{**row, "images_per_class": row["n"] / classes[row["data"]]} for row in rows]
    axis = size_axis(rows, "images_per_class", PER_CLASS) if known else size_axis(rows, "n", IMAGES)
    curves = arm_curves(sweep, rows, "Few data: accuracies and seconds of training", axis, _by_k(sweep))
    caption = (
        "What few train images give, and what the training costs. Seconds are those of this sweep's machine, which may have "
        "been shared: compare them with each other only."
    )
    return View(name="few-data", heading="Few data", curves=curves, caption=caption)


def by_epoch(sweep: Sweep) -> list[View]:
    """Accuracy against the epoch (Utrera et al., Figure 4), a figure a target.

    Args:
        sweep: The runs.

    Returns:
        Lines: arms; panels: k and n, of which the figures show some.
    """
    rows, targets = sweep.epochs(), sweep.values("target")
    axis = Axis(label="epoch", of=lambda row: row["epoch"])
    made = []
    for i, target in enumerate(targets):
        cells = [cell for cell in sweep.cells if cell.target == target]
        shown = {(k, n) for k in pick(sweep.values("k", cells), MOST + 1) for n in pick(sweep.values("n", cells), MOST)}
        curves = arm_curves(
            sweep,
            [row for row in rows if cell_of(row).target == target],
            "Test accuracy by epoch",
            axis,
            ["n"],
            outer=["k"],
            drawn=_among(shown, drawn_sources(sweep)),
        )
        words = sweep.words(cells[0], ["data", "resolution"])
        caption = f"Test accuracy after each recorded epoch{f': {words}' if words else ''}."
        made.append(
            View(
                name=f"by-epoch-{i + 1}" if len(targets) > 1 else "by-epoch",
                heading=f"Course of the training{f': {words}' if words else ''}",
                curves=curves,
                caption=caption,
                table="by_epoch",
            )
        )
    return made


def _by_k(sweep: Sweep) -> list[str]:
    """Panels of one k, but where every arm has a k of its own: then all of them are to be compared."""
    return [] if sweep.arm_has_k else ["k"]


def _untouched(sweep: Sweep, curves: Curves) -> list[Level]:
    """The accuracy of every source on the target, where that is what the source was made for and its record says it."""
    found: dict[tuple[Key, str], Level] = {}
    for row in filter(curves.drawn, curves.rows):
        source, robust = row["source"], row["measure"] == "robust accuracy"
        if sweep.fact(source, "data") != row["data"] or cell_of(row).resolution is not None:
            continue
        if robust and sweep.fact(source, "attack") != sweep.attack:
            continue  # measured with another attack: no level for these numbers
        height = float(sweep.fact(source, "robust_accuracy" if robust else "natural_accuracy"))
        if np.isfinite(height):
            found.setdefault(
                (curves.panel(row), source), Level(panel=curves.panel(row), line=curves.line(row), height=height)
            )
    return list(found.values())


def _among(shown: set[tuple[str, int]], sources: set[str]) -> Callable[[Row], bool]:
    return lambda row: (row["k"], row["n"]) in shown and row["source"] in sources
