"""What a frozen part makes of every image, computed once a run where memory allows it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .attacks import evaluating
from .images import ImageSet

_READ_BATCH = 256


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
