"""Whether two runs were trained on, and are asked, the same images: scores of others have nothing to be averaged over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .images import ImageSet
from .runs import load_run, read_run

PLURAL = {"train image": "train images", "query": "queries"}
ROWS = 256
"""Images that are compared at once."""


def first_difference(one: Path, other: Path) -> str | None:
    """What keeps two runs from being two trainings of one network on one train set, asked the same queries.

    The images themselves are read only where the data sets are not the same file for file.

    Args:
        one: A run folder.
        other: Another.

    Returns:
        The first difference, in words that can end a sentence; None where there is none.
    """
    a, b = read_run(one), read_run(other)
    if a["k"] != b["k"]:
        return f"{one} has k = {a['k']}, {other} has k = {b['k']}"
    told = _classes(one, other, a["data"]["class_names"], b["data"]["class_names"])
    if told is not None:
        return told
    if a["data"]["fingerprint"] == b["data"]["fingerprint"]:
        return _index("train image", one, other, a["data"]["train_index"], b["data"]["train_index"])
    runs = load_run(one), load_run(other)
    for word, sides in (("train image", [run.train for run in runs]), ("query", [run.test for run in runs])):
        told = _index(word, one, other, *(side.index.tolist() for side in sides)) or _images(word, one, other, *sides)
        if told is not None:
            return told
    return f"{one} and {other} come from data sets that differ in images which neither was trained on or is asked"


def _classes(one: Path, other: Path, a: Sequence[str], b: Sequence[str]) -> str | None:
    if len(a) != len(b):
        return f"{one} has {len(a)} classes, {other} has {len(b)}"
    label = next((label for label, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
    return None if label is None else f"class {label} is {a[label]} in {one} and {b[label]} in {other}"


def _index(word: str, one: Path, other: Path, a: Sequence[int], b: Sequence[int]) -> str | None:
    if len(a) != len(b):
        return f"{one} has {len(a)} {PLURAL[word]}, {other} has {len(b)}"
    alone = {*a} ^ {*b}
    if not alone:
        return None
    first = min(alone)
    return f"image {first} is a {word} of {one if first in {*a} else other} alone"


def _images(word: str, one: Path, other: Path, a: ImageSet, b: ImageSet) -> str | None:
    """Labels first: they cost nothing."""
    changed = (a.labels != b.labels).nonzero().flatten().tolist()
    if changed:
        row = changed[0]
        x, y = int(a.labels[row]), int(b.labels[row])
        return f"{word} {int(a.index[row])} is of class {x} in {one} and of class {y} in {other}"
    for start in range(0, len(a), ROWS):
        rows = slice(start, min(start + ROWS, len(a)))
        pairs = zip(a.raw_images(rows), b.raw_images(rows), strict=True)
        for row, pair in enumerate(pairs, start):
            if not torch.equal(*pair):
                return f"{word} {int(a.index[row])} is not the same picture in {one} and in {other}"
    return None
