"""All methods on all problems: `python -m benchmarks.run [--sizes full] [--tools upweight,pyDVL | --missing]`.

Problems and their references are kept in benchmarks/.cache; results go to benchmarks/results.json after every run, and
docs/benchmarks.md is written from them. With --tools, --methods, --kinds or --missing the other results stay as they are.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from .methods import METHODS
from .problems import Spec, build, load, save

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
RESULTS = HERE / "results.json"
LIBRARIES = ("upweight", "captum", "pyDVL", "dattri", "kronfluence", "traker", "torch", "numpy", "scipy")


def plan(sizes: str) -> tuple[list[tuple[Spec, list[str]]], dict[str, list[tuple[Spec, str]]], int]:
    """Problems with their methods, scaling series, and the limit of one run in seconds."""
    full = sizes == "full"
    specs = [Spec(kind="head", F=F, n=3200, m=1000) for F in ((64, 784, 2048) if full else (64, 784))]
    specs.append(Spec(kind="cnn", n=1000, m=797, damping=1e-2))
    specs += [Spec(kind="resnet", n=100, m=50, blocks=k, damping=1e-2) for k in ((1, 3) if full else (1,))]
    few = (
        "head32",
        "head64",
        "dot",
        *("ekfac", "kfac", "nystroem", "lanczos", "projected"),
        "pydvl-direct32",
        "pydvl-ekfac",
        "kronfluence-ekfac",
        "trak",
    )  # where all would take hours
    compared = [
        (
            spec,
            [
                key
                for key, m in METHODS.items()
                if spec.kind in m.kinds
                and (key in few or count(spec) < 20_000 or spec.kind != "head")
                and count(spec) <= m.largest
            ],
        )
        for spec in specs
    ]

    def head(**change: int) -> tuple[Spec, str]:
        return Spec(**({"kind": "head", "F": 784, "n": 3200, "m": 1000} | change)), "head32"

    def cnn(**change: int) -> tuple[Spec, str]:
        return Spec(**({"kind": "cnn", "n": 500, "m": 200, "damping": 1e-2} | change)), "newton32"

    scaling = {
        "head, train examples n": [head(n=n) for n in (800, 1600, 3200, 6400)],
        "head, features F": [head(F=F) for F in ((128, 256, 512, 1024, 2048) if full else (128, 256, 512, 1024))],
        "head, classes C": [head(C=C) for C in (2, 5, 10, 20)],
        "CNN, train examples n": [cnn(n=n) for n in (125, 250, 500, 1000)],
        "CNN, parameters p": [cnn(width=w) for w in (4, 8, 16, 32)],
    }
    return compared, scaling, 300 if full else 120


def chosen(spec: Spec, kinds: list[str]) -> bool:
    return spec.kind in kinds or any(spec.name.startswith(f"{kind}-") for kind in kinds)


def count(spec: Spec) -> int:
    """Analysed parameters p."""
    if spec.kind == "head":
        return spec.C * (spec.F + 1)
    if spec.kind == "cnn":
        w, C = spec.width, spec.C
        return 10 * w + 18 * w * w + 2 * w + (32 * w + 1) * 3 * w + (3 * w + 1) * C
    return {1: 4_725_770, 3: 9_579_530}[spec.blocks]


def machine() -> dict[str, object]:
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gib": round(memory[0] / 2**20, 1) if memory else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def child(words: list[str], cpu: int, threads: int) -> dict[str, object]:
    """A module with its words in a process of its own, which writes what it finds; ended after so many CPU seconds."""
    available = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")]
    memory = int(available[0] * 0.85) if available else 0
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    environment = {**os.environ, **pools, "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "result.json"
        words = [sys.executable, "-m", *words, str(out), str(memory), str(cpu)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        try:
            done = subprocess.run(words, timeout=3 * cpu, cwd=HERE.parent, env=environment, check=False, **quiet)
            failed = _failure(done, cpu)
        except subprocess.TimeoutExpired:
            failed = {"failed": f"over {3 * cpu} s"}
        return (json.loads(out.read_text()) if out.exists() else {}) | failed


def _failure(done: subprocess.CompletedProcess[str], cpu: int) -> dict[str, object]:
    if done.returncode == 0:
        return {}
    if done.returncode == -signal.SIGXCPU:
        return {"failed": f"over {cpu} CPU s"}
    last = done.stderr.strip().splitlines()[-1:] or [""]
    return {"failed": "killed: out of memory" if done.returncode == -9 else f"exit {done.returncode}: {last[0][:120]}"}


def prepare(spec: Spec, threads: int, *, exact: bool) -> Path:
    """The folder of a problem, with its reference where one is wanted."""
    folder = CACHE / spec.name
    if not (folder / "problem.pt").exists():
        save(build(spec), folder)
    if exact and not (folder / "reference.npy").exists():
        found = child(["benchmarks.one", "reference", str(folder)], 7200, threads)
        print(f"  reference: {found}", flush=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", choices=("quick", "full"), default="quick")
    parser.add_argument("--tools", help="only these, separated by commas; the results of the others are kept")
    parser.add_argument("--kinds", help="only these: head, head-F784, cnn, resnet, scaling")
    parser.add_argument(
        "--limit", type=int, help="a run is ended after twice as many CPU seconds; 120, or 300 with --sizes full"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="1 where the machine is busy: CPU seconds are right then too"
    )
    parser.add_argument("--methods", help="only these, separated by commas")
    parser.add_argument("--missing", action="store_true", help="keep every result that is there")
    words = parser.parse_args()
    compared, scaling, limit = plan(words.sizes)
    limit = words.limit or limit
    part = words.tools or words.methods or words.kinds or words.missing
    kinds = (words.kinds or "head,cnn,resnet,scaling").split(",")
    old = json.loads(RESULTS.read_text()) if part and RESULTS.exists() else {}
    results = {
        "sizes": words.sizes,
        "limit": limit,
        "threads": words.threads,
        "machine": machine(),
        "runs": old.get("runs", []),
    }
    tasks = [("compared", spec, keys) for spec, keys in compared if chosen(spec, kinds)]
    if "scaling" in kinds:
        tasks += [(series, spec, [key]) for series, points in scaling.items() for spec, key in points]
    for series, spec, keys in tasks:
        if words.tools:
            keys = [key for key in keys if METHODS[key].tool in words.tools.split(",")]
        if words.methods:
            keys = [key for key in keys if key in words.methods.split(",")]
        if words.missing:
            done = [
                run["method"] for run in results["runs"] if (run["series"], run["problem"]) == (series, asdict(spec))
            ]
            keys = [key for key in keys if key not in done]
        if not keys:
            continue
        print(spec.name, flush=True)
        folder = prepare(spec, words.threads, exact=series == "compared")
        p = sum(x.numel() for x in load(folder).tail().model.parameters())
        for key in keys:
            found = {"load": os.getloadavg()[0]} | child(["benchmarks.one", key, str(folder)], 2 * limit, words.threads)
            print(f"  {key}: {found}", flush=True)
            same = (series, asdict(spec), key)
            results["runs"] = [run for run in results["runs"] if (run["series"], run["problem"], run["method"]) != same]
            results["runs"].append({"series": series, "problem": asdict(spec), "p": p, "method": key, **found})
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    from .render import write

    write(HERE.parent / "docs", speed=results)


if __name__ == "__main__":
    main()
