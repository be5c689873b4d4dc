"""Options of the commands: read off settings classes, filled from words and TOML files, written back as TOML.

The fields of the stages' settings are the one source of names, types, defaults and help texts. No torch here.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import os
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import UsageError, __version__
from .models.errors import DataError

MADE = "made"
"""Table of a TOML file that says where it comes from; not an option."""

NOUNS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


class ConfigError(DataError):
    """A TOML file of options cannot be used."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Something a command can be told."""

    name: str
    """Its key in a TOML file; the flag too, where no others are given."""
    help: str
    kind: type = str
    default: Any = None
    many: bool = False
    """Takes one or more words."""
    none: bool = False
    """The word none is a value as well."""
    words_too: tuple[str, ...] = ()
    """Words that are values of an option of numbers as well."""
    switch: str | None = None
    """What true says in a file written when this was a switch; false says nothing."""
    choices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    positional: bool = False
    required: bool = False
    metavar: str = ""
    negatable: bool = False
    """A switch that also has --no-NAME."""
    replayed: bool = True
    """Belongs to the file that replays a run."""

    @property
    def words(self) -> tuple[str, ...]:
        """What is typed for it."""
        return (self.name,) if self.positional else self.flags or ("--" + self.name.replace("_", "-"),)


Bound = tuple[type | None, Option]
"""An option, and the settings class it is a field of; None: the command's own."""


# ---- from settings to options ----------------------------------------------------------------------------------------------


def settings_options(settings: Sequence[type], hidden: Iterable[str] = ()) -> list[Bound]:
    """The fields of settings as options; a name that several of them share belongs to the first.

    Args:
        settings: Settings classes.
        hidden: Fields that are set otherwise.

    Returns:
        Their options, in order.
    """
    bound: list[Bound] = []
    seen = set(hidden)
    for cls in settings:
        hints, texts = typing.get_type_hints(cls), _help_texts(cls)
        for field in dataclasses.fields(cls):
            if field.name not in seen:
                seen.add(field.name)
                bound.append((cls, _option(field, hints[field.name], texts.get(field.name, ""))))
    return bound


def _option(field: dataclasses.Field[Any], hint: Any, text: str) -> Option:
    optional = isinstance(hint, types.UnionType) and types.NoneType in typing.get_args(hint)
    if optional:
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    many = typing.get_origin(hint) is tuple
    kind = typing.get_args(hint)[0] if many else hint
    words = ()
    if typing.get_origin(kind) in (typing.Union, types.UnionType):  # of numbers and words
        kind, literal = typing.get_args(kind)
        words = typing.get_args(literal)
    return Option(
        name=field.name,
        help=text,
        kind=kind,
        default=field.default,
        many=many,
        none=optional and kind in (int, float) and not many,
        words_too=words,
        switch=field.metadata.get("switch"),
        metavar=field.name.upper() if kind is str else kind.__name__.upper(),
        negatable=kind is bool,
    )


def _help_texts(settings: type) -> dict[str, str]:
    """The docstring under each field of a settings class, those of its bases among them."""
    texts = {
        name: text
        for base in settings.__bases__
        if dataclasses.is_dataclass(base)
        for name, text in _help_texts(base).items()
    }
    (body,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(settings))).body
    assert isinstance(body, ast.ClassDef)
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            texts[field.target.id] = inspect.cleandoc(ast.literal_eval(text.value)).replace("\n", " ")
    return texts


def add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    """Let a parser know an option. Its default is left to `resolve`, so that a file can come in between.

    Args:
        parser: The parser of the command.
        option: The option.
    """
    shown = "" if option.default in (None, (), "", False) else f" (default: {_shown(option.default)})"
    more: dict[str, Any] = {"default": argparse.SUPPRESS, "help": (option.help + shown).replace("%", "%%")}
    if not option.positional:
        more["dest"] = option.name
    if option.kind is bool:
        action = argparse.BooleanOptionalAction if option.negatable else "store_true"
        parser.add_argument(*option.words, action=action, **more)
        return
    if option.positional:
        more["nargs"] = "*" if option.many else "?"
    elif option.many:
        more["nargs"] = "+"
    if option.choices:
        more["choices"] = option.choices
    else:
        more["metavar"] = option.metavar or option.name.upper()
    parser.add_argument(*option.words, type=partial(_from_word, option), **more)


def _from_word(option: Option, word: str) -> Any:
    if option.none and word == "none":
        return None
    if word in option.words_too:
        return word
    try:
        return option.kind(word)
    except ValueError:
        mend = " (a run folder goes before the options)" if option.many and not option.positional else ""
        raise argparse.ArgumentTypeError(f"{word!r} is not {_noun(option)}{mend}") from None


def _noun(option: Option) -> str:
    return " or ".join([NOUNS[option.kind], *option.words_too])


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


# ---- from words and files to values ----------------------------------------------------------------------------------------


def resolve(
    bound: Sequence[Bound], words: Mapping[str, Any], config: Mapping[str, Any], path: str | None
) -> tuple[dict[str, Any], dict[type, Any]]:
    """What a command is asked: defaults, then the file, then the words typed.

    Args:
        bound: Its options.
        words: Values typed, by name.
        config: Values of the file, by name.
        path: The file, for messages.

    Returns:
        Every option's value by name, and the settings objects by class.

    Raises:
        UsageError: A word does not fit, or a needed one is missing.
        ConfigError: A value of the file does not fit.
    """
    values = {}
    for _, option in bound:
        value = words.get(option.name, config.get(option.name, option.default))
        values[option.name] = tuple(value) if isinstance(value, list) else value
    missing = [
        option.metavar if option.positional else option.words[0]
        for _, option in bound
        if option.required and values[option.name] in (None, ())
    ]
    if missing:
        raise UsageError(f"{' and '.join(missing)} must be given, as words or in a --config file.")
    try:
        return values, _settings(bound, values)
    except UsageError as error:
        if config and _fits(bound, words):
            raise ConfigError(f"{path}: {error}") from error
        raise


def _settings(bound: Sequence[Bound], values: Mapping[str, Any]) -> dict[type, Any]:
    chosen: dict[type, dict[str, Any]] = {}
    for cls, option in bound:
        if cls is not None:
            fields = chosen.setdefault(cls, {})
            if option.name in values:
                value = values[option.name]
                fields[option.name] = tuple(value) if isinstance(value, list) else value
    return {cls: cls(**fields) for cls, fields in chosen.items()}


def _fits(bound: Sequence[Bound], words: Mapping[str, Any]) -> bool:
    """Whether the words alone make settings: then it is the file that does not fit."""
    try:
        _settings(bound, words)
    except UsageError:
        return False
    return True


def read_config(path: str | Path, command: str, bound: Sequence[Bound]) -> dict[str, Any]:
    """Options from a TOML file; keys are the names of the options, with dashes or underscores.

    Args:
        path: The file.
        command: Name of the command, for messages.
        bound: Its options.

    Returns:
        Values by name.
    """
    known = [option for _, option in bound if option.name not in ("config", "debug")]
    return read_values(str(path), read_toml(path, command), known, f"`upweight {command}`")


def read_toml(path: str | Path, command: str) -> dict[str, Any]:
    """What a TOML file of a command says, but for where it comes from.

    Args:
        path: The file.
        command: Name of the command.

    Returns:
        Plain values and tables; not checked yet.

    Raises:
        ConfigError: The file cannot be read, or was made for another command.
    """
    path = Path(path)
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML ({error}); mend it, or name another file.") from error
    made = held.pop(MADE, {})
    if isinstance(made, Mapping) and made.get("command", command) != command:
        raise ConfigError(f"{path} holds options of `upweight {made['command']}`, not of `upweight {command}`.")
    return held


def read_values(place: str, held: Mapping[str, Any], options: Iterable[Option], asked: str) -> dict[str, Any]:
    """The values of a TOML file, or of a table in it, as the options want them.

    Args:
        place: File and table, for messages.
        held: What it says; keys are names of options, with dashes or underscores.
        options: What may be said there.
        asked: What knows these options, for messages.

    Returns:
        Values by name.

    Raises:
        ConfigError: A name is unknown, or a value of another kind.
    """
    known = {option.name: option for option in options}
    config = {name.replace("-", "_"): value for name, value in held.items()}
    unknown = sorted(config.keys() - known.keys())
    if unknown:
        raise ConfigError(f"{place} sets {', '.join(unknown)}, unknown to {asked}; it knows {', '.join(known)}.")
    return {name: _from_toml(place, known[name], value) for name, value in config.items()}


def _from_toml(place: str, option: Option, value: Any) -> Any:
    if option.none and value == "none":
        return None
    if option.switch is not None and isinstance(value, bool):
        return option.switch if value else None
    items = (
        value if option.many and isinstance(value, list) else [value]
    )  # a list of one may be written without brackets
    if not all(item in option.words_too or _is_a(item, option.kind) for item in items):
        wanted = f"{_noun(option)}, or a list of such" if option.many else _noun(option)
        raise ConfigError(f"{place} sets {option.name} = {json.dumps(value, default=str)}; {wanted} is wanted.")
    if option.choices and value not in option.choices:
        raise ConfigError(f"{place} sets {option.name} = {value!r}; choose one of {', '.join(option.choices)}.")
    typed = tuple(item if item in option.words_too else option.kind(item) for item in items)
    return typed if option.many else typed[0]


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


# ---- from values to the file that replays them -----------------------------------------------------------------------------


def to_toml(command: str, bound: Sequence[Bound], values: Mapping[str, Any]) -> str:
    """The file that replays a command.

    Args:
        command: Its name.
        bound: Its options.
        values: Their values.

    Returns:
        TOML text; options without a value are left out.
    """
    kept = {
        option.name: values[option.name]
        for _, option in bound
        if option.replayed and not (values[option.name] is None and option.default is None)
    }
    return "\n".join([
        f"# Replay: upweight {command} --config <this file>",
        *toml_lines(kept),
        "",
        *made_lines(command),
    ])


def toml_lines(values: Mapping[str, Any]) -> list[str]:
    """Keys and values of a TOML file, or of a table in it.

    Args:
        values: By name.

    Returns:
        One line each; None is written as the word none.
    """
    return [f"{name} = {_toml('none' if value is None else value)}" for name, value in values.items()]


def made_lines(command: str) -> list[str]:
    """The last table of a file that replays a command: where it comes from.

    Args:
        command: Its name.

    Returns:
        Lines, the last of them empty.
    """
    lines = [f"[{MADE}]", f"command = {_toml(command)}", f"upweight = {_toml(__version__)}"]
    return [*lines, "# relative paths above start here", f"folder = {_toml(str(Path.cwd()))}", ""]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):  # what JSON escapes TOML reads, but for one character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def save_config(path: Path, text: str) -> None:
    """Put the file that replays a command beside its results; a file that somebody wrote by hand is left alone.

    Args:
        path: Where to; its folder is there.
        text: What `to_toml` gave.
    """
    if path.exists():
        held = read_made(path)
        if not held or path.read_text(encoding="utf-8") == text:
            return
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8", errors="replace")
    os.replace(new, path)


def read_made(path: Path) -> dict[str, Any]:
    """A file that `save_config` wrote.

    Args:
        path: The file.

    Returns:
        All it holds, with the table `made`; nothing where it is not such a file.
    """
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}
    return held if isinstance(held.get(MADE), dict) else {}
