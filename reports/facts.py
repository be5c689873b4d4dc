"""What was compared: the facts at the head of the page, every run's scores, and the warnings they came with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import __version__
from ..influence.scores import Scores
from ..influence.tables import Table
from .labels import number, percent
from .runs import Group, RunView, order_sources, table_of, variant_name

_DECIMAL = re.compile(r"\d+\.\d+(?:e-?\d+)?")


def headline(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """What was compared, in short.

    Args:
        groups: All groups of the report.

    Returns:
        Terms and what they are here.
    """
    runs = [run for group in groups for run in group.runs]
    scores = [held for run in runs for held in run.scores.values()]
    dampings = sorted({s.spectrum.damping for s in scores if s.spectrum is not None})
    facts = [
        ("Source models", _join(order_sources(run.source for run in runs))),
        ("Accuracy on the sources' own data", _source_accuracy(runs)),
        ("Network", _join(_architecture(run) for run in runs)),
        ("Recipes", _recipes(runs)),
        ("Target data", _join(run.data for run in runs)),
        ("Fine-tuned blocks k", _join(str(run.k) for run in sorted(runs, key=lambda run: run.k))),
        ("Train examples n", _join(str(group.n) for group in groups)),
        ("Queries m", _join(str(len(run.main.queries)) for run in runs)),
        ("Seeds", _join(str(run.seed) for run in runs)),
        ("Parameters analysed", _join(_parameters(s) for s in scores)),
        ("Curvature", _join(str(s.meta.get("curvature", {}).get("name", "")) for s in scores)),
        ("Damping", _join("0 (pseudo-inverse)" if d == 0 else number(d) for d in dampings)),
        ("Weight decay of training", _join(_weight_decay(run) for run in runs)),
        ("Version", f"upweight {__version__}"),
    ]
    return [(term, text) for term, text in facts if text]


def scores_table(groups: Sequence[Group]) -> Table:
    """Every run and variant with the settings of its scores.

    Args:
        groups: All groups of the report.

    Returns:
        A row for each.
    """
    rows = [
        {
            **group.columns_of(run),
            "run": run.name,
            "source": run.arm,
            "recipe": run.recipe,
            "seed": run.seed,
            "variant": variant_name(variant),
            "m": len(scores.queries),
            "train_scores": scores.on_train is not None,
            "architecture": _architecture(run),
            "curvature": str(scores.meta.get("curvature", {}).get("name", "")),
            "query_label": str(scores.meta.get("query_label", "true")),
            "damping": scores.spectrum.damping if scores.spectrum is not None else float("nan"),
            "parameters": int(scores.meta.get("p", -1)),
            "mean_gradient": float(scores.meta.get("mean_gradient", float("nan"))),
        }
        for group in groups
        for run in group.runs
        for variant, scores in run.scores.items()
    ]
    return table_of(rows, "Every run and its scores")


def warnings_of(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The warnings that scores carry, each once; those that differ in a decimal number alone are one, with its range.

    Args:
        groups: All groups of the report.

    Returns:
        Text, and the runs it was given for.
    """
    found: dict[tuple[str, ...], tuple[list[list[str]], list[str]]] = {}
    for group in groups:
        for run in group.runs:
            for text in (text for scores in run.scores.values() for text in scores.meta.get("warnings", ())):
                numbers, runs = found.setdefault(tuple(_DECIMAL.split(text)), ([], []))
                numbers.append(_DECIMAL.findall(text))
                runs.append(run.name)
    return [
        {"text": _with_ranges(words, numbers), "runs": list(dict.fromkeys(runs))}
        for words, (numbers, runs) in found.items()
    ]


def _with_ranges(words: Sequence[str], numbers: Sequence[Sequence[str]]) -> str:
    """A sentence of which several exist, with the lowest and the highest of each number in it."""
    ends = [(min(column, key=float), max(column, key=float)) for column in zip(*numbers, strict=True)]
    shown = [low if low == high else f"{low} to {high}" for low, high in ends]
    return "".join(part for pair in zip(words, [*shown, ""], strict=True) for part in pair)


def _join(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(word for word in words if word))


def _recipes(runs: Sequence[RunView]) -> str:
    """What was done otherwise than in a plain fine-tuning; nothing where all of them were plain."""
    found = dict.fromkeys(run.recipe for run in runs)
    return "; ".join(recipe or "plain" for recipe in found) if any(found) else ""


def _metadata(run: RunView) -> Mapping[str, Any]:
    """What the file of the run's source model said about itself."""
    found = run.info.get("source", {}).get("metadata", {})
    return found if isinstance(found, Mapping) else {}


def _architecture(run: RunView) -> str:
    """Name of the network: recorded in the source's settings, or told from its file."""
    metadata = _metadata(run)
    named = metadata.get("architecture") or metadata.get("settings", {}).get("architecture")
    return str(named or metadata.get("found", "").partition(" with ")[0])


def _source_accuracy(runs: Sequence[RunView]) -> str:
    """What each source reaches on its own data, and under the attack it was measured with."""
    words = {}
    for run in runs:
        accuracy = _metadata(run).get("accuracy", {})
        if "natural" in accuracy and "pgd" in accuracy:
            attack = f"PGD-{accuracy['pgd_steps']}, {accuracy['pgd_norm']} ≤ {number(accuracy['pgd_eps'])}"
            words[run.source] = (
                f"{run.source} {percent(accuracy['natural'])}, attacked {percent(accuracy['pgd'])} ({attack})"
            )
    return "; ".join(words[source] for source in order_sources(words))


def _parameters(scores: Scores) -> str:
    names, p = scores.meta.get("parameters"), scores.meta.get("p")
    if not names:
        return ""
    shown = " and ".join(names) if len(names) <= 2 else f"{len(names)} tensors from {names[0]} to {names[-1]}"
    return f"{shown} ({p:,})" if isinstance(p, int) else shown


def _weight_decay(run: RunView) -> str:
    value = run.info.get("weight_decay", run.main.meta.get("weight_decay"))
    return "" if value is None else number(float(value))
