"""What an attribution will cost, before it costs it: a few examples are read and run, and nothing is kept.

Heavy modules are imported inside the functions that need them, so that the command line can show its options at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .influence.settings import AttributeSettings, memory_bytes
from .pipeline import OwnSettings, load_own, run_config
from .scoring import (
    STORE_FILE,
    Sides,
    default_curvature,
    few_threads,
    make_plan,
    make_variants,
    resolve,
    standing_scores,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .influence.attribute import Variant
    from .influence.curvature import Curvature
    from .influence.estimate import Estimate, Stage
    from .influence.examples import Examples, Source
    from .influence.problem import Loss
    from .influence.sample import Sampled
    from .influence.side import Side
    from .models.runs import Run

STORE_SECONDS = 0.1  # of creating, checking and reading a store of any size: some hundred small reads and writes
PROBE_BYTES = 2**23  # written to time the disk, into a file without a name


def estimate(
    model: nn.Module,
    train: Source,
    queries: Source | None = None,
    *,
    parameters: str | Sequence[str] = "head",
    curvature: Curvature[Any] | None = None,
    query_label: str = "true",
    weight_decay: float | None = None,
    train_scores: bool = False,
    loss: Loss | None = None,
    dtype: torch.dtype | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    memory: str | float | None = None,
    out: str | Path | None = None,
) -> Estimate:
    """What `attribute` with the same arguments will take on this machine: time, operations, memory and disk, stage by stage.

    A few examples are read and run, and every kind of step is timed for a moment: some seconds in all. Nothing is written.

    Args:
        model: As in `attribute`, and so are all others.
        train: The examples it was fitted on.
        queries: The queries; None for the train set on itself.
        parameters: What is analysed.
        curvature: None: what `attribute` would take.
        query_label: "true" or "predicted".
        weight_decay: L2 penalty of the training run.
        train_scores: Also the train set on itself.
        loss: None for cross-entropy.
        dtype: Type to compute in.
        device: Where to compute.
        batch_size: Examples in one pass of the network.
        memory: Bytes that matrices and blocks of rows may take.
        out: Path of the store that would be written; None: the scores stay in memory.

    Returns:
        The estimate; `print(estimate.to_text())` shows it.
    """
    from .influence.attribute import Variant
    from .influence.problem import evaluating

    with evaluating(model):
        sides = Sides(train, queries)
        sampled = _sampled(
            model, sides, parameters, loss=loss, dtype=dtype, device=device, batch=batch_size, weight_decay=weight_decay
        )
        variant = Variant(
            curvature=default_curvature(sampled.prepared) if curvature is None else curvature,
            query_label=query_label,  # type: ignore[arg-type]  # checked by Variant
            train_scores=train_scores,
        )
        plan = [(sampled, one) for one in variant.each_damping()]
        return _estimate(plan, None if out is None else Path(out), memory_bytes(memory))


def estimate_run(
    run: Path, settings: AttributeSettings, *, out: Path | None = None, overwrite: bool = False
) -> Estimate:
    """What `attribute_run` with the same arguments will take.

    Args:
        run: A run folder.
        settings: Parameters, curvature, label.
        out: Folder for influence.h5; None: the run's own.
        overwrite: Scores that were made under other settings may be replaced.

    Returns:
        The estimate; a note says so where the scores are there already.
    """
    from .models.runs import load_run

    read = load_run(run)
    store = (read.path if out is None else out) / STORE_FILE
    finished = standing_scores(store, run_config(read.info, settings), overwrite=overwrite)
    found = _of_run(read, settings, store)
    if finished is None:
        return found
    return replace(
        found, notes=[*found.notes, f"{store} holds these scores already: the run itself would only read them."]
    )


def estimate_runs(
    runs: Sequence[Path],
    settings: AttributeSettings,
    out: Path,
    *,
    unit_rows: bool = False,
    overwrite: bool = False,
) -> Estimate:
    """What `attribute_runs` with the same arguments will take.

    Args:
        runs: Run folders.
        settings: Parameters, curvature, label.
        out: Folder for the mean.
        unit_rows: As in `attribute_runs`.
        overwrite: Scores that were made under other settings may be replaced.

    Returns:
        The estimate of one run, as often as there are runs without these scores, and of the mean; a note says how many.
    """
    from .averaging import average_config, read_alike, standing_runs
    from .models.runs import load_run

    infos, store = read_alike(runs, settings, out), out / STORE_FILE
    there = standing_scores(store, average_config(infos, settings, unit_rows=unit_rows), overwrite=overwrite)
    standing = standing_runs(runs, infos, settings, overwrite=overwrite)
    missing = [run for run, scores in zip(runs, standing, strict=True) if scores is None]
    run = (missing or runs)[0]
    found = _of_run(load_run(run), settings, run / STORE_FILE, average=store)
    *stages, mean = found.stages
    times = len(missing)
    each = [replace(s, seconds=times * s.seconds, flops=times * s.flops, disk=times * s.disk) for s in stages if times]
    said = f"{times} of the {len(runs)} runs are still to be scored; seconds, operations and disk are those of all of them."
    if there is not None:
        said = f"{store} holds this average already: it would only be read."
    return replace(found, stages=[*each, mean], notes=[*found.notes, said])


def _of_run(read: Run, settings: AttributeSettings, store: Path, average: Path | None = None) -> Estimate:
    """The estimate of one run; with a last stage for the store that the mean of several goes to, where there is one."""
    from .influence.problem import evaluating

    decay, network = float(read.info["weight_decay"]), read.model.model
    sides = Sides(read.train, read.test)
    with few_threads(read.model), evaluating(network):
        plan = make_plan(
            settings,
            read.info["k"],
            decay,
            lambda how: _sampled_as(network, sides, how, decay),
            lambda sampled: sampled.prepared,
        )
        found = _estimate(plan, store, memory_bytes(settings.memory))
        if average is None:
            return found
        mean = _writing(plan, (128, 512), average, features=False)  # those of different networks have no mean
        return replace(found, stages=[*found.stages, replace(mean, name="average the runs")])


def estimate_own(own: OwnSettings, settings: AttributeSettings, out: Path | None) -> Estimate:
    """What `attribute_own` with the same arguments will take.

    Args:
        own: The network and its data.
        settings: Parameters, curvature, label.
        out: Folder that would be made; None: not decided yet.

    Returns:
        The estimate.
    """
    from .influence.problem import evaluating

    network, sides = load_own(own, settings)
    with evaluating(network):
        sampled = _sampled_as(network, sides, settings, own.weight_decay)
        plan = [(sampled, variant) for variant in make_variants(sampled.prepared, settings, own.weight_decay)]
        return _estimate(plan, (Path() if out is None else out) / STORE_FILE, memory_bytes(settings.memory))


def _sampled_as(network: nn.Module, sides: Sides, settings: AttributeSettings, weight_decay: float | None) -> Sampled:
    from .scoring import _dtype, _words

    return _sampled(
        network,
        sides,
        _words(settings.parameters),
        loss=None,
        dtype=_dtype(settings.dtype),
        device=settings.device,
        batch=settings.batch_size,
        weight_decay=weight_decay,
    )


def _sampled(
    network: nn.Module,
    sides: Sides,
    parameters: str | Sequence[str],
    *,
    loss: Loss | None,
    dtype: torch.dtype | None,
    device: str,
    batch: int | None,
    weight_decay: float | None,
) -> Sampled:
    from .influence.sample import sample_sides
    from .models.device import resolve_device

    names, head = resolve(network, parameters)
    return sample_sides(
        network,
        sides.train,
        sides.queries,
        parameters=names,
        head=head,
        loss=loss,
        dtype=dtype,
        device=resolve_device(device),
        batch_size=256 if batch is None else batch,
        weight_decay=weight_decay,
    )


def _estimate(plan: Sequence[tuple[Sampled, Variant]], out: Path | None, memory: int | None) -> Estimate:
    from .influence.estimating import estimate_plan
    from .influence.walk import tile_shape
    from .influence.work import Work

    grid = tile_shape(max(sampled.problem.p for sampled, _ in plan))
    found = estimate_plan(plan, grid, Work(memory=memory))
    if out is None:
        return found
    return replace(found, stages=[*found.stages, _writing(plan, grid, out)])


def _writing(
    plan: Sequence[tuple[Sampled, Variant]], grid: tuple[int, int], out: Path, *, features: bool = True
) -> Stage:
    """Every byte of the store is written twice: laid out first, and filled tile by tile."""
    from .cache.layout import Plan, VariantLayout
    from .influence.estimate import Stage

    sampled = plan[0][0]
    queries = sampled.prepared.queries
    layout = Plan(
        queries=None if queries is None else _examples(queries, features),
        train=_examples(sampled.train, features),
        variants=tuple(VariantLayout(name=v.name, train_scores=v.train_scores) for _, v in plan),
        attributes={},
        config={},
        dtype=str(sampled.problem.dtype).removeprefix("torch."),
        rows_per_tile=grid[0],
        columns_per_tile=grid[1],
    )
    size = layout.size_on_disk()
    seconds = STORE_SECONDS + 2 * size * _seconds_a_byte(out)
    return Stage(name="write the store", seconds=seconds, flops=0.0, disk=size)


def _examples(side: Side, features: bool) -> Examples:
    """What the store keeps of a side, each array as long as it will be without the memory that it would take."""
    import numpy as np

    from .influence.examples import Examples

    kept = asdict(side.examples).items()
    n = len(side)
    longer: dict[str, Any] = {
        name: value if value is None else np.broadcast_to(value[:1], (n, *value.shape[1:])) for name, value in kept
    }
    return Examples(**(longer if features else longer | {"features": None}))


def _seconds_a_byte(out: Path) -> float:
    """Of writing to the disk that the store will lie on."""
    folder = next(parent for parent in out.absolute().parents if parent.is_dir())
    content = bytes(PROBE_BYTES)
    for place in (folder, None):
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                start = perf_counter()
                file.write(content)
                file.flush()
                return (perf_counter() - start) / PROBE_BYTES
        except OSError:  # read-only, or full: the store itself will say so
            continue
    return 0.0
