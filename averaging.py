"""Several trainings of one network: each is scored into its own store, and the mean of their scores into another.

Heavy modules are imported inside the functions that need them, so that the command line can show its options at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import UsageError
from .cache.errors import StoreMismatch
from .influence.settings import AttributeSettings
from .pipeline import attribute_run, run_config
from .scoring import STORE_FILE, open_scores, standing_scores

if TYPE_CHECKING:
    from .influence.examples import Progress
    from .influence.scores import Scores

SEEDS = ("seed", "images_seed")
IDLE = ("device", "cache_mb", "evaluate_every")
"""Of a recipe, what decides no weight."""


def attribute_runs(
    runs: Sequence[Path],
    settings: AttributeSettings,
    out: Path,
    *,
    unit_rows: bool = False,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
) -> dict[str, Scores]:
    """Score every run into its own influence.h5, and write the mean of their scores to OUT/influence.h5.

    What a run has been scored by under these settings is taken as it is, and a begun store is gone on with. The mean is formed
    block of rows by block, so that no matrix is in memory as a whole.

    Args:
        runs: Run folders: trainings of one recipe on the same train images.
        settings: Parameters, curvature, label; the same for all.
        out: Folder for the mean.
        unit_rows: Divide the scores of every query by their root mean square first, as in `average`.
        overwrite: Replace scores that were made under other settings, of the runs and of their mean.
        progress: As in `attribute`.

    Returns:
        Mean scores by variant; the main one is named "".
    """
    from .cache.store import save_variants
    from .influence.average import average_as_read
    from .reports.progress import prefixed, reporting

    infos = read_alike(runs, settings, out)
    store, config = out / STORE_FILE, average_config(infos, settings, unit_rows=unit_rows)
    finished = standing_scores(store, config, overwrite=overwrite)
    if finished is not None:
        return finished
    every = standing_runs(runs, infos, settings, overwrite=overwrite)
    with reporting(progress) as report:
        for i, (run, scores) in enumerate(zip(runs, every, strict=True)):
            told = prefixed(report, f"{i + 1}/{len(runs)} {run.name}")
            every[i] = scores or attribute_run(run, settings, overwrite=overwrite, progress=told)
        scored = [scores for scores in every if scores is not None]
        mean = {name: average_as_read([scores[name] for scores in scored], unit_rows=unit_rows) for name in scored[0]}
        for one in mean.values():
            one.meta["warnings"] = [*_more_than_seeds(infos), *one.meta["warnings"]]
        hashes = {name: config[name] for name in config if name.endswith("sha256")}
        about = {"averaged": [_told(run, info) for run, info in zip(runs, infos, strict=True)], "hashes": hashes}
        told = prefixed(report, "average")
        save_variants(mean, store, config=config, attributes=about, overwrite=overwrite, progress=told)
    return {name: open_scores(store, name) for name in mean}


def read_alike(runs: Sequence[Path], settings: AttributeSettings, out: Path) -> list[dict[str, Any]]:
    """What the run.json of each run holds, when their scores can be averaged.

    Args:
        runs: Run folders.
        settings: What is asked of them.
        out: Folder for the mean.

    Returns:
        Plain values, in the order of the runs.

    Raises:
        UsageError: There are fewer than two, one is named twice, they are not alike, or the mean has no place or no meaning.
    """
    from .models.runs import RUN_FILE, read_run
    from .models.same_images import first_difference

    if len(runs) < 2:
        given = "one is" if runs else "none is"
        raise UsageError(f"An average is taken over several runs, and {given} given; name at least two.")
    if settings.query_label == "predicted" or "predicted" in settings.also:
        raise UsageError(
            "Runs predict classes of their own, and scores at the predicted label are averaged over different questions; "
            "leave `predicted` out."
        )
    infos = [read_run(run) for run in runs]
    if (out / RUN_FILE).exists():
        raise UsageError(f"{out} is a run, whose own scores lie there; name another folder for the average.")
    first: dict[str, Path] = {}
    for run, info in zip(runs, infos, strict=True):
        if info["model_sha256"] in first:
            raise UsageError(f"{first[info['model_sha256']]} and {run} hold the same weights; name each run once.")
        first[info["model_sha256"]] = run
    for run in runs[1:]:
        difference = first_difference(runs[0], run)
        if difference is not None:
            raise UsageError(
                f"These runs have no average, as {difference}; name runs of one recipe on the same images."
            )
    return infos


def average_config(
    infos: Sequence[Mapping[str, Any]], settings: AttributeSettings, *, unit_rows: bool = False
) -> dict[str, Any]:
    """What decides mean scores.

    Args:
        infos: What the run.json of each run holds; their order does not matter.
        settings: What is asked of them.
        unit_rows: Whether the scores of every query are divided by their root mean square first.

    Returns:
        Settings, and the hashes of all weights and of the data.
    """
    hashes = sorted(info["model_sha256"] for info in infos)
    return {**run_config(infos[0], settings), "model_sha256": hashes, **({"unit_rows": True} if unit_rows else {})}


def standing_runs(
    runs: Sequence[Path], infos: Sequence[Mapping[str, Any]], settings: AttributeSettings, *, overwrite: bool
) -> list[dict[str, Scores] | None]:
    """What is there already; scores of other settings are refused before any run is scored.

    Args:
        runs: Run folders.
        infos: What the run.json of each holds.
        settings: What is asked of them.
        overwrite: Scores of other settings may be replaced.

    Returns:
        The finished scores of each run by variant, None where they are still to be made.

    Raises:
        StoreMismatch: A run was scored under other settings.
    """
    try:
        return [
            standing_scores(run / STORE_FILE, run_config(info, settings), overwrite=overwrite)
            for run, info in zip(runs, infos, strict=True)
        ]
    except StoreMismatch as error:
        error.add_note("An average needs all runs scored alike: give the options that this one was scored with.")
        raise


def _told(run: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": run.absolute().name,
        "source": info["source"]["name"],
        "k": info["k"],
        "seed": info["seed"],
        "model_sha256": info["model_sha256"],
    }


def _more_than_seeds(infos: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to know of an average over runs of several recipes."""
    recipes = [{**info["settings"], "source": info["source"]["sha256"]} for info in infos]
    names = dict.fromkeys(name for recipe in recipes for name in recipe if name not in (*SEEDS, *IDLE))
    differ = [name for name in names if any(recipe.get(name) != recipes[0].get(name) for recipe in recipes)]
    return [f"The averaged runs differ in more than their seeds: in {', '.join(differ)}."] * bool(differ)
