"""What lies where in the file of a ground truth (docs/format.md): its making, and its reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import h5py
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray

from .attributes import read_attributes, write_attributes
from .contents import damaged, require_data, require_version
from .layout import allocate
from .provenance import JSON, digest, library_versions, plain

FORMAT = "upweight-truth"
VERSION = "1.0"
UNIT = "nats"
SIGN = "loss = -log softmax at the true label; margin = logit of the true label - log-sum-exp of the others"
PENDING, DONE, DIVERGED = 0, 1, 2
OUTPUTS = ("loss", "margin")
EXAMPLES = ("train_index", "train_label", "query_index", "query_label")
"""Fields of `Refits` that are kept as `train/index` and so on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Refits:
    """J parts of a train set, r trainings on each, and what is measured after them."""

    kept: Bool[NDArray[np.bool_], "J n"]
    """Examples of each part."""
    seed: Int[NDArray[np.int64], "J r"]
    """Of each training."""
    train_index: Int[NDArray[np.int64], " n"]
    train_label: Int[NDArray[np.int64], " n"]
    query_index: Int[NDArray[np.int64], " m"]
    query_label: Int[NDArray[np.int64], " m"]

    @property
    def keys(self) -> list[bytes]:
        """One for each part: equal where the examples and the seeds are."""
        return [_pack(kept).tobytes() + seed.tobytes() for kept, seed in zip(self.kept, self.seed, strict=True)]

    @property
    def shape(self) -> tuple[int, int, int]:
        """J, r and m."""
        return *self.seed.shape, len(self.query_index)

    def parts(self, kept: NDArray[np.bool_], seed: NDArray[np.int64]) -> Refits:
        """The same examples with other parts."""
        return replace(self, kept=kept, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Held:
    """What the file of a ground truth holds; the numbers of each refit are read when they are asked for."""

    version: str
    config: dict[str, JSON]
    """What decides the results."""
    shared: dict[str, JSON]
    """Whatever else it says about itself."""
    refits: Refits
    state: UInt8[NDArray[np.uint8], "J r"]
    """0 for a refit that is still to be done, 1 for one that is done, 2 for one that diverged."""

    @property
    def done(self) -> tuple[int, int]:
        """How many refits are done, diverged ones among them, and how many there are."""
        return int((self.state != PENDING).sum()), self.state.size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """Refits that another file holds already."""

    state: UInt8[NDArray[np.uint8], "J r"]
    outputs: Mapping[str, Float[NDArray[np.float64], "Jr m"]]


def size_on_disk(refits: Refits) -> int:
    """Bytes that a file takes, about.

    Args:
        refits: What it is for.

    Returns:
        The bytes of its arrays.
    """
    J, r, m = refits.shape
    n = len(refits.train_index)
    return 8 * (len(OUTPUTS) * J * r * m + J * r + 2 * (m + n)) + J * (r + -(-n // 8))


def lay_out(
    file: h5py.File, refits: Refits, config: Mapping[str, Any], attributes: Mapping[str, Any], known: Known
) -> None:
    """Make all data sets of a new file, every chunk in its place, with NaN for what is not known.

    Losses are kept as float64: of a convex optimum, what leaving one example out changes is a millionth of the loss.

    Args:
        file: A new file.
        refits: What it is for.
        config: What decides the results.
        attributes: Whatever else is to be said about them.
        known: What is known already.
    """
    own = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "unit": UNIT,
        "sign": SIGN,
        "config": plain(config),
        "config_digest": digest(config),
    }
    write_attributes(file, {"versions": library_versions(), **attributes, **own})
    J, r, m = refits.shape
    file["kept"] = _pack(refits.kept)
    file["seed"] = refits.seed
    for name in EXAMPLES:
        file[_key(name)] = np.asarray(getattr(refits, name), dtype=np.int64)
    for name in OUTPUTS:
        allocate(file["/"], name, (J * r, m), "float64", (1, m), np.nan)[...] = known.outputs[name]
    allocate(file["/"], "state", (J, r), "uint8", (J, r), PENDING)[...] = known.state


def read_held(file: h5py.File) -> Held:
    """Check a file against the format.

    Args:
        file: What `safe_open` gave.

    Returns:
        What it holds, the numbers aside.
    """
    require_version(file, VERSION, known=(1,))
    attributes = read_attributes(file)
    config = attributes.pop("config", None)
    if not isinstance(config, dict):
        damaged(file, "its settings are missing")
    examples = {name: require_data(file, _key(name), ("int64",), None)[...] for name in EXAMPLES}
    n, m = len(examples["train_index"]), len(examples["query_index"])
    for name, values in examples.items():
        if values.shape != (n if name.startswith("train") else m,):
            damaged(file, f"{_key(name)} has shape {list(values.shape)}")
    seed = require_data(file, "seed", ("int64",), None)
    if seed.ndim != 2:
        damaged(file, f"seed has shape {list(seed.shape)}")
    J, r = seed.shape
    packed = require_data(file, "kept", ("uint8",), (J, -(-n // 8)))[...]
    for name in OUTPUTS:
        require_data(file, name, ("float64",), (J * r, m))
    state = require_data(file, "state", ("uint8",), (J, r))[...]
    if state.max(initial=0) > DIVERGED:
        damaged(file, "state holds other values than 0, 1 and 2")
    kept = np.unpackbits(packed, axis=1, count=n).astype(np.bool_)
    return Held(
        version=str(attributes.pop("version")),
        config=config,
        shared=attributes,
        refits=Refits(
            kept=kept, seed=seed[...].astype(np.int64), **{k: v.astype(np.int64) for k, v in examples.items()}
        ),
        state=state,
    )


def _key(name: str) -> str:
    """Where a field of `Refits` lies: train_index at train/index, query_label at queries/label."""
    side, _, leaf = name.partition("_")
    return f"{'queries' if side == 'query' else side}/{leaf}"


def _pack(kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(kept, axis=-1)
