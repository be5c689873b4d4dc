"""The folder of a fine-tuned network: what lies in it, and how it is read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from .checkpoints import SOURCES, LoadedModel, load_model
from .data import TargetData, load_data
from .errors import CheckpointError, DataError, RunMismatch
from .images import ImageSet
from .settings import DataSettings
from .training import require_same_settings

MODEL_FILE = "model.safetensors"
RUN_FILE = "run.json"
PARTIAL_FILE = "fine-tune.partial.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A fine-tuned network with the images it was trained and tested on."""

    path: Path
    info: Mapping[str, Any]
    """What run.json holds."""
    model: LoadedModel
    train: ImageSet
    """The subset it was trained on, in ascending order of `index`."""
    test: ImageSet
    class_names: tuple[str, ...]


def index_record(index: Int[Tensor, " n"]) -> dict[str, int] | list[int]:
    """Positions as plain JSON: first and one past the last where they have no gaps, else all of them.

    Args:
        index: Positions in a data set.

    Returns:
        {"start", "stop"} or a list.
    """
    start = int(index[0])
    if torch.equal(index, torch.arange(start, start + len(index))):
        return {"start": start, "stop": start + len(index)}
    values: list[int] = index.tolist()
    return values


def read_run(run_dir: str | Path) -> dict[str, Any]:
    """What the run.json of a folder holds.

    Args:
        run_dir: The run's folder.

    Returns:
        Plain JSON values.

    Raises:
        CheckpointError: There is no finished run, or its file is damaged.
    """
    path = Path(run_dir) / RUN_FILE
    if not path.is_file():
        more = (
            "its fine-tuning was stopped; start it again"
            if (path.parent / PARTIAL_FILE).exists()
            else "fine-tune first"
        )
        raise CheckpointError(
            f"{run_dir} holds no finished run, as {RUN_FILE} is not there: {more}, or name another folder."
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        good = info["format"] == "upweight-run" and info["version"] == 1
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); fine-tune anew with --overwrite.") from error
    if not good:
        raise CheckpointError(f"{path} is of another format or version; fine-tune anew with --overwrite.")
    return dict(info)


def load_run(run_dir: str | Path, data: TargetData | None = None) -> Run:
    """A finished run with its network and its images.

    Args:
        run_dir: The run's folder.
        data: The target, when it is at hand; read as the run says otherwise.

    Returns:
        The run.

    Raises:
        CheckpointError: The folder holds no finished run, or the weights are not those it describes.
        DataError: The data are not those it was trained on.
    """
    run_dir = Path(run_dir)
    info = read_run(run_dir)
    model = load_model(run_dir / MODEL_FILE)
    if model.sha256 != info["model_sha256"]:
        raise CheckpointError(
            f"{run_dir / MODEL_FILE} is not the file that {RUN_FILE} describes; fine-tune anew with --overwrite."
        )
    if data is None:
        data = load_data(DataSettings(**info["data"]["settings"]), model.spec.input_shape)
    if data.fingerprint != info["data"]["fingerprint"]:
        raise DataError(f"{data.name} is not the data set that {run_dir} was trained on; give that one back.")
    index = torch.tensor(info["data"]["train_index"])
    train = data.train.subset(torch.searchsorted(data.train.index, index))
    return Run(path=run_dir, info=info, model=model, train=train, test=data.test, class_names=data.class_names)


def read_source(run: Run) -> LoadedModel:
    """The network that a run began from.

    Args:
        run: A finished run.

    Returns:
        The source.

    Raises:
        CheckpointError: It is no longer where it was, or is another one.
    """
    record: Mapping[str, Any] = run.info["source"]
    shipped = record["path"] == f"upweight/models/sources/{record['name']}.safetensors" and record["name"] in SOURCES
    path = record["name"] if shipped else record["path"]
    if not shipped and not Path(path).is_file():
        raise CheckpointError(f"{run.path} began from {path}, which is not there; put the weight file back.")
    source = load_model(path)
    if source.sha256 != record["sha256"]:
        raise CheckpointError(f"{run.path} began from other weights than {path} holds now; put the weight file back.")
    return source


def disturbances(info: Mapping[str, Any]) -> list[str]:
    """What to know of scores whose gradients are taken at images that the run was not trained on.

    Args:
        info: What run.json holds.

    Returns:
        One sentence where the training images were disturbed, otherwise none.
    """
    kinds = {"adversarial": "attacked", "shift": "shifted", "flip": "mirrored", "rotate": "turned"}
    words = [word for name, word in kinds.items() if info["settings"].get(name)]
    if not words:
        return []
    said = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return [
        f"The training images were {said}, and the gradients are taken at the images as they are: the scores "
        "belong to a loss that the training did not minimise."
    ]


def finished_run(run_dir: Path, decisive: Mapping[str, Any], data: TargetData) -> Run:
    """A run that is there already, when it is the one asked for.

    Args:
        run_dir: Its folder.
        decisive: All that decides the weights asked for.
        data: The target.

    Returns:
        The run.

    Raises:
        RunMismatch: Its run.json does not say how it was made.
    """
    info = read_run(run_dir)
    if "decisive" not in info:
        raise RunMismatch(f"{run_dir / RUN_FILE} does not say how it was made; pass --overwrite to make it anew.")
    require_same_settings(run_dir, info["decisive"], decisive)
    return load_run(run_dir, data)
