"""The training of a run, told so that it can be run again: the source it began from, its batches, modes, losses and draws."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from .. import UsageError
from .attacks import evaluating
from .augment import augment
from .device import generator, reproducible, seeded, threads
from .finetune import SMALL_BATCH, network_to_train
from .runs import Run, read_source
from .settings import FineTuneSettings
from .training import Progress, batch_order
from .tuning import Inputs, Tuning, step_rate


@dataclass(frozen=True, slots=True, eq=False)
class RunStep:
    """One step of a run."""

    recording: RunRecording
    rows: Int[Tensor, " b"]
    rate: float
    head_only: bool
    draw: Tensor | None
    """Where the augmentation's generator stood."""

    def losses(self, weights: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
        """What the run lowered the mean of, in the modes that its layers had.

        Args:
            weights: Parameters and buffers; running statistics among them are updated in place.

        Returns:
            Losses [b].
        """
        recording = self.recording
        like = weights[recording.trained[0]]
        x, y = recording.tuning.inputs.drawn.batch(self.rows)
        if self.draw is not None:
            x = recording.augmented(x, torch.Generator().set_state(self.draw))
        near = None
        if recording.tuning.inputs.source is not None:
            near = recording.tuning.inputs.source.batch(self.rows)[0].to(like)
        named = {f"model.{name}": value for name, value in weights.items()}
        out: Tensor = functional_call(recording.example_losses, named, (x.to(like), y, near, self.head_only))
        return out


class _ExampleLosses(nn.Module):
    """The loss of each example of a batch, as `Tuning` averages it."""

    def __init__(self, model: nn.Module, tuning: Tuning) -> None:
        super().__init__()
        self.model = model  # whose weights `functional_call` exchanges; the parts of the tuning share its modules
        self.__dict__["tuning"] = tuning

    def forward(self, x: Tensor, y: Tensor, near: Tensor | None, head_only: bool) -> Tensor:
        """Losses [b]."""
        tuning: Tuning = self.__dict__["tuning"]
        tuning.set_mode(head_only)
        with torch.set_grad_enabled(not head_only):
            features = tuning.features(x)
        losses = functional.cross_entropy(tuning.parts.head(features), y, reduction="none")
        if near is not None:
            losses = losses + tuning.settings.lwf * (features - near).abs().mean(1)
        return losses


class RunRecording:
    """The fine-tuning of a run.

    Args:
        run: A finished run.
        device: Where it is replayed.
        progress: Told while the frozen part is run over the images.
    """

    def __init__(self, run: Run, device: torch.device, progress: Progress | None = None) -> None:
        """Set up the training that the run made.

        Raises:
            UsageError: A part of its recipe has no exact derivative here.
        """
        settings = replace(FineTuneSettings(**run.info["settings"]), device=str(device))
        _require_smooth(settings)
        source = read_source(run)
        self.model, parts = network_to_train(source.model, len(run.class_names), settings)
        self.model.to(device)
        self.start = {
            name: value.detach().clone()
            for name, value in [*self.model.named_parameters(), *self.model.named_buffers()]
        }
        self.trained = tuple(name for name, value in self.model.named_parameters() if value.requires_grad)
        self.run, self.settings, self.device = run, settings, device
        with reproducible():
            few = run.train.subset(torch.arange(1))  # nothing is tested here
            self.tuning = Tuning(parts, Inputs(parts, run.train, few, settings, device, progress), settings)
        self.example_losses = _ExampleLosses(self.model, self.tuning)
        self.labels = run.train.labels
        self.momentum, self.weight_decay = settings.momentum, settings.weight_decay
        self.stretches = settings.epochs or 0

    def steps(self, stretch: int) -> Iterator[RunStep]:
        """The steps of one epoch.

        Args:
            stretch: Which one, from 0.

        Yields:
            In their order.
        """
        settings, epoch = self.settings, stretch + 1
        draw = generator("augmentation", settings.seed, epoch)
        rate = step_rate(settings.learning_rate, self.stretches, epoch)
        orders = batch_order(len(self.labels), settings.batch_size, settings.seed, epoch)
        for number, rows in enumerate(orders):
            head_only = stretch * self.tuning.steps + number < self.tuning.warm_steps
            stood = draw.get_state() if settings.augmented else None
            if settings.augmented:
                self.augmented(
                    self.tuning.inputs.drawn.batch(rows)[0], draw
                )  # moves the generator on as the training did
            yield RunStep(self, rows, rate, head_only, stood)

    def augmented(self, x: Tensor, draw: torch.Generator) -> Tensor:
        """Images as a step of the training saw them.

        Args:
            x: As they are.
            draw: Where the generator stood.

        Returns:
            Shifted, mirrored and turned.
        """
        settings = self.settings
        return augment(x, draw, shift=settings.shift, flip=settings.flip, rotate=settings.rotate)

    @contextmanager
    def conditions(self, stretch: int) -> Generator[None]:
        """Dropout's seed, and the threads and flags of the training.

        Args:
            stretch: Which epoch, from 0.

        Yields:
            Nothing.
        """
        few = self.tuning.inputs.drawn.image_size * self.settings.batch_size <= SMALL_BATCH
        with (
            reproducible(),
            threads(1 if few else None),
            seeded("dropout", self.settings.seed, stretch + 1, device=self.device),
        ):
            yield

    def logits(self, weights: Mapping[str, Tensor], x: Tensor) -> Float[Tensor, "b C"]:
        """The finished network.

        Args:
            weights: Parameters and buffers.
            x: Images.

        Returns:
            Logits [b, C].
        """
        with evaluating(self.model):
            out: Tensor = functional_call(self.model, dict(weights), (x,))
        return out

    def inputs(self, rows: Int[Tensor, " b"]) -> Tensor:
        """Train images as they are.

        Args:
            rows: Which ones.

        Returns:
            Images [b, c, h, w].
        """
        return self.run.train.images(rows)

    def digest(self) -> str:
        """A short name of all that decides the training."""
        return str(self.run.info["digest"])


def _require_smooth(settings: FineTuneSettings) -> None:
    """Refuse what the steps of a training depend on otherwise than through the weights of the network."""
    if settings.adversarial:
        raise UsageError(
            "The run was trained on attacked images, which follow the weights through the attack: its training cannot be "
            "unrolled; take another curvature."
        )
    if settings.neft is not None:
        raise UsageError(
            "The run was trained with scaled weights (neft), whose power iterations have no derivative here: its training "
            "cannot be unrolled; take another curvature."
        )
    if settings.lwf and settings.lwf_distance == "l2":
        raise UsageError(
            "The run was trained with lwf_distance l2, which has no second derivative where features have not moved: its "
            "training cannot be unrolled; take another curvature."
        )
