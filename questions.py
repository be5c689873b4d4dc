"""What can be asked of a finished run: neighbours of a query, rates, saliency, what a file holds.

As in `pipeline`, heavy modules are imported inside the functions that need them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import UsageError
from .pipeline import STORE_FILE, open_scores

if TYPE_CHECKING:
    from .influence.scores import Scores
    from .influence.tables import Table


def query(
    run: Path,
    row: int,
    k: int = 5,
    *,
    variant: str = "",
    harmful: bool = False,
    image: str | Path | None = None,
) -> Table:
    """The train examples that help, or harm, one query most.

    Args:
        run: Run folder, or the store itself.
        row: Row of the query.
        k: How many.
        variant: Which scores.
        harmful: The most harmful instead of the most helpful.
        image: Also draw the query and its neighbours into this file.

    Returns:
        rank, train_id, score, label.
    """
    scores = open_scores(_store_of(run), variant)
    table = scores.bottom(row, k) if harmful else scores.top(row, k)
    if image is not None:
        _draw_query(run, scores, row, table, Path(image))
    return table


def _draw_query(run: Path, scores: Scores, row: int, table: Table, image: Path) -> None:
    from .models.runs import load_run
    from .reports.neighbours import draw_neighbours
    from .reports.style import to_png

    read = load_run(run)
    position = {int(index): at for at, index in enumerate(scores.train.index)}
    rows = [position[int(index)] for index in table["train_id"]]
    asked = read.test if not scores.on_itself else read.train
    figure = draw_neighbours(
        asked.raw_images([row])[0].numpy(),
        read.train.raw_images(rows).numpy(),
        table,
        class_names=read.class_names,
        query_label=int(scores.queries.label[row]),
        query_caption=f"query {row}",
    )
    image.write_bytes(to_png(figure, 150))


def stats(run: Path, k: int = 10, *, variant: str = "", label: str = "true") -> dict[str, Table]:
    """Class-match rates with their baselines, and the facts of the curvature.

    Args:
        run: Run folder, or the store itself.
        k: Ranks to list.
        variant: Which scores.
        label: The class of a query that counts as a match: "true" or "predicted".

    Returns:
        Tables by name.
    """
    import numpy as np

    from .influence.tables import Table

    scores = open_scores(_store_of(run), variant)
    tables = {}
    for side, held in (("queries", scores), ("train", scores.on_train)):
        if held is not None:
            tables[f"class_match_{side}"] = held.class_match(k, label=label)  # type: ignore[arg-type]  # checked there
            tables[f"at_least_{side}"] = held.at_least(label=label)  # type: ignore[arg-type]
    if scores.spectrum is not None:
        facts = scores.spectrum.to_dict()
        facts |= facts.pop("sensitivity")
        columns = {"fact": np.array(list(facts)), "value": np.array([float(value) for value in facts.values()])}
        tables["spectrum"] = Table(columns, "Mean curvature and its inverse")
    return tables


def brief(table: Table) -> Table:
    """A table that fits a terminal.

    Args:
        table: One of `stats`.

    Returns:
        The same without the intervals and cumulative rates of the baselines.
    """
    own = {"low", "high", "cumulative", "cumulative_low", "cumulative_high"}
    hidden = [name for name in table.columns if name not in own and name.endswith(("_low", "_high", "_cumulative"))]
    return table.select(name for name in table.columns if name not in hidden)


def saliency(
    run: Path,
    rows: Sequence[int] | None = None,
    *,
    method: str = "gradient",
    image: str | Path | None = None,
    npz: str | Path | None = None,
    device: str = "auto",
) -> Table:
    """The gradient of the loss of some queries in their pixels.

    Args:
        run: Run folder.
        rows: Rows of the queries; None: the first of each class.
        method: "gradient", "smoothgrad" or "integrated".
        image: Draw images and gradients into this file.
        npz: Save rows, images and gradients into this file.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        query, id, label, prediction, loss, gradient_norm (nats per unit of pixel), alignment (absolute cosine of gradient and
        image).

    Raises:
        UsageError: A row is out of range.
    """
    import numpy as np

    from .influence.input_gradient import input_gradient, saliency_table
    from .models.device import resolve_device
    from .models.runs import load_run
    from .reports.neighbours import one_per_class
    from .reports.saliency import draw_saliency
    from .reports.style import to_png

    read = load_run(run)
    chosen = one_per_class(read.test.labels.numpy()) if rows is None else np.asarray(rows)
    for row in chosen:
        if not 0 <= row < len(read.test):
            raise UsageError(
                f"Query {row} is out of range: {run} has {len(read.test)} queries, 0 to {len(read.test) - 1}."
            )
    network = read.model.model.to(resolve_device(device))
    images, labels = read.test.images(chosen.tolist()), read.test.labels[chosen]
    gradients = input_gradient(network, images, labels, method)  # type: ignore[arg-type]  # checked there
    if image is not None:
        names = [read.class_names[int(label)] for label in labels]
        figure = draw_saliency(images.numpy(), {read.info["source"]["name"]: gradients.numpy()}, names)
        Path(image).write_bytes(to_png(figure, 150))
    if npz is not None:
        np.savez(
            npz, rows=chosen, index=read.test.index[chosen].numpy(), images=images.numpy(), gradients=gradients.numpy()
        )
    return saliency_table(network, images, labels, gradients, chosen, read.test.index[chosen].numpy())


def info(path: Path) -> dict[str, Any]:
    """What a run folder, a store or a checkpoint holds.

    Args:
        path: A folder, an .h5 file or a checkpoint.

    Returns:
        Plain values.

    Raises:
        UsageError: There is nothing at the path.
    """
    from .cache.store import describe
    from .models.checkpoints import load_model
    from .models.runs import RUN_FILE, read_run

    if not path.exists():
        raise UsageError(f"There is nothing at {path}; give a run folder, a store or a checkpoint.")
    if path.is_dir():
        held: dict[str, Any] = {"folder": str(path)}
        if (path / RUN_FILE).exists() or not (path / STORE_FILE).exists():
            record = read_run(path)
            held["run"] = {key: value for key, value in record.items() if key not in ("decisive", "history")}
        store = next((file for file in (path / STORE_FILE, path / f"{STORE_FILE}.partial") if file.exists()), None)
        return {**held, "store": describe(store)} if store is not None else held
    if path.suffix in (".h5", ".partial", ".hdf5"):
        return describe(path)
    loaded = load_model(path)
    return {"checkpoint": loaded.record(), "spec": loaded.spec.to_dict()}


def _store_of(run: Path) -> Path:
    return run / STORE_FILE if run.is_dir() else run


def facts(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """What was scored, ready for JSON.

    Args:
        scores: Scores by variant.

    Returns:
        Per variant: shape, curvature, label, facts of the spectrum, warnings.
    """
    return {
        name or "main": {
            "queries": len(one.queries),
            "train": len(one.train),
            "curvature": one.meta.get("curvature"),
            "query_label": one.meta.get("query_label"),
            "spectrum": None if one.spectrum is None else one.spectrum.to_dict(),
            "warnings": one.meta.get("warnings", []),
        }
        for name, one in scores.items()
    }


def outline(value: Any, indent: int = 0) -> str:
    """Nested plain values as indented lines.

    Args:
        value: Mappings, sequences, numbers, text.
        indent: Spaces in front.

    Returns:
        Text for the terminal; long lists are cut.
    """
    return "\n".join(_lines(value, indent))


def _lines(value: Mapping[str, Any], indent: int) -> Iterator[str]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield f"{' ' * indent}{key}:"
            yield from _lines(item, indent + 2)
        elif isinstance(item, (list, tuple)) and len(item) > 8:
            yield f"{' ' * indent}{key}: {', '.join(map(str, item[:6]))}, ... ({len(item)} in all)"
        else:
            shown = ", ".join(map(str, item)) if isinstance(item, (list, tuple)) else item
            yield f"{' ' * indent}{key}: {shown if shown != '' else '-'}"
