"""Ground truth for every influence score: slow, obvious, float64, and sharing no code with the package.

Everything is written from the definitions. With l_i(theta) the cross-entropy of example i over the analysed parameters,

    H = (1/n) sum_i d2 l_i,    g_i = d l_i / d theta,    scores[t, i] = + g_t . (H^+ g_i).

Axis letters: n train examples, m queries, p parameters, C classes, F features. Results are numpy arrays of float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from cases import Problem

Array = np.ndarray


# ------------------------------------------------------------------------------------------- the model as a function


def widened(x: Tensor) -> Tensor:
    """Float64, unless the input is one of indices."""
    return x.double() if x.is_floating_point() else x


class Network:
    """A copy of the problem's model in float64 and evaluation mode, as a function of the analysed parameters only."""

    def __init__(self, problem: Problem) -> None:
        self.model = copy.deepcopy(problem.model).double().eval()
        self.names = problem.names
        own = dict(self.model.named_parameters())
        self.shapes = [own[name].shape for name in self.names]
        self.theta = torch.cat([own[name].detach().reshape(-1) for name in self.names])  # [p]

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits [C] of one example at theta [p]."""
        values, start = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            values[name] = theta[start : start + shape.numel()].reshape(shape)
            start += shape.numel()
        return torch.func.functional_call(self.model, values, (widened(x)[None],))[0]

    def loss(self, theta: Tensor, x: Tensor, y: int) -> Tensor:
        """Cross-entropy of one example, nats."""
        return nn.functional.cross_entropy(self.logits(theta, x)[None], torch.tensor([int(y)]))


# ---------------------------------------------------------------------------------- gradients, one example at a time


def probabilities(logits: Array) -> Array:
    """Softmax of one row [C]; each entry has full relative accuracy, however small it is."""
    top = max(logits)
    total = math.fsum(math.exp(z - top) for z in logits)
    return np.array([math.exp(z - top) / total for z in logits])


def residual(logits: Array, y: int) -> Array:
    """d loss / d logits [C]: q_c off the label, and minus their sum at it (q_y - 1 would cancel near 1)."""
    q = probabilities(logits)
    r = q.copy()
    r[y] = -math.fsum(q[c] for c in range(len(q)) if c != y)
    return r


def loss(logits: Array, y: int) -> float:
    """-log q_y, from the odds against the label, so that a loss of 1e-30 is not rounded to 0."""
    odds = math.fsum(math.exp(min(z - logits[y], 700.0)) for c, z in enumerate(logits) if c != y)
    return math.log1p(odds)


def all_logits(problem: Problem, inputs: Tensor) -> Array:
    """Logits [N, C], each example on its own."""
    net = Network(problem)
    with torch.no_grad():
        return np.array([net.logits(net.theta, x).numpy() for x in inputs])


def jacobian(net: Network, x: Tensor) -> Array:
    """d logits / d theta [C, p] of one example: one backward pass for every class."""
    theta = net.theta.clone().requires_grad_(True)
    z = net.logits(theta, x)
    return np.array([torch.autograd.grad(z[c], theta, retain_graph=True)[0].numpy() for c in range(len(z))])


def gradients(problem: Problem, inputs: Tensor, labels: Sequence[int] | Tensor) -> Array:
    """Loss gradients [N, p], J^T r, one example at a time; exact to rounding for saturated probabilities as well."""
    net = Network(problem)
    rows = []
    for x, y in zip(inputs, labels, strict=True):
        J = jacobian(net, x)
        r = residual(net.logits(net.theta, x).detach().numpy(), int(y))
        rows.append(sum(r[c] * J[c] for c in range(len(r))))
    return np.array(rows)


def gradients_by_autograd(problem: Problem, inputs: Tensor, labels: Sequence[int] | Tensor) -> Array:
    """The same [N, p] by autograd of the cross-entropy: simpler still, but without digits where q_y is near 1."""
    net = Network(problem)
    rows = []
    for x, y in zip(inputs, labels, strict=True):
        theta = net.theta.clone().requires_grad_(True)
        rows.append(torch.autograd.grad(net.loss(theta, x, int(y)), theta)[0].numpy())
    return np.array(rows)


# --------------------------------------------------------------------------------------------------------- curvature


def mean_hessian(problem: Problem, rows: Sequence[int] | None = None) -> Array:
    """The mean over the train set (or some rows of it) of each example's dense Hessian [p, p]."""
    net = Network(problem)
    X, y = problem.train
    chosen = range(len(y)) if rows is None else rows
    total = np.zeros((len(net.theta), len(net.theta)))
    for i in chosen:
        f = partial(net.loss, x=X[i], y=int(y[i]))
        one = torch.func.jacrev(torch.func.jacrev(f))(net.theta)  # reverse mode twice; forward mode warns in torch 2.15
        total += one.detach().numpy()
    total /= len(chosen)
    return (total + total.T) / 2


def mean_ggn(problem: Problem) -> Array:
    """The mean generalised Gauss-Newton matrix [p, p]: (1/n) sum_i J_i^T S_i J_i, S_i = diag(q_i) - q_i q_i^T."""
    return curvature_parts(problem, "logits").sum(axis=0)


def margin_gradients(problem: Problem, inputs: Tensor, labels: Sequence[int] | Tensor) -> Array:
    """d m / d theta [N, p] of the margin m = z_y - logsumexp of the other logits."""
    net = Network(problem)
    rows = []
    for x, y in zip(inputs, labels, strict=True):
        J = jacobian(net, x)
        others = [c for c in range(len(J)) if c != int(y)]
        share = probabilities(net.logits(net.theta, x).detach().numpy()[others])
        rows.append(J[int(y)] - sum(share[k] * J[c] for k, c in enumerate(others)))
    return np.array(rows)


def curvature_parts(problem: Problem, rows: str) -> Array:
    """What each train example adds to the mean curvature, [n, p, p]; their sum is the curvature of that kind.

    "logits": the Gauss-Newton matrix. "margin": its part along the margin, a b dm dm^T with a = q_y, b = 1 - q_y. "trak":
    dm dm^T, the same without the weight. "label": g g^T, the empirical Fisher matrix.
    """
    X, y = problem.train
    n = len(y)
    net = Network(problem)
    logits = all_logits(problem, X)
    if rows == "logits":
        jacobians = [jacobian(net, x) for x in X]
        return np.array([J.T @ output_curvature(z) @ J for J, z in zip(jacobians, logits, strict=True)]) / n
    if rows == "label":
        return np.array([np.outer(g, g) for g in gradients(problem, X, y)]) / n
    weights = np.ones(n)
    if rows == "margin":
        weights = np.array([
            -residual(z, int(c))[int(c)] * probabilities(z)[int(c)] for z, c in zip(logits, y, strict=True)
        ])
    return np.array([w * np.outer(d, d) for w, d in zip(weights, margin_gradients(problem, X, y), strict=True)]) / n


def leave_one_out_scores(G_query: Array, parts: Array, G_train: Array, damping: float) -> Array:
    """g_t . (H + damping I - what i added to H)^-1 g_i, pair by pair: one Newton step of the objective without i."""
    H = parts.sum(axis=0) + damping * np.eye(parts.shape[1])
    steps = [np.linalg.solve(H - part, g) for part, g in zip(parts, G_train, strict=True)]
    return np.array([[g @ step for step in steps] for g in G_query])


def group_values(
    G_query: Array, parts: Array, G_train: Array, damping: float, groups: Sequence[Sequence[int]]
) -> Array:
    """g_t . (H + damping I - what the group added to H)^-1 (sum of its g_i), group by group: [groups, m]."""
    H = parts.sum(axis=0) + damping * np.eye(parts.shape[1])
    rows = []
    for group in groups:
        without, total = H.copy(), np.zeros(len(H))
        for i in group:
            without -= parts[i]
            total += G_train[i]
        step = np.linalg.solve(without, total)
        rows.append([g @ step for g in G_query])
    return np.array(rows)


def greedy_group(g_query: Array, parts: Array, G_train: Array, damping: float, k: int) -> tuple[list[int], list[float]]:
    """The group grown by the example that raises its value most, every one tried; and its value at each size."""
    group: list[int] = []
    values: list[float] = []
    for _ in range(k):
        tried = {
            i: group_values(g_query[None], parts, G_train, damping, [[*group, i]])[0, 0]
            for i in range(len(parts))
            if i not in group
        }
        best = max(tried, key=lambda i: tried[i])
        group.append(best)
        values.append(float(tried[best]))
    return group, values


def leave_one_out_losses(
    problem: Problem, inputs: Tensor, labels: Sequence[int] | Tensor, parts: Array, G_train: Array, damping: float
) -> Array:
    """n (l(z_t + J_t delta_i) - l(z_t)) with the Newton step delta_i of the objective without i, pair by pair: [m, n]."""
    n = len(parts)
    H = parts.sum(axis=0) + damping * np.eye(parts.shape[1])
    steps = [np.linalg.solve(H - part, g) / n for part, g in zip(parts, G_train, strict=True)]
    net = Network(problem)
    rows = []
    for x, y in zip(inputs, labels, strict=True):
        J, z = jacobian(net, x), net.logits(net.theta, x).detach().numpy()
        rows.append([n * loss_change(z, J @ step, int(y)) for step in steps])
    return np.array(rows)


def loss_change(logits: Array, delta: Array, y: int) -> float:
    """Loss at moved logits minus the loss, in 60 digits: nothing is lost of the change of a loss that is itself 1e-18."""
    with localcontext() as context:
        context.prec = 60
        z, d = [Decimal(float(v)) for v in logits], [Decimal(float(v)) for v in delta]
        before = sum((a - z[y]).exp() for a in z)
        after = sum((a + b - z[y] - d[y]).exp() for a, b in zip(z, d, strict=True))
        return float((after / before).ln())


def output_curvature(logits: Array) -> Array:
    """d2 loss / d logits2 [C, C] by loops; q_a (1 - q_a) is q_a times the sum of the others, which does not cancel."""
    q = probabilities(logits)
    S = np.zeros((len(q), len(q)))
    for a in range(len(q)):
        for b in range(len(q)):
            S[a, b] = q[a] * math.fsum(q[c] for c in range(len(q)) if c != a) if a == b else -q[a] * q[b]
    return S


def inverse(
    H: Array, *, damping: float = 0.0, rcond: float = 1e-11, absolute: float | None = None, negative: str = "invert"
) -> Array:
    """(H + damping I)^-1, or for damping 0 the Moore-Penrose inverse [p, p], eigenvalue by eigenvalue.

    rcond 1e-11 lies in the gap of every case's spectrum (tests/test_reference.py holds them to that), so the numerical
    rank is not a matter of taste. `negative="drop"` leaves out every eigenvalue below 0.
    """
    values, vectors = np.linalg.eigh(H)
    if damping > 0 and negative == "invert":
        return np.linalg.inv(H + damping * np.eye(len(H)))
    cutoff = rcond * max(abs(values)) if absolute is None else absolute
    result = np.zeros_like(H)
    for value, v in zip(values, vectors.T, strict=True):
        size = value if negative == "drop" else abs(value)
        if size > cutoff:
            result += np.outer(v, v) / (value + damping)
    return result


# ------------------------------------------------------------------------------------------------------------ scores


def score_matrix(G_query: Array, H_inverse: Array, G_train: Array) -> Array:
    """scores[t, i] = + g_t . (H^-1 g_i), pair by pair: [m, n]."""
    scores = np.zeros((len(G_query), len(G_train)))
    for t, g_t in enumerate(G_query):
        for i, g_i in enumerate(G_train):
            scores[t, i] = g_t @ (H_inverse @ g_i)
    return scores


def dots(rows: Array, columns: Array) -> Array:
    """Plain inner products, pair by pair: [m, n]."""
    return np.array([[math.fsum(a * b) for b in columns] for a in rows])


def cosines(rows: Array, columns: Array) -> Array:
    """Inner product over both lengths, pair by pair; 0 where a length is 0."""
    out = np.zeros((len(rows), len(columns)))
    for t, a in enumerate(rows):
        for i, b in enumerate(columns):
            lengths = math.sqrt(math.fsum(a * a)) * math.sqrt(math.fsum(b * b))
            out[t, i] = math.fsum(a * b) / lengths if lengths > 0 else 0.0
    return out


# --------------------------------------------------------------------------------------------- rankings, class match


def ranking(row: Array, skip: int | None = None, largest: bool = True) -> list[int]:
    """Train positions, most helpful (or most harmful) first; equal scores in the order of the train set."""
    positions = [i for i in range(len(row)) if i != skip]
    return sorted(positions, key=lambda i: (-row[i] if largest else row[i], i))


def match_table(scores: Array, query_labels: Array, train_labels: Array, k: int, on_itself: bool) -> list[list[bool]]:
    """hit[t][r]: the example at rank r + 1 of query t has the query's label."""
    hits = []
    for t, row in enumerate(scores):
        order = ranking(row, skip=t if on_itself else None)
        hits.append([bool(train_labels[i] == query_labels[t]) for i in order[:k]])
    return hits


def rates_per_rank(hits: list[list[bool]]) -> list[float]:
    """Share of queries whose neighbour at that rank has the query's label."""
    return [sum(row[r] for row in hits) / len(hits) for r in range(len(hits[0]))]


def cumulative_rates(hits: list[list[bool]]) -> list[float]:
    """Share of matches among the first r neighbours, over all queries."""
    return [sum(sum(row[: r + 1]) for row in hits) / (len(hits) * (r + 1)) for r in range(len(hits[0]))]


def at_least_rate(hits: list[list[bool]], wanted: int, of: int) -> float:
    """Share of queries with at least `wanted` matches among their first `of` neighbours."""
    return sum(sum(row[:of]) >= wanted for row in hits) / len(hits)


# ---------------------------------------------------------------------------------------------------- a convex refit


def fit_softmax(
    features: Array, labels: Array, classes: int, *, l2: float, weights: Array | None = None, start: Array | None = None
) -> Array:
    """The optimum [C, F + 1] (weights, then bias) of sum_i w_i l_i + (l2 / 2) |theta|^2, by Newton's method.

    `weights` are 1/n each unless given: a nudge of example i is 1/n + eps there, its removal 0. L2 reaches the bias
    too. The gradient at the result is under 1e-12, or there is no result. `start` saves steps, nothing else.
    """
    n, F = features.shape
    phi = np.concatenate([features, np.ones((n, 1))], axis=1)
    w = np.full(n, 1.0 / n) if weights is None else weights
    theta = np.zeros((classes, F + 1)) if start is None else start
    value, gradient, hessian = _softmax_objective(phi, labels, w, l2, theta)
    for _ in range(100):
        if l2 > 0:
            step = np.linalg.solve(hessian, gradient.ravel()).reshape(theta.shape)
        else:  # classes shifted together leave every probability as it is: take the shortest of all Newton steps
            step = np.linalg.lstsq(hessian, gradient.ravel(), rcond=1e-13)[0].reshape(theta.shape)
        scale, moved = 1.0, _softmax_objective(phi, labels, w, l2, theta - step)
        while moved[0] > value + 1e-14 * (1 + abs(value)) and scale > 1e-6:
            scale /= 2
            moved = _softmax_objective(phi, labels, w, l2, theta - scale * step)
        theta = theta - scale * step
        value, gradient, hessian = moved
        if abs(gradient).max() < 1e-14 or abs(scale * step).max() < 1e-15 * (1 + abs(theta).max()):
            break
    if not abs(gradient).max() < 1e-12:
        raise AssertionError(f"no convex optimum: the gradient is still {abs(gradient).max():.1e}")
    return theta


def _softmax_objective(phi: Array, labels: Array, w: Array, l2: float, theta: Array) -> tuple[float, Array, Array]:
    """Value, gradient [C, F + 1] and Hessian [C(F + 1), C(F + 1)] of the weighted objective."""
    classes, width = theta.shape
    z = phi @ theta.T
    z = z - z.max(axis=1, keepdims=True)
    q = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    value = -float(w @ np.log(q[np.arange(len(labels)), labels])) + l2 / 2 * float((theta**2).sum())
    gradient = (w[:, None] * (q - np.eye(classes)[labels])).T @ phi + l2 * theta
    hessian = np.zeros((classes, width, classes, width))
    for a in range(classes):
        for b in range(classes):
            s = w * q[:, a] * ((a == b) - q[:, b])
            hessian[a, :, b, :] = phi.T @ (s[:, None] * phi)
    hessian = hessian.reshape(classes * width, classes * width) + l2 * np.eye(classes * width)
    return value, gradient, hessian


def softmax_losses(features: Array, labels: Array, theta: Array) -> Array:
    """Loss of every example [N] at theta [C, F + 1]."""
    return np.array([loss(theta[:, :-1] @ x + theta[:, -1], int(y)) for x, y in zip(features, labels, strict=True)])


# ------------------------------------------------------------------------------------------------ finite differences


def hessian_by_differences(problem: Problem, step: float = 1e-4) -> Array:
    """The mean Hessian [p, p] from central differences of the mean gradient: no second derivative is taken anywhere."""
    net = Network(problem)
    X, y = problem.train

    def mean_gradient(theta: Tensor) -> Array:
        at = theta.clone().requires_grad_(True)
        total = sum(net.loss(at, X[i], int(y[i])) for i in range(len(y))) / len(y)
        return torch.autograd.grad(total, at)[0].numpy()

    return _central(mean_gradient, net.theta, step)


def _central(f: Callable[[Tensor], Array], theta: Tensor, step: float) -> Array:
    rows = []
    for a in range(len(theta)):
        e = torch.zeros_like(theta)
        e[a] = step
        rows.append((f(theta + e) - f(theta - e)) / (2 * step))
    return np.array(rows)
