"""A fine-tuning recipe in short words, for legends and headings; torch is not imported here."""

from __future__ import annotations

from dataclasses import replace

from .fine_tune_settings import FineTuneSettings


def recipe_label(settings: FineTuneSettings) -> str:
    """What a recipe does otherwise than a plain fine-tuning.

    How many blocks, images and epochs there are, and the settings of stochastic gradient descent, are no part of it.

    Args:
        settings: The recipe.

    Returns:
        Short words joined by commas, such as "2 hidden layers, NEFT 0.4"; empty for a plain one.
    """
    words = [_head(settings), _lwf(settings)]
    usual = replace(settings, head_first=None, bn_statistics=None)
    if settings.warm_up != usual.warm_up:
        words.append(f"head first {settings.warm_up:g}")
    if settings.neft is not None:
        words.append(f"NEFT {settings.neft:g}")
    if not settings.bn_affine:
        words.append("affine frozen")
    if settings.statistics != usual.statistics:
        words.append(f"statistics {settings.statistics}")
    words += ["fresh blocks"] * settings.fresh + [_attack(settings)]
    words += [f"shift {settings.shift}"] * bool(settings.shift) + ["flip"] * settings.flip
    words += [f"rotate {settings.rotate:g}"] * bool(settings.rotate)
    words += ["k as CARTL counts"] * (settings.counting == "cartl")
    return ", ".join(word for word in words if word)


def _head(settings: FineTuneSettings) -> str:
    if not settings.hidden:
        return ""
    layers = f"{settings.hidden} hidden layer{'s' if settings.hidden > 1 else ''}"
    width = f" of {settings.hidden_width}" if settings.hidden_width else ""
    extra = ["batch-norm"] * settings.head_batch_norm
    extra += [f"dropout {settings.head_dropout:g}"] * bool(settings.head_dropout)
    return f"{layers}{width}{' with ' if extra else ''}{' and '.join(extra)}"


def _lwf(settings: FineTuneSettings) -> str:
    if not settings.lwf:
        return ""
    return f"LwF {settings.lwf:g}{' L2' if settings.lwf_distance == 'l2' else ''}"


def _attack(settings: FineTuneSettings) -> str:
    if not settings.adversarial:
        return ""
    step = "" if settings.step_size is None else f" step {settings.step_size:g}"
    return f"adversarial {settings.norm.capitalize()} {settings.eps:g} PGD-{settings.steps}{step}"
