"""Calls of the other tools that the speed benchmarks do not make."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ..methods import Run, cross_entropy, dattri, pydvl, whole
from ..problems import Problem


def linear_layers(model: nn.Module) -> list[str]:
    """Their names."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def linear_layers_only(prepare: Callable[[Problem], Run]) -> Callable[[Problem], Run]:
    """The same on a network whose other layers are frozen, for what knows linear layers alone."""

    def prepared(problem: Problem) -> Run:
        model = copy.deepcopy(problem.model)
        for module in model.modules():
            if not isinstance(module, nn.Linear):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
        return prepare(replace(problem, model=model))

    return prepared


pydvl_cg = pydvl(
    lambda tool, problem: tool.CgInfluence(
        problem.model, cross_entropy, problem.spec.damping, maxiter=50, rtol=1e-4, warn_on_max_iteration=False
    )
)
cg = dattri(lambda d, task, problem: d.IFAttributorCG(task, max_iter=20, regularization=problem.spec.damping))
lissa = dattri(
    lambda d, task, problem: d.IFAttributorLiSSA(
        task, batch_size=100, recursion_depth=200, damping=problem.spec.damping, scaling=50.0
    )
)


def captum_tracin(problem: Problem) -> Run:
    """Without earlier checkpoints: gradient products at the trained weights, as its TracInCP computes them."""
    from captum.influence._core.tracincp import TracInCP

    folder = tempfile.mkdtemp()
    path = Path(folder) / "model.pt"
    torch.save(problem.model.state_dict(), path)
    batched = problem.spec.kind != "tail"  # it batches the gradients of linear and convolutional layers only

    def score(_: float) -> np.ndarray:
        tracin = TracInCP(
            problem.model,
            DataLoader(TensorDataset(problem.X, problem.y), batch_size=len(problem.y)),
            [str(path)],
            loss_fn=nn.CrossEntropyLoss(reduction="sum" if batched else "none"),
            sample_wise_grads_per_batch=batched,
        )
        return tracin.influence((problem.Xq, problem.yq)).detach().numpy()

    return whole(score, 0.0)


def dattri_trak(problem: Problem, dimension: int = 512) -> Run:
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    model = problem.model
    n, p = len(problem.y), sum(parameter.numel() for parameter in model.parameters())

    def chance(parameters: Any, data: Any) -> torch.Tensor:
        x, y = data
        logits = torch.func.functional_call(model, parameters, (x[None],))
        return torch.exp(-cross_entropy(logits, y[None]))

    def margin(parameters: Any, data: Any) -> torch.Tensor:
        q = chance(parameters, data)
        return torch.log(q) - torch.log1p(-q)

    def score(damping: float) -> np.ndarray:
        task = AttributionTask(margin, model, model.state_dict())
        attributor = TRAKAttributor(
            task,
            chance,
            {"proj_dim": dimension, "device": "cpu"},
            regularization=n * damping * dimension / p,
        )
        train, queries = (DataLoader(TensorDataset(*side), batch_size=100) for side in (problem.train, problem.queries))
        with torch.no_grad():
            attributor.cache(train)
            return attributor.attribute(queries).T.numpy()

    return whole(score, problem.spec.damping)
