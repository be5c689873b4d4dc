"""The command that scores: a run, several with their mean, or a network of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import UsageError, averaging, dry_run, pipeline, questions
from .commands import OVERWRITE, Answer, Asked, Command
from .influence.settings import AttributeSettings
from .options import Option

if TYPE_CHECKING:
    from .influence.estimate import Estimate


def _attribute(asked: Asked) -> Answer:
    how, own = asked.settings[AttributeSettings], asked.settings[pipeline.OwnSettings]
    out, runs = None if asked["out"] is None else asked.path("out"), _runs(asked)
    if asked["average"] is not None:
        return _average(asked)
    if asked["unit_rows"]:
        raise UsageError("--unit-rows says how scores are averaged; give it with --average OUT.")
    if not runs:
        if own.model is None or own.train is None or out is None:
            raise UsageError("Give a run folder, or a network of your own by --model, --train and --out.")
        if asked["dry_run"]:
            return _estimated(dry_run.estimate_own(own, how, out))
        scores = pipeline.attribute_own(own, how, out, overwrite=asked["overwrite"], progress=True)
    elif len(runs) > 1:
        raise UsageError(
            f"{len(runs)} run folders are given; say by --average OUT where the mean of their scores goes, or give one."
        )
    else:
        _check_no_own(asked)
        if asked["dry_run"]:
            return _estimated(dry_run.estimate_run(runs[0], how, out=out, overwrite=asked["overwrite"]))
        scores = pipeline.attribute_run(runs[0], how, out=out, overwrite=asked["overwrite"], progress=True)
    facts = questions.facts(scores)
    return Answer(data=facts, text=questions.outline(facts))


def _average(asked: Asked) -> Answer:
    how, runs, out = asked.settings[AttributeSettings], _runs(asked), asked.path("average")
    unit_rows = bool(asked["unit_rows"])
    _check_no_own(asked)
    if asked["out"] is not None:
        raise UsageError(
            "--average OUT names the folder of the mean, and each run is scored into its own; leave --out out."
        )
    if asked["dry_run"]:
        return _estimated(dry_run.estimate_runs(runs, how, out, unit_rows=unit_rows, overwrite=asked["overwrite"]))
    scores = averaging.attribute_runs(runs, how, out, unit_rows=unit_rows, overwrite=asked["overwrite"], progress=True)
    facts = questions.facts(scores)
    return Answer(data=facts, text=f"{out}: the mean over {len(runs)} runs\n{questions.outline(facts)}")


def _runs(asked: Asked) -> list[Path]:
    return [Path(run).expanduser() for run in asked["run"]]


def _scored(asked: Asked) -> Path:
    """The folder whose scores were asked for."""
    named = asked["average"] or asked["out"]
    return _runs(asked)[0] if named is None else Path(named).expanduser()


def _check_no_own(asked: Asked) -> None:
    if asked.settings[pipeline.OwnSettings] != pipeline.OwnSettings():
        raise UsageError(
            "--model and what goes with it are for a network of your own; "
            + (f"the run {asked['run'][0]} has its own." if asked["run"] else "an average is taken over run folders.")
        )


def _estimated(estimate: Estimate) -> Answer:
    return Answer(data=estimate.to_dict(), text=estimate.to_text())


ATTRIBUTE_COMMANDS = {
    "attribute": Command(
        help="score every train example for every query, of a run or of a network of your own",
        run=_attribute,
        settings=(AttributeSettings, pipeline.OwnSettings),
        options=(
            Option(
                name="run",
                positional=True,
                many=True,
                default=(),
                metavar="RUN",
                help="run folder that fine-tune made; several with --average",
            ),
            Option(
                name="out",
                metavar="RUN",
                help="folder for the scores of a network of your own; of a run: not given, its own folder",
            ),
            Option(
                name="average",
                metavar="OUT",
                help="folder for the mean of the scores of several runs on the same images; what a run lacks is made first, in "
                "its own folder",
            ),
            Option(
                name="unit_rows",
                kind=bool,
                default=False,
                help="with --average: divide the scores of every query by their root mean square first, so that runs in which "
                "its loss is large do not outvote the others",
            ),
            Option(
                name="dry_run",
                kind=bool,
                default=False,
                replayed=False,
                help="tell time, memory, operations and disk of every stage from a calibration of some seconds; write nothing",
            ),
            OVERWRITE,
        ),
        replay=lambda asked: _scored(asked) / "attribute.toml",
    ),
}
