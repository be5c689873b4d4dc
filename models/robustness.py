"""Clean and adversarial accuracy of a run or of a source, kept in the run's folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import UsageError
from .accuracy import accuracies
from .attack_settings import EVALUATION_IMAGES
from .checkpoints import LoadedModel, load_model, write_json
from .data import TargetData, load_data
from .device import reproducible, resolve_device
from .errors import CheckpointError
from .images import ImageSet
from .runs import Run, load_run, read_run
from .settings import DataSettings, RobustnessSettings
from .training import Progress
from .versions import versions

ROBUSTNESS_FILE = "robustness.json"
_HEAD = {"format": "upweight-robustness", "version": 1}


def measure(
    model: LoadedModel, images: ImageSet, settings: RobustnessSettings, progress: Progress | None = None
) -> dict[str, Any]:
    """Accuracy of a network on images as they are, and under an attack.

    Args:
        model: The network; left on the CPU.
        images: A test set of as many classes.
        settings: The attack, and how many images it is measured on.
        progress: Told how far it is.

    Returns:
        Plain JSON values: both rates with their counts, the attack, and the seconds it took.
    """
    require_images(images, settings)
    device = resolve_device(settings.device)
    started = time.monotonic()
    network = model.model.to(device)
    try:
        with reproducible():
            seed, count = settings.attack_seed, settings.images
            rates = accuracies(network, images, settings.attack, seed, device, progress, count=count)
    finally:
        network.cpu()
    seconds = round(time.monotonic() - started, 3)
    return {**rates, "attack": settings.attack.label, "seconds": seconds, "versions": versions()}


def require_images(images: ImageSet, settings: RobustnessSettings) -> None:
    """Refuse to attack more images than there are.

    Args:
        images: The test set.
        settings: The attack, and how many images it is measured on.

    Raises:
        UsageError: There are fewer.
    """
    if settings.images is not None and settings.images > len(images) and settings.images != EVALUATION_IMAGES:
        raise UsageError(
            f"{settings.images} images are asked for and the test set has {len(images)}; ask for {len(images)} or fewer, "
            "or none for all of them."
        )


def measure_run(
    run: Run | str | Path, settings: RobustnessSettings, progress: Progress | None = None
) -> dict[str, Any]:
    """Accuracies of a run on its test set; measured once for each attack and kept in its robustness.json.

    Args:
        run: The run, or its folder.
        settings: The attack, and how many images it is measured on.
        progress: Told how far it is.

    Returns:
        What the file holds of them: the settings, the hashes of weights and data, and what `measure` gives.
    """
    standing = standing_record(run.path if isinstance(run, Run) else run, settings)
    if standing is not None:
        return standing
    run = run if isinstance(run, Run) else load_run(run)
    record = _identity(run.info, settings) | measure(run.model, run.test, settings, progress)
    _add(run.path / ROBUSTNESS_FILE, record)
    return record


def standing_record(run_dir: str | Path, settings: RobustnessSettings) -> dict[str, Any] | None:
    """What was measured of a run's present weights under the same attack.

    Args:
        run_dir: The run's folder.
        settings: The attack, and how many images.

    Returns:
        The record; None where there is none yet.
    """
    return _standing(Path(run_dir) / ROBUSTNESS_FILE, _identity(read_run(run_dir), settings))


def _standing(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    records = _records(path)
    return next((one for one in records if {name: one.get(name) for name in wanted} == wanted), None)


def _add(path: Path, record: Mapping[str, Any]) -> None:
    write_json(path, {**_HEAD, "records": [*_records(path), record]})


def read_records(run_dir: str | Path) -> list[dict[str, Any]]:
    """All that was measured in a run's folder, those of weights that were since replaced among them.

    Args:
        run_dir: The folder.

    Returns:
        The records, in the order they were made.
    """
    return _records(Path(run_dir) / ROBUSTNESS_FILE)


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        head, records = {name: held[name] for name in _HEAD}, [dict(record) for record in held["records"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); take it away, and measure again.") from error
    if head != _HEAD:
        raise CheckpointError(f"{path} is of another format or version; take it away, and measure again.")
    return records


def _identity(info: Mapping[str, Any], settings: RobustnessSettings) -> dict[str, Any]:
    """What decides a record: the attack, the weights and the images."""
    attack = asdict(settings) | {"step_size": settings.stride}
    del attack["device"]
    return {"settings": attack, "model_sha256": info["model_sha256"], "data_sha256": info["data"]["fingerprint"]}


def measure_source(
    source: str | Path, data: DataSettings, settings: RobustnessSettings, progress: Progress | None = None
) -> dict[str, Any]:
    """Accuracies of a network that is no run, on the test set of the data it was trained for.

    Args:
        source: What `load_model` takes.
        data: That data set.
        settings: The attack, and how many images it is measured on.
        progress: Told how far it is.

    Returns:
        As `measure_run`; kept nowhere.
    """
    model = load_model(source)
    return measure_network(model, load_data(data, model.spec.input_shape), settings, None, progress)


def measure_network(
    model: LoadedModel,
    target: TargetData,
    settings: RobustnessSettings,
    file: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracies of a network that is no run, on the test set of the data it was trained for.

    Args:
        model: The network.
        target: That data set, fitted to its input.
        settings: The attack, and how many images it is measured on.
        file: Where they are kept, as of a run in its robustness.json, and not measured again; None: nowhere.
        progress: Told how far it is.

    Returns:
        As `measure_run`.

    Raises:
        UsageError: The network and the data have different numbers of classes.
    """
    if model.spec.num_classes != len(target.class_names):
        raise UsageError(
            f"{model.name} tells {model.spec.num_classes} classes apart and {target.name} has {len(target.class_names)}; "
            "name the data it was trained on."
        )
    standing = None if file is None else standing_network(model, target, settings, file)
    if standing is not None:
        return standing
    record = _network_identity(model, target, settings) | measure(model, target.test, settings, progress)
    if file is not None:
        _add(file, record)
    return record


def standing_network(
    model: LoadedModel, target: TargetData, settings: RobustnessSettings, file: Path
) -> dict[str, Any] | None:
    """What `measure_network` has kept.

    Args:
        model: The network.
        target: A data set.
        settings: The attack, and how many images.
        file: Where to look.

    Returns:
        The record; None where there is none yet.
    """
    return _standing(file, _network_identity(model, target, settings))


def _network_identity(model: LoadedModel, target: TargetData, settings: RobustnessSettings) -> dict[str, Any]:
    return _identity({"model_sha256": model.sha256, "data": {"fingerprint": target.fingerprint}}, settings)
