"""What the page says about one group of runs: its figures, its tables and the words around them."""

from __future__ import annotations

from collections.abc import Callable

from ..influence.tables import Table
from .class_match import ClassMatch
from .conclusions import conclude
from .heatmap import HeatMaps
from .labels import number, percent, variant_label
from .neighbours import Neighbours
from .output import Grid, Output, Part, Section, grid
from .runs import SIDES, Group
from .saliency import Saliency
from .settings import ReportSettings
from .spectrum import FACTS, Spectra
from .tabular import estimate_grid

Step = Callable[[], None]
TITLES = {"test": "test queries", "train": "train queries, self left out"}


def group_sections(
    group: Group, output: Output, settings: ReportSettings, step: Step
) -> tuple[list[Section], list[str]]:
    """Everything about one group.

    Args:
        group: Runs to compare.
        output: Where figures and tables go.
        settings: How they are made.
        step: Called after each of `STEPS` pieces of work.

    Returns:
        The sections that the runs have the data for, and the conclusions.
    """
    sections: list[Section | None] = []
    conclusions: list[str] = []
    for side in SIDES:
        match = ClassMatch(group, side, settings)
        if side == "test" and match:
            conclusions = conclude(match)
        sections.append(_class_match(match, output))
        step()
    for side in SIDES:
        sections.append(_heat_maps(HeatMaps(group, side, settings), output))
        step()
    sections.append(_neighbours(Neighbours(group, settings), output))
    step()
    sections.append(_saliency(Saliency(group, settings), output))
    step()
    sections.append(_spectrum(Spectra(group), output))
    step()
    return [section for section in sections if section is not None], conclusions


STEPS = 7


def _class_match(match: ClassMatch, output: Output) -> Section | None:
    if not match:
        return None
    key = f"{match.group.key}-{match.side}"
    output.add("class_match_runs", match.runs_frame())
    curves = output.add("class_match_curves", match.curves())
    frame = match.frame()
    queries = (
        "test queries" if match.side == "test" else "train examples as queries, each left out of its own neighbours"
    )
    parts: list[Part] = [
        output.picture(
            f"class-match-{key}",
            match.plot_summary(),
            alt=f"Class-match rates of every method and source, {queries}",
            caption=f"Class match of {queries}. {_basis(match)} Dotted: a random order of the train set.",
        ),
        estimate_grid(
            frame,
            rows={
                (method,): [label.replace("\n", " ")] for method, label in {**match.labels, "chance": "chance"}.items()
            },
            row_columns=["method"],
            measures={name: name for name in match.measures.values()},
            sources=match.sources,
            head=["method"],
            file=output.add("class_match", frame),
            caption=f"Class match in percent, with 95% intervals (cut where shares end); differences in points, paired by "
            f"{_pairing(match)}",
        ),
        output.picture(
            f"class-match-rank-{key}",
            match.plot(),
            alt=f"Class-match rate against the rank of the neighbour, a panel for each method, {queries}",
            caption=f"Share of queries whose neighbour of each rank has their true class, ranks 1 to {match.ranks}. "
            f"All numbers: {curves}.",
        ),
        output.picture(
            f"class-match-cumulative-{key}",
            match.plot(cumulative=True),
            alt=f"Cumulative class-match rate against rank, a panel for each method, {queries}",
            caption="The same, cumulative: mean share of matches among the first so many neighbours.",
        ),
    ]
    return Section(anchor=f"class-match-{key}", heading=f"Class match: {TITLES[match.side]}", parts=parts)


def _basis(match: ClassMatch) -> str:
    seeds = len(match.group.seeds)
    if seeds > 1:
        return (
            f"Points are means over {seeds} seeds, bars 95% t intervals over these seeds (cut at 0 and 1 in figures)."
        )
    return "One seed: bars are 95% Wilson intervals over the queries of that run."


def _pairing(match: ClassMatch) -> str:
    return "seed" if len(match.group.seeds) > 1 else "query"


def _heat_maps(maps: HeatMaps, output: Output) -> Section | None:
    if not maps:
        return None
    key = f"{maps.group.key}-{maps.side}"
    facts = maps.facts()
    note = (
        " The queries are the train examples themselves: self-influence is the diagonal of the heat map, and is left out of the "
        "class means."
        if maps.side == "train"
        else ""
    )
    beyond = percent(float(facts["share_beyond"].max()))
    parts: list[Part] = [
        output.picture(
            f"heat-map-{key}",
            maps.plot(),
            alt=f"Influence matrices sorted by class, {maps.side} queries",
            caption=f"Influence of train examples (columns) on queries (rows), both sorted by class; seed "
            f"{maps.group.first_seed}. Each matrix is divided by its root mean square score, that is by its Frobenius norm up to "
            f"a constant, and averaged in blocks within classes. Colours end at ±{number(maps.limit)}, the "
            f"{percent(maps.settings.clip, 0)} quantile of all blocks shown; at most {beyond} of a panel's blocks "
            f"lie beyond.{note}",
        ),
        output.picture(
            f"heat-map-classes-{key}",
            maps.plot_classes(),
            alt=f"Mean influence by class of the query and class of the train example, {maps.side} queries",
            caption="Mean score by class of the query (rows) and of the train example (columns), over the r.m.s. score. "
            "Blue on the diagonal: train examples help queries of their own class. Red off it: classes that compete.",
        ),
        grid(
            facts,
            {
                "source": "source",
                "variant": "scores",
                "frobenius": "Frobenius norm",
                "rms": "r.m.s. score",
                "share_beyond": "share beyond",
            },
            output.add("heat_maps", facts),
            "Scale of each matrix, nats per unit weight",
            folded=True,
        ),
    ]
    output.add("heat_map_classes", maps.frame())
    return Section(anchor=f"heat-map-{key}", heading=f"Influence by class: {maps.side} queries", parts=parts)


def _neighbours(view: Neighbours, output: Output) -> Section | None:
    frame = view.frame()
    file = output.add("neighbours", frame)
    if not view:
        return None
    shown = view.group.drawn[0]
    variant = next(name for name, scores in shown.scores.items() if scores is shown.main)
    picture = output.picture(
        f"neighbours-{view.group.key}",
        view.plot(),
        alt="One query of every class with its most helpful and most harmful train images for each source",
        caption="One query a class, with the train images of highest and lowest influence "
        f"({variant_label(shown, variant)}; seed {view.group.first_seed}). Below each: its class (≠: helpful, but not the "
        "query's class) and its score, nats per unit weight; scores compare within a row and source only. "
        f"Every variant: {file}.",
    )
    return Section(
        anchor=f"neighbours-{view.group.key}", heading="Most helpful and most harmful images", parts=[picture]
    )


def _saliency(view: Saliency, output: Output) -> Section | None:
    if not view:
        return None
    file = output.add("saliency", view.frame())
    deviations = number(view.deviations)
    picture = output.picture(
        f"saliency-{view.group.key}",
        view.plot(),
        alt="The same queries above the gradient of their loss in the pixels, for each source",
        caption="Gradient of the loss with respect to pixels in [0, 1], through the model's own normaliser. One rule for all "
        f"models: s = {deviations} standard deviations of the image's gradient, values clamped to ±s and shown as (1 + g/s)/2, "
        f"so mid-grey is zero. s, in nats per unit of a pixel, is printed below each ({file}).",
    )
    return Section(anchor=f"saliency-{view.group.key}", heading="Input gradients", parts=[picture])


def _spectrum(view: Spectra, output: Output) -> Section | None:
    frame = view.frame()
    file = output.add("spectrum", frame)
    parts: list[Part] = []
    if view:
        output.add("eigenvalues", view.eigenvalues())
        parts.append(
            output.picture(
                f"spectrum-{view.group.key}",
                view.plot(),
                alt="Eigenvalues of the curvature in descending order on a logarithmic scale",
                caption=f"Eigenvalues of the mean curvature, seed {view.group.first_seed}. Only those above the dashed cutoff "
                "are inverted in the undamped scores; the dotted damping is added to each of them in the damped ones.",
            )
        )
    if len(frame):
        parts += [_facts(frame, file), *_sensitivity(frame, file)]
    return (
        Section(anchor=f"spectrum-{view.group.key}", heading="Spectrum of the curvature", parts=parts)
        if parts
        else None
    )


def _facts(frame: Table, file: str) -> Grid:
    head = {"run": "run", "variant": "scores", **{name: name.replace("_", " ") for name in FACTS}}
    return grid(frame, head, file, "Facts of the curvature and its inverse, every run", folded=True)


def _sensitivity(frame: Table, file: str) -> list[Grid]:
    changes = [name for name in frame.columns if "_changed_at_" in name]
    if not changes:
        return []
    head = {"run": "run", "variant": "scores"}
    head |= {name: name.replace("_changed_at_", " changed at ").replace("top", "top ") for name in changes}
    caption = "Share of neighbours that change when the cutoff, or the damping where there is one, is ten times smaller or larger"
    return [grid(frame, head, file, caption, folded=True)]
