"""What is compared on the tasks: the calls of benchmarks/methods.py and more, each swept over its damping.

A new method of ours is one entry: `entry("key", name=..., kinds=..., given="auto")(ours(lambda upweight, damping: ...))`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import methods as speed
from ..methods import Ours, Run, ours
from ..problems import Problem
from .baselines import cosine_of_features, nearest_pixels, random_scores, residual_product
from .peers import captum_tracin, cg, dattri_trak, linear_layers, linear_layers_only, lissa, pydvl_cg

NETS = ("cnn", "tail", "mlp")
ALL = ("head", *NETS)
CUTOFFS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One method: up to two lines of a table, at the damping it is given and at the best of its sweep."""

    name: str
    tool: str
    kinds: tuple[str, ...]
    prepare: Callable[[Problem], Run]
    given: Any = None
    """Damping that is not picked on the truth: "auto", or "weight decay"."""
    swept: bool = True
    """Whether other dampings are tried too, and the best is reported."""
    knob: str = "damping"
    """What is swept; "cutoff": `CUTOFFS`, relative to the largest eigenvalue."""
    inverse: bool = True
    """Whether it applies an inverse curvature."""
    listed: bool = True
    """Whether a list of dampings costs less than one call for each."""
    ranks_itself: bool = True
    """Whether its score of an example on itself says anything."""


ENTRIES: dict[str, Entry] = {}


def entry(key: str, **about: Any) -> Callable[[Callable[[Problem], Run]], Callable[[Problem], Run]]:
    def register(prepare: Callable[[Problem], Run]) -> Callable[[Problem], Run]:
        ENTRIES[key] = Entry(prepare=prepare, **about)
        return prepare

    return register


# ------------------------------------------------------------------------------------------------------------ upweight

entry("head", tool="upweight", name="LinearHead", kinds=("head",), given="weight decay")(
    ours(lambda upweight, damping: upweight.LinearHead(damping=damping))
)
entry("head-0", tool="upweight", name="LinearHead, undamped", kinds=("head",), swept=False)(
    ours(lambda upweight, damping: upweight.LinearHead())
)
for _word, _about in ((True, "leave_one_out=True"), ("loss", 'leave_one_out="loss"')):
    entry(
        f"head-loo-{_word}".lower(),
        tool="upweight",
        name=f"LinearHead, {_about}",
        kinds=("head",),
        given="weight decay",
        swept=False,
    )(ours(lambda upweight, damping, word=_word: upweight.LinearHead(damping=damping, leave_one_out=word)))
entry("hessian", tool="upweight", name="Hessian", kinds=("head",), given="weight decay", swept=False)(
    ours(lambda upweight, damping: upweight.Hessian(damping=damping))
)
for _rows in ("logits", "margin", "trak", "label", "sampled"):
    entry(
        f"newton-{_rows}",
        tool="upweight",
        name=f"GaussNewton, {_rows} rows",
        kinds=("cnn", "tail") if _rows == "logits" else ALL,
        given="auto",
    )(ours(lambda upweight, damping, rows=_rows: upweight.GaussNewton(rows=rows, damping=damping)))
for _rows, _kinds in (("logits", ("tail",)), ("margin", NETS)):
    entry(
        f"newton-{_rows}-pinv",
        tool="upweight",
        name=f"GaussNewton, {_rows} rows, truncated pseudo-inverse",
        kinds=_kinds,
        knob="cutoff",
        listed=False,
    )(ours(lambda upweight, cutoff, rows=_rows: upweight.GaussNewton(rows=rows, damping=0.0, rcond=cutoff)))
for _rows, _kinds in (("logits", ("cnn", "tail")), ("margin", ("mlp",))):
    entry(
        f"newton-{_rows}-loo",
        tool="upweight",
        name=f"GaussNewton, {_rows} rows, leave_one_out=True",
        kinds=_kinds,
        given="auto",
        swept=False,
    )(ours(lambda upweight, at, rows=_rows: upweight.GaussNewton(rows=rows, damping=at, leave_one_out=True)))
_approximate: dict[str, tuple[str, tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "ekfac": ("EKFAC", ALL, {}, {}),
    "kfac": ("KFAC", ALL, {}, {}),
    "nystroem": ("Nystroem", ALL, {"rank": 100}, {}),
    "lanczos": ("Lanczos", ALL, {"rank": 100}, {}),
    "projected": ("Projected", ALL, {"width": 512}, {}),
    "cg": ("ConjugateGradient", ALL, {"rtol": 1e-3}, {"swept": False}),
}
for _key, (_class, _kinds, _settings, _about) in _approximate.items():
    _said = ", ".join([_class, *(f"{name} {value}" for name, value in _settings.items())])
    entry(_key, tool="upweight", name=_said, kinds=_kinds, given="auto", **_about)(
        ours(lambda upweight, at, kind=_class, its=_settings: getattr(upweight, kind)(damping=at, **its))
    )
entry("ekfac-linear", tool="upweight", name="EKFAC, linear layers only", kinds=("cnn", "tail"), given="auto")(
    lambda problem: Ours(
        problem, lambda upweight, at: upweight.EKFAC(damping=at), parameters=linear_layers(problem.model)
    )
)
for _cosine in (False, True):
    entry(
        "cosine" if _cosine else "dot",
        tool="upweight",
        name="GradientDot, cosine" if _cosine else "GradientDot",
        kinds=ALL,
        swept=False,
        inverse=False,
        ranks_itself=not _cosine,
    )(ours(lambda upweight, _, cosine=_cosine: upweight.GradientDot(cosine=cosine)))

# ----------------------------------------------------------------------------------------------------------- baselines

_plain = {"tool": "baseline", "kinds": ALL, "swept": False, "inverse": False}
entry("residual", name="residual product", **_plain)(residual_product)
entry("features", name="feature cosine", ranks_itself=False, **_plain)(cosine_of_features)
entry("pixels", name="nearest inputs", ranks_itself=False, **_plain)(nearest_pixels)
entry("random", name="random", **_plain)(random_scores)

# --------------------------------------------------------------------------------------------------------------- peers


def borrowed(key: str, kinds: tuple[str, ...], name: str | None = None, **about: Any) -> None:
    """An entry of the speed benchmarks, on other problems."""
    method = speed.METHODS[key]
    entry(key, tool=method.tool, name=name or method.name, kinds=kinds, **about)(method.prepare)


borrowed("pydvl-direct32", ("head",))
borrowed("pydvl-nystroem", ALL)
borrowed("pydvl-arnoldi", ALL)
borrowed("pydvl-ekfac", ("head", "mlp"))
entry("pydvl-ekfac-linear", tool="pyDVL", name="EK-FAC, linear layers only", kinds=("cnn", "tail"))(
    linear_layers_only(speed.METHODS["pydvl-ekfac"].prepare)
)
entry("pydvl-cg", tool="pyDVL", name="CG", kinds=("head", "cnn"))(pydvl_cg)
borrowed("dattri-explicit", ("head",), listed=False)
borrowed("dattri-arnoldi", ALL, listed=False)
borrowed("dattri-ekfac", ("head", "mlp"), listed=False)
entry("dattri-ekfac-linear", tool="dattri", name="EK-FAC, linear layers only", kinds=("cnn", "tail"), listed=False)(
    linear_layers_only(speed.METHODS["dattri-ekfac"].prepare)
)
entry("dattri-cg", tool="dattri", name="CG, 20 steps", kinds=("head", "cnn"), listed=False)(cg)
entry("dattri-lissa", tool="dattri", name="LiSSA", kinds=("head",), listed=False)(lissa)
entry("dattri-trak", tool="dattri", name="TRAK, projected to 512", kinds=ALL, listed=False)(dattri_trak)
borrowed("captum-naive", ("head",), listed=False)
borrowed("captum-arnoldi", ALL)
entry("captum-tracin", tool="captum", name="TracInCP, last checkpoint", kinds=ALL, swept=False, inverse=False)(
    captum_tracin
)
borrowed("kronfluence-ekfac", ALL)
borrowed("kronfluence-kfac", ALL)
borrowed("trak", ALL, listed=False)
