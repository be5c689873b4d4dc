"""Moving a source network to a target: freeze all but the last blocks, put on a new head, train.

The frozen part stays in evaluation mode, so its batch-norm statistics are those of the source and its activations are
a fixed function of the image: they are computed once a run. (In the original study's code these statistics drifted.)

What other works add is set by settings of its own: a head with hidden layers, learning without forgetting (`lwf`), weights of
a fixed spectral norm (`spectral`), other modes of batch-norm (`batch_norm`). Any of them goes with any other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from .. import UsageError
from .attacks import evaluating
from .batch_norm import freeze_affine, set_statistics
from .checkpoints import LoadedModel, file_hash, load_model, save_model, write_json
from .data import TargetData, choose_subset
from .device import reproducible, resolve_device, threads
from .heads import HeadSpec
from .images import ImageSet
from .lwf import feature_distance
from .runs import MODEL_FILE, PARTIAL_FILE, RUN_FILE, Run, finished_run, index_record
from .settings import FineTuneSettings
from .spectral import fold_weights, scale_weights
from .training import Batch, FitPlan, FitState, Progress, batch_order, fit, settings_digest
from .transfer import Split, block_names, split, with_new_head
from .versions import versions
from .zoo import Classifier

_READ_BATCH = 256
_SMALL_BATCH = 2**18  # numbers entering the trained part in one step, up to which one thread is the fastest


class Activations:
    """What enters the trained part, for each image of a set: kept when it fits, otherwise computed when asked for."""

    def __init__(
        self,
        frozen: nn.Module,
        images: ImageSet,
        device: torch.device,
        budget: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Run the images through the frozen part once, if what comes out needs no more than `budget` bytes."""
        self.frozen, self.images, self.device = frozen, images, device
        self.labels = images.labels.to(device)
        self.kept: Tensor | None = None
        first = self._compute(torch.arange(min(_READ_BATCH, len(images))))
        self.image_size = first[0].numel()
        if first[0].numel() * first.element_size() * len(images) <= budget:
            self.kept = first.new_empty((len(images), *first.shape[1:]))
            self.kept[: len(first)] = first
            for start in range(len(first), len(images), _READ_BATCH):
                rows = torch.arange(start, min(start + _READ_BATCH, len(images)))
                self.kept[rows.to(device)] = self._compute(rows)
                if progress:
                    progress(start + len(rows), len(images))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Memory that is kept."""
        return 0 if self.kept is None else self.kept.nbytes

    @torch.no_grad()
    def _compute(self, rows: Int[Tensor, " b"]) -> Float[Tensor, "b ..."]:
        out: Tensor = self.frozen(self.images.images(rows).to(self.device))
        return out

    def batch(self, rows: Int[Tensor, " b"]) -> tuple[Float[Tensor, "b ..."], Int[Tensor, " b"]]:
        """Inputs of the trained part, and labels, on the device."""
        here = rows.to(self.device)
        return (self._compute(rows) if self.kept is None else self.kept[here]), self.labels[here]

    @torch.no_grad()
    def accuracy(self, trained: nn.Module) -> float:
        """Part of the images that the trained part, in evaluation mode, puts into their own class."""
        correct = 0
        with evaluating(trained):
            for rows in torch.arange(len(self)).split(_READ_BATCH):  # type: ignore[no-untyped-call]
                x, y = self.batch(rows)
                correct += int((trained(x).argmax(1) == y).sum())
        return correct / len(self)


def step_rate(learning_rate: float, epochs: int, epoch: int) -> float:
    """The rate of an epoch: divided by 10 after a third of the epochs, and again after two thirds.

    Args:
        learning_rate: The first rate.
        epochs: How many there are.
        epoch: Counted from 1.

    Returns:
        The rate.
    """
    return learning_rate * 0.1 ** (3 * (epoch - 1) // epochs)


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
    depend on n and the seed alone: they are the same for every source.

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
    train = data.train.subset(choose_subset(data.train.labels, images_asked(settings, data), settings.seed))
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
        tuned = _Tuning(parts, train, data.test, settings, device, progress)
        with threads(1 if tuned.train.image_size * settings.batch_size <= _SMALL_BATCH else None):
            state = tuned.fit(partial_file, decisive, progress)
            fold_weights(parts.trained)
            accuracy = tuned.accuracies()
    info = _record(source, data, train, settings, decisive, state, accuracy)
    info["k"] = len(block_names(model)) if settings.k == "all" else settings.k
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
    model = with_new_head(source, num_classes, settings.seed, _head(settings)).eval()
    parts = split(model, settings.k)
    for parameter in parts.frozen.parameters():
        parameter.requires_grad_(False)
    if not settings.bn_affine:
        freeze_affine(parts.features)
    return model, parts


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


class _Tuning:
    """The trained part of a network with what it is trained and measured on."""

    def __init__(
        self,
        parts: Split,
        train: ImageSet,
        test: ImageSet,
        settings: FineTuneSettings,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self.parts, self.settings = parts, settings
        self.moving = settings.statistics in {"extractor", "all"}
        """Whether the frozen part is no fixed function of the image, because its batch-norm statistics follow the target."""
        ahead = nn.Sequential() if self.moving else parts.frozen
        self.module = nn.Sequential(*parts.frozen, *parts.trained) if self.moving else parts.trained
        self.features = self.module[: len(self.module) - len(parts.head)]
        budget = settings.cache_mb * 2**20
        told = {
            word: None if progress is None else partial(progress, word)
            for word in ("source features", "frozen blocks, train", "frozen blocks, test")
        }
        self.source: Activations | None = None
        """Penultimate features of the source for the train images, where the recipe asks for them."""
        if settings.lwf:
            as_it_was = nn.Sequential(*copy.deepcopy(parts.frozen), *copy.deepcopy(parts.features))
            self.source = Activations(as_it_was.eval(), train, device, budget, told["source features"])
            budget -= self.source.nbytes
        self.train = Activations(ahead, train, device, budget, told["frozen blocks, train"])
        self.test = Activations(ahead, test, device, budget - self.train.nbytes, told["frozen blocks, test"])
        if settings.neft is not None:
            scale_weights(parts.trained, settings.neft, settings.seed)
        steps = sum(1 for _ in batch_order(len(train), settings.batch_size, settings.seed, 1))
        self.steps, self.warm_steps = steps, round(settings.warm_up * steps * (settings.epochs or 0))

    def _batches(self, epoch: int) -> Iterator[Batch]:
        for rows in batch_order(len(self.train), self.settings.batch_size, self.settings.seed, epoch):
            batch = self.train.batch(rows)
            yield batch if self.source is None else (*batch, self.source.batch(rows)[0])

    def _set_mode(self, head_only: bool) -> None:
        """What is trained in training mode; whatever stays as it is in evaluation mode."""
        self.module.train()
        if head_only:
            self.features.eval()
            return
        if self.moving:
            self.parts.frozen.eval()
            set_statistics(self.parts.frozen, follow=True)
        set_statistics(self.parts.features, follow=self.settings.statistics in {"trained", "all"})

    def _loss(self, module: nn.Module, batch: Batch, epoch: int, step: int) -> Tensor:  # the module is our own
        head_only = (epoch - 1) * self.steps + step < self.warm_steps
        self._set_mode(head_only)
        with torch.set_grad_enabled(
            not head_only
        ):  # without gradients SGD leaves the blocks alone, decay and momentum too
            features = self.features(batch[0])
        loss = functional.cross_entropy(self.parts.head(features), batch[1])
        if self.source is not None:
            loss = loss + self.settings.lwf * feature_distance(features, batch[2], self.settings.lwf_distance)
        return loss

    def accuracies(self) -> dict[str, float]:
        """Accuracy on the train and on the test images."""
        return {"train": self.train.accuracy(self.module), "test": self.test.accuracy(self.module)}

    def _measure(self, epoch: int) -> Mapping[str, float]:
        every, last = self.settings.evaluate_every, self.settings.epochs
        if epoch not in {1, last} and not (every and (epoch - 1) % every == 0):
            return {}
        return {f"{word}_accuracy": value for word, value in self.accuracies().items()}

    def fit(self, partial_file: Path, decisive: Mapping[str, Any], progress: Progress | None) -> FitState:
        """Train to the end, from where an earlier call was stopped."""
        settings = self.settings
        epochs = settings.epochs or 0
        optimizer = SGD(
            [parameter for parameter in self.module.parameters() if parameter.requires_grad],
            settings.learning_rate,
            settings.momentum,
            weight_decay=settings.weight_decay,
        )
        plan = FitPlan(
            stage="fine-tune",
            epochs=epochs,
            seed=settings.seed,
            rate=lambda epoch, step: step_rate(settings.learning_rate, epochs, epoch),
            partial=partial_file,
            settings=decisive,
            measure=self._measure,
            loss=self._loss,
        )
        return fit(self.module, optimizer, self._batches, plan, progress)


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
            "settings": asdict(data.settings),
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
