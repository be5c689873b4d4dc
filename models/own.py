"""Anyone's network and examples, named on the command line: a factory, a state dict, an .npz or a folder."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .. import UsageError
from .checkpoints import read_tensors
from .data import load_data
from .errors import CheckpointError, DataError
from .images import ArrayPixels, ImageSet
from .legacy import unpickle
from .settings import DataSettings

NESTED = ("state_dict", "model", "model_state_dict", "model_weights")  # where training scripts put the weights


def load_own_model(factory: str, weights: str | Path | None) -> nn.Module:
    """Make a network by calling a function of the user's, and fill it.

    Args:
        factory: "package.module:function"; looked for in the current folder too.
        weights: Its state dict; None: as the function made it.

    Returns:
        The network, in eval mode.

    Raises:
        UsageError: The factory cannot be found, fails, or makes no torch module.
    """
    module_name, colon, name = factory.partition(":")
    if not (module_name and colon and name):
        raise UsageError(f"--model is {factory!r}; write it as package.module:function.")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does; the console script does not
    try:
        module = importlib.import_module(module_name)
        made = getattr(module, name)()
    except Exception as error:  # the user's code can raise anything
        raise UsageError(f"--model {factory} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(made, nn.Module):
        raise UsageError(f"--model {factory} gives a {type(made).__name__}; a torch.nn.Module is wanted.")
    if weights is not None:
        _fill(made, Path(weights))
    return made.eval()


def _fill(model: nn.Module, path: Path) -> None:
    state = OrderedDict(read_state(path))
    state._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]  # versions of its modules
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {first}") from error


def read_state(path: Path) -> Mapping[str, Tensor]:
    """A state dict from a file of tensors; nothing in the file is executed.

    Args:
        path: .safetensors, or what torch.save made of tensors and other things; only the tensors are read.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: The file is missing, damaged, or holds no state dict.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}; give the path of a state dict.")
    held: Any = read_tensors(path)[0] if path.suffix == ".safetensors" else unpickle(path).content
    for key in NESTED:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
            break
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise CheckpointError(f"{path} holds no state dict; save `model.state_dict()`.")
    for name, value in held.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(
                f"{path} holds NaN or infinite numbers in {name}; use weights of a fit that went well."
            )
    return held


def load_examples(
    data: str, input_shape: Sequence[int] | None, part: Literal["train", "test"], root: str | None = None
) -> ImageSet | tuple[Tensor, Tensor]:
    """Examples for a network of the user's.

    Args:
        data: An .npz with x and y, an image folder, or the name of a data set.
        input_shape: Channels, height and width, for images; an .npz goes in as it is.
        part: Which part of a data set that has two.
        root: Folder that holds the files of a named data set.

    Returns:
        Images of that shape in [0, 1]; from an .npz, tensors x (bytes as floats in [0, 1]) and y.

    Raises:
        UsageError: Images are named without an input shape.
        DataError: The file cannot be read, or holds something else.
    """
    if Path(data).suffix == ".npz":
        return _read_npz(Path(data))
    if input_shape is None or len(input_shape) != 3:
        raise UsageError(f"{data} holds images; say what size your network takes, as in --input-shape 3 224 224.")
    target = load_data(DataSettings(data=data, root=root), (input_shape[0], input_shape[1], input_shape[2]))
    return target.train if part == "train" else target.test


def _read_npz(path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise DataError(f"There is no file {path}; give an .npz with x and y.")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as held:
            missing = {"x", "y"} - set(held.files)
            if missing:
                raise DataError(f"{path} has no {' and no '.join(sorted(missing))}; it holds {', '.join(held.files)}.")
            x, y = held["x"], held["y"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no whole .npz ({error}); save it again.") from error
    if x.dtype.kind not in "fiu" or y.dtype.kind not in "iu" or y.ndim != 1 or len(x) != len(y) or not len(y):
        raise DataError(
            f"{path} holds x {x.dtype} {x.shape} and y {y.dtype} {y.shape}; numbers [n, ...] and labels [n] are wanted."
        )
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise DataError(f"{path} holds NaN or infinite numbers in x; take those examples out.")
    inputs = torch.from_numpy(np.ascontiguousarray(x))
    return (inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs), torch.from_numpy(y.astype(np.int64))


def as_images(x: Tensor, y: Tensor, data: str) -> ImageSet:
    """Examples from an .npz as pictures that a person can look at.

    Args:
        x: Inputs.
        y: Labels.
        data: Where they come from, for the message.

    Returns:
        Images in [0, 1]; inputs beyond these limits are scaled, all of them alike.

    Raises:
        UsageError: The inputs are neither [n, h, w] nor [n, c, h, w] with one or three channels.
    """
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UsageError(f"The examples of {data} have shape {list(x.shape[1:])} and are no images; leave --image out.")
    low, high = x.min(), x.max()
    if low < 0 or high > 1:  # normalised by the user
        x = (x - low) / (high - low)
    shape = (x.shape[1], x.shape[2], x.shape[3])
    return ImageSet(pixels=ArrayPixels(x), labels=y, index=torch.arange(len(y)), input_shape=shape)
