"""The stages, composed; with `questions`, which asks about finished runs, the only module that knows all four folders.

Heavy modules are imported inside the functions that need them, so that the command line can show its options at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import UsageError, __version__
from .cache.errors import StoreError
from .influence.settings import AttributeSettings
from .models.settings import DataSettings, FineTuneSettings, PretrainSettings
from .reports.settings import ReportSettings

T = TypeVar("T")

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .cache.store import Store
    from .influence.attribute import Fitted, Prepared, Variant
    from .influence.curvature import Curvature
    from .influence.examples import Progress, Source
    from .influence.problem import Loss
    from .influence.scores import Scores
    from .models.checkpoints import LoadedModel
    from .models.data import TargetData
    from .models.runs import Run
    from .reports.runs import RunView

STORE_FILE = "influence.h5"
SMALL_NETWORK = 1_000_000  # parameters up to which torch works on one thread


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
class SourceSettings:
    """Where a fine-tuned network begins."""

    source: str = "natural"
    """natural or robust (shipped), or a checkpoint file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSettings:
    """A network that upweight knows nothing about, and its data."""

    model: str | None = None
    """PACKAGE.MODULE:FACTORY, a function without arguments that makes your network; found from the current folder too."""

    weights: str | None = None
    """Its state dict: .safetensors, or a torch file of tensors."""

    train: str | None = None
    """The examples it was fitted on: an .npz with x and y, an image folder, or the name of a data set."""

    queries: str | None = None
    """Likewise; not given: the train set on itself."""

    weight_decay: float | None = None
    """L2 penalty that it was trained with."""

    input_shape: tuple[int, ...] | None = None
    """Channels, height and width it takes, for an image folder or a named data set; an .npz goes in as it is."""

    root: str | None = None
    """Folder that holds the files of a named data set."""

    def __post_init__(self) -> None:
        if self.weight_decay is not None and not 0 <= self.weight_decay < float("inf"):
            raise UsageError(f"weight_decay is {self.weight_decay}; give a finite number >= 0.")
        if self.input_shape is not None and (len(self.input_shape) != 3 or min(self.input_shape) < 1):
            raise UsageError(
                f"input_shape is {' '.join(map(str, self.input_shape))}; give channels, height and width, as in 3 224 224."
            )


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


def attribute(
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
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> Scores:
    """Which train examples, upweighted, would change the loss of each query: score[t, i] = + g_t^T H^+ g_i.

    Args:
        model: Any torch module from inputs [b, ...] to logits [b, C]; left as it was found.
        train: The examples it was fitted on: a map-style data set of (x, y), or a pair of tensors (X, y).
        queries: Likewise; None scores the train set on itself.
        parameters: "head" (the last linear layer), "blocks:3" (the last 3 residual blocks and the head), "all", or names of
            parameters or modules.
        curvature: None: `LinearHead()` for the head, `GaussNewton()` otherwise; with a `loss` of yours, `Hessian()`.
        query_label: "true" or "predicted": the label that the loss of a query is taken at.
        weight_decay: L2 penalty of the training run, when known: for the report on stationarity, never added silently.
        train_scores: Also score the train set on itself, into `scores.on_train`.
        loss: None for cross-entropy, else a twice differentiable function (logits [b, C], labels [b]) -> losses [b].
        dtype: torch.float32 or torch.float64, for gradients and stored scores; None: the model's. What the head alone needs
            is computed in float64 whatever this says.
        device: "auto", "cpu", "cuda" or "cuda:N".
        batch_size: Examples in one pass of the network (256 by default); changes no number.
        out: Path of an HDF5 store, resumable; None keeps the scores in memory.
        overwrite: Replace a store that was made under other settings.
        progress: None, True for a bar on the terminal, or a function of (stage, done, total).

    Returns:
        Scores [m, n] in nats per unit weight; positive: the example helps the query.

    Raises:
        UsageError: An option does not fit the model.
        ShapeError: Logits, labels or inputs do not fit each other.
        SolveError: Gradients depend on the batch, values are not finite, or the curvature cannot be inverted as asked.
        StoreError: `out` holds something else, or was made under other settings.
    """
    from torch import nn

    from .influence.attribute import Variant, prepare
    from .influence.problem import evaluating
    from .models.device import resolve_device
    from .reports.progress import reporting

    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}; a torch.nn.Module is wanted.")
    if curvature is not None and (isinstance(curvature, type) or not hasattr(curvature, "fit")):
        raise UsageError(
            f"curvature is {curvature!r}; give an object such as upweight.LinearHead() or upweight.Hessian()."
        )
    names, head = _resolve(model, parameters)
    with evaluating(model), reporting(progress) as report:
        prepared = prepare(
            model,
            train,
            queries,
            parameters=names,
            head=head,
            loss=loss,
            dtype=dtype,
            device=resolve_device(device),
            batch_size=256 if batch_size is None else batch_size,
            weight_decay=weight_decay,
            progress=report,
        )
        variant = Variant(
            curvature=_default_curvature(prepared) if curvature is None else curvature,
            query_label=query_label,  # type: ignore[arg-type]  # checked by Variant
            train_scores=train_scores,
        )
        return _score([(prepared, variant)], out, report, overwrite=overwrite)[""]


def open_scores(path: str | Path, variant: str = "") -> Scores:
    """Read scores back.

    Args:
        path: A store that `attribute(..., out=path)` or `scores.save(path)` wrote.
        variant: Name of the variant, where the store holds several.

    Returns:
        Scores whose matrix is read from disk as it is used.

    Raises:
        StoreError: There is no complete store at `path`, or none of that variant.
    """
    from .cache.store import open_scores

    return open_scores(path, variant)


def _resolve(model: nn.Module, parameters: str | Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Names of the analysed parameters, and of the head where the model has one."""
    from .models.transfer import head_name, resolve_parameters

    names = resolve_parameters(model, parameters)
    try:
        return names, head_name(model)
    except UsageError:
        return names, None  # without a linear layer there is no head; other parameters can still be analysed


def _default_curvature(prepared: Prepared) -> Curvature[Any]:
    from .influence.gauss_newton import GaussNewton
    from .influence.head import LinearHead
    from .influence.hessian import Hessian

    if prepared.problem.loss is not None:
        return Hessian()  # the other two factor the Hessian of cross-entropy
    return LinearHead() if prepared.problem.linear else GaussNewton()


def _score(
    plan: Sequence[tuple[Prepared, Variant]],
    out: str | Path | None,
    report: Progress | None,
    config: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Scores]:
    """Fit and score every variant, into memory or into one store."""
    from .influence.attribute import fit, tile_shape, write_scores

    grid = tile_shape(max(prepared.problem.p for prepared, _ in plan))
    if out is None:
        return {variant.name: _in_memory(fit(prepared, variant, report), grid, report) for prepared, variant in plan}
    config = _config(plan) if config is None else config
    finished = _finished(Path(out), config, overwrite=overwrite)
    if finished is not None:
        return finished
    fitted = [fit(prepared, variant, report) for prepared, variant in plan]
    with _store(fitted, Path(out), config, grid, overwrite=overwrite) as store:
        for one in fitted:
            write_scores(one, store.sink(one.variant.name), grid, report)
        store.finish()
    return {one.variant.name: open_scores(out, one.variant.name) for one in fitted}


def _in_memory(one: Fitted, grid: tuple[int, int], report: Progress | None) -> Scores:
    from .influence.attribute import ArraySink, examples, write_scores
    from .influence.scores import Scores

    queries, train = examples(one.prepared)
    sink = ArraySink(one.shapes, str(one.prepared.problem.dtype).removeprefix("torch."))
    write_scores(one, sink, grid, report)
    meta, on_train = one.meta(), None
    if "train" in sink.matrices:
        on_train = Scores(sink.matrices["train"], train, train, spectrum=one.spectrum, meta=meta, on_itself=True)
    if queries is None:
        assert on_train is not None  # without queries the train set is always scored on itself
        return on_train
    return Scores(sink.matrices["queries"], queries, train, spectrum=one.spectrum, meta=meta, on_train=on_train)


def _store(
    fitted: Sequence[Fitted], out: Path, config: Mapping[str, Any], grid: tuple[int, int], *, overwrite: bool
) -> Store:
    """The store that these variants go into: new, or the one that was begun."""
    from .cache.store import Store, VariantLayout
    from .influence.attribute import examples

    queries, train = examples(fitted[0].prepared)
    variants = [
        VariantLayout(
            name=one.variant.name, attributes=one.meta(), spectrum=one.spectrum, train_scores="train" in one.shapes
        )
        for one in fitted
    ]
    return Store.create_or_resume(
        out,
        queries=queries,
        train=train,
        variants=variants,
        attributes={"hashes": {name: config[name] for name in config if name.endswith("sha256")}},
        config=config,
        dtype=str(fitted[0].prepared.problem.dtype).removeprefix("torch."),
        rows_per_tile=grid[0],
        columns_per_tile=grid[1],
        overwrite=overwrite,
    )


def _config(plan: Sequence[tuple[Prepared, Variant]]) -> dict[str, Any]:
    """What tells two stores of a network in memory apart: settings, weights and examples."""
    from .cache.provenance import array_hash

    prepared = plan[0][0]
    problem = prepared.problem
    weights = sorted({**problem.fixed, **problem.theta}.items())
    return {
        "weights": {name: array_hash(value.cpu().reshape(-1).numpy()) for name, value in weights},
        "train": prepared.train.fingerprint,
        "queries": None if prepared.queries is None else prepared.queries.fingerprint,
        "dtype": str(problem.dtype),
        "weight_decay": prepared.facts["weight_decay"],
        "variants": [
            {
                "name": variant.name,
                "parameters": list(its.problem.theta),
                "curvature": variant.curvature.settings(),
                "query_label": variant.query_label,
                "train_scores": variant.train_scores,
            }
            for its, variant in plan
        ],
    }


# ---- stages over run folders -----------------------------------------------------------------------------------------------


def pretrain(
    settings: PretrainSettings, out: Path, *, overwrite: bool = False, progress: bool | Progress | None = None
) -> dict[str, Any]:
    """Train a source network.

    Args:
        settings: Data, architecture and recipe.
        out: Path of the .safetensors file.
        overwrite: Replace a source that was made with other settings.
        progress: As in `attribute`.

    Returns:
        Its record: settings, accuracies, hash.

    Raises:
        UsageError: `out` has another ending.
    """
    from .models.pretrain import pretrain
    from .reports.progress import reporting

    if out.suffix != ".safetensors":
        raise UsageError(
            f"The weights are written as safetensors, and {out.name} says otherwise; end it in .safetensors."
        )
    with reporting(progress) as report:
        return _kept_or_made(lambda anew: pretrain(settings, out, report, overwrite=anew), overwrite)


def fine_tune(
    source: SourceSettings,
    data: DataSettings,
    settings: FineTuneSettings,
    out: Path,
    *,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> Run:
    """Fine-tune a source on a target into a run folder.

    Args:
        source: Where to begin.
        data: The target.
        settings: The recipe.
        out: The run folder.
        overwrite: Replace a run that was made with other settings.
        progress: As in `attribute`.

    Returns:
        The run.
    """
    from .models.checkpoints import load_model
    from .models.data import load_data
    from .reports.progress import reporting

    network = load_model(source.source)
    target = load_data(data, network.spec.input_shape)
    with reporting(progress) as report:
        return _fine_tune(network, target, settings, out, report, overwrite=overwrite)


def _fine_tune(
    network: LoadedModel,
    target: TargetData,
    settings: FineTuneSettings,
    out: Path,
    report: Progress | None,
    *,
    overwrite: bool,
) -> Run:
    from .models.errors import RunMismatch
    from .models.finetune import fine_tune
    from .models.runs import MODEL_FILE, PARTIAL_FILE, RUN_FILE

    if not overwrite and (out / MODEL_FILE).exists() and not any((out / f).exists() for f in (RUN_FILE, PARTIAL_FILE)):
        raise RunMismatch(
            f"{out} holds a {MODEL_FILE} that no {RUN_FILE} describes; choose another folder, or pass --overwrite."
        )
    return _kept_or_made(lambda anew: fine_tune(network, target, settings, out, report, overwrite=anew), overwrite)


def _kept_or_made(make: Callable[[bool], T], overwrite: bool) -> T:
    """Results of these very settings are kept, begun ones continued; others are replaced only where that is asked for."""
    from .models.errors import CheckpointError, RunMismatch

    try:
        return make(False)
    except (CheckpointError, RunMismatch):
        if not overwrite:
            raise
    return make(True)


def attribute_run(
    run: Path | Run,
    settings: AttributeSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> dict[str, Scores]:
    """Score the test and train set of a run into its influence.h5; what is there already is not computed again.

    Args:
        run: A run folder, or a run already read.
        settings: Parameters, curvature, label.
        out: Folder for influence.h5; None: the run's own.
        overwrite: Replace scores that were made under other settings.
        progress: As in `attribute`.

    Returns:
        Scores by variant; the main one is named "".
    """
    from .influence.problem import evaluating
    from .models.runs import Run, load_run
    from .reports.progress import reporting

    run = run if isinstance(run, Run) else load_run(run)
    out = (run.path if out is None else out) / STORE_FILE
    config = {
        **{name: value for name, value in asdict(settings).items() if name not in ("device", "batch_size")},
        "model_sha256": run.info["model_sha256"],
        "data_sha256": run.info["data"]["fingerprint"],
    }
    finished = _finished(out, config, overwrite=overwrite)
    if finished is not None:
        return finished
    decay = float(run.info["weight_decay"])
    sides = _Sides(run.train, run.test, run.train.index.tolist(), run.test.index.tolist())
    with _few_threads(run.model), evaluating(run.model.model), reporting(progress) as report:
        prepared = _prepared(run.model.model, sides, settings, decay, report)
        plan = [(prepared, variant) for variant in _variants(prepared, settings, decay)]
        if "block" in settings.also:
            block = replace(settings, parameters=f"blocks:{run.info['k']}", curvature="gauss-newton", damping=None)
            whole = _prepared(run.model.model, sides, block, decay, report)
            plan.append((whole, replace(plan[0][1], curvature=_curvature(whole, block), name="block")))
        return _score(plan, out, report, config, overwrite=overwrite)


class _Sides(NamedTuple):
    """Train set and queries with their ids; None: positions."""

    train: Source
    queries: Source | None
    train_index: list[int] | None = None
    query_index: list[int] | None = None


def _prepared(
    network: nn.Module, sides: _Sides, settings: AttributeSettings, weight_decay: float | None, report: Progress | None
) -> Prepared:
    """Both sides examined as the settings say."""
    from .influence.attribute import prepare
    from .models.device import resolve_device

    names, head = _resolve(network, _words(settings.parameters))
    return prepare(
        network,
        sides.train,
        sides.queries,
        parameters=names,
        head=head,
        loss=None,
        dtype=_dtype(settings.dtype),
        device=resolve_device(settings.device),
        batch_size=settings.batch_size,
        weight_decay=weight_decay,
        train_index=sides.train_index,
        query_index=sides.query_index,
        progress=report,
    )


def attribute_own(
    own: OwnSettings,
    settings: AttributeSettings,
    out: Path,
    *,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> dict[str, Scores]:
    """Score the examples of anyone's network into OUT/influence.h5.

    Args:
        own: The network and its data.
        settings: Parameters, curvature, label.
        out: Folder to make.
        overwrite: Replace scores that were made under other settings.
        progress: As in `attribute`.

    Returns:
        Scores by variant; the main one is named "".

    Raises:
        UsageError: No network or no train set is named, or the scores of the fine-tuned blocks are asked for.
    """
    from .influence.problem import evaluating
    from .models.own import load_examples, load_own_model
    from .reports.progress import reporting

    if own.model is None or own.train is None:
        raise UsageError("A network of your own needs --model and --train.")
    if "block" in settings.also:
        raise UsageError("The fine-tuned blocks of a network of your own are not known; name them in --parameters.")
    network = load_own_model(own.model, own.weights)
    train = load_examples(own.train, own.input_shape, "train", own.root)
    queries = None if own.queries is None else load_examples(own.queries, own.input_shape, "test", own.root)
    with evaluating(network), reporting(progress) as report:
        prepared = _prepared(network, _Sides(train, queries), settings, own.weight_decay, report)
        plan = [(prepared, variant) for variant in _variants(prepared, settings, own.weight_decay)]
        out.mkdir(parents=True, exist_ok=True)
        return _score(plan, out / STORE_FILE, report, overwrite=overwrite)


def _finished(out: Path, config: Mapping[str, Any], *, overwrite: bool) -> dict[str, Scores] | None:
    """The scores of a finished store; None when there is none yet. One of other settings is refused before any dear step."""
    from .cache.store import finished_variants

    names = finished_variants(out, config, overwrite=overwrite)
    return None if names is None else {name: open_scores(out, name) for name in names}


def _words(parameters: str) -> str | list[str]:
    return parameters if "," not in parameters else [name.strip() for name in parameters.split(",")]


def _dtype(name: str | None) -> torch.dtype | None:
    import torch

    return None if name is None else {"float32": torch.float32, "float64": torch.float64}[name]


def _variants(prepared: Prepared, settings: AttributeSettings, weight_decay: float | None) -> list[Variant]:
    """The main scores that the settings ask for, and those that go beside them."""
    from .influence.attribute import Variant

    main = Variant(
        curvature=_curvature(prepared, settings),
        query_label=settings.query_label,  # type: ignore[arg-type]  # checked by the settings
        train_scores=settings.train_scores,
    )
    variants = [main]
    if "damped" in settings.also:
        if not weight_decay:
            raise UsageError(
                "The damped scores take the run's weight decay as damping, and it has none; leave `damped` out."
            )
        damped = _curvature(prepared, replace(settings, damping=weight_decay))
        variants.append(replace(main, curvature=damped, name="damped"))
    if "predicted" in settings.also:
        variants.append(replace(main, query_label="predicted", train_scores=False, name="predicted"))
    return variants


def _curvature(prepared: Prepared, settings: AttributeSettings) -> Curvature[Any]:
    from .influence.gauss_newton import GaussNewton
    from .influence.gradient_dot import GradientDot
    from .influence.head import LinearHead
    from .influence.hessian import Hessian

    name = settings.curvature
    damping = settings.damping or 0.0
    if name == "auto":
        name = "linear-head" if prepared.problem.linear else "gauss-newton"
    if name == "linear-head":
        return LinearHead(damping=damping, rcond=settings.rcond)
    if name == "gauss-newton":
        return GaussNewton(
            rows=settings.rows,  # type: ignore[arg-type]  # checked by the settings
            damping="auto" if settings.damping is None else settings.damping,
            rcond=settings.rcond,
            leave_one_out=settings.leave_one_out,
        )
    if name == "hessian":
        return Hessian(
            damping=damping,
            rcond=settings.rcond,
            absolute=settings.absolute,
            negative=settings.negative,  # type: ignore[arg-type]  # checked by Inversion
        )
    return GradientDot(cosine=name == "gradient-cosine")


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
    from .reports.progress import reporting

    out = Path(settings.out).expanduser()
    plan = _plan(settings, recipe, [load_model(source) for source in settings.sources])
    folders = [out / "runs" / f"{network.name}-k{one.k}-s{one.seed}" for network, one in plan]
    if not overwrite:  # a report in the way is found here, and not after the dear steps
        _standing_report(out / "report", page, dict.fromkeys(folder.name for folder in folders))
    targets: dict[tuple[int, int, int], TargetData] = {}
    with reporting(progress) as report:
        for i, ((network, one), folder) in enumerate(zip(plan, folders, strict=True)):
            said = _prefixed(report, f"{i + 1}/{len(plan)} {folder.name}")
            shape = network.spec.input_shape
            if shape not in targets:
                targets[shape] = load_data(data, shape)
            with _few_threads(network):
                run = _fine_tune(network, targets[shape], one, folder, said, overwrite=overwrite)
            damped, block = ("damped",) * bool(one.weight_decay), ("block",) * bool(one.k)
            how = AttributeSettings(train_scores=True, also=(*damped, "predicted", *block), device=one.device)
            attribute_run(run, how, overwrite=overwrite, progress=said)
        return make_report(folders, out / "report", page, overwrite=overwrite, progress=report)


def _plan(
    settings: CompareSettings, recipe: FineTuneSettings, networks: Sequence[LoadedModel]
) -> list[tuple[LoadedModel, FineTuneSettings]]:
    """Every run of a comparison; whatever its words get wrong is found here, before the first of them starts."""
    from .models.data import paper_seed
    from .models.transfer import split

    names = [network.name for network in networks]
    if len(set(names)) < len(names):
        raise UsageError(f"Two sources are called {max(names, key=names.count)}; rename one of the files.")
    for network in networks:
        for k in settings.k:
            split(network.model, k)  # refuses a k beyond the blocks
    return [
        (network, replace(recipe, k=k, seed=paper_seed(i)))
        for network in networks
        for k in settings.k
        for i in range(settings.seeds)
    ]


def _few_threads(network: LoadedModel) -> AbstractContextManager[None]:
    """One torch thread for a small network: two get in each other's way as soon as the machine has other work."""
    from .models.device import threads

    return threads(1 if sum(value.numel() for value in network.model.parameters()) <= SMALL_NETWORK else None)


def _prefixed(report: Progress | None, name: str) -> Progress | None:
    if report is None:
        return None
    return lambda stage, done, total: report(f"{name}: {stage}", done, total)


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
        _clear_report(out)
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


def store_of(run: Path) -> Path:
    """Where the scores of a run lie.

    Args:
        run: Run folder, or the store itself.

    Returns:
        The store, complete or not.

    Raises:
        StoreError: The folder holds none.
    """
    from .cache.files import partial_path

    store = run / STORE_FILE
    if run.is_dir() and not store.exists() and not partial_path(store).exists():
        raise StoreError(f"{run} holds no scores yet; make them by `upweight attribute {run}`.")
    return store if run.is_dir() else run


def _identity(folder: Path) -> str:
    """Name of what a report shows of a run: its weights, and the settings of its scores."""
    from .cache.provenance import digest
    from .cache.store import open_store
    from .models.runs import read_run

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


def _clear_report(out: Path) -> None:
    """Take away the files that a report says are its own: the next one may have fewer."""
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
    from .reports.neighbours import one_per_class
    from .reports.runs import RunView

    run = load_run(folder)
    store = folder / STORE_FILE
    rows = one_per_class(run.test.labels.numpy())
    with _few_threads(run.model):
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
        train_images=run.train.raw_images(slice(None)).numpy(),
        query_images=run.test.raw_images(slice(None)).numpy(),
        saliency_rows=rows,
        saliency=gradients.numpy(),
    )
