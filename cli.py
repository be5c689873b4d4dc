"""The command line: words typed -> settings -> one call of the pipeline -> text. No torch before a command runs."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import (
    UpweightError,
    UsageError,
    __version__,
    comparison,
    pipeline,
    questions,
    sweep,
    sweep_plan,
)
from .attribute_commands import ATTRIBUTE_COMMANDS
from .cache.errors import StoreError
from .commands import OVERWRITE, OVERWRITE_FILE, Answer, Asked, Command, plain
from .evaluation_commands import EVALUATION_COMMANDS
from .feature_commands import FEATURE_COMMANDS
from .influence.errors import ShapeError
from .models.errors import CheckpointError, DataError, NonDeterministicError, RunMismatch
from .models.settings import ConvertSettings, DataSettings, FineTuneSettings, PretrainSettings, RobustnessSettings
from .options import Bound, Option, add_option, read_config, resolve, save_config, settings_options, to_toml
from .reports.settings import ReportSettings

if TYPE_CHECKING:
    pass

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (UsageError, 2),
    (CheckpointError, 3),
    (DataError, 3),
    (NonDeterministicError, 3),
    (ShapeError, 3),  # typed at a terminal, whatever does not fit its model comes from a file
    (StoreError, 4),
    (RunMismatch, 4),
    (KeyboardInterrupt, 130),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `upweight`; None: the process's own.

    Returns:
        The exit code: 0 done; 2 the words are wrong; 3 a file, data set or config is; 4 a store is incomplete, damaged or made
        under other settings; 130 interrupted; 1 anything else.

    Raises:
        Exception: With --debug: the error itself, with its traceback.
        KeyboardInterrupt: Likewise.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        _run(words)
        return 0
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in words:
            raise
        print(f"{' '.join(['upweight', *words[:1]])}: {_sentence(error)}", file=sys.stderr)
        return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def _run(words: list[str]) -> None:
    args = vars(_parser().parse_args(words))
    name = args.pop("command")
    command = COMMANDS[name]
    bound = _bound(command)
    path = args.get("config")
    config = {} if path is None else read_config(path, name, bound)
    values, settings = resolve(bound, args, config, path)
    asked = Asked(settings=settings, values=values)
    answer = command.run(asked)
    if command.replay is not None and not values.get("dry_run"):
        save_config(command.replay(asked), to_toml(name, bound, values))
    print(json.dumps(_finite(answer.data), allow_nan=False) if values["json"] else answer.text, flush=True)


def _bound(command: Command) -> list[Bound]:
    own = [(None, option) for option in command.options]
    return [*own, *settings_options(command.settings, command.hidden), *((None, option) for option in COMMON)]


def _finite(value: Any) -> Any:
    """NaN and infinities become null, as JSON has neither."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sentence(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what was finished is kept, and the same command goes on from there"
    if isinstance(error, UpweightError):
        return " ".join([str(error), *getattr(error, "__notes__", ())])
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own, not imported here
        return f"out of memory ({_one_line(error)}); analyse fewer parameters or examples, or lower --batch-size"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}; choose another place, or mend this one"
    return f"unexpected {type(error).__name__}: {_one_line(error)}; --debug shows where"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose complaints are one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="upweight",
        description="Which training examples does a fine-tuned network's prediction rest on? Exact influence functions, for "
        "natural against adversarially robust source models.",
        epilog="Start with `upweight compare`: no arguments are needed. Exit codes: 0 done; 2 wrong words; 3 bad file, data set "
        "or config; 4 store incomplete, damaged or of other settings; 1 anything else.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"upweight {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = subparsers.add_parser(name, help=command.help, description=command.help, allow_abbrev=False)
        for _, option in _bound(command):
            add_option(sub, option)
    return parser


# ---- commands --------------------------------------------------------------------------------------------------------------


def _compare(asked: Asked) -> Answer:
    report = comparison.compare(
        asked.settings[comparison.CompareSettings],
        asked.settings[DataSettings],
        asked.settings[FineTuneSettings],
        asked.settings[ReportSettings],
        overwrite=asked["overwrite"],
        progress=True,
    )
    return Answer(data=report.to_dict(), text=report.to_text())


def _pretrain(asked: Asked) -> Answer:
    out = asked.path("out")
    record = pipeline.pretrain(asked.settings[PretrainSettings], out, overwrite=asked["overwrite"], progress=True)
    accuracies = {"accuracy": record["accuracy"]}
    return Answer(data=record, text=f"{out}\n{questions.outline(accuracies)}")


def _fine_tune(asked: Asked) -> Answer:
    run = pipeline.fine_tune(
        asked.settings[pipeline.SourceSettings],
        asked.settings[DataSettings],
        asked.settings[FineTuneSettings],
        asked.path("out"),
        overwrite=asked["overwrite"],
        progress=True,
    )
    accuracy = run.info["accuracy"]
    text = f"{run.path}: train accuracy {accuracy['train']:.4f}, test accuracy {accuracy['test']:.4f}"
    return Answer(data={"run": str(run.path), "accuracy": accuracy}, text=text)


def _robustness(asked: Asked) -> Answer:
    said: DataSettings = asked.settings[DataSettings]
    if asked["data"] is None and said != DataSettings():
        raise UsageError("--root, --download and --resolution say how the data of a source are read; give --data too.")
    data = None if asked["data"] is None else replace(said, data=asked["data"])
    held = pipeline.robustness(asked["path"], asked.settings[RobustnessSettings], data, progress=True)
    rates = (
        f"accuracy {held['natural']:.4f} on {held['natural_images']} images, {held['pgd']:.4f} on {held['pgd_images']} "
        f"under {held['attack']}"
    )
    return Answer(data=held, text=f"{asked['path']}: {rates}")


def _query(asked: Asked) -> Answer:
    table = questions.query(
        asked.path("run"),
        asked["query"],
        asked["k"],
        variant=asked["variant"],
        harmful=asked["harmful"],
        image=asked["image"],
        overwrite=asked["overwrite"],
    )
    if asked["csv"] and asked["json"]:
        raise UsageError("--csv and --json are two ways to print one table; give one of them.")
    return Answer(data=plain(table), text=table.to_csv().rstrip("\n") if asked["csv"] else table.to_text())


def _stats(asked: Asked) -> Answer:
    tables = questions.stats(asked.path("run"), asked["k"], variant=asked["variant"], label=asked["label"])
    return Answer(
        data={name: plain(table) for name, table in tables.items()},
        text="\n\n".join(questions.brief(table).to_text() for table in tables.values()),
    )


def _saliency(asked: Asked) -> Answer:
    table = questions.saliency(
        asked.path("run"),
        asked["query"] or None,
        method=asked["method"],
        image=asked["image"],
        npz=asked["npz"],
        device=asked["device"],
        overwrite=asked["overwrite"],
    )
    return Answer(data=plain(table), text=table.to_text())


def _report(asked: Asked) -> Answer:
    report = comparison.make_report(
        [Path(run).expanduser() for run in asked["runs"]],
        asked.path("out"),
        asked.settings[ReportSettings],
        overwrite=asked["overwrite"],
        progress=True,
    )
    return Answer(data=report.to_dict(), text=report.to_text())


def _convert(asked: Asked) -> Answer:
    from .models.convert import convert

    settings, overwrite = asked.settings[ConvertSettings], asked["overwrite"]
    held = convert(asked.path("checkpoint"), settings, asked.path("out"), overwrite=overwrite)
    return Answer(data=held, text=questions.outline(held))


def _sweep(asked: Asked) -> Answer:
    if asked["workers"] < 1:
        raise UsageError(f"workers is {asked['workers']}; give a whole number of at least 1.")
    plan = sweep_plan.read_sweep(asked.path("file"), asked["out"])
    if asked["dry_run"]:
        jobs = sweep.outlook(plan)
        return Answer(data=plain(jobs), text=jobs.to_text())
    report = sweep.run_sweep(plan, workers=asked["workers"], overwrite=asked["overwrite"], progress=True)
    return Answer(data=report.to_dict(), text=report.to_text())


def _info(asked: Asked) -> Answer:
    held = questions.info(asked.path("path"))
    return Answer(data=held, text=questions.outline(held))


COMMON = (
    Option(name="config", metavar="FILE.toml", help="read options from a TOML file; words typed win", replayed=False),
    Option(name="json", kind=bool, default=False, help="print one JSON object and nothing else", replayed=False),
    Option(name="debug", kind=bool, default=False, help="show the traceback of an error", replayed=False),
)
RUN = Option(
    name="run", positional=True, required=True, metavar="RUN", help="run folder that fine-tune or attribute made"
)
OUT = Option(name="out", metavar="RUN", required=True, help="run folder to make, or to go on with")
VARIANT = Option(name="variant", default="main", metavar="NAME", help="which scores, where the store holds several")

COMMANDS: dict[str, Command] = {
    "compare": Command(
        help="fine-tune natural and robust sources, attribute their predictions, and compare them in one report",
        run=_compare,
        settings=(comparison.CompareSettings, DataSettings, FineTuneSettings, ReportSettings),
        hidden=frozenset({"seed"}),
        options=(OVERWRITE,),
        replay=lambda asked: asked.path("out") / "compare.toml",
    ),
    "pretrain": Command(
        help="train a source network, naturally or adversarially",
        run=_pretrain,
        settings=(PretrainSettings,),
        options=(
            Option(name="out", required=True, metavar="FILE.safetensors", help="where to put the weights"),
            OVERWRITE,
        ),
        replay=lambda asked: asked.path("out").with_suffix(".toml"),
    ),
    "convert": Command(
        help="write a weight file of another project as one that every command takes as a source",
        run=_convert,
        settings=(ConvertSettings,),
        options=(
            Option(
                name="checkpoint",
                positional=True,
                required=True,
                metavar="CHECKPOINT",
                help="file of torchvision, of the robustness library or made with it, or of CARTL; nothing in it is executed",
            ),
            Option(name="out", required=True, metavar="FILE.safetensors", help="where to put the weights"),
            OVERWRITE_FILE,
        ),
    ),
    "fine-tune": Command(
        help="fine-tune the last blocks of a source network on a target data set",
        run=_fine_tune,
        settings=(pipeline.SourceSettings, DataSettings, FineTuneSettings),
        options=(OUT, OVERWRITE),
        replay=lambda asked: asked.path("out") / "fine-tune.toml",
    ),
    "robustness": Command(
        help="measure the clean and the adversarial accuracy of a run or of a source",
        run=_robustness,
        settings=(RobustnessSettings, DataSettings),
        hidden=frozenset({"data"}),
        options=(
            Option(
                name="path",
                positional=True,
                required=True,
                metavar="PATH",
                help="run folder, whose robustness.json keeps the answer, or a source: natural, robust, a checkpoint file",
            ),
            Option(name="data", metavar="DATA", help="data set to test a source on; a run has its own"),
        ),
    ),
    **ATTRIBUTE_COMMANDS,
    "query": Command(
        help="list the train examples that help, or harm, one query most",
        run=_query,
        options=(
            RUN,
            Option(name="query", kind=int, required=True, metavar="ROW", help="row of the query, from 0"),
            Option(name="k", flags=("-k", "--k"), kind=int, default=5, metavar="K", help="how many"),
            Option(name="harmful", kind=bool, default=False, help="the most harmful instead of the most helpful ones"),
            VARIANT,
            Option(name="csv", kind=bool, default=False, help="print CSV"),
            Option(name="image", metavar="FILE.png", help="draw the query, its helpful and its harmful examples"),
            OVERWRITE_FILE,
        ),
    ),
    "stats": Command(
        help="class-match rates with their baselines, and the facts of the curvature",
        run=_stats,
        options=(
            RUN,
            Option(name="k", flags=("-k", "--k"), kind=int, default=10, metavar="K", help="ranks to list"),
            VARIANT,
            Option(
                name="label",
                choices=("true", "predicted"),
                default="true",
                help="class of a query that counts as a match",
            ),
        ),
    ),
    "saliency": Command(
        help="gradient of the loss in the pixels of some queries",
        run=_saliency,
        options=(
            RUN,
            Option(
                name="query", kind=int, many=True, default=(), metavar="ROW", help="rows; not given: one of each class"
            ),
            Option(
                name="method",
                choices=("gradient", "smoothgrad", "integrated"),
                default="gradient",
                help="the plain gradient, or one of captum's",
            ),
            Option(name="image", metavar="FILE.png", help="draw images and gradients into this file"),
            Option(name="npz", metavar="FILE.npz", help="save images and gradients as numbers into this file"),
            Option(name="device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N"),
            OVERWRITE_FILE,
        ),
    ),
    "report": Command(
        help="make the tables, figures and page of one or more runs",
        run=_report,
        settings=(ReportSettings,),
        options=(
            Option(
                name="runs",
                positional=True,
                many=True,
                default=(),
                required=True,
                metavar="RUN",
                help="run folders with influence.h5",
            ),
            Option(
                name="out",
                required=True,
                metavar="DIR",
                help="folder for index.html, stats.json, CSV and PNG files",
            ),
            OVERWRITE,
        ),
        replay=lambda asked: asked.path("out") / "report.toml",
    ),
    "sweep": Command(
        help="fine-tune every combination of sources, data, recipes, sizes and blocks that a file lists, and report on them",
        run=_sweep,
        options=(
            Option(
                name="file",
                positional=True,
                required=True,
                metavar="FILE.toml",
                help="what to go through; relative paths in it start at the current folder",
            ),
            Option(
                name="out", metavar="DIR", help="folder to make, or to go on with, instead of the one the file names"
            ),
            Option(name="workers", kind=int, default=1, metavar="N", help="runs at once, each in a process of its own"),
            Option(
                name="dry_run",
                kind=bool,
                default=False,
                help="list every source and run, and how far it is; make nothing",
            ),
            OVERWRITE,
        ),
    ),
    **EVALUATION_COMMANDS,
    **FEATURE_COMMANDS,
    "info": Command(
        help="print what a run folder, a report, a store or a checkpoint holds",
        run=_info,
        options=(
            Option(
                name="path",
                positional=True,
                required=True,
                metavar="PATH",
                help="run folder, folder of a comparison or report, store or checkpoint",
            ),
        ),
    ),
}
