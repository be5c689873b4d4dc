"""A run trained again on part of its train set: by its own recipe, or to the optimum where that is a convex problem.

A refit meets its images in the order of the run, those left out passed over, so that the refit with all images and the run's
seed is the run to the last bit, and leaving one image out disturbs little besides.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from .activations import Activations
from .attacks import evaluating
from .convex_head import TOLERANCE, ConvexHead
from .device import reproducible, resolve_device
from .finetune import cut, network_to_train
from .images import ImageSet
from .refit import Labels, equal_inputs, hashes, joined, require_finite
from .runs import Run, load_run, read_run, read_source
from .settings import FineTuneSettings
from .spectral import fold_weights
from .transfer import Split
from .tuning import Inputs, Tuning
from .zoo import Classifier

_REHEARSED = 3
"""Steps that are made twice to see whether a training can be repeated."""
_PROBED = 16
_READ = 256


class RunTrainer:
    """The training of a run on part of its train set.

    Where the head alone is trained, is linear, and sees the same features every time, the refit is the optimum of its convex
    problem; otherwise the run's own recipe.

    Args:
        run: A run, or its folder.
        recipe: Take the run's own recipe, whatever is trained.
    """

    def __init__(self, run: str | Path | Run, *, recipe: bool = False) -> None:
        self._path = run.path if isinstance(run, Run) else Path(run)
        self._by_recipe = recipe
        self._info = run.info if isinstance(run, Run) else read_run(run)
        self._loaded = run if isinstance(run, Run) else None
        self.settings = FineTuneSettings(**self._info["settings"])
        self.seed = int(self._info["seed"])

    @cached_property
    def exact(self) -> bool:
        """Whether a refit is the optimum of a convex problem."""
        return not self._by_recipe and _is_convex(self.settings, cut(self.run.model.model, self.settings))

    def __getstate__(self) -> dict[str, Any]:
        """The path alone travels to another process."""
        return {"path": self._path, "recipe": self._by_recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], recipe=state["recipe"])  # type: ignore[misc]

    @cached_property
    def run(self) -> Run:
        """The run with its images."""
        return load_run(self._path) if self._loaded is None else self._loaded

    @property
    def train_labels(self) -> Labels:
        """True labels of the images it was trained on."""
        return self.run.train.labels.numpy()

    @property
    def train_index(self) -> Labels:
        """Their positions in the data set."""
        return self.run.train.index.numpy()

    @property
    def query_labels(self) -> Labels:
        """True labels of its test images."""
        return self.run.test.labels.numpy()

    @property
    def query_index(self) -> Labels:
        """Their positions in the data set."""
        return self.run.test.index.numpy()

    def identity(self) -> dict[str, Any]:
        """The recipe with hashes of source and data, the images, and how a refit is made."""
        return {
            "trainer": "run",
            "recipe": dict(self._info["decisive"]),
            "exact": self.exact,
            "refit": f"convex to {TOLERANCE:.0e}" if self.exact else "recipe",
            "train_sha256": joined([str(i) for i in self.train_index], self.train_labels),
            "queries_sha256": joined([str(i) for i in self.query_index], self.query_labels),
        }

    def shared(self) -> list[tuple[int, int]]:
        """Test images that are train images, byte for byte, by their positions in the data set."""
        train, test = (list(_image_hashes(images)) for images in (self.run.train, self.run.test))
        return [(int(self.query_index[q]), int(self.train_index[i])) for q, i in equal_inputs(train, test)]

    @cached_property
    def _device(self) -> torch.device:
        return resolve_device(self.settings.device)

    def _network(self, seed: int) -> tuple[Classifier, Split, FineTuneSettings]:
        """The network as it was before the training, its parts, and the recipe with another seed."""
        settings = dataclasses.replace(self.settings, seed=seed)
        model, parts = network_to_train(self._source, len(self.run.class_names), settings)
        model.to(self._device)
        return model, parts, settings

    @cached_property
    def _source(self) -> Classifier:
        return read_source(self.run).model

    @cached_property
    def _inputs(self) -> Inputs:
        """What enters the trained part; of no seed, as the frozen part is the source's."""
        _, parts, settings = self._network(self.seed)
        with reproducible():
            return Inputs(parts, self.run.train, self.run.test, settings, self._device)

    @cached_property
    def _features(self) -> tuple[Tensor, Tensor]:
        """What enters the head of a convex problem, of train and test images."""
        flat = cut(self.run.model.model, self.settings).trained[:-1]
        return _run(flat, self._inputs.train), _run(flat, self._inputs.test)

    @cached_property
    def _head(self) -> ConvexHead:
        own = _head_of(self.run.model.model, self.settings)
        start = np.concatenate([own.weight.detach().numpy(), own.bias.detach().numpy()[:, None]], axis=1)
        return ConvexHead(self._features[0], self.train_labels, len(start), self.settings.weight_decay, start)

    def fit(self, kept: Bool[NDArray[np.bool_], " n"], labels: Labels, seed: int) -> nn.Module:
        """Train.

        Args:
            kept: The images to train on.
            labels: Of all images.
            seed: Of the new head, the order of the images, and whatever else the recipe draws.

        Returns:
            A linear head in float64 where the problem is convex; otherwise the network, on the run's device.
        """
        if self.exact:
            return _linear(self._head.fit(kept, labels))
        return self._by_the_recipe(kept, labels, seed, None)

    def rehearse(self, kept: Bool[NDArray[np.bool_], " n"], labels: Labels, seed: int) -> nn.Module:
        """The first steps; of a convex problem all of them.

        Args:
            kept: The images to train on.
            labels: Of all images.
            seed: Of all that is random.

        Returns:
            What `fit` would have come to by then.
        """
        return self.fit(kept, labels, seed) if self.exact else self._by_the_recipe(kept, labels, seed, _REHEARSED)

    def _by_the_recipe(self, kept: NDArray[np.bool_], labels: Labels, seed: int, steps: int | None) -> Classifier:
        model, parts, settings = self._network(seed)
        with reproducible():
            tuned = Tuning(parts, self._inputs, settings, torch.from_numpy(kept), torch.from_numpy(labels))
            tuned.fit_once(steps)
        fold_weights(parts.trained)
        require_finite(model)
        return model.eval()

    def probe(self) -> Tensor:
        """A few train images, or their features where the head alone is fitted."""
        return self._features[0][:_PROBED] if self.exact else self.run.train.images(slice(0, _PROBED))

    def logits(self, model: nn.Module) -> Float[NDArray[np.float64], "m C"]:
        """What a fit says of the test images.

        Args:
            model: What `fit` gave.

        Returns:
            Logits.
        """
        if isinstance(model, nn.Linear):
            with torch.no_grad():
                out: NDArray[np.float64] = model(self._features[1]).numpy()
            return out
        assert isinstance(model, Classifier), "a fit of this trainer's own"
        parts = cut(model, self.settings)
        whole = nn.Sequential(*parts.frozen, *parts.trained) if self._inputs.moving else parts.trained
        with reproducible():
            return _run(whole, self._inputs.test).numpy()

    def network(self, model: nn.Module) -> nn.Module:
        """The whole network of a fit, in float32 on the CPU.

        Args:
            model: What `fit` gave.

        Returns:
            A network from images to logits.
        """
        if not isinstance(model, nn.Linear):
            return model.cpu()
        whole = self.blank()
        head = _head_of(whole, self.settings)
        with torch.no_grad():
            head.weight.copy_(model.weight)
            head.bias.copy_(model.bias)
        return whole

    def blank(self) -> Classifier:
        """A network of this kind; its weights are those of the run."""
        return copy.deepcopy(self.run.model.model)


def _is_convex(settings: FineTuneSettings, parts: Split) -> bool:
    """Whether a linear layer is all that is trained, with a decay, on features that are the same every time."""
    *before, head = parts.trained
    return (
        isinstance(head, nn.Linear)
        and head.bias is not None
        and all(isinstance(module, nn.Flatten | nn.Identity) for module in before)
        and settings.statistics not in {"extractor", "all"}
        and not (settings.adversarial or settings.augmented or settings.lwf)
        and settings.neft is None
        and settings.weight_decay > 0
    )


def _head_of(network: Classifier, settings: FineTuneSettings) -> nn.Linear:
    head = cut(network, settings).trained[-1]
    assert isinstance(head, nn.Linear), "a convex problem has no other"
    return head


def _linear(theta: NDArray[np.float64]) -> nn.Linear:
    head = nn.Linear(theta.shape[1] - 1, len(theta), dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(theta[:, :-1]))
        head.bias.copy_(torch.from_numpy(theta[:, -1]))
    return head.eval()


@torch.no_grad()
def _run(module: nn.Module, inputs: Activations) -> Float[Tensor, "n c"]:
    """What a module makes of everything that enters it, float64."""
    with evaluating(module):
        rows = torch.arange(len(inputs)).split(_READ)  # type: ignore[no-untyped-call]
        return torch.cat([module(inputs.batch(part)[0]).to("cpu", torch.float64) for part in rows])


def _image_hashes(images: ImageSet) -> Iterator[str]:
    for start in range(0, len(images), _READ):
        yield from hashes(images.raw_images(slice(start, start + _READ)))
