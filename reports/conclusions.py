"""What the class-match numbers allow one to say, in words computed from them."""

from __future__ import annotations

from collections.abc import Sequence

from .accuracy import accuracy
from .class_match import ClassMatch
from .intervals import Estimate
from .labels import percent, percentage_points
from .runs import Group
from .tabular import WIDE

MARGIN = 0.005
"""Half a point: below it, rates are called equal."""


def conclude(match: ClassMatch) -> list[str]:
    """What can and what cannot be concluded from one group's class match.

    Args:
        match: Class match for the test queries.

    Returns:
        Sentences; none where the scores lack what they would need.
    """
    return [sentence for sentence in (_label(match), _cosine(match), _predicted(match)) if sentence]


def _label(match: ClassMatch) -> str:
    """Whether the true-label rate goes beyond what the labels alone give."""
    influence, residual = _at_rank_1(match, "influence"), _at_rank_1(match, "residual")
    sources = [s for s in match.sources if s in influence and s in residual]
    if not sources:
        return ""
    damped = _at_rank_1(match, "influence_damped")
    also = f" (with damping {_list(damped, sources)})" if all(s in damped for s in sources) else ""
    rates = (
        f"At rank 1 influence finds a neighbour of the query's true class for {_list(influence, sources)} of the queries{also}; "
        f"the residual dot product, which sees labels and confidence but no features, for {_list(residual, sources)}. "
        "The label sits inside the gradient"
    )
    gains = _gains(match, sources)
    adding = {what: gain for what, gain in gains.items() if gain.low[0] > 0}
    if adding:
        more = _names([f"{percentage_points(float(gain.mean[0]))} ({what})" for what, gain in adding.items()])
        rest = [what for what in gains if what not in adding]
        open_ = f" For the rest ({_names(rest)}) the interval supports no such gain." if rest else ""
        return f"{rates}; what influence adds to it is {more}, and only that part can speak about the representation.{open_}"
    if any(float(gain.mean[0]) > MARGIN for gain in gains.values()):
        return (
            f"{rates}, and these runs do not tell influence apart from it: the true-label class match shows nothing yet about "
            "the representation."
        )
    return f"{rates}, and alone it does as well: the true-label class match carries no evidence about the representation here."


def _gains(match: ClassMatch, sources: Sequence[str]) -> dict[str, Estimate]:
    """What undamped and damped influence find beyond the residual dot product, for each source."""
    names = {"influence": "", "influence_damped": " with damping"}
    found = {
        f"{source}{words}": match.gain("rank1", method, "residual", source)
        for method, words in names.items()
        for source in sources
    }
    return {what: gain for what, gain in found.items() if gain is not None}


def _cosine(match: ClassMatch) -> str:
    """The measure that sees no label at all."""
    rates = _at_rank_1(match, "cosine")
    sources = [s for s in match.sources if s in rates]
    if not sources:
        return ""
    return (
        f"Feature cosine sees no label, so it can be compared between sources: {_list(rates, sources)} at rank 1"
        f"{_verdicts(match, 'cosine', sources)}."
    )


def _predicted(match: ClassMatch) -> str:
    """The measure that sees the predicted label, and what bounds it."""
    rates = _at_rank_1(match, "influence_predicted")
    sources = [s for s in match.sources if s in rates]
    if not sources:
        return ""
    text = (
        "With the loss taken at the predicted label the query's true label is not used: the rate is "
        f"{_list(rates, sources)} at rank 1{_verdicts(match, 'influence_predicted', sources)}. Were every first neighbour of the "
        f"predicted class, it would be the accuracy on these queries, {_list(_accuracies(match.group), sources)}"
    )
    labels = _at_rank_1(match, "residual_predicted")
    if not all(s in labels for s in sources):
        return text + "."
    return text + f"; the predicted label alone (residual dot product) gives {_list(labels, sources)}."


def _verdicts(match: ClassMatch, method: str, sources: Sequence[str]) -> str:
    estimates = {s: match.estimate("rank1", method, s, sources[0]) for s in sources[1:]}
    known = {s: found for s, found in estimates.items() if found is not None}
    if len(sources) > WIDE:
        return f"; against {sources[0]}: {_sorted_out(known)}" if known else ""
    return "".join(f"; {_verdict(found, s, sources[0])}" for s, found in known.items())


def _sorted_out(differences: dict[str, Estimate]) -> str:
    """Many sources by whether their interval lies above zero, below it or about it; the numbers are left to the table."""
    sides: dict[str, list[str]] = {"higher": [], "lower": [], "not told apart": []}
    for source, found in differences.items():
        above, below = found.low[0] > 0, found.high[0] < 0
        sides["higher" if above else "lower" if below else "not told apart"].append(source)
    return ", ".join(f"{side} ({_names(names)})" for side, names in sides.items() if names)


def _at_rank_1(match: ClassMatch, method: str) -> dict[str, float]:
    found = {s: match.estimate("rank1", method, s) for s in match.sources}
    return {s: float(estimate.mean[0]) for s, estimate in found.items() if estimate is not None}


def _accuracies(group: Group) -> dict[str, float]:
    def mean(source: str) -> float:
        known = [a for run in group.runs if run.arm == source and (a := accuracy(run, "test")) is not None]
        return sum(known) / len(known) if known else float("nan")

    return {source: mean(source) for source in group.sources}


def _verdict(difference: Estimate, source: str, base: str) -> str:
    mean, low, high = (float(part[0]) for part in (difference.mean, difference.low, difference.high))
    text = f"{source} minus {base} is {percentage_points(mean)}"
    if low != low:
        return f"{text}, without an interval"
    over = f"{difference.seeds} seeds" if difference.seeds > 1 else "one seed's queries"
    text += (
        f" (95% interval {percentage_points(low).removesuffix(' points')} to {percentage_points(high)}, over {over})"
    )
    if low > 0 or high < 0:
        return f"{text}: {source if low > 0 else base} is higher"
    return f"{text}: not told apart"


def _list(values: dict[str, float], sources: Sequence[str]) -> str:
    """What each source has; of many of them the least and the most."""
    if len(sources) > WIDE:
        ends = sorted(sources, key=lambda s: values[s])
        least, most = (percent(values[s]) for s in (ends[0], ends[-1]))
        return f"{least} ({ends[0]}) to {most} ({ends[-1]})" if least != most else f"{most} (every source)"
    return _names([f"{percent(values[s])} ({s})" for s in sources])


def _names(names: Sequence[str]) -> str:
    comma = ";" if any(", " in name for name in names) else ","
    return names[0] if len(names) == 1 else f"{f'{comma} '.join(names[:-1])} and {names[-1]}"
