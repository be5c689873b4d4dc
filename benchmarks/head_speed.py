"""How far LinearHead is from the speed of a matrix product: seconds a stage, against counted operations at the rate of a GEMM
measured in the same run. Run as `python benchmarks/head_speed.py`; each row is a process of its own, so that its peak memory is.

Counted operations, D = (C-1)(F+1): n (F+1)^2 for each of C (C-1) / 2 symmetric blocks, D^3 / 3 for the Cholesky factor,
2 D^2 a query for the two substitutions, and 2 n D a query for the scores.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
import torch
from upweight.influence.head import fit_head, score_head, solve_head
from upweight.influence.rows import residuals
from upweight.influence.solve import Inversion

CLASSES = 10


def make_problem(n: int, m: int, F: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Features of n train examples and m queries like those behind a ReLU, logits and labels of a head that half fits them."""
    g = torch.Generator().manual_seed(seed)
    phi = torch.randn(n + m, F, generator=g).clamp(min=0).to(dtype).double()
    W = torch.randn(CLASSES, F, generator=g, dtype=torch.float64) * 2 / F**0.5
    z = (phi @ W.T).to(dtype).double()
    y = (z + 2 * torch.randn(n + m, CLASSES, generator=g)).argmax(1)
    return torch.cat([phi, torch.ones(n + m, 1, dtype=torch.float64)], dim=1), z, y


def operations(n: int, m: int, F: int) -> dict[str, float]:
    D = (CLASSES - 1) * (F + 1)
    return {
        "fit": CLASSES * (CLASSES - 1) / 2 * n * (F + 1) ** 2 + D**3 / 3,
        "solve": 2.0 * D**2 * m,
        "score": 2.0 * D * n * m,
    }


def gemm_rate(dtype: torch.dtype) -> float:
    """Operations a second of numpy's product of two square matrices, now."""
    A = np.random.default_rng(0).standard_normal((2048, 2048)).astype(str(dtype).removeprefix("torch."))
    return 2 * len(A) ** 3 / _timed(lambda: A @ A)[1]


def reference(phi: np.ndarray, z: np.ndarray, r: np.ndarray, n: int, damping: float) -> np.ndarray:
    """The scores by the shortest road: dense contrasts, general products, one Cholesky factor; shares no code with ours."""
    q = np.exp(z[:n] - scipy.special.logsumexp(z[:n], axis=1, keepdims=True))
    E = np.linalg.svd(np.ones((1, CLASSES)))[2][1:].T
    S = np.einsum("ac,ia,ad->icd", E, q, E) - np.einsum("ic,id->icd", q @ E, q @ E)
    c, k = CLASSES - 1, phi.shape[1]
    H = np.empty((c, k, c, k))
    for a in range(c):
        for b in range(a + 1):
            H[a, :, b] = phi[:n].T @ (S[:, a, b, None] * phi[:n]) / n
            H[b, :, a] = H[a, :, b].T
    H = H.reshape(c * k, c * k)
    H[np.diag_indices_from(H)] += damping
    G = ((r @ E)[:, :, None] * phi[:, None, :]).reshape(len(phi), c * k)
    factor = scipy.linalg.cho_factor(H, lower=True, overwrite_a=True, check_finite=False)
    return G[n:] @ scipy.linalg.cho_solve(factor, G[:n].T, check_finite=False)


def measure(F: int, dtype: torch.dtype, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    n, m = args.train, args.queries
    phi, z, y = make_problem(n, m, F, dtype)
    r = residuals(z, y)
    rule = Inversion(damping=args.damping)
    counted = operations(n, m, F)
    before = _peak()
    seconds: dict[str, list[float]] = {name: [] for name in counted}
    rates, ratios = [], []
    for _ in range(args.repeats):
        rate = [gemm_rate(dtype)]
        state, took = _timed(lambda: fit_head(phi[:n], z[:n], r[:n], rule, dtype))
        seconds["fit"].append(took)
        rate.append(gemm_rate(dtype))
        solved, took = _timed(lambda state=state: solve_head(state, phi[n:], r[n:]))
        seconds["solve"].append(took)
        scores, took = _timed(lambda state=state, solved=solved: score_head(state, solved, slice(0, n)))
        seconds["score"].append(took)
        rate.append(gemm_rate(dtype))
        rates.append(statistics.median(rate))
        ratios.append(sum(s[-1] for s in seconds.values()) * rates[-1] / sum(counted.values()))
    row = {
        "F": F,
        "type": str(dtype).removeprefix("torch."),
        "factor": str(state.inverse.factor.dtype).removeprefix("torch.")
        if hasattr(state.inverse, "factor")
        else "eigen",
        "condition": state.inverse.spectrum().condition,
        **{name: statistics.median(values) for name, values in seconds.items()},
        "limit": sum(counted.values()) / statistics.median(rates),
        "ratio": statistics.median(ratios),
        "GF/s": statistics.median(rates) / 1e9,
        "GiB": (_peak() - before) / 2**30,
        "matrices": (_peak() - before) / (8 * ((CLASSES - 1) * (F + 1)) ** 2),
        "error": float("nan"),
    }
    if not args.no_reference:
        want = reference(phi.numpy(), z.numpy(), r.numpy(), n, args.damping)
        row["error"] = float((abs(scores.numpy() - want).max(0) / abs(want).max(0)).max())
    return row


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, nargs="+", default=[64, 784, 2048])
    parser.add_argument("--types", nargs="+", default=["float64", "float32"])
    parser.add_argument("--train", type=int, default=3200)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--damping", type=float, default=1e-3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--no-reference", action="store_true", help="leave the error out: the reference takes the longest"
    )
    parser.add_argument("--json", action="store_true", help="one object a row instead of a table")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    args = parser.parse_args()
    shown = False
    for F in args.features:
        for name in args.types:
            if args.here:
                row = measure(F, getattr(torch, name), args)
            else:
                own = [
                    sys.executable,
                    __file__,
                    *sys.argv[1:],
                    "--here",
                    "--json",
                    "--features",
                    str(F),
                    "--types",
                    name,
                ]
                row = json.loads(subprocess.run(own, check=True, capture_output=True, text=True).stdout)
            if args.json:
                print(json.dumps(row), flush=True)
                continue
            if not shown:
                print("  ".join(f"{key:>9}" for key in row))
                shown = True
            print("  ".join(f"{v:9.3g}" if isinstance(v, float) else f"{v!s:>9}" for v in row.values()), flush=True)


if __name__ == "__main__":
    main()
