"""Moving a source network to a target: freeze all but the last blocks, put on a new head, train.

The frozen part stays in evaluation mode, so its batch-norm statistics are those of the source and its activations are
a fixed function of the image: they are computed once a run. (In the original study's code these statistics drifted.)

What other works add is set by settings of its own: a head with hidden layers, learning without forgetting (`lwf`), weights of
a fixed spectral norm (`spectral`), other modes of batch-norm (`batch_norm`), trained blocks that begin anew (`fresh`), training
images that are attacked (`attacks`) or changed at random (`augment`). All but a few go with any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import UsageError
from .batch_norm import freeze_affine
from .checkpoints import LoadedModel, file_hash, load_model, save_model, write_json
from .data import TargetData, choose_subset
from .device import reproducible, resolve_device, threads
from .fresh import renew_blocks
from .heads import HeadSpec
from .images import ImageSet
from .runs import MODEL_FILE, PARTIAL_FILE, RUN_FILE, Run, finished_run, index_record
from .settings import FineTuneSettings
from .spectral import fold_weights
from .training import FitState, Progress, settings_digest
from .transfer import Split, split, with_new_head
from .tuning import Inputs, Tuning
from .versions import versions
from .zoo import Classifier

SMALL_BATCH = 2**18  # numbers entering the trained part in one step, up to which one thread is the fastest


def fine_tune(
    source: LoadedModel | str | Path,
    data: TargetData,
    settings: FineTuneSettings,
    run_dir: str | Path,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
) -> Run:
    """Fine-tune a source on a target and write the run's folder: model.safetensors and run.json.

    After each epoch all that is needed to go on lies in the folder, so that the same call resumes a run that was
    stopped; a finished one is returned as it is. The images, the head's first weights and the order of the batches
    depend on n and the seeds alone: they are the same for every source.

    Args:
        source: The network to begin with, or what `load_model` takes.
        data: The target, fitted to the source's input.
        settings: The recipe.
        run_dir: The run's folder; made when it is not there.
        progress: Called with the stage, the units done and their number.
        overwrite: Replace a run that was made with other settings.

    Returns:
        The run as it lies in the folder.

    Raises:
        UsageError: The images do not have the size the source takes.
    """
    source = source if isinstance(source, LoadedModel) else load_model(source)
    if data.train.input_shape != source.spec.input_shape:
        raise UsageError(
            f"{data.name} gives images of shape {data.train.input_shape} and {source.name} takes "
            f"{source.spec.input_shape}; load the data with the shape of the source."
        )
    run_dir = Path(run_dir)
    device = resolve_device(settings.device)
    drawn_by = settings.seed if settings.images_seed is None else settings.images_seed
    train = data.train.subset(choose_subset(data.train.labels, images_asked(settings, data), drawn_by))
    settings = _filled(settings, data)
    decisive = decisive_settings(source, data, settings)
    partial_file = run_dir / PARTIAL_FILE
    if (run_dir / RUN_FILE).exists() and not overwrite:
        return finished_run(run_dir, decisive, data)
    model, parts = network_to_train(source.model, len(data.class_names), settings)
    model.to(device)
    if overwrite:  # only now, when nothing about the settings can be refused any more
        for name in (PARTIAL_FILE, RUN_FILE, MODEL_FILE):
            (run_dir / name).unlink(missing_ok=True)
    with reproducible():
        tuned = Tuning(parts, Inputs(parts, train, data.test, settings, device, progress), settings)
        with threads(1 if tuned.inputs.drawn.image_size * settings.batch_size <= SMALL_BATCH else None):
            state = tuned.fit(partial_file, decisive, progress)
            fold_weights(parts.trained)
            accuracy = tuned.accuracies()
    info = _record(source, data, train, settings, decisive, state, accuracy)
    info["k"] = parts.blocks
    _write(run_dir, model.cpu().eval(), info)
    partial_file.unlink(missing_ok=True)
    return finished_run(run_dir, decisive, data)


def network_to_train(source: Classifier, num_classes: int, settings: FineTuneSettings) -> tuple[Classifier, Split]:
    """The network that a fine-tuning begins with: only what it trains asks for gradients.

    Args:
        source: The source; left as it is.
        num_classes: Classes of the target.
        settings: The recipe.

    Returns:
        A copy with a new head, in evaluation mode on the CPU, and its parts.
    """
    settings.check_blocks()
    model = with_new_head(source, num_classes, settings.seed, _head(settings))
    parts = cut(model, settings)
    if settings.fresh:
        renew_blocks(model, parts, lambda born: cut(born, settings), settings.seed)
    model.eval()
    for parameter in parts.frozen.parameters():
        parameter.requires_grad_(False)
    if not settings.bn_affine:
        freeze_affine(parts.features)
    return model, parts


def cut(model: Classifier, settings: FineTuneSettings) -> Split:
    """A network cut where a recipe cuts it."""
    return split(model, settings.k, counting=settings.counting)  # type: ignore[arg-type]  # checked by the settings


def images_asked(settings: FineTuneSettings, data: TargetData) -> int:
    """The number of train images, where the settings say all of them too."""
    return len(data.train) if settings.n is None else settings.n


def _filled(settings: FineTuneSettings, data: TargetData) -> FineTuneSettings:
    """The settings with the numbers of images and epochs in them."""
    n = images_asked(settings, data)
    return replace(settings, n=n, epochs=settings.epochs_for(n))


def decisive_settings(source: LoadedModel, data: TargetData, settings: FineTuneSettings) -> dict[str, Any]:
    """All that decides the weights of a run; the device and the size of the cache only decide the time.

    Args:
        source: The network it begins with.
        data: The target.
        settings: The recipe.

    Returns:
        Plain JSON values, as `decisive` in run.json.
    """
    settings = _filled(settings, data)
    recipe = {name: value for name, value in settings.recipe().items() if name not in {"device", "cache_mb"}}
    return recipe | {
        "source": source.name,
        "source_sha256": source.sha256,
        "data": data.name,
        "data_sha256": data.fingerprint,
    }


def _head(settings: FineTuneSettings) -> HeadSpec:
    return HeadSpec(
        hidden=settings.hidden,
        width=settings.hidden_width or 0,
        batch_norm=settings.head_batch_norm,
        dropout=settings.head_dropout,
    )


def _record(
    source: LoadedModel,
    data: TargetData,
    train: ImageSet,
    settings: FineTuneSettings,
    decisive: Mapping[str, Any],
    state: FitState,
    accuracy: Mapping[str, float],
) -> dict[str, Any]:
    return {
        "format": "upweight-run",
        "version": 1,
        "settings": settings.recipe(),
        "digest": settings_digest(decisive),
        "decisive": dict(decisive),
        "source": source.record(),
        "data": {
            "name": data.name,
            "settings": data.settings.record(),
            "fingerprint": data.fingerprint,
            "train_index": train.index.tolist(),
            "test_index": index_record(data.test.index),
            "class_names": list(data.class_names),
        },
        "n": settings.n,
        "seed": settings.seed,
        "weight_decay": settings.weight_decay,
        "accuracy": dict(accuracy),
        "history": state.history,
        "seconds": round(state.seconds, 3),
        "versions": versions(),
    }


def _write(run_dir: Path, model: Classifier, info: dict[str, Any]) -> None:
    """The weights first: a folder with a run.json is a finished run."""
    path = run_dir / MODEL_FILE
    save_model(path, model, {key: info[key] for key in ("settings", "digest", "accuracy")})
    info["model_sha256"] = file_hash(path)
    write_json(run_dir / RUN_FILE, info)
