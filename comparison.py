"""The main job: every source fine-tuned and scored, and the runs put side by side in one report.

Heavy modules are imported inside the functions that need them, so that the command line can show its options at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import UsageError, __version__
from .cache.errors import StoreError
from .influence.settings import AttributeSettings
from .models.settings import DataSettings, FineTuneSettings
from .pipeline import attribute_run, fine_tune_network
from .reports.settings import ReportSettings
from .scoring import STORE_FILE, few_threads, open_scores, store_of

if TYPE_CHECKING:
    from .influence.examples import Progress
    from .models.checkpoints import LoadedModel
    from .models.data import TargetData
    from .reports.runs import RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareSettings:
    """Which runs the main job makes and compares."""

    sources: tuple[str, ...] = ("natural", "robust")
    """Source networks: natural and robust are shipped; anything else is a checkpoint file."""

    k: tuple[int, ...] = (0, 1)
    """Numbers of residual blocks fine-tuned together with the head; 0 is the head alone."""

    seeds: int = 3
    """Repetitions; the i-th has the paper's seed 20000000 + 100000 i."""

    out: str = "upweight-out"
    """Folder for runs/ and report/."""

    def __post_init__(self) -> None:
        if not self.sources or not self.k:
            raise UsageError("sources and k need at least one entry each.")
        for name in ("sources", "k"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UsageError(f"{name} names the same thing twice: {' '.join(map(str, getattr(self, name)))}.")
        if self.seeds < 1:
            raise UsageError(f"seeds must be at least 1, got {self.seeds}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Where a report lies, and its numbers."""

    page: Path
    stats: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`.

        Returns:
            Path of the page, and everything that stats.json holds.
        """
        return {"page": str(self.page), "stats": dict(self.stats)}

    def to_text(self) -> str:
        """For the terminal.

        Returns:
            The main tables, and where the page lies.
        """
        from .reports.summary import summary

        return "\n\n".join([*(table.to_text() for table in summary(self.stats)), f"Report: {self.page}"])


def compare(
    settings: CompareSettings,
    data: DataSettings,
    recipe: FineTuneSettings,
    page: ReportSettings,
    *,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> Report:
    """The main job: fine-tune every source, score every run, and put them side by side.

    Args:
        settings: Sources, blocks, seeds and where to.
        data: The target.
        recipe: The fine-tuning recipe; its k and seed are set run by run.
        page: How the report is made.
        overwrite: Replace runs, scores and a report that were made under other settings.
        progress: As in `attribute`.

    Returns:
        The report.
    """
    from .models.checkpoints import load_model
    from .models.data import load_data
    from .reports.progress import prefixed, reporting

    out = Path(settings.out).expanduser()
    plan = _plan(settings, recipe, [load_model(source) for source in settings.sources])
    folders = [out / "runs" / f"{network.name}-k{one.k}-s{one.seed}" for network, one in plan]
    if not overwrite:  # a report in the way is found here, and not after the dear steps
        _standing_report(out / "report", page, dict.fromkeys(folder.name for folder in folders))
    targets: dict[tuple[int, int, int], TargetData] = {}
    with reporting(progress) as report:
        for i, ((network, one), folder) in enumerate(zip(plan, folders, strict=True)):
            said = prefixed(report, f"{i + 1}/{len(plan)} {folder.name}")
            shape = network.spec.input_shape
            if shape not in targets:
                targets[shape] = load_data(data, shape)
            with few_threads(network):
                run = fine_tune_network(network, targets[shape], one, folder, said, overwrite=overwrite)
            damped, block = ("damped",) * bool(one.weight_decay), ("block",) * bool(run.info["k"])
            how = AttributeSettings(train_scores=True, also=(*damped, "predicted", *block), device=one.device)
            attribute_run(run, how, overwrite=overwrite, progress=said)
        return make_report(folders, out / "report", page, overwrite=overwrite, progress=report)


def _plan(
    settings: CompareSettings, recipe: FineTuneSettings, networks: Sequence[LoadedModel]
) -> list[tuple[LoadedModel, FineTuneSettings]]:
    """Every run of a comparison; whatever its words get wrong is found here, before the first of them starts."""
    from .models.data import paper_seed
    from .models.finetune import cut

    names = [network.name for network in networks]
    if len(set(names)) < len(names):
        raise UsageError(f"Two sources are called {max(names, key=names.count)}; rename one of the files.")
    for network in networks:
        for k in settings.k:
            one = replace(recipe, k=k)
            one.check_blocks()
            cut(network.model, one)  # refuses a k beyond the blocks
    return [
        (network, replace(recipe, k=k, seed=paper_seed(i)))
        for network in networks
        for k in settings.k
        for i in range(settings.seeds)
    ]


def make_report(
    folders: Sequence[Path],
    out: Path,
    settings: ReportSettings,
    *,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> Report:
    """Tables, figures and one page from run folders; a report of these very runs and settings is kept as it is.

    Args:
        folders: Run folders with influence.h5.
        out: Folder for the page and its files.
        settings: How it is made.
        overwrite: Replace a report of other runs or settings.
        progress: As in `attribute`.

    Returns:
        The report.

    Raises:
        UsageError: Two runs have one name.
        StoreError: The folder holds another report, or a run has no complete scores.
    """
    from .reports.page import write_report
    from .reports.progress import reporting

    folders = [folder.absolute() for folder in folders]  # "." has no name
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise UsageError(f"Two runs are called {max(names, key=names.count)}; leave one out, or rename its folder.")
    inputs = {folder.name: _identity(folder) for folder in folders}
    try:
        standing = _standing_report(out, settings, inputs)
    except StoreError:
        if not overwrite:
            raise
        clear_report(out)
        standing = None
    if standing is not None:
        return Report(page=out / "index.html", stats=standing)
    with reporting(progress) as report:
        views = []
        for i, folder in enumerate(folders):
            views.append(_view(folder))
            if report is not None:
                report("read runs", i + 1, len(folders))
        stats = write_report(views, out, settings, report, inputs=inputs)
    return Report(page=out / "index.html", stats=stats)


def _identity(folder: Path) -> str:
    """Name of what a report shows of a run: its weights, and the settings of its scores."""
    from .cache.provenance import digest
    from .cache.store import open_store
    from .models.runs import RUN_FILE, read_run

    if (folder / STORE_FILE).exists() and not (folder / RUN_FILE).exists():
        raise UsageError(
            f"{folder} holds scores alone, of a network of your own or of several runs; a report shows runs of `upweight "
            "fine-tune`, and `upweight stats` tells the rates of any scores."
        )
    record = read_run(folder)
    with open_store(store_of(folder)) as store:
        return digest([record["model_sha256"], record["data"], store.contents.config])[:16]


def _standing_report(out: Path, settings: ReportSettings, inputs: Mapping[str, str | None]) -> dict[str, Any] | None:
    """The numbers of the report in a folder, when it shows these runs (None: only its name is known yet); None: there is none."""
    from .cache.identity import refuse_other

    page, file = out / "index.html", out / "stats.json"
    if not file.exists():
        if page.exists():
            raise StoreError(f"{page} is no report of ours; choose another folder, or pass --overwrite.")
        return None
    try:
        stats: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        held, runs = {"upweight": stats["upweight"], **stats["settings"]}, stats["inputs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{file} is damaged or of another kind ({error}); pass --overwrite, or choose another folder."
        ) from error
    known = {name: name if digest is None else digest for name, digest in inputs.items()}
    found = {name: name if inputs.get(name, "") is None else digest for name, digest in runs.items()}
    wanted = {"upweight": __version__, **asdict(settings)}
    refuse_other(out, {"settings": {**held, "runs": found}}, {"settings": {**wanted, "runs": known}})
    return stats if page.exists() else None


def clear_report(out: Path) -> None:
    """Take away the files that a report says are its own: the next one may have fewer.

    Args:
        out: Its folder.
    """
    try:
        stats = json.loads((out / "stats.json").read_text(encoding="utf-8"))
        files = [entry["file"] for entry in (*stats["figures"], *stats["tables"].values())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        files = []
    for name in ("stats.json", "index.html", *files):
        (out / Path(name).name).unlink(missing_ok=True)


def _view(folder: Path) -> RunView:
    """A run as the report sees it."""
    from .cache.store import variant_names
    from .influence.input_gradient import input_gradient
    from .models.runs import load_run
    from .models.settings import recipe_label
    from .reports.neighbours import one_per_class
    from .reports.runs import RunView

    run = load_run(folder)
    store = folder / STORE_FILE
    rows = one_per_class(run.test.labels.numpy())
    with few_threads(run.model):
        gradients = input_gradient(run.model.model, run.test.images(rows.tolist()), run.test.labels[rows])
    return RunView(
        name=folder.name,
        source=run.info["source"]["name"],
        k=run.info["k"],
        seed=run.info["seed"],
        n=len(run.train),
        info=run.info,
        scores={name: open_scores(store, name) for name in variant_names(store)},
        class_names=run.class_names,
        recipe=recipe_label(FineTuneSettings(**run.info["settings"])),
        train_images=run.train.raw_images(slice(None)).numpy(),
        query_images=run.test.raw_images(slice(None)).numpy(),
        saliency_rows=rows,
        saliency=gradients.numpy(),
    )
