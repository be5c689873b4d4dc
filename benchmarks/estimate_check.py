"""Estimated against true seconds, stage by stage: `python -m benchmarks.estimate_check [PROBLEM ...]`."""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import upweight
from upweight.influence.estimate import Estimate

from .measure import PeakMemory
from .problems import Problem, Spec, build

PROBLEMS = {
    "head-F64": (Spec(kind="head", F=64, n=3200, m=1000), lambda damping: upweight.LinearHead(damping=damping)),
    "head-F784": (Spec(kind="head", F=784, n=3200, m=1000), lambda damping: upweight.LinearHead(damping=damping)),
    "cnn": (Spec(kind="cnn", n=1000, m=797), lambda damping: upweight.GaussNewton(damping=damping)),
    "cnn-small": (Spec(kind="cnn", n=300, m=300), lambda damping: upweight.GaussNewton(damping=damping)),
    "cnn-margin": (
        Spec(kind="cnn", n=1000, m=797),
        lambda damping: upweight.GaussNewton(damping=damping, rows="margin"),
    ),
    "cnn-dot": (Spec(kind="cnn", n=1000, m=797), lambda damping: upweight.GradientDot()),
    "cnn-hessian": (Spec(kind="cnn", n=300, m=300, width=4), lambda damping: upweight.Hessian(damping=10.0)),
}


class Clock:
    """Progress that notes when each stage said its last."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.last: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.last[stage] = time.perf_counter() - self.start

    def stages(self) -> dict[str, float]:
        before, out = 0.0, {}
        for stage, end in sorted(self.last.items(), key=lambda item: item[1]):
            out[stage], before = end - before, end
        return out


def truth(problem: Problem, curvature: object, out: Path) -> tuple[float, int, dict[str, float]]:
    """Seconds, growth of memory, and seconds by what progress calls the stages."""
    memory, clock = PeakMemory(), Clock()
    upweight.attribute(
        problem.model,
        (problem.X, problem.y),
        (problem.Xq, problem.yq),
        parameters=problem.parameters,
        curvature=curvature,
        weight_decay=1e-3,
        out=out,
        progress=clock,
    )
    return time.perf_counter() - clock.start, memory.growth(), clock.stages()


def few(problem: Problem) -> Problem:
    return Problem(problem.spec, problem.model, problem.X[:20], problem.y[:20], problem.Xq[:5], problem.yq[:5])


def guess(problem: Problem, curvature: object, out: Path) -> tuple[Estimate, float]:
    start = time.perf_counter()
    found = upweight.estimate(
        problem.model,
        (problem.X, problem.y),
        (problem.Xq, problem.yq),
        parameters=problem.parameters,
        curvature=curvature,
        weight_decay=1e-3,
        out=out,
    )
    return found, time.perf_counter() - start


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    for name in names or PROBLEMS:
        spec, make = PROBLEMS[name]
        problem = build(spec)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "influence.h5"
            truth(
                few(problem), make(spec.damping), Path(folder) / "warm.h5"
            )  # libraries look around on their first call
            seconds, memory, stages = truth(problem, make(spec.damping), path)
            found, took = guess(problem, make(spec.damping), path)
            disk = path.stat().st_size
        print(f"== {name}, {torch.get_num_threads()} threads; the estimate took {took:.1f} s")
        print(found.to_text())
        print("true stages: " + ", ".join(f"{stage} {taken:.2f}" for stage, taken in stages.items()))
        for what, guessed, true in (
            ("seconds", found.seconds, seconds),
            ("memory", found.memory, memory),
            ("disk", found.disk, disk),
        ):
            print(f"{what}: estimated {guessed:.4g}, true {true:.4g}, ratio {guessed / true:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
