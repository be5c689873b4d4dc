"""From a model and settings to scores in memory or in a store: what every stage that scores shares.

Heavy modules are imported inside the functions that need them, so that the command line can show its options at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import UsageError
from .cache.errors import StoreError
from .influence.settings import AttributeSettings

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from .cache.scratch import Scratch
    from .cache.store import Store
    from .influence.attribute import Fitted, Prepared, Variant
    from .influence.curvature import Curvature
    from .influence.examples import Progress, Source
    from .influence.kept import KeptCurvature
    from .influence.scores import Scores
    from .models.checkpoints import LoadedModel

T = TypeVar("T")

STORE_FILE = "influence.h5"
IDENTITY = ("weights", "model_sha256", "data_sha256")  # what tiles of a Gram matrix depend on, of a config
SMALL_NETWORK = 1_000_000  # parameters up to which torch works on one thread


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


def resolve(model: nn.Module, parameters: str | Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Names of the analysed parameters, and of the head where the model has one."""
    from .models.transfer import head_name, resolve_parameters

    names = resolve_parameters(model, parameters)
    try:
        return names, head_name(model)
    except UsageError:
        return names, None  # without a linear layer there is no head; other parameters can still be analysed


def default_curvature(prepared: Prepared) -> Curvature[Any]:
    """What a network is scored with when nobody says.

    Args:
        prepared: Both sides.

    Returns:
        The closed form for the head alone, the exact Gauss-Newton matrix otherwise, the Hessian of a loss that is not ours.
    """
    from .influence.gauss_newton import GaussNewton
    from .influence.head import LinearHead
    from .influence.hessian import Hessian

    if prepared.problem.loss is not None:
        return Hessian()  # the other two factor the Hessian of cross-entropy
    return LinearHead() if prepared.problem.linear else GaussNewton()


class Sides(NamedTuple):
    """Train set and queries with their ids; None: positions."""

    train: Source
    queries: Source | None
    train_index: list[int] | None = None
    query_index: list[int] | None = None
    warnings: Sequence[str] = ()
    """What to state beside the scores."""


def prepared_sides(
    network: nn.Module, sides: Sides, settings: AttributeSettings, weight_decay: float | None, report: Progress | None
) -> Prepared:
    """Both sides examined as the settings say."""
    from .influence.attribute import prepare
    from .models.device import resolve_device

    names, head = resolve(network, _words(settings.parameters))
    prepared = prepare(
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
    warnings = [*sides.warnings, *prepared.facts["warnings"]]
    return replace(prepared, facts={**prepared.facts, "warnings": warnings})


def score(
    plan: Sequence[tuple[Prepared, Variant]],
    out: str | Path | None,
    report: Progress | None,
    config: Mapping[str, Any] | None = None,
    *,
    memory: int | None = None,
    overwrite: bool = False,
    keep_curvature: bool = False,
) -> dict[str, Scores]:
    """Fit and score every variant, into memory or into one store.

    Args:
        plan: What to score, and with what examples; the main scores are named "".
        out: The store; None: in memory.
        report: Told of every stage.
        config: What decides the scores; None: read off the plan.
        memory: Bytes that a fit may take; None: half of what is free.
        overwrite: Replace a store of other settings.
        keep_curvature: The main scores, in memory, keep what they were made with.

    Returns:
        Scores by variant.
    """
    from .cache.scratch import Scratch
    from .influence.walk import tile_shape, write_scores

    grid = tile_shape(max(prepared.problem.p for prepared, _ in plan))
    if out is None:
        return _in_memory(_fitted(plan, report, memory), grid, report, keep_curvature=keep_curvature)
    config = _config(plan) if config is None else config
    finished = standing_scores(Path(out), config, overwrite=overwrite)
    if finished is not None:
        return finished
    scratch = Scratch(Path(out), {name: config[name] for name in IDENTITY if name in config})
    fitted = _fitted(plan, report, memory, scratch)
    with _store(fitted, Path(out), config, grid, overwrite=overwrite) as store:
        write_scores(fitted, {name: store.sink(name) for name in store.contents.variants}, grid, report)
        store.finish()
    scratch.remove()
    return {one.variant.name: open_scores(out, one.variant.name) for one in fitted}


def _fitted(
    plan: Sequence[tuple[Prepared, Variant]], report: Progress | None, memory: int | None, tiles: Scratch | None = None
) -> list[Fitted]:
    """Every variant fitted, in the order of the plan, each with what another before it has in common with it."""
    from .influence.attribute import fit
    from .influence.work import Work

    fitted: dict[str, Fitted] = {}
    # what is inverted without damping wants its matrix more exact, which then serves every damping: it comes first
    for prepared, variant in sorted(plan, key=lambda one: getattr(one[1].curvature, "damping", 0) != 0):
        what = getattr(variant.curvature, "stage", "gram")
        told = None if report is None else partial(report, f"{what} ({variant.name})" if variant.name else what)
        work = Work(memory=memory, tiles=tiles, told=told)
        fitted[variant.name] = fit(prepared, variant, report, before=[*fitted.values()], work=work)
    return [fitted[variant.name] for _, variant in plan]


def _in_memory(
    fitted: Sequence[Fitted], grid: tuple[int, int], report: Progress | None, *, keep_curvature: bool
) -> dict[str, Scores]:
    from .influence.damping import damping_of
    from .influence.groups import keep_curvature as kept
    from .influence.walk import ArraySink, write_scores

    sinks = {
        one.variant.name: ArraySink(one.shapes, str(one.prepared.problem.dtype).removeprefix("torch."))
        for one in fitted
    }
    write_scores(fitted, sinks, grid, report)
    found: dict[str, Scores] = {}
    for one in sorted(fitted, key=lambda one: not one.variant.name):  # the main scores last: they hold the others
        further: dict[float | str, Scores] = {
            damping: scores for name, scores in found.items() if (damping := damping_of(name)) is not None
        }
        name = one.variant.name
        curvature = kept(one) if keep_curvature and not name else None
        found[name] = _scores(one, sinks[name].matrices, {} if name else further, curvature)
    return {one.variant.name: found[one.variant.name] for one in fitted}


def _scores(
    one: Fitted,
    matrices: Mapping[str, NDArray[Any]],
    at_damping: Mapping[float | str, Scores],
    curvature: KeptCurvature | None,
) -> Scores:
    from .influence.attribute import examples
    from .influence.scores import Scores

    queries, train = examples(one.prepared)
    meta, spectrum = one.meta(), one.spectrum
    if queries is None:
        return Scores(
            matrices["train"],
            train,
            train,
            spectrum=spectrum,
            meta=meta,
            on_itself=True,
            at_damping=at_damping,
            curvature=curvature,
        )
    on_train = None
    if "train" in matrices:
        on_train = Scores(matrices["train"], train, train, spectrum=spectrum, meta=meta, on_itself=True)
    return Scores(
        matrices["queries"],
        queries,
        train,
        spectrum=spectrum,
        meta=meta,
        on_train=on_train,
        at_damping=at_damping,
        curvature=curvature,
    )


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


def standing_scores(out: Path, config: Mapping[str, Any], *, overwrite: bool) -> dict[str, Scores] | None:
    """The scores of a finished store; None when there is none yet. One of other settings is refused before any dear step."""
    from .cache.store import finished_variants

    names = finished_variants(out, config, overwrite=overwrite)
    return None if names is None else {name: open_scores(out, name) for name in names}


def _words(parameters: str) -> str | list[str]:
    return parameters if "," not in parameters else [name.strip() for name in parameters.split(",")]


def _dtype(name: str | None) -> torch.dtype | None:
    import torch

    return None if name is None else {"float32": torch.float32, "float64": torch.float64}[name]


def make_variants(prepared: Prepared, settings: AttributeSettings, weight_decay: float | None) -> list[Variant]:
    """The main scores that the settings ask for, and those that go beside them."""
    from .influence.attribute import Variant

    main = Variant(
        curvature=make_curvature(prepared, settings),
        query_label=settings.query_label,  # type: ignore[arg-type]  # checked by the settings
        train_scores=settings.train_scores,
    )
    variants = main.each_damping()
    main = variants[0]
    if "damped" in settings.also:
        if not weight_decay:
            raise UsageError(
                "The damped scores take the run's weight decay as damping, and it has none; leave `damped` out."
            )
        damped = make_curvature(prepared, replace(settings, damping=(weight_decay,)))
        variants.append(replace(main, curvature=damped, name="damped"))
    if "predicted" in settings.also:
        variants.append(replace(main, query_label="predicted", train_scores=False, name="predicted"))
    return variants


def make_plan(
    settings: AttributeSettings,
    k: int,
    weight_decay: float,
    look: Callable[[AttributeSettings], T],
    prepared: Callable[[T], Prepared],
) -> list[tuple[T, Variant]]:
    """All scores that the settings ask of a run, each with what it is made from.

    Args:
        settings: Parameters, curvature, label, and what stands beside the main scores.
        k: Fine-tuned blocks of the run.
        weight_decay: Of the run.
        look: Settings to both sides, examined or sampled.
        prepared: The sides themselves, of what `look` gives.

    Returns:
        The main scores first.
    """
    main = look(settings)
    plan = [(main, variant) for variant in make_variants(prepared(main), settings, weight_decay)]
    if "block" in settings.also:
        block = replace(settings, parameters=f"blocks:{k}", curvature="gauss-newton", damping=())
        whole = look(block)
        plan.append((whole, replace(plan[0][1], curvature=make_curvature(prepared(whole), block), name="block")))
    return plan


def make_curvature(prepared: Prepared, settings: AttributeSettings) -> Curvature[Any]:
    """The curvature that the settings name.

    Args:
        prepared: Both sides.
        settings: Parameters, curvature, label.

    Returns:
        The curvature; "auto" is resolved.

    Raises:
        UsageError: It is one that only the attribution of a run has.
    """
    from .influence.gauss_newton import GaussNewton
    from .influence.gradient_dot import GradientDot
    from .influence.head import LinearHead
    from .influence.hessian import Hessian

    name = settings.curvature
    if name == "unrolled":
        raise UsageError(
            "unrolled goes back through the recorded training of a run (`upweight attribute RUN --curvature unrolled`), and "
            "has no estimate; of a network of your own upweight.Recording takes the training down, in Python."
        )
    if name == "auto":
        name = "linear-head" if prepared.problem.linear else "gauss-newton"
    if "block" not in settings.also:  # which rows may be meant for
        settings = replace(settings, curvature=name)  # refuses what belongs to another
    numbers: Any = settings.damping or (0.0,)
    leave_one_out: Any = settings.leave_one_out == "score" or settings.leave_one_out or False
    if name == "linear-head":
        return LinearHead(damping=numbers, rcond=settings.rcond, leave_one_out=leave_one_out)
    if name == "gauss-newton":
        return GaussNewton(
            rows=settings.rows,  # type: ignore[arg-type]  # checked by the settings
            damping=settings.damping or "auto",
            rcond=settings.rcond,
            leave_one_out=leave_one_out,
            precision=settings.precision,  # type: ignore[arg-type]  # checked by the settings
        )
    if name == "hessian":
        return Hessian(
            damping=numbers,
            rcond=settings.rcond,
            absolute=settings.absolute,
            negative=settings.negative,  # type: ignore[arg-type]  # checked by Inversion
        )
    if name.startswith("gradient"):
        return GradientDot(cosine=name == "gradient-cosine")
    return _for_scale(name, settings)


def _for_scale(name: str, settings: AttributeSettings) -> Curvature[Any]:
    """The curvatures that approximate, or iterate."""
    from .influence.conjugate_gradient import ConjugateGradient
    from .influence.ekfac import EKFAC
    from .influence.kfac import KFAC
    from .influence.lanczos import Lanczos
    from .influence.nystroem import Nystroem
    from .influence.projected import Projected

    damping: Any = settings.damping or "auto"
    negative: Any = settings.negative  # checked by Inversion
    rows: Any = settings.rows  # these two by the settings
    others: Any = settings.others
    if name in ("kfac", "ekfac"):
        build = KFAC if name == "kfac" else EKFAC
        return build(rows=rows, others=others, damping=damping)
    if name.startswith("conjugate-gradient"):
        kind: Any = "hessian" if name.endswith("hessian") else "ggn"
        return ConjugateGradient(damping=damping, curvature=kind, rtol=settings.rtol, max_steps=settings.max_steps)
    if name == "nystroem":
        return Nystroem(rank=settings.rank, damping=damping)
    if name == "lanczos":
        return Lanczos(rank=settings.rank, damping=damping)
    if name == "lanczos-hessian":
        return Lanczos(rank=settings.rank, damping=damping, curvature="hessian", negative=negative)
    return Projected(rows=rows, width=settings.width, damping=damping)


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


@contextmanager
def few_threads(network: LoadedModel) -> Generator[None, None, None]:
    """One torch thread for a small network: two get in each other's way as soon as the machine has other work.

    Matrices may be as large as ever, and their products go to as many cores as before.
    """
    import torch

    from .influence.blas import on_cores
    from .models.device import threads

    small = sum(value.numel() for value in network.model.parameters()) <= SMALL_NETWORK
    with on_cores(torch.get_num_threads()), threads(1 if small else None):
        yield
