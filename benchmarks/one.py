"""One method on one problem, in a process of its own: `python -m benchmarks.one METHOD FOLDER RESULT`."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from . import measure, reference
from .methods import METHODS
from .problems import load

QUICK = 15.0  # seconds below which a call is repeated


def attempt(key: str, folder: Path, repeats: int = 3) -> dict[str, object]:
    """Time, memory and error of one method."""
    method = METHODS[key]
    problem = load(folder)
    stored = np.load(folder / "reference.npy") if (folder / "reference.npy").exists() else None
    rates = [measure.gemm_rate(method.dtype)]
    run = method.prepare(problem)
    memory, seconds, cpu = measure.PeakMemory(), [], []
    while not seconds or (len(seconds) < repeats and seconds[0] < QUICK):
        start, used = time.perf_counter(), time.process_time()
        scores = run()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
        if len(seconds) == 1:
            peak = memory.growth()
    rates.append(measure.gemm_rate(method.dtype))
    clock, cores = (sum(rate) / 2 for rate in zip(*rates, strict=True))
    result = {
        "seconds": statistics.median(seconds),
        "cpu": statistics.median(cpu),
        "repeats": len(seconds),
        "bytes": peak,
    }
    result |= {"gemm": clock, "gemm_cpu": cores}
    if run.stages():
        result["stages"] = run.stages()
    if stored is not None:
        result |= measure.compare(np.asarray(scores, dtype=np.float64), stored)
        if not method.scaled:
            result["error"] = None
    if method.exact:
        result["operations"] = operations(problem)
    return result


def operations(problem) -> float:
    return measure.head_operations(problem.spec) if problem.spec.kind == "head" else measure.newton_operations(problem)


def main(key: str, folder: str, result: str, memory: str = "0", cpu: str = "0") -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    limit_process(int(memory), int(cpu))
    path = Path(folder)
    if key == "reference":
        start = time.perf_counter()
        np.save(path / "reference.npy", reference.scores(load(path)))
        found: dict[str, object] = {"seconds": time.perf_counter() - start}
    else:
        try:
            found = attempt(key, path)
        except Exception as error:  # any way in which another tool can fail belongs into the table
            if METHODS[key].tool == "upweight":
                raise
            found = {"failed": words_of(error)}
    Path(result).write_text(json.dumps(found))


def limit_process(memory: int, cpu: int) -> None:
    """Bytes and CPU seconds that this process may take; 0: any."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")  # when memory runs out, this process is the one to go
    for kind, limit in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CPU, cpu)):
        if limit:
            resource.setrlimit(kind, (limit, resource.RLIM_INFINITY))


def words_of(error: Exception) -> str:
    """Type and first line of a failure."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


if __name__ == "__main__":
    main(*sys.argv[1:])
