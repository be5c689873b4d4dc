"""The training of a fine-tuning: its batches, modes, loss and measures, as the recipe has them.

Where images are disturbed (attacked, shifted, mirrored, turned), every batch goes through the whole network; otherwise what the
frozen part makes of them is kept. Accuracies are of the images as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from .activations import Activations
from .attacks import attacked
from .augment import augment
from .batch_norm import set_statistics
from .device import generator
from .images import ImageSet
from .lwf import feature_distance
from .settings import FineTuneSettings
from .spectral import scale_weights
from .training import Batch, Batches, FitPlan, FitState, Progress, batch_order, fit
from .transfer import Split


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


class Inputs:
    """What enters the trained part of a network; the same for every training of one recipe, whatever its seed."""

    def __init__(
        self,
        parts: Split,
        train: ImageSet,
        test: ImageSet,
        settings: FineTuneSettings,
        device: torch.device,
        progress: Progress | None = None,
    ) -> None:
        """Run the images through the frozen part of a network that is not trained yet."""
        self.device = device
        self.moving = settings.statistics in {"extractor", "all"}
        """Whether the frozen part is no fixed function of the image, because its batch-norm statistics follow the target."""
        self.disturbed = settings.adversarial or settings.augmented
        """Whether the train images are other ones every time they are met, so that nothing of them can be kept."""
        ahead = nn.Sequential() if self.moving else parts.frozen
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
        self.drawn = self.train
        """What batches are drawn from."""
        if self.disturbed and not self.moving:
            budget -= self.train.nbytes + self.test.nbytes
            self.drawn = Activations(nn.Sequential(), train, device, budget)


class Tuning:
    """The trained part of a network with what it is trained and measured on."""

    def __init__(
        self,
        parts: Split,
        inputs: Inputs,
        settings: FineTuneSettings,
        kept: Bool[Tensor, " n"] | None = None,
        labels: Int[Tensor, " n"] | None = None,
    ) -> None:
        """Train on all images, or on the kept ones alone; with their own labels, or with others."""
        self.parts, self.inputs, self.settings, self.kept = parts, inputs, settings, kept
        self.labels = inputs.drawn.labels if labels is None else labels.to(inputs.device)
        whole = nn.Sequential(*parts.frozen, *parts.trained)
        self.module = whole if inputs.moving or inputs.disturbed else parts.trained
        """What a batch goes through in training."""
        self.measured = whole if inputs.moving else parts.trained
        """What the kept activations go through when accuracy is measured, on the images as they are."""
        self.features = self.module[: len(self.module) - len(parts.head)]
        if settings.neft is not None:
            scale_weights(parts.trained, settings.neft, settings.seed)
        steps = sum(1 for _ in self._order(epoch=1))
        self.steps, self.warm_steps = steps, round(settings.warm_up * steps * (settings.epochs or 0))

    def _order(self, epoch: int) -> Iterator[Int[Tensor, " b"]]:
        settings = self.settings
        return batch_order(len(self.labels), settings.batch_size, settings.seed, epoch, self.kept)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        settings, inputs = self.settings, self.inputs
        draw = generator("augmentation", settings.seed, epoch)
        attack_draw = generator("attack", settings.seed, epoch, device=inputs.device)
        for rows in self._order(epoch):
            x, y = inputs.drawn.batch(rows)[0], self.labels[rows.to(inputs.device)]
            if settings.augmented:
                x = augment(x, draw, shift=settings.shift, flip=settings.flip, rotate=settings.rotate)
            if settings.adversarial:
                x = attacked(self.module, x, y, settings.attack, attack_draw)
            yield (x, y) if inputs.source is None else (x, y, inputs.source.batch(rows)[0])

    def set_mode(self, head_only: bool) -> None:
        """What is trained in training mode; whatever stays as it is in evaluation mode.

        Args:
            head_only: The step trains the head alone.
        """
        self.module.train()
        if head_only:
            self.features.eval()
            return
        self.parts.frozen.eval()
        set_statistics(self.parts.frozen, follow=self.inputs.moving)
        set_statistics(self.parts.features, follow=self.settings.statistics in {"trained", "all"})

    def _loss(self, module: nn.Module, batch: Batch, epoch: int, step: int) -> Tensor:  # the module is our own
        head_only = (epoch - 1) * self.steps + step < self.warm_steps
        self.set_mode(head_only)
        with torch.set_grad_enabled(
            not head_only
        ):  # without gradients SGD leaves the blocks alone, decay and momentum too
            features = self.features(batch[0])
        loss = functional.cross_entropy(self.parts.head(features), batch[1])
        if self.inputs.source is not None:
            loss = loss + self.settings.lwf * feature_distance(features, batch[2], self.settings.lwf_distance)
        return loss

    def accuracies(self) -> dict[str, float]:
        """Accuracy on the train and on the test images."""
        return {name: getattr(self.inputs, name).accuracy(self.measured) for name in ("train", "test")}

    def _measure(self, epoch: int) -> Mapping[str, float]:
        every, last = self.settings.evaluate_every, self.settings.epochs
        if epoch not in {1, last} and not (every and (epoch - 1) % every == 0):
            return {}
        return {f"{word}_accuracy": value for word, value in self.accuracies().items()}

    def fit(self, partial_file: Path, decisive: Mapping[str, Any], progress: Progress | None) -> FitState:
        """Train to the end, from where an earlier call was stopped."""
        return self._fit(self._batches, partial_file, decisive, self._measure, progress)

    def fit_once(self, steps: int | None = None) -> None:
        """Train without a trace: no file, no accuracies.

        Args:
            steps: Batches after which to stop; None: to the end of the recipe.
        """
        if steps is None:
            self._fit(self._batches, None, {}, None, None)
        else:
            self._fit(lambda epoch: islice(self._batches(epoch), steps), None, {}, None, None, last=1)

    def _fit(
        self,
        batches: Batches,
        partial_file: Path | None,
        decisive: Mapping[str, Any],
        measure: Callable[[int], Mapping[str, float]] | None,
        progress: Progress | None,
        last: int | None = None,
    ) -> FitState:
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
            epochs=last or epochs,
            seed=settings.seed,
            rate=lambda epoch, step: step_rate(settings.learning_rate, epochs, epoch),
            partial=partial_file,
            settings=decisive,
            measure=measure,
            loss=self._loss,
        )
        return fit(self.module, optimizer, batches, plan, progress)
