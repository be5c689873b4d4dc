"""What can be asked of the penultimate layer of several networks: what its units look for, and how far a small change moves it.

As in `scoring`, heavy modules are imported inside the functions that need them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import UsageError
from .models.feature_settings import FeatureShiftSettings, VisualizeSettings
from .models.settings import DataSettings
from .questions import free_file

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .influence.examples import Progress
    from .influence.tables import Table
    from .models.checkpoints import LoadedModel
    from .models.data import TargetData
    from .models.images import ImageSet
    from .reports.visualize import Ascents

DPI = 150


def visualize(
    networks: Sequence[str],
    data: DataSettings,
    settings: VisualizeSettings,
    *,
    image: str | Path | None = None,
    npz: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> Table:
    """Raise units of the penultimate layer by ascent on the input, from the same starts for every network.

    Args:
        networks: Sources (natural, robust, checkpoint files) or run folders, one row of the figure each.
        data: Whose test images to begin with.
        settings: Units, starts and ascent.
        image: Draw starts and ends into this file.
        npz: Save them, with units and activations, into this file: arrays called "NAME.starts", "NAME.images" and so on.
        overwrite: Replace these files when they are there.
        progress: As in `attribute`.

    Returns:
        source, start, unit, before, after (activations), moved (Euclidean distance from the start), chosen.

    Raises:
        UsageError: A row or unit is out of range, or two networks have one name.
    """
    import numpy as np

    from .reports.progress import reporting
    from .reports.style import to_png
    from .reports.visualize import ascents_table, draw_ascents

    picture, numbers = free_file(image, ".png", overwrite), free_file(npz, ".npz", overwrite)
    loaded = _load(networks)
    with reporting(progress) as report:
        made = []
        for i, network in enumerate(loaded):
            target = _target(data, network)
            made.append(_ascents(network, target, settings))
            starts = _start_names(target, settings)
            if report is not None:
                report("visualize", i + 1, len(loaded))
    far = "" if settings.radius is None else f", at most {settings.radius:g} from the start"
    how = f"{settings.steps} steps of length {settings.step_size:g} (L2){far}"
    if picture is not None:
        caption = f"Units: {made[0].chosen}. Under each image: activation before → after {how}; pixels stay in [0, 1]."
        picture.write_bytes(to_png(draw_ascents(made, starts, caption), DPI))
    if numbers is not None:
        names = ("starts", "images", "units", "before", "after")
        np.savez(numbers, **{f"{one.name}.{name}": getattr(one, name) for one in made for name in names})
    return ascents_table(made, starts, f"Units of the penultimate layer raised by {how}; data: {target.name}")


def _ascents(network: LoadedModel, target: TargetData, settings: VisualizeSettings) -> Ascents:
    """What one network makes of every start, unit by unit."""
    import torch

    from .models.visualize import most_active, noise_images, raise_units
    from .reports.visualize import Ascents

    images = target.test.images(_rows(target, settings))
    starts = torch.cat([images, noise_images(settings.noise, target.test.input_shape, settings.seed)])
    with _features(network, settings.device) as (features, device):
        units = torch.tensor(settings.units, dtype=torch.int64)
        chosen = "as named"
        if not settings.units:
            some = _first(target.test, settings.images)
            units = most_active(features, some, settings.most_active, device)
            chosen = f"the most active on average over {len(some)} test images of {target.name}"
        shape = (len(starts), len(units))
        begin = starts.repeat_interleave(len(units), dim=0)
        found = raise_units(features, begin.to(device), units.repeat(len(starts)).to(device), settings)
    return Ascents(
        name=network.name,
        units=units.numpy(),
        chosen=chosen,
        starts=starts.numpy(),
        images=found.image.cpu().numpy().reshape(*shape, *starts.shape[1:]),
        before=found.before.cpu().double().numpy().reshape(shape),
        after=found.after.cpu().double().numpy().reshape(shape),
    )


def feature_shift(
    networks: Sequence[str],
    data: DataSettings,
    settings: FeatureShiftSettings,
    *,
    image: str | Path | None = None,
    csv: str | Path | None = None,
    npz: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> Table:
    """How far a random change of test images moves the penultimate features of each network.

    Args:
        networks: Sources (natural, robust, checkpoint files) or run folders.
        data: Whose test images are changed.
        settings: The change, and what is drawn.
        image: Draw the distributions into this file.
        csv: Write the table into this file.
        npz: Save the distances image by image into this file: "NAME.l2", "NAME.mean_abs", and with "_size" the same measure of
            the features themselves.
        overwrite: Replace these files when they are there.
        progress: As in `attribute`.

    Returns:
        source, distance, scale ("absolute", or "relative" to the features' own size), images, mean, quantiles, max.

    Raises:
        UsageError: Two networks have one name.
    """
    import numpy as np

    from .models.feature_shift import measure_shift
    from .reports.feature_shift import draw_shifts, shift_table
    from .reports.progress import reporting
    from .reports.style import to_png

    picture, numbers = free_file(image, ".png", overwrite), free_file(npz, ".npz", overwrite)
    text = free_file(csv, ".csv", overwrite)
    loaded = _load(networks)
    shifts = {}
    with reporting(progress) as report:
        for i, network in enumerate(loaded):
            target = _target(data, network)
            with _features(network, settings.device) as (features, device):
                found = measure_shift(features, _first(target.test, settings.images), settings, device)
            names = ("l2", "mean_abs", "l2_size", "mean_abs_size")
            shifts[network.name] = {name: getattr(found, name).numpy() for name in names}
            if report is not None:
                report("feature shift", i + 1, len(loaded))
    table = shift_table(
        shifts, f"Distance of penultimate features under {settings.change}; test images of {target.name}"
    )
    if picture is not None:
        picture.write_bytes(to_png(draw_shifts(shifts, settings.distance, settings.bins, settings.change), DPI))
    if numbers is not None:
        np.savez(numbers, **{f"{name}.{key}": values for name, held in shifts.items() for key, values in held.items()})
    if text is not None:
        text.write_text(table.to_csv(), encoding="utf-8")
    return table


def _load(networks: Sequence[str]) -> list[LoadedModel]:
    """The networks that names, files and run folders stand for."""
    from dataclasses import replace

    from .models.checkpoints import SOURCES, load_model
    from .models.runs import MODEL_FILE, read_run

    loaded = []
    for name in networks:
        folder = Path(name).expanduser()
        if name not in SOURCES and folder.is_dir():
            read_run(folder)  # says what is amiss where it holds no finished run
            loaded.append(replace(load_model(folder / MODEL_FILE), name=folder.absolute().name))
        else:
            loaded.append(load_model(name))
    names = [network.name for network in loaded]
    if len(set(names)) < len(names):
        raise UsageError(f"Two networks are called {max(names, key=names.count)}; leave one out, or rename it.")
    return loaded


def _target(data: DataSettings, network: LoadedModel) -> TargetData:
    from .models.data import load_data

    return load_data(data, network.spec.input_shape)


def _first(images: ImageSet, count: int | None) -> ImageSet:
    return images if count is None else images.subset(slice(0, count))


def _rows(target: TargetData, settings: VisualizeSettings) -> list[int]:
    """The test images to begin with."""
    from .reports.neighbours import one_per_class

    if not settings.rows:
        rows: list[int] = one_per_class(target.test.labels.numpy())[: settings.starts].tolist()
        return rows
    for row in settings.rows:
        if row >= len(target.test):
            raise UsageError(
                f"Row {row} is out of range: {target.name} has {len(target.test)} test images, 0 to {len(target.test) - 1}."
            )
    return list(settings.rows)


def _start_names(target: TargetData, settings: VisualizeSettings) -> list[str]:
    rows = _rows(target, settings)
    classes = [target.class_names[int(target.test.labels[row])] for row in rows]
    return [f"row {r} ({c})" for r, c in zip(rows, classes, strict=True)] + [
        f"noise {i}" for i in range(settings.noise)
    ]


@contextmanager
def _features(network: LoadedModel, device: str) -> Generator[tuple[nn.Module, torch.device]]:
    """The part of a network that gives its penultimate features, on a device for a while."""
    from .models.device import reproducible, resolve_device
    from .models.visualize import penultimate
    from .scoring import few_threads

    where = resolve_device(device)
    model: Any = network.model
    model.to(where)
    try:
        with reproducible(), few_threads(network):
            yield penultimate(model).eval(), where
    finally:
        model.cpu()
