"""Input gradients as pictures, by one display rule for all models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..influence.errors import ShapeError
from ..influence.tables import Table
from .labels import number
from .pictures import Sheet, as_picture
from .runs import Group, table_of
from .settings import ReportSettings
from .style import FAINT, INK, source_colours, styled


def display_gradient(
    gradient: Float[np.ndarray, "c h w"], deviations: float = 3.0
) -> tuple[NDArray[np.float64], float]:
    """An input gradient as an image: s = 3 std(g), g clamped to [-s, s], shown as (1 + g / s) / 2.

    Args:
        gradient: Nats per unit of a pixel in [0, 1].
        deviations: Standard deviations, over all pixels and channels of this image, at which it is clamped.

    Returns:
        The image [c, h, w], a half where the gradient is zero, and the scale s.
    """
    g = np.asarray(gradient, dtype=np.float64)
    scale = deviations * float(g.std())
    if not scale > 0:
        return np.full_like(g, 0.5), 0.0
    return (1 + np.clip(g, -scale, scale) / scale) / 2, scale


class Saliency:
    """Queries, and the gradient of their loss in the pixels for each source.

    Args:
        group: Runs to compare; those of `group.first_seed` are shown.
        settings: Where gradients are clamped.
    """

    def __init__(self, group: Group, settings: ReportSettings) -> None:
        self.group, self.deviations = group, settings.saliency_deviations
        rows = [run.saliency_rows for run in group.drawn if run.saliency is not None and run.saliency_rows is not None]
        self.runs = [
            run for run in group.drawn if rows and run.saliency is not None and _same(run.saliency_rows, rows[0])
        ]

    def __bool__(self) -> bool:
        return bool(self.runs) and self.runs[0].query_images is not None

    def frame(self) -> Table:
        """The scale of every gradient shown.

        Returns:
            A row for each source and query: scale s, mean and norm of the gradient, nats per unit of a pixel.
        """
        rows = []
        for run in self.runs:
            assert run.saliency is not None and run.saliency_rows is not None
            queries = run.main.queries
            for row, gradient in zip(run.saliency_rows.tolist(), run.saliency, strict=True):
                rows.append({
                    **self.group.columns_of(run),
                    "source": run.arm,
                    "seed": run.seed,
                    "row": row,
                    "query_id": int(queries.index[row]),
                    "query_class": run.class_name(int(queries.label[row])),
                    "predicted_class": run.class_name(int(queries.prediction[row])),
                    "scale": display_gradient(gradient, self.deviations)[1],
                    "norm": float(np.linalg.norm(np.asarray(gradient, dtype=np.float64))),
                })
        return table_of(rows, "Scale of the input gradients shown")

    def plot(self) -> Figure:
        """The pictures: queries in the first row, then a row for each source.

        Returns:
            The figure.
        """
        first = self.runs[0]
        assert first.query_images is not None and first.saliency_rows is not None
        rows = first.saliency_rows
        captions = [first.class_name(int(first.main.queries.label[row])) for row in rows]
        gradients = {run.arm: run.saliency for run in self.runs if run.saliency is not None}
        return draw_saliency(
            first.query_images[rows], gradients, captions, deviations=self.deviations, order=self.group.order
        )


def draw_saliency(
    images: NDArray[np.floating],
    gradients: Mapping[str, NDArray[Any]],
    names: Sequence[str],
    *,
    deviations: float = 3.0,
    order: Sequence[str] = (),
) -> Figure:
    """Images above the input gradients of one or more models.

    Args:
        images: [s, c, h, w] in [0, 1].
        gradients: Gradients [s, c, h, w] by model name, nats per unit of a pixel in [0, 1].
        names: Caption of each image.
        deviations: Standard deviations at which a gradient is clamped.
        order: Model names in the order that decides their colours; those of `gradients` when not given.

    Returns:
        The figure; the scale s is printed under each gradient.

    Raises:
        ShapeError: A model has another number of gradients than there are images or names.
    """
    lengths = {"names": len(names), **{source: len(stack) for source, stack in gradients.items()}}
    for source, length in lengths.items():
        if length != len(images):
            raise ShapeError(f"{source}: {length} entries for {len(images)} images; give one for each image.")
    colours = source_colours(order or list(gradients))
    labels = {source: source.replace(", ", "\n") for source in gradients}
    longest = max((len(line) for label in labels.values() for line in label.split("\n")), default=0)
    left = max(1.15, 0.2 + 0.105 * longest)
    with styled():
        fig, sheet = Sheet.sized(left + 1.06 * len(images), 1 + len(gradients), lines=1, side=0.86, header=0.1)
        sheet.text("image", left - 0.12, 0.5, ha="right", color=FAINT)
        for j, (image, name) in enumerate(zip(images, names, strict=True)):
            sheet.picture(as_picture(image), left + 1.06 * j, 0, [(str(name), INK)])
        for i, (source, stack) in enumerate(gradients.items(), start=1):
            place = left - 0.12, i * sheet.pitch + 0.5
            sheet.text(labels[source], *place, ha="right", color=colours[source], weight="bold")
            for j, gradient in enumerate(stack):
                shown, scale = display_gradient(gradient, deviations)
                sheet.picture(as_picture(shown), left + 1.06 * j, i, [(f"s = {number(scale)}", FAINT)])
    return fig


def _same(rows: NDArray[Any] | None, others: NDArray[Any]) -> bool:
    return rows is not None and np.array_equal(rows, others)
