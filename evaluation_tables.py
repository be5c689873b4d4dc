"""The tables of an evaluation, from the scores of a run and from its refits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .evaluation_bench import Bench, Method, Truths, first_damping
from .evaluation_sets import remove_sets
from .scoring import make_curvature

if TYPE_CHECKING:
    from .evaluation import EvaluateSettings
    from .influence.evaluation import Lds
    from .influence.tables import Table
    from .influence.truth import Truth
    from .models.runs import Run
    from .reports.evaluation import Curve, Evaluated
    from .retraining import Mislabelled


def tabulate(bench: Bench, truths: Truths, settings: EvaluateSettings) -> Evaluated:
    """Everything that was asked for, measured and put into tables.

    Args:
        bench: The run and its scores.
        truths: Its refits, made here where they are not there yet.
        settings: What was asked for.

    Returns:
        What the page shows.
    """
    from .reports.evaluation import Evaluated

    parts, single = truths.lds(), truths.loo()
    found = Evaluated(
        title=f"{bench.run.path.absolute().name}: scores against retraining",
        facts=_facts(bench.run, settings),
        methods=_methods(bench, parts, single, settings),
    )
    if parts is not None:
        main = _lds(bench.methods[0], parts, settings)
        found = replace(found, ceiling=main.ceiling, differences=_differences(bench, parts, settings))
        if settings.curve:
            found = replace(found, curve=_curve(bench, parts, settings))
    if single is not None:
        found = replace(found, scatter=_scatter(bench, single, settings))
    if settings.removal:
        removal, groups = remove_sets(bench, truths, settings)
        found = replace(found, removal=removal, groups=groups)
    wrong = truths.mislabelled()
    if wrong is not None:
        found = replace(found, mislabel=_mislabel(bench, wrong))
    found = replace(found, refits=_refits(truths), facts=[*found.facts[:-1], _refitted(truths), found.facts[-1]])
    return replace(found, conclusions=[*conclude(found), *bench.notes])


def _facts(run: Run, settings: EvaluateSettings) -> list[tuple[str, str]]:
    from . import __version__

    info = run.info
    return [
        ("Run", run.path.absolute().name),
        ("Source", str(info["source"]["name"])),
        ("Target data", str(info["data"]["name"])),
        ("Train examples n", f"{len(run.train):,}"),
        ("Queries", f"{len(run.test):,}"),
        ("Fine-tuned blocks k", str(info["k"])),
        ("Accuracy", f"{100 * info['accuracy']['test']:.1f}% of the queries"),
        ("Held against", f"the {settings.output} of every query at its true label"),
        ("Version", f"upweight {__version__}"),
    ]


def _methods(bench: Bench, parts: Truth | None, single: Truth | None, settings: EvaluateSettings) -> Table:
    """A row a method: LDS, leave-one-out and class match, as far as there are refits."""
    from .reports.runs import table_of

    rows = []
    for method in bench.methods:
        row: dict[str, Any] = {"method": method.name, "kind": method.kind}
        if parts is not None:
            one = _lds(method, parts, settings)
            row |= {"lds": one.mean, "lds_low": one.low, "lds_high": one.high}
        if single is not None:
            row |= _leave_one_out(method, single, settings)
        rows.append(row | _matches(bench, method))
    return table_of(rows, f"Every way to score, held against refits by the {settings.output} of the queries")


def _lds(method: Method, parts: Truth, settings: EvaluateSettings) -> Lds:
    from .influence.evaluation import lds

    return lds(method.matrix, parts, settings.output, seed=settings.seed)  # type: ignore[arg-type]  # checked by the settings


def _leave_one_out(method: Method, single: Truth, settings: EvaluateSettings) -> dict[str, float]:
    from .influence.removal import loo

    one = loo(method.matrix, single, settings.output, seed=settings.seed)  # type: ignore[arg-type]
    low, high = one.pearson_interval
    return {"loo_pearson": one.pearson, "loo_low": low, "loo_high": high, "loo_spearman": one.spearman}


def _matches(bench: Bench, method: Method) -> dict[str, float]:
    """Share of the queries whose first neighbour has their class, and of all among the first five."""
    from .influence.ranking import neighbours

    m, n = len(bench.main.queries), bench.n
    order = neighbours(lambda rows: method.matrix[rows], m, n, 5, on_itself=False)
    hits = bench.main.train.label[order] == bench.main.queries.label[:, None]
    return {"match_1": float(hits[:, 0].mean()), "match_5": float(hits.mean())}


def _differences(bench: Bench, parts: Truth, settings: EvaluateSettings) -> Table:
    from .influence.evaluation import lds_difference
    from .reports.runs import table_of

    main, *others = bench.methods
    rows = []
    for other in others:
        one = lds_difference(main.matrix, other.matrix, parts, settings.output, seed=settings.seed)  # type: ignore[arg-type]
        decided = "yes" if one.low > 0 or one.high < 0 else "no"
        rows.append({
            "method": other.name, "difference": one.mean, "low": one.low, "high": one.high, "decided": decided,
        })  # fmt: skip
    return table_of(
        rows, f"LDS of {main.name} minus that of every other method, on the same draws of parts and queries"
    )


def _curve(bench: Bench, parts: Truth, settings: EvaluateSettings) -> Curve | None:
    """LDS at other dampings and cutoffs; None for a method without a curvature."""
    from .influence.curve import damping_curve
    from .reports.evaluation import Curve

    if bench.main.spectrum is None:
        return None
    curvature = make_curvature(bench.prepared, replace(bench.settings, also=(), leave_one_out=None))
    output: Any = settings.output
    made = damping_curve(bench.prepared, first_damping(curvature), parts, output=output, seed=settings.seed)
    largest = made.lambda_max
    return Curve(
        table=made.table, given=made.given / largest, recommended=made.recommended / largest, sentence=made.sentence()
    )


def _scatter(bench: Bench, single: Truth, settings: EvaluateSettings) -> tuple[NDArray[Any], NDArray[Any], str]:
    from .influence.removal import loo

    one = loo(bench.methods[0].matrix, single, settings.output, resamples=0)  # type: ignore[arg-type]
    words = [f"Pearson {one.pearson:.3f}", f"Spearman {one.spearman:.3f}", f"slope {one.slope:.2f}"]
    if np.isfinite(one.repeat_correlation) and one.repeat_correlation < 1:
        words.append(f"between repeats {one.repeat_correlation:.3f}")
    return one.predicted, one.actual, "\n".join(words)


def _mislabel(bench: Bench, wrong: Mislabelled) -> Table:
    """How early each order of inspection meets the changed labels."""
    from .influence.evaluation import mislabel
    from .reports.runs import table_of

    rows = []
    for name, values in bench.self_influences(wrong).items():
        one = mislabel(values, wrong.flipped)
        rows.append({
            "method": name, "auc": one.auc, "auc_low": one.low, "auc_high": one.high, "found_at_10": one.found_at_10,
        })  # fmt: skip
    share = f"{wrong.flipped.sum()} of {len(wrong.flipped)} labels changed at random, and the network trained on them"
    return table_of(rows, f"{share}: how early each order of inspection meets them")


def _refits(truths: Truths) -> Table:
    """What was trained again, and what came to nothing."""
    from .reports.runs import table_of

    words = {"lds": "random parts", "loo": "one example left out", "sets": "sets taken away"}
    rows = [
        {
            "refits": words[kind],
            "parts": len(truth.kept),
            "trainings_of_each": truth.seed.shape[1],
            "kept_on_average": float(truth.kept.sum(1).mean()),
            "diverged": int(truth.diverged.sum()),
        }
        for kind, truth in truths.made.items()
    ]
    columns = ("refits", "parts", "trainings_of_each", "kept_on_average", "diverged")
    return table_of(rows, "Refits, kept in the run's folder", columns)


def _refitted(truths: Truths) -> tuple[str, str]:
    """How the run was trained again."""
    if any(truth.exact for truth in truths.made.values()):
        return "Refits", "the head at the optimum of its convex objective, which its own training may not have reached"
    return "Refits", "by the run's own recipe"


def conclude(found: Evaluated) -> list[str]:
    """Sentences that the tables bear out.

    Args:
        found: The tables.

    Returns:
        The main result first.
    """
    said = [
        make(found) for make in (_lds_sentence, _curve_sentence, _loo_sentence, _group_sentence, _mislabel_sentence)
    ]
    lost = int(sum(found.refits["diverged"])) if len(found.refits) else 0
    if lost:
        said.append(f"{lost} refits diverged; they are left out of every mean.")
    return [sentence for sentence in said if sentence]


def _lds_sentence(found: Evaluated) -> str:
    if found.differences is None:
        return ""
    first = found.methods.rows()[0]
    behind = [row["method"] for row in found.differences.rows() if row["low"] > 0]
    ahead = [row["method"] for row in found.differences.rows() if row["high"] < 0]
    ceiling = f", where {found.ceiling:.3f} is the most that can be reached" if np.isfinite(found.ceiling) else ""
    said = (
        f"{first['method']}: LDS {first['lds']:.3f} [{first['lds_low']:.3f}, {first['lds_high']:.3f}]{ceiling}; it is ahead of "
        f"{len(behind)} of the {len(found.differences)} other methods, the paired interval above zero"
    )
    return said + (f", and behind {' and '.join(ahead)}." if ahead else ", and behind none.")


def _curve_sentence(found: Evaluated) -> str:
    return found.curve.sentence if found.curve is not None else ""


def _loo_sentence(found: Evaluated) -> str:
    if "loo_pearson" not in found.methods.columns:
        return ""
    first = found.methods.rows()[0]
    return (
        f"One example left out: its scores and the measured changes correlate at {first['loo_pearson']:.3f} (Pearson), "
        f"[{first['loo_low']:.3f}, {first['loo_high']:.3f}]."
    )


def _group_sentence(found: Evaluated) -> str:
    if found.groups is None or not len(found.groups):
        return ""
    of = {row["predicted_by"]: row for row in found.groups.rows()}
    words = [f"{name} {row['pearson']:.3f} (slope {row['slope']:.2f})" for name, row in of.items()]
    return f"Sets taken away: predicted and measured rises correlate at {', '.join(words)}."


def _mislabel_sentence(found: Evaluated) -> str:
    if found.mislabel is None:
        return ""
    first, *others = found.mislabel.rows()
    best = max(others, key=lambda row: float(row["auc"]))
    said = f"Wrong labels: {first['method']} finds them with an AUC of {first['auc']:.3f}"
    return f"{said}, {best['method']} with {best['auc']:.3f}."
