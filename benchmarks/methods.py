"""What is compared: our calls and those of the other tools, each brought to score = + g_t^T (mean H + damping)^-1 g_i, [m, n].

A method is prepared (imports, conversions) outside the clock and then called: everything from model and data to scores.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from .problems import Problem

Run = Callable[[], np.ndarray]
cross_entropy = nn.functional.cross_entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One line of a table."""

    name: str
    tool: str
    kinds: tuple[str, ...]
    prepare: Callable[[Problem], Run]
    dtype: str = "float32"
    exact: bool = False
    """It computes the reference's own matrix, inverted without approximation."""
    scaled: bool = True
    """Its scores have our scale; otherwise only their order is compared."""
    largest: int = 10**9
    """Most parameters it is tried with."""


METHODS: dict[str, Method] = {}


def method(key: str, **about: Any) -> Callable[[Callable[[Problem], Run]], Callable[[Problem], Run]]:
    def register(prepare: Callable[[Problem], Run]) -> Callable[[Problem], Run]:
        METHODS[key] = Method(prepare=prepare, **about)
        return prepare

    return register


ALL = ("head", "cnn", "resnet")

# ------------------------------------------------------------------------------------------------------------ upweight


def _ours(curvature: Callable[[Any, float], Any], dtype: torch.dtype) -> Callable[[Problem], Run]:
    def prepare(problem: Problem) -> Run:
        import upweight

        problem = problem.to(dtype)
        chosen = curvature(upweight, problem.spec.damping)
        import upweight.influence.attribute  # loaded on first use otherwise

        stages: dict[str, float] = {}
        last = 0.0

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            stages[stage] = stages.get(stage, 0.0) + now - last
            last = now

        def run() -> np.ndarray:
            nonlocal last
            stages.clear()
            last = time.perf_counter()
            sides = (problem.X, problem.y), (problem.Xq, problem.yq)
            settings = {"parameters": problem.parameters, "curvature": chosen, "dtype": dtype, "device": "cpu"}
            return upweight.attribute(problem.model, *sides, progress=progress, **settings).matrix

        run.stages = lambda: {name: round(seconds, 3) for name, seconds in stages.items()}
        return run

    return prepare


for _bits in (32, 64):
    _dtype = {32: torch.float32, 64: torch.float64}[_bits]
    _about = {"tool": "upweight", "dtype": f"float{_bits}", "exact": True}
    method(f"head{_bits}", name="LinearHead", kinds=("head",), **_about)(
        _ours(lambda upweight, damping: upweight.LinearHead(damping=damping), _dtype)
    )
    method(f"newton{_bits}", name="GaussNewton", kinds=("cnn", "resnet"), **_about)(
        _ours(lambda upweight, damping: upweight.GaussNewton(damping=damping), _dtype)
    )
method("dot", tool="upweight", name="GradientDot (no curvature)", kinds=ALL, scaled=False)(
    _ours(lambda upweight, damping: upweight.GradientDot(), torch.float32)
)

# --------------------------------------------------------------------------------------------------------------- pyDVL


def _pydvl(build: Callable[[Any, Problem], Any], dtype: torch.dtype = torch.float32) -> Callable[[Problem], Run]:
    def prepare(problem: Problem) -> Run:
        import pydvl.influence.torch as pydvl

        problem = problem.tail().to(dtype)
        loader = DataLoader(TensorDataset(problem.X, problem.y), batch_size=len(problem.y))

        def run() -> np.ndarray:
            influence = build(pydvl, problem).fit(loader)
            return influence.influences(problem.Xq, problem.yq, problem.X, problem.y).detach().numpy()

        return run

    return prepare


def _direct(pydvl: Any, problem: Problem) -> Any:
    return pydvl.DirectInfluence(problem.model, cross_entropy, problem.spec.damping)


def _low_rank(kind: str) -> Callable[[Any, Problem], Any]:
    def build(pydvl: Any, problem: Problem) -> Any:
        settings: dict[str, Any] = {"rank": 100}
        if kind == "ArnoldiInfluence":
            settings["use_woodbury"] = True  # otherwise nothing is left outside the subspace
        return getattr(pydvl, kind)(problem.model, cross_entropy, problem.spec.damping, **settings)

    return build


method("pydvl-direct32", tool="pyDVL", name="Direct", kinds=("head",), exact=True)(_pydvl(_direct))
method("pydvl-direct64", tool="pyDVL", name="Direct", kinds=("head",), exact=True, dtype="float64", largest=9_000)(
    _pydvl(_direct, torch.float64)
)
method("pydvl-nystroem", tool="pyDVL", name="Nystroem, rank 100", kinds=ALL)(
    _pydvl(_low_rank("NystroemSketchInfluence"))
)
method("pydvl-arnoldi", tool="pyDVL", name="Arnoldi, rank 100", kinds=ALL)(_pydvl(_low_rank("ArnoldiInfluence")))
method("pydvl-ekfac", tool="pyDVL", name="EK-FAC", kinds=("head",))(
    _pydvl(lambda p, problem: p.EkfacInfluence(problem.model, True, hessian_regularization=problem.spec.damping))
)

# -------------------------------------------------------------------------------------------------------------- dattri


def _dattri(build: Callable[[Any, Any, Problem], Any]) -> Callable[[Problem], Run]:
    def prepare(problem: Problem) -> Run:
        import dattri.algorithm.influence_function as dattri
        from dattri.task import AttributionTask

        problem = problem.tail()
        model = problem.model

        def loss(parameters: Any, data: Any) -> torch.Tensor:
            x, y = data
            return cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)

        train = DataLoader(TensorDataset(problem.X, problem.y), batch_size=len(problem.y))
        queries = DataLoader(TensorDataset(problem.Xq, problem.yq), batch_size=len(problem.yq))

        def run() -> np.ndarray:
            task = AttributionTask(loss, model, model.state_dict())
            attributor = build(dattri, task, problem)
            attributor.cache(train)
            with torch.no_grad():
                return attributor.attribute(train, queries).T.numpy()

        return run

    return prepare


method("dattri-explicit", tool="dattri", name="Explicit", kinds=("head",), exact=True, largest=9_000)(
    _dattri(lambda d, task, problem: d.IFAttributorExplicit(task, regularization=problem.spec.damping))
)
method("dattri-arnoldi", tool="dattri", name="Arnoldi, dimension 100", kinds=ALL)(
    _dattri(lambda d, task, problem: d.IFAttributorArnoldi(task, proj_dim=100, regularization=problem.spec.damping))
)
method("dattri-ekfac", tool="dattri", name="EK-FAC", kinds=("head",))(
    _dattri(lambda d, task, problem: d.IFAttributorEKFAC(task, damping=problem.spec.damping))
)

# -------------------------------------------------------------------------------------------------------------- captum


def _captum(kind: str, **settings: Any) -> Callable[[Problem], Run]:
    """Its Hessian is the sum over examples: n times ours, and so is the damping that it is given."""

    def prepare(problem: Problem) -> Run:
        from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
        from captum.influence._core.influence_function import NaiveInfluenceFunction

        problem = problem.tail()
        n = len(problem.y)
        make = {"naive": NaiveInfluenceFunction, "arnoldi": ArnoldiInfluenceFunction}[kind]
        batched = problem.spec.kind != "resnet"  # it batches the gradients of linear and convolutional layers only
        p = sum(parameter.numel() for parameter in problem.model.parameters())
        folder = tempfile.mkdtemp()
        torch.save(problem.model.state_dict(), Path(folder) / "model.pt")

        def run() -> np.ndarray:
            influence = make(
                problem.model,
                DataLoader(TensorDataset(problem.X, problem.y), batch_size=n),
                str(Path(folder) / "model.pt"),
                loss_fn=nn.CrossEntropyLoss(reduction="sum" if batched else "none"),
                sample_wise_grads_per_batch=batched,
                hessian_reg=n * problem.spec.damping,
                hessian_inverse_tol=0.0,
                **{"projection_dim": p, **settings},
            )
            return n * influence.influence((problem.Xq, problem.yq)).detach().numpy()

        return run

    return prepare


method("captum-naive", tool="captum", name="Naive, all p directions", kinds=("head",), exact=True, largest=9_000)(
    _captum("naive")
)
method("captum-arnoldi", tool="captum", name="Arnoldi, dimension 100", kinds=ALL)(
    _captum("arnoldi", projection_dim=100, arnoldi_dim=100)
)

# --------------------------------------------------------------------------------------------------------- kronfluence


def _kronfluence(strategy: str) -> Callable[[Problem], Run]:
    def prepare(problem: Problem) -> Run:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.task import Task

        class Classification(Task):
            def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> torch.Tensor:
                logits = model(batch[0])
                if not sample:
                    return cross_entropy(logits, batch[1], reduction="sum")
                drawn = torch.multinomial(logits.detach().softmax(-1), 1).flatten()
                return cross_entropy(logits, drawn, reduction="sum")

            def compute_measurement(self, batch: Any, model: nn.Module) -> torch.Tensor:
                return self.compute_train_loss(batch, model)

        problem = problem.tail()
        train, queries = TensorDataset(problem.X, problem.y), TensorDataset(problem.Xq, problem.yq)
        b = 250 if problem.spec.kind == "head" else 100 if problem.spec.kind == "cnn" else 10
        task = Classification()
        model = prepare_model(problem.model, task)

        def run() -> np.ndarray:
            with tempfile.TemporaryDirectory() as folder:
                analyzer = Analyzer("run", model, task, cpu=True, output_dir=folder, disable_tqdm=True)
                factors, scores = (
                    FactorArguments(strategy=strategy),
                    ScoreArguments(damping_factor=problem.spec.damping),
                )
                analyzer.fit_all_factors("f", train, per_device_batch_size=b, factor_args=factors)
                analyzer.compute_pairwise_scores(
                    "s",
                    "f",
                    queries,
                    train,
                    per_device_query_batch_size=b,
                    per_device_train_batch_size=b,
                    score_args=scores,
                )
                return analyzer.load_pairwise_scores("s")["all_modules"].numpy()

        return run

    return prepare


method("kronfluence-ekfac", tool="kronfluence", name="EK-FAC", kinds=ALL)(_kronfluence("ekfac"))
method("kronfluence-kfac", tool="kronfluence", name="K-FAC", kinds=("head", "cnn"))(_kronfluence("kfac"))

# ---------------------------------------------------------------------------------------------------------------- TRAK


def _trak(dimension: int) -> Callable[[Problem], Run]:
    """Its features are divided by sqrt(p) and multiplied by an unscaled Gaussian matrix: the damping becomes n d k / p."""

    def prepare(problem: Problem) -> Run:
        from trak import TRAKer

        problem = problem.tail()
        n, m = len(problem.y), len(problem.yq)
        p = sum(parameter.numel() for parameter in problem.model.parameters())
        b = 100 if problem.spec.kind != "resnet" else 10

        def run() -> np.ndarray:
            with tempfile.TemporaryDirectory() as folder:
                traker = TRAKer(
                    problem.model,
                    "image_classification",
                    n,
                    save_dir=folder,
                    device="cpu",
                    proj_dim=dimension,
                    use_half_precision=False,
                    lambda_reg=n * problem.spec.damping * dimension / p,
                    logging_level=40,
                )
                state = problem.model.state_dict()
                traker.load_checkpoint(state, model_id=0)
                for batch in DataLoader(TensorDataset(problem.X, problem.y), batch_size=b):
                    traker.featurize(batch=batch, num_samples=len(batch[1]))
                traker.finalize_features()
                traker.start_scoring_checkpoint(exp_name="q", checkpoint=state, model_id=0, num_targets=m)
                for batch in DataLoader(TensorDataset(problem.Xq, problem.yq), batch_size=b):
                    traker.score(batch=batch, num_samples=len(batch[1]))
                return np.array(traker.finalize_scores(exp_name="q")).T

        return run

    return prepare


method("trak", tool="TRAK", name="TRAK, projected to 512", kinds=ALL, scaled=False)(_trak(512))

os.environ.setdefault("TQDM_DISABLE", "1")
