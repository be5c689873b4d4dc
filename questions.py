"""What can be asked of a finished run: neighbours of a query, rates, saliency, what a file holds.

As in `scoring`, heavy modules are imported inside the functions that need them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import UsageError
from .influence.damping import damping_of
from .models.errors import DataError
from .scoring import STORE_FILE, open_scores, store_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .influence.scores import Scores
    from .influence.tables import Table
    from .models.images import ImageSet

REPLAY_FILE = "attribute.toml"
REPORT_FILE = "stats.json"
MAIN = "main"
"""What the unnamed variant of a store is called here."""


def query(
    run: Path,
    row: int,
    k: int = 5,
    *,
    variant: str = MAIN,
    harmful: bool = False,
    image: str | Path | None = None,
    overwrite: bool = False,
) -> Table:
    """The train examples that help, or harm, one query most.

    Args:
        run: Run folder, or the store itself.
        row: Row of the query.
        k: How many.
        variant: Which scores.
        harmful: The most harmful instead of the most helpful.
        image: Also draw the query with its most helpful and most harmful examples into this file.
        overwrite: Replace that file when it is there.

    Returns:
        rank, train_id, score, label; and class, where the run names its classes by more than numbers.
    """
    import numpy as np

    from .influence.tables import Table

    picture = free_file(image, ".png", overwrite)
    scores = _scores(run, variant)
    table = scores.bottom(row, k) if harmful else scores.top(row, k)
    names = _class_names(run)

    def called(label: int) -> str:
        return names[label] if 0 <= label < len(names) else str(label)

    if picture is not None:
        _draw_query(run, scores, row, k, names, picture)
    true, predicted = (called(int(kept[row])) for kept in (scores.queries.label, scores.queries.prediction))
    title = f"{table.title} (class {true}, predicted {predicted}); score in {scores.meta.get('unit', 'its own unit')}"
    columns = dict(table.columns)
    if any(name != str(i) for i, name in enumerate(names)):
        columns["class"] = np.array([called(int(label)) for label in table["label"]])
    return Table(columns, title)


def _draw_query(run: Path, scores: Scores, row: int, k: int, names: Sequence[str], image: Path) -> None:
    import numpy as np

    from .reports.neighbours import draw_neighbours
    from .reports.style import to_png

    sides = _pictures(_folder(run))
    asked = sides.train if scores.on_itself else sides.queries
    for name, side, kept in (("train", sides.train, scores.train), ("queries", asked, scores.queries)):
        if not np.array_equal(side.labels.numpy(), kept.label):
            raise UsageError(f"The {name} images of {run} are no longer those that were scored; leave --image out.")
    order = np.argsort(scores.train.index)

    def drawn(table: Table) -> tuple[NDArray[Any], Table]:
        rows = order[np.searchsorted(scores.train.index, table["train_id"], sorter=order)]
        return sides.train.raw_images(rows.tolist()).numpy(), table

    figure = draw_neighbours(
        asked.raw_images([row])[0].numpy(),
        *drawn(scores.top(row, k)),
        class_names=names,
        query_label=int(scores.queries.label[row]),
        query_caption=f"query {row}",
        unit=scores.meta.get("unit", "its own unit"),
        below=drawn(scores.bottom(row, k)),
    )
    image.write_bytes(to_png(figure, 150))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pictures:
    """The images behind a store."""

    train: ImageSet
    queries: ImageSet


def _pictures(folder: Path) -> _Pictures:
    """Find the images of a run again: by its run.json, or as its attribute.toml names them."""
    from .models.own import as_images, load_examples
    from .models.runs import RUN_FILE, load_run
    from .options import read_made

    if (folder / RUN_FILE).exists():
        run = load_run(folder)
        return _Pictures(train=run.train, queries=run.test)
    said = read_made(folder / REPLAY_FILE)
    start = Path(said.get("made", {}).get("folder", "."))
    runs = said.get("run")
    if runs:  # of an average all have the same images; a file of earlier versions names one run as text
        return _pictures(start / (runs if isinstance(runs, str) else runs[0]))
    if "train" not in said:
        raise UsageError(f"{folder} has no {REPLAY_FILE} that says where its images lie; leave --image out.")

    def load(side: str, part: str) -> ImageSet:
        path = start / said[side]  # a relative path was typed in that folder; the name of a data set is no path
        data = str(path) if path.exists() else said[side]
        examples = load_examples(data, said.get("input_shape"), part, said.get("root"))  # type: ignore[arg-type]
        return as_images(*examples, data) if isinstance(examples, tuple) else examples

    train = load("train", "train")
    return _Pictures(train=train, queries=load("queries", "test") if "queries" in said else train)


def stats(run: Path, k: int = 10, *, variant: str = MAIN, label: str = "true") -> dict[str, Table]:
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

    scores = _scores(run, variant)
    sides = {"train": scores} if scores.on_itself else {"queries": scores, "train": scores.on_train}
    tables = {}
    for side, held in sides.items():
        if held is not None:
            what = f"{len(held.queries)} queries" if side == "queries" else "The train set on itself, self left out"
            match = held.class_match(k, label=label)  # type: ignore[arg-type]  # checked there
            first = held.at_least(label=label)  # type: ignore[arg-type]
            tables[f"class_match_{side}"] = Table(match.columns, f"{what}: {_lower(match.title)}, by rank")
            tables[f"at_least_{side}"] = Table(first.columns, f"{what}: {_lower(first.title)}")
    if scores.spectrum is not None:
        facts = scores.spectrum.to_dict()
        facts |= facts.pop("sensitivity")
        columns = {"fact": np.array(list(facts)), "value": np.array([float(value) for value in facts.values()])}
        tables["spectrum"] = Table(columns, "Mean curvature (nats per squared unit of parameter) and its inverse")
    return tables


def _lower(title: str) -> str:
    return title[:1].lower() + title[1:]


def brief(table: Table) -> Table:
    """A table that fits a terminal.

    Args:
        table: One of `stats`.

    Returns:
        The same with rates to four digits, and without the intervals and cumulative rates of the baselines.
    """
    import numpy as np

    from .influence.tables import Table

    if "fact" in table.columns:
        return table
    names = [name for name in table.columns if name in ("low", "high") or not name.endswith(("_low", "_high"))]
    names = [name for name in names if not name.endswith("_cumulative")]
    kept = {name: table[name] for name in names}
    return Table({k: np.round(v, 4) if v.dtype.kind == "f" else v for k, v in kept.items()}, table.title)


def saliency(
    run: Path,
    rows: Sequence[int] | None = None,
    *,
    method: str = "gradient",
    image: str | Path | None = None,
    npz: str | Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Table:
    """The gradient of the loss of some queries in their pixels.

    Args:
        run: Run folder.
        rows: Rows of the queries; None: the first of each class.
        method: "gradient", "smoothgrad" or "integrated".
        image: Draw images and gradients into this file.
        npz: Save rows, images and gradients into this file.
        device: "auto", "cpu", "cuda" or "cuda:N".
        overwrite: Replace these files when they are there.

    Returns:
        query, id, label, prediction, loss, gradient_norm (nats per unit of pixel), alignment (absolute cosine of gradient and
        image).

    Raises:
        UsageError: A row is out of range, or the run is a network of the user's own.
    """
    import numpy as np

    from .influence.input_gradient import input_gradient, saliency_table
    from .influence.tables import Table
    from .models.device import resolve_device
    from .models.runs import RUN_FILE, load_run
    from .reports.neighbours import one_per_class
    from .reports.saliency import draw_saliency
    from .reports.style import to_png

    picture, numbers = free_file(image, ".png", overwrite), free_file(npz, ".npz", overwrite)
    if (run / STORE_FILE).exists() and not (run / RUN_FILE).exists():
        raise UsageError(
            f"{run} holds scores alone, of a network of your own or of several runs; saliency is drawn for runs of `upweight "
            "fine-tune`."
        )
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
    if picture is not None:
        names = [read.class_names[int(label)] for label in labels]
        figure = draw_saliency(images.numpy(), {read.info["source"]["name"]: gradients.numpy()}, names)
        picture.write_bytes(to_png(figure, 150))
    if numbers is not None:
        np.savez(
            numbers,
            rows=chosen,
            index=read.test.index[chosen].numpy(),
            images=images.numpy(),
            gradients=gradients.numpy(),
        )
    table = saliency_table(network, images, labels, gradients, chosen, read.test.index[chosen].numpy())
    return Table(table.columns, f"{table.title}; loss in nats, gradient_norm in nats per unit of pixel")


def info(path: Path) -> dict[str, Any]:
    """What a run folder, a comparison's folder, a report, a store or a checkpoint holds.

    Args:
        path: A folder, an .h5 file, a stats.json or a checkpoint.

    Returns:
        Plain values.

    Raises:
        UsageError: There is nothing at the path.
    """
    from .models.checkpoints import load_model
    from .models.runs import RUN_FILE, read_run

    if not path.exists():
        raise UsageError(f"There is nothing at {path}; give a run folder, a store or a checkpoint.")
    if path.is_dir():
        held: dict[str, Any] = {"folder": str(path)}
        if (path / "runs").is_dir():
            return {**held, "runs": sorted(str(run) for run in (path / "runs").iterdir() if run.is_dir())}
        if (path / REPORT_FILE).exists():
            return {**held, "report": _report_facts(path / REPORT_FILE)}
        if (path / RUN_FILE).exists() or not (path / STORE_FILE).exists():
            record = read_run(path)
            held["run"] = {key: value for key, value in record.items() if key not in ("decisive", "history")}
        store = next((file for file in (path / STORE_FILE, path / f"{STORE_FILE}.partial") if file.exists()), None)
        return {**held, "store": _described(store)} if store is not None else held
    if path.name == REPORT_FILE:
        return {"report": _report_facts(path)}
    if path.suffix in (".h5", ".partial", ".hdf5"):
        return _described(path)
    loaded = load_model(path)
    return {"checkpoint": loaded.record(), "spec": loaded.spec.to_dict()}


def _report_facts(file: Path) -> dict[str, Any]:
    """What a report shows; its tables by title alone."""
    try:
        stats = json.loads(file.read_text(encoding="utf-8"))
        held = {name: stats[name] for name in ("schema", "version", "upweight", "sources", "inputs", "settings")}
        return {**held, "tables": {table["file"]: table["title"] for table in stats["tables"].values()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is damaged, or no stats.json of a report; make the report again.") from error


def _described(path: Path) -> dict[str, Any]:
    from .cache.store import describe

    held = describe(path)
    held["variants"] = {name or MAIN: facts for name, facts in held["variants"].items()}
    return held


def _scores(run: Path, variant: str) -> Scores:
    from .cache.store import variant_names

    store = store_of(run)
    names = [name or MAIN for name in variant_names(store)]
    if variant in names:
        return open_scores(store, "" if variant == MAIN else variant)
    damping = damping_of(variant)
    if damping is not None and MAIN in names:  # the main scores by their damping, or a number written another way
        found = open_scores(store).at_damping.get(damping)
        if found is not None:
            return found
    raise UsageError(f"{store} has no scores called {variant!r}; it has {', '.join(names)}.")


def _folder(run: Path) -> Path:
    return run if run.is_dir() else run.parent


def _class_names(run: Path) -> Sequence[str]:
    from .models.runs import RUN_FILE, read_run

    folder = _folder(run)
    return read_run(folder)["data"]["class_names"] if (folder / RUN_FILE).exists() else ()


def free_file(file: str | Path | None, ending: str, overwrite: bool) -> Path | None:
    """A file that may be written.

    Args:
        file: Its path; None: none is wanted.
        ending: What its name must end in.
        overwrite: It may be there already.

    Returns:
        The path.

    Raises:
        UsageError: It has another ending, no folder, or is there already.
    """
    if file is None:
        return None
    path = Path(file).expanduser()
    if path.suffix.lower() != ending:
        raise UsageError(f"{path} should end in {ending}, as that is what is written.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent} for {path.name}; make it first, or choose another.")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} is there already; pass --overwrite to replace it, or name another file.")
    return path


def facts(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """What was scored, ready for JSON.

    Args:
        scores: Scores by variant.

    Returns:
        Per variant: shape, curvature, label, facts of the spectrum, warnings.
    """
    return {
        name or MAIN: {
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
