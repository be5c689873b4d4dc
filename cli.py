"""The command line: words typed -> settings -> one call of the pipeline -> text. No torch before a command runs."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import UpweightError, UsageError, __version__, pipeline, questions
from .cache.errors import StoreError
from .influence.settings import AttributeSettings
from .models.errors import CheckpointError, DataError, RunMismatch
from .models.settings import DataSettings, FineTuneSettings, PretrainSettings
from .reports.settings import ReportSettings

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (UsageError, 2),
    (CheckpointError, 3),
    (DataError, 3),
    (StoreError, 4),
    (RunMismatch, 4),
    (KeyboardInterrupt, 130),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """One word after `upweight`."""

    help: str
    run: Callable[[argparse.Namespace, dict[type, Any]], None]
    settings: tuple[type, ...] = ()
    """Dataclasses whose fields become options."""
    hidden: frozenset[str] = frozenset()
    """Fields that this command sets itself."""
    arguments: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = ()
    """Further arguments, as argparse takes them."""
    prints: bool = True
    """Whether it prints results, and so takes --json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `upweight`; None: the process's own.

    Returns:
        The exit code: 0 done; 2 the words are wrong; 3 a file, data set or config is; 4 a store is incomplete, damaged or made
        under other settings; 130 interrupted; 1 anything else.

    Raises:
        UpweightError: With --debug, as do the others: the error itself, with its traceback.
        OSError: Likewise.
        MemoryError: Likewise.
        KeyboardInterrupt: Likewise.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        command = COMMANDS[args.command]
        command.run(args, _settings(command, args))
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        return 0
    except (UpweightError, KeyboardInterrupt, OSError, MemoryError) as error:
        if args.debug:
            raise
        print(f"upweight {args.command}: {_sentence(error)}", file=sys.stderr)
        return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)
    return 0


def _sentence(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what was finished is kept, and the same command goes on from there"
    if isinstance(error, MemoryError):
        return f"out of memory ({error}); analyse fewer parameters or examples"
    return " ".join([str(error), *getattr(error, "__notes__", ())])


class ConfigError(DataError):
    """A TOML file of options that cannot be used."""


# ---- options from settings -------------------------------------------------------------------------------------------------


def _help_texts(settings: type) -> dict[str, str]:
    """The docstring under each field of a settings class."""
    (body,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(settings))).body
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            texts[field.target.id] = inspect.cleandoc(ast.literal_eval(text.value)).replace("\n", " ")
    return texts


def _options(command: Command) -> Iterator[tuple[type, dataclasses.Field[Any], Any]]:
    """Every field that becomes an option; where two settings share a name, the command's own, which comes first, has it."""
    seen = set(command.hidden)
    for settings in command.settings:
        hints = typing.get_type_hints(settings)
        for field in dataclasses.fields(settings):
            if field.name not in seen:
                seen.add(field.name)
                yield settings, field, hints[field.name]


def _add_option(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any, text: str) -> None:
    flag = "--" + field.name.replace("_", "-")
    shown = "" if field.default is None else f" (default: {_shown(field.default)})"
    options: dict[str, Any] = {
        "dest": field.name,
        "default": argparse.SUPPRESS,
        "help": (text + shown).replace("%", "%%"),
    }
    kind, many = _kind(hint)
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
    else:
        metavar = kind.__name__.upper() if kind is not str else field.name.upper()
        parser.add_argument(flag, type=kind, nargs="+" if many else None, metavar=metavar, **options)


def _kind(hint: Any) -> tuple[type, bool]:
    """The type that a word is read as, and whether there may be several."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _settings(command: Command, args: argparse.Namespace) -> dict[type, Any]:
    """Settings objects from defaults, then the TOML file, then the command line."""
    config = _read_config(args, {field.name: hint for _, field, hint in _options(command)})
    chosen: dict[type, dict[str, Any]] = {settings: {} for settings in command.settings}
    for settings, field, hint in _options(command):
        for given in (config, vars(args)):
            if field.name in given:
                value = given[field.name]
                chosen[settings][field.name] = tuple(value) if _kind(hint)[1] else value
    try:
        return {settings: settings(**values) for settings, values in chosen.items()}
    except (UsageError, TypeError) as error:
        if config and not any(name in vars(args) for name in config):
            raise ConfigError(f"{args.config}: {error}") from error
        raise


def _read_config(args: argparse.Namespace, known: Mapping[str, Any]) -> dict[str, Any]:
    if getattr(args, "config", None) is None:
        return {}
    path = Path(args.config)
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}.") from error
    config = {name.replace("-", "_"): value for name, value in config.items()}
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ConfigError(
            f"{path} sets {', '.join(unknown)}, unknown to {args.command!r} (it knows {', '.join(known)})."
        )
    for name, value in config.items():
        kind, many = _kind(known[name])
        values = value if many and isinstance(value, list) else [value]
        if (many and not isinstance(value, list)) or not all(_is_a(item, kind) for item in values):
            wanted = f"a list of {kind.__name__}" if many else kind.__name__
            raise ConfigError(f"{path} sets {name} = {value!r}; {wanted} is wanted.")
        config[name] = [float(item) for item in values] if many and kind is float else value
    return config


def _is_a(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="upweight",
        description="Which training examples does a fine-tuned network's prediction rest on? Exact influence functions, for "
        "natural against adversarially robust source models.",
        epilog="Start with `upweight compare`: no arguments are needed. Exit codes: 0 done; 2 wrong words; 3 bad file, data set "
        "or config; 4 store incomplete, damaged or of other settings; 1 anything else.",
    )
    parser.add_argument("--version", action="version", version=f"upweight {__version__}")
    words = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = words.add_parser(name, help=command.help, description=command.help)
        for flags, options in command.arguments:
            sub.add_argument(*flags, **options)
        texts = {settings: _help_texts(settings) for settings in command.settings}
        for settings, field, hint in _options(command):
            _add_option(sub, field, hint, texts[settings].get(field.name, ""))
        if command.settings:
            sub.add_argument(
                "--config", metavar="FILE.toml", help="read options from a TOML file; words on the line win"
            )
        if command.prints:
            sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


# ---- commands --------------------------------------------------------------------------------------------------------------


def _print(args: argparse.Namespace, result: Mapping[str, Any], text: str) -> None:
    print(json.dumps(result, allow_nan=False) if args.json else text)


def _compare(args: argparse.Namespace, settings: dict[type, Any]) -> None:
    result = pipeline.compare(
        settings[pipeline.CompareSettings],
        settings[DataSettings],
        settings[FineTuneSettings],
        settings[ReportSettings],
        progress=True,
    )
    _print(args, result.to_dict(), result.to_text())


def _pretrain(args: argparse.Namespace, settings: dict[type, Any]) -> None:
    result = pipeline.pretrain(settings[PretrainSettings], Path(args.out), progress=True)
    accuracies = "\n".join(f"{name}: {value}" for name, value in result["accuracy"].items())
    _print(args, result, f"{args.out}\n{accuracies}")


def _fine_tune(args: argparse.Namespace, settings: dict[type, Any]) -> None:
    run = pipeline.fine_tune(
        settings[pipeline.SourceSettings],
        settings[DataSettings],
        settings[FineTuneSettings],
        Path(args.out),
        overwrite=args.overwrite,
        progress=True,
    )
    accuracy = run.info["accuracy"]
    text = f"{args.out}: train accuracy {accuracy['train']:.4f}, test accuracy {accuracy['test']:.4f}"
    _print(args, {"run": args.out, "accuracy": accuracy}, text)


def _attribute(args: argparse.Namespace, settings: dict[type, Any]) -> None:
    how, own = settings[AttributeSettings], settings[pipeline.OwnSettings]
    if args.run is not None:
        if own != pipeline.OwnSettings() or args.out is not None:
            raise UsageError(
                f"--model and what goes with it are for a network of your own; the run {args.run} has its own."
            )
        scores = pipeline.attribute_run(Path(args.run), how, overwrite=args.overwrite, progress=True)
    elif own.model is not None and own.train is not None and args.out is not None:
        scores = pipeline.attribute_own(own, how, Path(args.out), overwrite=args.overwrite, progress=True)
    else:
        raise UsageError("Give a run folder, or a network of your own by --model, --train and --out.")
    facts = questions.facts(scores)
    _print(args, facts, questions.outline(facts))


def _query(args: argparse.Namespace, settings: dict[type, Any]) -> None:
    """List the train examples that most help or harm one query."""
    answer = questions.query(
        Path(args.run), args.query, args.k, variant=args.variant, harmful=args.harmful, image=args.image
    )
    if args.csv:
        print(answer.to_csv(), end="")
    else:
        print(answer.to_json() if args.json else answer.to_text())


def _stats(args: argparse.Namespace, settings: dict[type, Any]) -> None:
    tables = questions.stats(Path(args.run), args.k, variant=args.variant, label=args.label)
    _print(
        args,
        {name: json.loads(table.to_json()) for name, table in tables.items()},
        "\n\n".join(questions.brief(table).to_text() for table in tables.values()),
    )


def _saliency(args: argparse.Namespace, settings: dict[type, Any]) -> None:
    table = questions.saliency(Path(args.run), args.query, method=args.method, image=args.image, npz=args.npz)
    print(table.to_json() if args.json else table.to_text())


def _report(args: argparse.Namespace, settings: dict[type, Any]) -> None:
    result = pipeline.make_report(
        [Path(run) for run in args.runs], Path(args.out), settings[ReportSettings], progress=True
    )
    _print(args, result.to_dict(), result.to_text())


def _info(args: argparse.Namespace, settings: dict[type, Any]) -> None:
    description = questions.info(Path(args.path))
    _print(args, description, questions.outline(description))


RUN = (("run",), {"metavar": "RUN", "help": "run folder"})
VARIANT = (
    ("--variant",),
    {"default": "", "metavar": "NAME", "help": "which scores, where the store holds several (see info)"},
)
OVERWRITE = (("--overwrite",), {"action": "store_true", "help": "replace results that were made under other settings"})

COMMANDS: dict[str, Command] = {
    "compare": Command(
        "fine-tune natural and robust sources, attribute their predictions, and compare them in one report",
        _compare,
        (pipeline.CompareSettings, DataSettings, FineTuneSettings, ReportSettings),
        frozenset({"seed"}),
    ),
    "pretrain": Command(
        "train a source network, naturally or adversarially",
        _pretrain,
        (PretrainSettings,),
        arguments=(
            (("--out",), {"required": True, "metavar": "FILE.safetensors", "help": "where to put the weights"}),
        ),
    ),
    "fine-tune": Command(
        "fine-tune the last blocks of a source network on a target data set",
        _fine_tune,
        (pipeline.SourceSettings, DataSettings, FineTuneSettings),
        arguments=(
            (("--out",), {"required": True, "metavar": "RUN", "help": "run folder to make or go on with"}),
            OVERWRITE,
        ),
    ),
    "attribute": Command(
        "score every train example for every query, of a run or of a network of your own",
        _attribute,
        (AttributeSettings, pipeline.OwnSettings),
        arguments=(
            (("run",), {"nargs": "?", "metavar": "RUN", "help": "run folder that fine-tune made"}),
            (("--out",), {"metavar": "RUN", "help": "run folder to make, for a network of your own"}),
            OVERWRITE,
        ),
    ),
    "query": Command(
        "list the train examples that help, or harm, one query most",
        _query,
        arguments=(
            RUN,
            (("--query",), {"type": int, "required": True, "metavar": "ROW", "help": "row of the query, from 0"}),
            (("-k",), {"type": int, "default": 5, "metavar": "K", "help": "how many (default: 5)"}),
            (("--harmful",), {"action": "store_true", "help": "the most harmful instead of the most helpful"}),
            VARIANT,
            (("--csv",), {"action": "store_true", "help": "print CSV"}),
            (("--image",), {"metavar": "FILE.png", "help": "draw the query and its neighbours"}),
        ),
    ),
    "stats": Command(
        "class-match rates with their baselines, and the facts of the curvature",
        _stats,
        arguments=(
            RUN,
            (("-k",), {"type": int, "default": 10, "metavar": "K", "help": "ranks to list (default: 10)"}),
            VARIANT,
            (
                ("--label",),
                {
                    "choices": ("true", "predicted"),
                    "default": "true",
                    "help": "class of a query that counts as a match",
                },
            ),
        ),
    ),
    "saliency": Command(
        "gradient of the loss in the pixels of some queries",
        _saliency,
        arguments=(
            RUN,
            (
                ("--query",),
                {"type": int, "nargs": "+", "default": None, "metavar": "ROW", "help": "rows (default: one a class)"},
            ),
            (
                ("--method",),
                {
                    "choices": ("gradient", "smoothgrad", "integrated"),
                    "default": "gradient",
                    "help": "the plain gradient, or one of captum's (default: gradient)",
                },
            ),
            (("--image",), {"metavar": "FILE.png", "help": "draw images and gradients"}),
            (("--npz",), {"metavar": "FILE.npz", "help": "save the gradients as numbers"}),
        ),
    ),
    "report": Command(
        "make the tables, figures and page of one or more runs",
        _report,
        (ReportSettings,),
        arguments=(
            (("runs",), {"nargs": "+", "metavar": "RUN", "help": "run folders with influence.h5"}),
            (
                ("--out",),
                {"required": True, "metavar": "DIR", "help": "folder for index.html, stats.json, CSV and PNG files"},
            ),
        ),
    ),
    "info": Command(
        "print what a run folder, a store or a checkpoint holds",
        _info,
        arguments=((("path",), {"metavar": "PATH", "help": "run folder, .h5 store or checkpoint"}),),
    ),
}
