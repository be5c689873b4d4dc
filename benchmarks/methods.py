"""What is compared: our calls and those of the other tools, each brought to score = + g_t^T (mean H + damping)^-1 g_i, [m, n].

A method is prepared (imports, conversions) outside the clock and then called: everything from model and data to scores.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from .problems import Problem

cross_entropy = nn.functional.cross_entropy


class Run:
    """One call of a method, from model and data to all scores [m, n].

    `fit` makes what does not depend on the damping, as far as the tool lets it, and `score` the rest: a sweep over dampings
    fits once.
    """

    def __init__(self, fit: Callable[[], Any], score: Callable[[Any, float], np.ndarray], damping: float) -> None:
        self.fit, self.score, self.damping = fit, score, damping
        self.fitted: Any = None

    def __call__(self) -> np.ndarray:
        self.fitted = None  # what an earlier call holds would count as memory
        self.fitted = self.fit()
        return self.score(self.fitted, self.damping)

    def several(self, dampings: Sequence[Any]) -> list[np.ndarray]:
        """Scores at each of some dampings."""
        if self.fitted is None:
            self.fitted = self.fit()
        return [self.score(self.fitted, damping) for damping in dampings]

    def stages(self) -> dict[str, float]:
        """Seconds by stage of the last call, where they are known."""
        return {}


def whole(score: Callable[[float], np.ndarray], damping: float) -> Run:
    """A call of which nothing serves another damping."""
    return Run(lambda: True, lambda _, at: score(at), damping)


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


class Ours(Run):
    """A call of `upweight.attribute`; a list of dampings goes to the curvature as such."""

    def __init__(
        self,
        problem: Problem,
        curvature: Callable[[Any, Any], Any],
        dtype: torch.dtype = torch.float32,
        parameters: Any = None,
    ) -> None:
        import upweight

        import_module("upweight.influence.attribute")  # loaded on first use otherwise
        super().__init__(lambda: True, lambda _, at: self.several([at])[0], problem.spec.damping)
        self.upweight, self.problem = upweight, problem.to(dtype)
        self.curvature, self.dtype = curvature, dtype
        self.parameters = problem.parameters if parameters is None else parameters
        self.seconds: dict[str, float] = {}
        self.facts: Any = None
        """What the last call said of its curvature."""

    def several(self, dampings: Sequence[Any]) -> list[np.ndarray]:
        self.seconds, last = {}, time.perf_counter()

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - last
            last = now

        problem = self.problem
        chosen = self.curvature(self.upweight, dampings[0] if len(dampings) == 1 else tuple(dampings))
        found = self.upweight.attribute(
            problem.model,
            problem.train,
            problem.queries,
            progress=progress,
            parameters=self.parameters,
            curvature=chosen,
            weight_decay=problem.weight_decay,
            dtype=self.dtype,
            device="cpu",
        )
        self.facts = found.spectrum
        return [found.matrix] if len(dampings) == 1 else [found.at_damping[at].matrix for at in dampings]

    def stages(self) -> dict[str, float]:
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}


def ours(curvature: Callable[[Any, Any], Any], dtype: torch.dtype = torch.float32) -> Callable[[Problem], Run]:
    """An entry of ours: what makes the curvature of the package's module and a damping, or several."""
    return lambda problem: Ours(problem, curvature, dtype)


for _bits in (32, 64):
    _dtype = {32: torch.float32, 64: torch.float64}[_bits]
    _about = {"tool": "upweight", "dtype": f"float{_bits}", "exact": True}
    method(f"head{_bits}", name="LinearHead", kinds=("head",), **_about)(
        ours(lambda upweight, damping: upweight.LinearHead(damping=damping), _dtype)
    )
    method(f"newton{_bits}", name="GaussNewton", kinds=("cnn", "resnet"), **_about)(
        ours(lambda upweight, damping: upweight.GaussNewton(damping=damping), _dtype)
    )
_FOR_SCALE: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "ekfac": ("EKFAC", "EK-FAC", {}, ALL),
    "kfac": ("KFAC", "K-FAC", {}, ALL),
    "cg": ("ConjugateGradient", "conjugate gradients, rtol 1e-3", {"rtol": 1e-3}, ("cnn",)),
    "nystroem": ("Nystroem", "Nystroem, rank 100", {"rank": 100}, ("head", "cnn")),
    "lanczos": ("Lanczos", "Lanczos, rank 100", {"rank": 100}, ("head", "cnn")),
    "projected": ("Projected", "logits rows projected to 512", {"rows": "logits", "width": 512}, ("head", "cnn")),
}
for _key, (_class, _name, _settings, _kinds) in _FOR_SCALE.items():
    method(_key, tool="upweight", name=_name, kinds=_kinds)(
        ours(lambda upweight, damping, kind=_class, its=_settings: getattr(upweight, kind)(damping=damping, **its))
    )
method("dot", tool="upweight", name="GradientDot (no curvature)", kinds=ALL, scaled=False)(
    ours(lambda upweight, damping: upweight.GradientDot(), torch.float32)
)

# --------------------------------------------------------------------------------------------------------------- pyDVL


def pydvl(build: Callable[[Any, Problem], Any], dtype: torch.dtype = torch.float32) -> Callable[[Problem], Run]:
    def prepare(problem: Problem) -> Run:
        import pydvl.influence.torch as pydvl

        problem = problem.tail().to(dtype)
        loader = DataLoader(TensorDataset(problem.X, problem.y), batch_size=len(problem.y))

        def score(influence: Any, damping: float) -> np.ndarray:
            if hasattr(influence, "hessian_regularization"):
                influence.hessian_regularization = damping
            elif damping != problem.spec.damping:
                influence.with_regularization(damping)
            return influence.influences(problem.Xq, problem.yq, problem.X, problem.y).detach().numpy()

        return Run(lambda: build(pydvl, problem).fit(loader), score, problem.spec.damping)

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


method("pydvl-direct32", tool="pyDVL", name="Direct", kinds=("head",), exact=True)(pydvl(_direct))
method("pydvl-direct64", tool="pyDVL", name="Direct", kinds=("head",), exact=True, dtype="float64", largest=9_000)(
    pydvl(_direct, torch.float64)
)
method("pydvl-nystroem", tool="pyDVL", name="Nystroem, rank 100", kinds=ALL)(
    pydvl(_low_rank("NystroemSketchInfluence"))
)
method("pydvl-arnoldi", tool="pyDVL", name="Arnoldi, rank 100", kinds=ALL)(pydvl(_low_rank("ArnoldiInfluence")))
method("pydvl-ekfac", tool="pyDVL", name="EK-FAC", kinds=("head",))(
    pydvl(lambda p, problem: p.EkfacInfluence(problem.model, True, hessian_regularization=problem.spec.damping))
)

# -------------------------------------------------------------------------------------------------------------- dattri


def dattri(build: Callable[[Any, Any, Problem], Any]) -> Callable[[Problem], Run]:
    def prepare(problem: Problem) -> Run:
        import dattri.algorithm.influence_function as dattri
        from dattri.task import AttributionTask

        problem = problem.tail()
        model = problem.model

        def loss(parameters: Any, data: Any) -> torch.Tensor:
            x, y = data
            return cross_entropy(
                torch.func.functional_call(model, parameters, (x,)), y.long()
            )  # LiSSA makes them floats

        train = DataLoader(TensorDataset(problem.X, problem.y), batch_size=len(problem.y))
        queries = DataLoader(TensorDataset(problem.Xq, problem.yq), batch_size=len(problem.yq))

        def score(damping: float) -> np.ndarray:
            task = AttributionTask(loss, model, model.state_dict())
            attributor = build(dattri, task, problem.at(damping))
            attributor.cache(train)
            with torch.no_grad():
                return attributor.attribute(train, queries).T.numpy()

        return whole(score, problem.spec.damping)

    return prepare


method("dattri-explicit", tool="dattri", name="Explicit", kinds=("head",), exact=True, largest=9_000)(
    dattri(lambda d, task, problem: d.IFAttributorExplicit(task, regularization=problem.spec.damping))
)
method("dattri-arnoldi", tool="dattri", name="Arnoldi, dimension 100", kinds=ALL)(
    dattri(lambda d, task, problem: d.IFAttributorArnoldi(task, proj_dim=100, regularization=problem.spec.damping))
)
method("dattri-ekfac", tool="dattri", name="EK-FAC", kinds=("head",))(
    dattri(lambda d, task, problem: d.IFAttributorEKFAC(task, damping=problem.spec.damping))
)

# -------------------------------------------------------------------------------------------------------------- captum


def captum(kind: str, **settings: Any) -> Callable[[Problem], Run]:
    """Its Hessian is the sum over examples: n times ours, and so is the damping that it is given."""

    def prepare(problem: Problem) -> Run:
        from captum.influence._core import arnoldi_influence_function as arnoldi
        from captum.influence._core.influence_function import NaiveInfluenceFunction

        problem = problem.tail()
        n = len(problem.y)
        make = {"naive": NaiveInfluenceFunction, "arnoldi": arnoldi.ArnoldiInfluenceFunction}[kind]
        batched = problem.spec.kind not in (
            "resnet",
            "tail",
        )  # it batches the gradients of linear and convolutional layers only
        p = sum(parameter.numel() for parameter in problem.model.parameters())
        folder = tempfile.mkdtemp()
        torch.save(problem.model.state_dict(), Path(folder) / "model.pt")

        def score(known: dict[str, Any], damping: float) -> np.ndarray:
            with patch(f"{arnoldi.__name__}._parameter_arnoldi", remembered(arnoldi._parameter_arnoldi, known)):
                influence = make(
                    problem.model,
                    DataLoader(TensorDataset(problem.X, problem.y), batch_size=n),
                    str(Path(folder) / "model.pt"),
                    loss_fn=nn.CrossEntropyLoss(reduction="sum" if batched else "none"),
                    sample_wise_grads_per_batch=batched,
                    hessian_reg=n * damping,
                    hessian_inverse_tol=0.0,
                    **{"projection_dim": p, **settings},
                )
            return n * influence.influence((problem.Xq, problem.yq)).detach().numpy()

        return Run(dict, score, problem.spec.damping)

    return prepare


def remembered(function: Callable[..., Any], known: dict[str, Any]) -> Callable[..., Any]:
    """A function that is called once; its result serves all later calls."""

    def call(*words: Any) -> Any:
        if "result" not in known:
            known["result"] = function(*words)
        return known["result"]

    return call


method("captum-naive", tool="captum", name="Naive, all p directions", kinds=("head",), exact=True, largest=9_000)(
    captum("naive")
)
method("captum-arnoldi", tool="captum", name="Arnoldi, dimension 100", kinds=ALL)(
    captum("arnoldi", projection_dim=100, arnoldi_dim=100)
)

# --------------------------------------------------------------------------------------------------------- kronfluence


def kronfluence(strategy: str) -> Callable[[Problem], Run]:
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
        b = {"cnn": 100, "tail": 100, "resnet": 10}.get(problem.spec.kind, 250)
        sizes = {"per_device_query_batch_size": b, "per_device_train_batch_size": b}
        task = Classification()
        model = prepare_model(problem.model, task)

        def fit() -> tuple[Any, Any]:
            folder = tempfile.TemporaryDirectory()
            analyzer = Analyzer("run", model, task, cpu=True, output_dir=folder.name, disable_tqdm=True)
            factors = FactorArguments(strategy=strategy)
            analyzer.fit_all_factors("f", train, per_device_batch_size=b, factor_args=factors)
            return analyzer, folder  # which lives as long as it is held

        def score(fitted: tuple[Any, Any], damping: float) -> np.ndarray:
            name, chosen = f"at{damping:g}", ScoreArguments(damping_factor=damping)
            fitted[0].compute_pairwise_scores(name, "f", queries, train, score_args=chosen, **sizes)
            return fitted[0].load_pairwise_scores(name)["all_modules"].numpy()

        return Run(fit, score, problem.spec.damping)

    return prepare


method("kronfluence-ekfac", tool="kronfluence", name="EK-FAC", kinds=ALL)(kronfluence("ekfac"))
method("kronfluence-kfac", tool="kronfluence", name="K-FAC", kinds=("head", "cnn"))(kronfluence("kfac"))

# ---------------------------------------------------------------------------------------------------------------- TRAK


def trak(dimension: int) -> Callable[[Problem], Run]:
    """Its features are divided by sqrt(p) and multiplied by an unscaled Gaussian matrix: the damping becomes n d k / p."""

    def prepare(problem: Problem) -> Run:
        from trak import TRAKer

        problem = problem.tail()
        n, m = len(problem.y), len(problem.yq)
        p = sum(parameter.numel() for parameter in problem.model.parameters())
        b = 100 if problem.spec.kind != "resnet" else 10

        def score(damping: float) -> np.ndarray:
            with tempfile.TemporaryDirectory() as folder:
                traker = TRAKer(
                    problem.model,
                    "image_classification",
                    n,
                    save_dir=folder,
                    device="cpu",
                    proj_dim=dimension,
                    use_half_precision=False,
                    lambda_reg=n * damping * dimension / p,
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

        return whole(score, problem.spec.damping)

    return prepare


method("trak", tool="TRAK", name="TRAK, projected to 512", kinds=ALL, scaled=False)(trak(512))

os.environ.setdefault("TQDM_DISABLE", "1")
