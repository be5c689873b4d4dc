"""One method on one task, in a process of its own: `python -m benchmarks.quality.one METHOD TASK WHAT RESULT MEMORY CPU`.

WHAT is all, or given: nothing is swept.

The result is written again after every step, so that what was measured stays when a limit ends the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..measure import PeakMemory
from ..methods import Run
from ..one import limit_process, words_of
from ..problems import Problem
from .methods import CUTOFFS, ENTRIES
from .tasks import TASKS, Task, flipped, load_problem, read_facts

SCORES = Path(__file__).parents[1] / ".cache" / "quality"
COARSE = (5, 3, 7, 1, 9)  # steps of the damping: a 300th of the largest eigenvalue, a 30th, ...
FINE = tuple(range(2, 9))  # a 10th to a 10,000th, for a curve
SWEEP_SHARE, MISLABEL_SHARE = 0.6, 0.95  # of the CPU limit, after which nothing more is begun


class Attempt:
    """What is found out about one method on one task."""

    def __init__(
        self, key: str, task: Task, told: Callable[[dict[str, Any]], None], limit: float, *, swept: bool = True
    ) -> None:
        from upweight.cache.truth import open_truth

        self.key, self.task, self.entry, self.told, self.limit = key, task, ENTRIES[key], told, limit
        self.truth = {kind: open_truth(task.folder / f"{kind}.h5") for kind in ("lds", "loo")}
        self.lambda_max = read_facts(task)["lambda_max"]
        self.result: dict[str, Any] = {}
        self.swept = swept and self.entry.swept
        self.start = time.process_time()

    def spent(self) -> float:
        """Share of the CPU limit."""
        return (time.process_time() - self.start) / self.limit if self.limit else 0.0

    def note(self, **found: Any) -> None:
        self.result |= found
        self.told(self.result)

    def go(self) -> None:
        entry, task = self.entry, self.task
        problem = load_problem(task)
        first = self.first()
        run = entry.prepare(problem.at(first))
        memory, start, used = PeakMemory(), time.perf_counter(), time.process_time()
        scores = run()
        seconds, cpu = time.perf_counter() - start, time.process_time() - used
        self.note(seconds=seconds, cpu=cpu, bytes=memory.growth())
        facts = getattr(run, "facts", None)
        if facts is not None:
            self.note(lambda_max=facts.lambda_max)
        if not self.swept or entry.given is not None:
            value = getattr(facts, "damping", None) if entry.given == "auto" else None
            self.note(given={"setting": entry.given, "value": value, **self.judge(scores, problem, "given")})
        if self.swept:
            self.sweep(run, problem, {} if entry.given or entry.knob == "cutoff" else {first: scores})
        del run, scores
        self.wrong_labels(first, cpu)

    def first(self) -> Any:
        """The damping of the call that is timed."""
        entry = self.entry
        if entry.given == "weight decay":
            return self.task.weight_decay
        return entry.given or (self.value(COARSE[0]) if entry.swept else 0.0)

    def value(self, step: int) -> float:
        """What is set: the cutoff, or a damping of lambda_max over 1, 3, 10, 30, ... for the steps 0, 1, 2, 3, ..."""
        if self.entry.knob == "cutoff":
            return CUTOFFS[step]
        return self.lambda_max / (10 ** (step // 2) * (3 if step % 2 else 1))

    # ----------------------------------------------------------------------------------------------------------- sweep

    def sweep(self, run: Run, problem: Problem, known: dict[float, np.ndarray]) -> None:
        """The method at many dampings, and all that is measured at the best of them."""
        curve: dict[int, float] = {}
        best: tuple[float, np.ndarray] | None = None
        for steps in self.rounds(curve):
            if self.spent() > SWEEP_SHARE and curve:
                self.note(stopped="The sweep was ended by the CPU limit.")
                break
            values = [self.value(step) for step in steps]
            fresh = [value for value in values if value not in known]
            if self.entry.listed:
                known |= zip(fresh, run.several(fresh), strict=True) if fresh else ()
            else:
                known |= {value: self.entry.prepare(problem.at(value))() for value in fresh}
            for step, value in zip(steps, values, strict=True):
                curve[step] = self.score(known[value])
                if curve[step] == max(curve.values()):
                    best = value, known[value]
            known.clear()
            if len(curve) > 1 and max(curve.values()) < -0.99:
                raise ValueError("scores are not finite")
            self.note(curve=[[self.value(step), curve[step]] for step in sorted(curve)])
        assert best is not None  # there is a first round
        self.note(best={"setting": best[0], **self.judge(best[1], problem, "best")})

    def rounds(self, curve: dict[int, float]) -> Iterator[list[int]]:
        """Steps to try: decades, beyond the ends while the best lies there, and the neighbours of the best."""
        if self.entry.knob == "cutoff":
            yield from ([step] for step in range(len(CUTOFFS)))
            return
        if not self.entry.listed:
            yield from ([step] for step in COARSE)
        else:
            yield [*(FINE if self.entry.tool == "upweight" else COARSE)]
        for _ in range(3):
            best = max(curve, key=curve.__getitem__)
            if best in (max(curve), min(curve)):
                yield [best + 2 if best == max(curve) else best - 2]
        best = max(curve, key=curve.__getitem__)
        yield from ([step] for step in (best - 1, best + 1) if step not in curve)

    def score(self, scores: np.ndarray) -> float:
        from upweight.influence.evaluation import lds

        return lds(scores, self.truth["lds"], resamples=0).mean if np.isfinite(scores).all() else -1.0

    # ----------------------------------------------------------------------------------------------------------- judge

    def judge(self, scores: np.ndarray, problem: Problem, name: str) -> dict[str, Any]:
        """All metrics that need no other call; the scores are kept for comparisons with other methods."""
        from upweight.influence.evaluation import lds
        from upweight.influence.removal import loo

        if not np.isfinite(scores).all():
            raise ValueError("scores are not finite")
        path = SCORES / self.task.key / f"{self.key}.{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asarray(scores, dtype=np.float32))
        found = lds(scores, self.truth["lds"])
        alone = loo(scores, self.truth["loo"])
        order = np.argsort(-scores, axis=1)[:, :5]
        hits = problem.y.numpy()[order] == problem.yq.numpy()[:, None]
        return {
            "lds": [found.mean, found.low, found.high],
            "ceiling": found.ceiling,
            "loo": [alone.pearson, alone.spearman],
            "match": [float(hits[:, 0].mean()), float(hits.mean())],
        }

    def wrong_labels(self, first: Any, cpu: float) -> None:
        """Self-influence on the network that was trained on some wrong labels."""
        from upweight.influence.evaluation import mislabel

        if not self.entry.ranks_itself:
            return
        problem = load_problem(self.task, mislabelled=True)
        expected = cpu * max(1.0, len(problem.y) / self.task.spec.m)
        wrong = flipped(self.task)
        name, value = ("given", first) if "given" in self.result else ("best", self.result["best"]["setting"])
        if self.spent() + expected / (self.limit or np.inf) > MISLABEL_SHARE:
            self.note(unsearched=f"n x n scores would take about {expected:.0f} CPU s more than the limit leaves")
            return
        scores = self.entry.prepare(problem.at(value))()
        found = mislabel(np.diagonal(scores), wrong)
        self.note(**{name: self.result[name] | {"mislabel": [found.auc, found.low, found.high, found.found_at_10]}})


def main(key: str, task: str, what: str, result: str, memory: str = "0", cpu: str = "0") -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    limit_process(int(memory), int(cpu))
    path = Path(result)
    attempt = Attempt(
        key, TASKS[task], lambda found: path.write_text(json.dumps(found)), float(cpu), swept=what == "all"
    )
    try:
        attempt.go()
    except Exception as error:  # any way in which another tool can fail belongs into the table
        if ENTRIES[key].tool == "upweight" and not isinstance(error, _refusals()):
            raise
        attempt.note(failed=words_of(error))


def _refusals() -> type[Exception]:
    """What the package says no with, when a problem is too large for it: an entry of the table too."""
    from upweight import UpweightError

    return UpweightError


if __name__ == "__main__":
    main(*sys.argv[1:])
