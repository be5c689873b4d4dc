"""Making a source network from scratch: naturally, or against PGD."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from .accuracy import accuracies
from .attacks import attacked
from .augment import augment
from .checkpoints import file_hash, save_model, write_json
from .data import TargetData, load_data
from .device import generator, reproducible, resolve_device, seeded
from .errors import RunMismatch
from .fdm import feature_shift
from .images import ImageSet
from .settings import DataSettings, PretrainSettings
from .training import Batch, FitPlan, FitState, Loss, Progress, batch_order, cross_entropy, fit, require_same_settings
from .transfer import split
from .versions import versions
from .zoo import Classifier, build, default_input_shape


def pixel_statistics(images: ImageSet, batch_size: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for the normaliser.

    Args:
        images: Where they are taken over.
        batch_size: Images read at once.

    Returns:
        The means and the deviations, per channel, rounded to four digits.
    """
    total = squares = torch.zeros(images.input_shape[0], dtype=torch.float64)
    for start in range(0, len(images), batch_size):
        x = images.images(slice(start, start + batch_size)).double()
        total = total + x.sum((0, 2, 3))
        squares = squares + (x * x).sum((0, 2, 3))
    count = len(images) * math.prod(images.input_shape[1:])
    mean = total / count
    std = (squares / count - mean**2).clamp_min(1e-8).sqrt()
    return tuple(round(float(v), 4) for v in mean), tuple(round(float(v), 4) for v in std)


def learning_rate(settings: PretrainSettings, progress: float) -> float:
    """Linear warm-up, then half a cosine down to zero.

    Args:
        settings: Highest rate and length of the warm-up.
        progress: Part of the training that is over, 0 to 1.

    Returns:
        The rate of the next step.
    """
    if progress < settings.warm_up:
        return settings.learning_rate * (0.05 + 0.95 * progress / settings.warm_up)
    rest = (progress - settings.warm_up) / (1 - settings.warm_up)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * rest))


def _batches(
    model: nn.Module, images: ImageSet, settings: PretrainSettings, epoch: int, device: torch.device
) -> Iterator[Batch]:
    draw = generator("augmentation", settings.seed, epoch)
    attack_draw = generator("attack", settings.seed, epoch, device=device)
    for rows in batch_order(len(images), settings.batch_size, settings.seed, epoch):
        x = augment(images.images(rows).to(device), draw, shift=settings.shift, flip=settings.flip)
        x = x.to(memory_format=torch.channels_last)
        y = images.labels[rows].to(device)
        moved = attacked(model, x, y, settings.attack, attack_draw) if settings.adversarial else x
        yield (moved, y, x) if settings.fdm else (moved, y)


def _loss(model: nn.Module, settings: PretrainSettings) -> Loss:
    """Cross-entropy, and with `fdm` how far the attack moves what enters the first block that is fine-tuned later."""
    if not settings.fdm:
        return cross_entropy
    parts = split(model, settings.fdm_k)

    def loss(module: nn.Module, batch: Batch, epoch: int, step: int) -> Tensor:
        features = parts.frozen(batch[0])
        clean = parts.frozen(batch[2])  # a pass of its own: batch-norm sees each kind of images by itself
        shift = feature_shift(features, clean)
        return functional.cross_entropy(parts.trained(features), batch[1]) + settings.fdm * shift

    return loss


def pretrain(
    settings: PretrainSettings, out: str | Path, progress: Progress | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Train a source network and write it with the settings that made it.

    `out` receives the weights, and a JSON file beside it the settings, accuracies and the hash of the weights. After
    each epoch all that is needed to go on lies in `out`.partial, so that the same call resumes; once it is done, the
    same call returns what it finds.

    Args:
        settings: The recipe.
        out: The safetensors file to write.
        progress: Called with the stage, the units done and their number.
        overwrite: Replace what was made with other settings.

    Returns:
        What the JSON file holds.
    """
    out = Path(out)
    device = resolve_device(settings.device)
    data = _data(settings)
    images = data.train if settings.limit is None else data.train.subset(slice(0, settings.limit))
    decisive = _recipe(settings) | {"data_sha256": data.fingerprint}
    partial = out.with_name(f"{out.name}.partial")
    if overwrite:
        partial.unlink(missing_ok=True)
    elif out.exists():
        return _finished(out, decisive)
    mean, std = pixel_statistics(images)
    with seeded("initial weights", settings.seed):
        model = build(settings.architecture, num_classes=len(data.class_names), mean=mean, std=std)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with reproducible():
        state = _fit(model, images, settings, device, partial, decisive, progress)
        attack, count = settings.evaluation_attack, settings.eval_images
        accuracy = accuracies(model, data.test, attack, settings.seed, device, progress, count=count)
    record = _record(settings, data, len(images), state, accuracy)
    save_model(out, model.cpu().to(memory_format=torch.contiguous_format), record)
    record |= {"device": str(device), "seconds": round(state.seconds, 1), "sha256": file_hash(out)}
    write_json(out.with_suffix(".json"), record)
    partial.unlink(missing_ok=True)
    return record


def standing_source(settings: PretrainSettings, out: str | Path) -> dict[str, Any] | None:
    """The record of a source that is there already.

    Args:
        settings: The recipe asked for.
        out: Its safetensors file.

    Returns:
        What its JSON file holds; None where there is no such source yet.
    """
    if not Path(out).exists():
        return None
    return _finished(Path(out), _recipe(settings) | {"data_sha256": _data(settings).fingerprint})


def _data(settings: PretrainSettings) -> TargetData:
    return load_data(
        DataSettings(data=settings.data, root=settings.root, download=settings.download),
        default_input_shape(settings.architecture),
    )


def _recipe(settings: PretrainSettings) -> dict[str, Any]:
    """The settings that belong to the result: all but where the files lie, where it is computed, and an `fdm` not asked for."""
    left_out = {"root", "download", "device"} | (set() if settings.fdm else {"fdm", "fdm_k"})
    return {name: value for name, value in asdict(settings).items() if name not in left_out}


def _finished(out: Path, decisive: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a source that is there already, when it is the one asked for."""
    record = out.with_suffix(".json")
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        made = found["settings"] | {"data_sha256": found["data"]["fingerprint"]}
        whole = found["sha256"] == file_hash(out)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunMismatch(
            f"{out} exists, and no whole {record} says how it was made ({error}); "
            "pass --overwrite to replace it, or --out FILE to keep it."
        ) from error
    require_same_settings(out, made, decisive)
    if not whole:
        raise RunMismatch(f"{out} is not the file that {record} describes; pass --overwrite to make it anew.")
    return dict(found)


def _fit(
    model: Classifier,
    images: ImageSet,
    settings: PretrainSettings,
    device: torch.device,
    partial: Path,
    decisive: Mapping[str, Any],
    progress: Progress | None,
) -> FitState:
    optimizer = SGD(model.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay)
    steps = math.ceil(len(images) / settings.batch_size)
    plan = FitPlan(
        stage="pretrain",
        epochs=settings.epochs,
        seed=settings.seed,
        rate=lambda epoch, step: learning_rate(settings, (epoch - 1 + step / steps) / settings.epochs),
        partial=partial,
        settings=decisive,
        loss=_loss(model, settings),
    )
    return fit(model, optimizer, lambda epoch: _batches(model, images, settings, epoch, device), plan, progress)


def _record(
    settings: PretrainSettings, data: TargetData, trained_on: int, state: FitState, accuracy: dict[str, Any]
) -> dict[str, Any]:
    return {
        "format": "upweight-source",
        "version": 1,
        "settings": _recipe(settings),
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "train_images": trained_on,
            "class_names": list(data.class_names),
        },
        "accuracy": accuracy,
        "history": state.history,
        "versions": versions(),
    }
