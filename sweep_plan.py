"""What a sweep is: a TOML file read into frozen settings, and every run that they ask for. No torch before a function runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

from . import UsageError
from .models.settings import DataSettings, FineTuneSettings, PretrainSettings, RobustnessSettings, recipe_label
from .options import ConfigError, Option, made_lines, read_toml, read_values, settings_options, toml_lines
from .reports.settings import ReportSettings

T = TypeVar("T")
Count = int | Literal["all"]

PAPER_SEEDS = ((1600, 20), (6400, 10), (25600, 5))
"""Repetitions of the paper up to so many images; one above, and with all."""


def _require(good: bool, found: str, wanted: str) -> None:
    if not good:
        raise UsageError(f"{found}; {wanted}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSettings:
    """What a sweep goes through, and where to."""

    out: str = "upweight-sweep"
    """Folder for sources/, runs/ and report/."""

    title: str = "Transfer of source models"
    """Heading of the page."""

    sources: tuple[str, ...] = ()
    """natural and robust (shipped), names of [[source]] tables, or checkpoint files; not given: every [[source]] table, and
    without any natural and robust."""

    k: tuple[int | Literal["all"], ...] = (0, 1)
    """Residual blocks fine-tuned together with the head, one number after another; 0: the head alone; all: the whole network."""

    n: tuple[int | Literal["all"], ...] = (400,)
    """Training images, one number after another; all: all there are."""

    seeds: int | Literal["paper"] = 3
    """Repetitions; the i-th has the paper's seed 20000000 + 100000 i; paper: 20 up to 1,600 images, 10 up to 6,400, 5 up to
    25,600, 1 above and with all."""

    dpi: int = ReportSettings().dpi
    """Resolution of the figures, in dots per inch."""

    def __post_init__(self) -> None:
        _require(bool(self.out and self.title), "out or title is empty", "give a folder and a heading")
        for name, least in (("k", 0), ("n", 1)):
            values = getattr(self, name)
            _require(bool(values), f"{name} is an empty list", "give at least one number")
            good = all(value == "all" or (isinstance(value, int) and value >= least) for value in values)
            _require(good, f"{name} is {_words(values)}", f"give whole numbers of at least {least}, or all")
        good = self.seeds == "paper" or (isinstance(self.seeds, int) and self.seeds >= 1)
        _require(good, f"seeds is {self.seeds!r}", "give a whole number of at least 1, or paper")
        ReportSettings(dpi=self.dpi)  # its own check
        for name in ("sources", "k", "n"):
            values = getattr(self, name)
            _require(
                len(set(values)) == len(values),
                f"{name} names the same thing twice: {_words(values)}",
                "once is enough",
            )

    def repetitions(self, n: Count) -> int:
        """How many seeds a run of n images has."""
        if self.seeds != "paper":
            return self.seeds
        return 1 if n == "all" else next((count for most, count in PAPER_SEEDS if n <= most), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOrigin:
    """Where a source comes from that is not trained here."""

    name: str
    """What the source is called in tables and file names."""

    file: str | None = None
    """Weight file to take instead of training one; of the settings only norm and eps go with it, as what it was trained with."""

    def __post_init__(self) -> None:
        good = re.fullmatch(r"\w[\w .,+=-]*", self.name) and self.name == self.name.strip()
        _require(bool(good), f"name is {self.name!r}", "give letters, digits, spaces, dots or dashes, as for a file")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """A source network of a sweep."""

    name: str
    path: str
    """What `load_model` takes: natural, robust, or a file."""
    settings: PretrainSettings | None = None
    """How it is trained into that file, when it is this sweep that trains it."""
    norm: str | None = None
    """Ball of the attack that it was trained against, where the sweep says so; empty: trained naturally."""
    eps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run of a sweep."""

    name: str
    """Name of its folder."""
    source: SourceSpec
    recipe: str
    data: DataSettings
    settings: FineTuneSettings

    @property
    def words(self) -> str:
        """What it is, for messages."""
        return f"source {self.source.name}, {f'recipe {self.recipe}, ' if self.recipe else ''}data {self.data.data}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep, all of it."""

    file: str
    settings: SweepSettings
    attack: RobustnessSettings | None
    """What every run is attacked with; None: none is."""
    sources: tuple[SourceSpec, ...]
    """Those that some run begins with."""
    runs: tuple[RunSpec, ...]
    toml: str
    """The file that replays it."""

    @property
    def out(self) -> Path:
        """Folder of all that it makes."""
        return Path(self.settings.out).expanduser()

    def folder(self, run: RunSpec) -> Path:
        """Folder of one run."""
        return self.out / "runs" / run.name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    name: str
    grid: SweepSettings
    options: Mapping[str, Any]
    """Fine-tuning settings, but for k, n and seed."""


_GRID = ("sources", "k", "n", "seeds")
_PER_RUN = ("k", "n", "seed")  # fine-tuning settings that the grid sets
_LISTED = ("data", "resolution")  # fields of the data settings that a sweep goes through
_TABLES = ("data", "fine_tune", "attack", "recipe", "source")


def _options(cls: type, *hidden: str) -> list[Option]:
    return [option for _, option in settings_options([cls], hidden)]


def _data_options() -> list[Option]:
    return [_listed(one) if one.name in _LISTED else one for one in _options(DataSettings)]


def _listed(option: Option) -> Option:
    """The same option with several values; none is a word among them, as TOML has no other sign for it."""
    none = ("none",) * option.none
    return replace(option, many=True, none=False, words_too=none, default=none or (option.default,))


def _recipe_options() -> list[Option]:
    name = Option(name="name", help="what it is called in tables and folders; not given: what differs from a plain run")
    return [
        name,
        *(one for one in _options(SweepSettings) if one.name in _GRID),
        *_options(FineTuneSettings, *_PER_RUN),
    ]


def read_sweep(path: str | Path, out: str | None = None) -> Sweep:
    """Read a sweep's file, and list its runs.

    Args:
        path: A TOML file; examples/sweeps/ has some, and docs/transfer.md tells what may be in it.
        out: Folder to make instead of the one the file names.

    Returns:
        The sweep.

    Raises:
        ConfigError: The file cannot be read, or asks for something that there is not.
    """
    held = {name.replace("-", "_"): value for name, value in read_toml(path, "sweep").items()}
    tables = {name: held.pop(name) for name in _TABLES if name in held}
    top = _options(SweepSettings)
    shown = f"`upweight sweep`, with the tables {', '.join(_TABLES).replace('_', '-')}"
    values = {one.name: one.default for one in top} | read_values(str(path), held, top, shown)
    if out is not None:
        values["out"] = out
    settings = _made(str(path), SweepSettings, values)
    whole = {name: _table(path, name, tables.get(name, {})) for name in ("data", "fine_tune", "attack")}
    listed = {name: _list(path, name, tables.get(name, [])) for name in ("recipe", "source")}
    own, sources_toml = _read_sources(path, listed["source"], settings)
    if not settings.sources:
        settings = replace(settings, sources=tuple(own) or ("natural", "robust"))
    targets, data_toml = _read_data(path, whole["data"])
    attack, attack_toml = _read_attack(path, whole["attack"]) if "attack" in tables else (None, [])
    tuned = _options(FineTuneSettings, *_PER_RUN)
    base = read_values(f"{path} [fine-tune]", whole["fine_tune"], tuned, "it")
    recipes, recipes_toml = _read_recipes(path, listed["recipe"], base, settings)
    runs = _expand(path, recipes, targets, own)
    used = {run.source.name: run.source for run in runs}
    lines = [
        *["# Replay: upweight sweep <this file>", *toml_lines(_kept(top, asdict(settings)))],
        *["", "[data]", *data_toml],
        *["", "[fine-tune]", *toml_lines(_kept(tuned, {one.name: base.get(one.name, one.default) for one in tuned}))],
        *[*attack_toml, *recipes_toml, *sources_toml, "", *made_lines("sweep")],
    ]
    return Sweep(
        file=str(path),
        settings=settings,
        attack=attack,
        sources=tuple(used.values()),
        runs=runs,
        toml="\n".join(lines),
    )


def _made(place: str, cls: type[T], values: Mapping[str, Any]) -> T:
    """Settings; what does not fit is told with its place."""
    try:
        return cls(**values)
    except UsageError as error:
        raise ConfigError(f"{place}: {error}") from error


def _table(path: str | Path, name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} sets {name} = {value!r}; a table [{name.replace('_', '-')}] is wanted.")
    return value


def _list(path: str | Path, name: str, value: Any) -> list[Mapping[str, Any]]:
    """Tables of one name; a single one may be written without the second brackets."""
    if not all(isinstance(one, Mapping) for one in (value if isinstance(value, list) else [value])):
        raise ConfigError(f"{path} sets {name} = {value!r}; tables [[{name}]] are wanted.")
    return value if isinstance(value, list) else [value]


def _kept(options: Iterable[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a file need say: nothing is said for what is not given by default."""
    return {one.name: values[one.name] for one in options if not (values[one.name] is None and one.default is None)}


def _read_attack(path: str | Path, held: Mapping[str, Any]) -> tuple[RobustnessSettings, list[str]]:
    place, options = f"{path} [attack]", _options(RobustnessSettings)
    attack = _made(place, RobustnessSettings, read_values(place, held, options, "it"))
    return attack, ["", "[attack]", *toml_lines(_kept(options, asdict(attack)))]


def _read_data(path: str | Path, held: Mapping[str, Any]) -> tuple[list[DataSettings], list[str]]:
    place = f"{path} [data]"
    options = _data_options()
    values = {one.name: one.default for one in options} | read_values(place, held, options, "it")
    for name in _LISTED:
        listed = values.get(name, ())
        if not listed or len(set(listed)) < len(listed):
            raise ConfigError(f"{place} sets {name} = {list(listed)}; name every one once, and at least one.")
    lists = {name: values[name] for name in _LISTED if name in values}
    rest = {name: value for name, value in values.items() if name not in lists}
    each = [dict(zip(lists, chosen, strict=True)) for chosen in product(*lists.values())]
    plain = [{name: None if value == "none" else value for name, value in one.items()} for one in each]
    return [_made(place, DataSettings, {**rest, **one}) for one in plain], toml_lines(_kept(options, values))


def _read_sources(
    path: str | Path, tables: Sequence[Mapping[str, Any]], settings: SweepSettings
) -> tuple[dict[str, SourceSpec], list[str]]:
    """The [[source]] tables by name, and as they are written back."""
    own: dict[str, SourceSpec] = {}
    lines: list[str] = []
    trained = _options(PretrainSettings)
    options = [*_options(SourceOrigin), *trained]
    for position, table in enumerate(tables, 1):
        place = f"{path} [[source]] {table.get('name', position)}"
        values = read_values(place, table, options, "it")
        if "name" not in values:
            raise ConfigError(f'{place} has no name; give it one, as in name = "eps 0.5".')
        names = [field.name for field in fields(SourceOrigin)]
        origin = _made(place, SourceOrigin, {name: values.pop(name) for name in names if name in values})
        made = _made(place, PretrainSettings, values)
        if origin.name in own:
            raise ConfigError(f"{path} has two [[source]] tables called {origin.name}; give each a name of its own.")
        if origin.file is None:
            file = Path(settings.out).expanduser() / "sources" / f"{origin.name}.safetensors"
            own[origin.name] = SourceSpec(name=origin.name, path=str(file), settings=made)
            lines += ["", "[[source]]", *toml_lines({"name": origin.name, **_kept(trained, asdict(made))})]
            continue
        if idle := sorted(values.keys() - {"norm", "eps"}):
            raise ConfigError(
                f"{place} names a file, and {', '.join(idle)} would train one; leave the one or the other out."
            )
        eps = values.get("eps")
        norm = values.get("norm", None if eps is None else made.norm if eps else "")
        own[origin.name] = SourceSpec(name=origin.name, path=origin.file, norm=norm, eps=eps)
        lines += ["", "[[source]]", *toml_lines({**asdict(origin), **values})]
    return own, lines


def _read_recipes(
    path: str | Path, tables: Sequence[Mapping[str, Any]], base: Mapping[str, Any], settings: SweepSettings
) -> tuple[list[_Recipe], list[str]]:
    """The [[recipe]] tables, and as they are written back; without any, one plain recipe."""
    recipes: list[_Recipe] = []
    lines: list[str] = []
    for position, table in enumerate(tables or [{"name": ""}], 1):
        place = f"{path} [[recipe]] {table.get('name', position)}"
        values = read_values(place, table, _recipe_options(), "it")
        own = {name: values[name] for name in _GRID if name in values}
        grid = _made(place, SweepSettings, asdict(settings) | own)
        options = {**base, **{name: value for name, value in values.items() if name not in ("name", *_GRID)}}
        if "name" not in values:
            values["name"] = recipe_label(_made(place, FineTuneSettings, {**options, "k": grid.k[-1]}))
        if any(values["name"] == recipe.name for recipe in recipes):
            raise ConfigError(
                f"{path} has two [[recipe]] tables called {values['name']!r}; give each a name of its own."
            )
        recipes.append(_Recipe(name=values["name"], grid=grid, options=options))
        lines += ["", "[[recipe]]", *toml_lines(values)]
    return recipes, lines if tables else []


def _expand(
    path: str | Path, recipes: Iterable[_Recipe], targets: Sequence[DataSettings], own: Mapping[str, SourceSpec]
) -> tuple[RunSpec, ...]:
    """Every run, in the order they are made."""
    from .models.data import paper_seed

    runs = []
    for target, recipe in product(targets, recipes):
        for source, n, k in product(_sources(path, recipe.grid.sources, own), recipe.grid.n, recipe.grid.k):
            for i in range(recipe.grid.repetitions(n)):
                place = f"{path}: source {source.name}, recipe {recipe.name or 'plain'}, k = {k}"
                wanted = {**recipe.options, "k": k, "n": None if n == "all" else n, "seed": paper_seed(i)}
                settings = _made(place, FineTuneSettings, wanted)
                name = _folder_name(source, target, recipe.name, settings)
                runs.append(RunSpec(name=name, source=source, recipe=recipe.name, data=target, settings=settings))
    ((name, count),) = Counter(run.name for run in runs).most_common(1)
    if count > 1:
        first, other = [run.words for run in runs if run.name == name][:2]
        raise ConfigError(
            f"{path}: two runs would both be called {name} ({first}; {other}); rename a source or a recipe."
        )
    return tuple(runs)


def _sources(path: str | Path, names: Sequence[str], own: Mapping[str, SourceSpec]) -> list[SourceSpec]:
    from .models.checkpoints import SOURCES, weights_name

    for name in names:
        if name not in own and name not in SOURCES and not Path(name).expanduser().is_file():
            known = ", ".join(dict.fromkeys([*own, *SOURCES]))
            raise ConfigError(
                f"{path} has no source {name!r}, and there is no such file; name one of {known}, or a file."
            )
    return [
        own.get(name) or SourceSpec(name=name if name in SOURCES else weights_name(Path(name)), path=name)
        for name in names
    ]


def _folder_name(source: SourceSpec, data: DataSettings, recipe: str, settings: FineTuneSettings) -> str:
    resolution = getattr(data, "resolution", None)
    parts = [
        _slug(source.name),
        _slug(Path(data.data).stem if Path(data.data).suffix == ".npz" else Path(data.data).name),
        *([] if resolution is None else [f"r{resolution}"]),
        *([_slug(recipe)] if recipe else []),
        f"n{'all' if settings.n is None else settings.n}",
        f"k{settings.k}",
        f"s{settings.seed}",
    ]
    return "-".join(parts)


def _slug(words: str) -> str:
    return re.sub(r"[^\w.]+", "-", words.lower()).strip("-.") or "x"


def _words(values: Iterable[Any]) -> str:
    return " ".join(map(str, values))
