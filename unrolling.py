"""Scores of a run through its own training: the recording of a run, and what its attribution is made from.

Heavy modules are imported inside the functions that need them, so that the command line can show its options at once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .influence.settings import AttributeSettings
from .scoring import Sides, few_threads, prepared_sides

if TYPE_CHECKING:
    from .influence.attribute import Prepared, Variant
    from .influence.examples import Progress
    from .models.recording import RunRecording
    from .models.runs import Run


def open_recording(run: str | Path | Run, *, device: str = "auto") -> RunRecording:
    """The training of a run, to be run again: for `Unrolled` and `GradientDot.along`.

    Args:
        run: A run folder, or a run already read.
        device: Where it is replayed: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        The recording; `recording.trained` names the parameters that the training moved.

    Raises:
        UsageError: The recipe has a part that cannot be differentiated (attacked images, scaled weights, lwf_distance l2).
        CheckpointError: The run, or the source that it began from, is not there or damaged.
    """
    from .models.device import resolve_device
    from .models.recording import RunRecording
    from .models.runs import Run, load_run

    run = run if isinstance(run, Run) else load_run(run)
    with few_threads(run.model):
        return RunRecording(run, resolve_device(device))


def unrolled_plan(run: Run, settings: AttributeSettings, report: Progress | None) -> list[tuple[Prepared, Variant]]:
    """All scores that the settings ask of a run, by the derivative of its training.

    Args:
        run: The run; its network in evaluation mode.
        settings: Label, type, device; the parameters are those that the run trained, whatever the settings say.
        report: Told of every stage.

    Returns:
        The main scores first.
    """
    from .influence.attribute import Variant
    from .influence.unrolled import Unrolled

    recording = open_recording(run, device=settings.device)
    sides = Sides(run.train, run.test, run.train.index.tolist(), run.test.index.tolist())
    settings = replace(settings, parameters=",".join(recording.trained))
    prepared = prepared_sides(run.model.model, sides, settings, recording.weight_decay, report)
    main = Variant(
        curvature=Unrolled(recording, last=settings.last),
        query_label=settings.query_label,  # type: ignore[arg-type]  # checked by the settings
        train_scores=settings.train_scores,
    )
    if "predicted" not in settings.also:
        return [(prepared, main)]
    return [(prepared, main), (prepared, replace(main, query_label="predicted", train_scores=False, name="predicted"))]
