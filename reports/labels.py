"""What runs, variants and methods are called in figures and tables."""

from __future__ import annotations

from collections.abc import Sequence

from .runs import BLOCK, DAMPED, PREDICTED, UNDAMPED, Group, RunView


def number(value: float) -> str:
    """A number for a sentence.

    Args:
        value: Any finite number.

    Returns:
        Three significant digits, without a padded exponent: 0.0005, 5e-12.
    """
    text = f"{value:.3g}"
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else text


def percent(value: float, digits: int = 1) -> str:
    """A share for a sentence.

    Args:
        value: Share; NaN is shown as a dash.
        digits: After the point.

    Returns:
        Percent with the sign.
    """
    return "–" if value != value else f"{100 * value:.{digits}f}%"


def percentage_points(value: float) -> str:
    """A difference of shares for a sentence.

    Args:
        value: Difference; NaN is shown as a dash.

    Returns:
        Signed number and "points".
    """
    return "–" if value != value else f"{100 * value:+.1f} points".replace("-", "−")


def variant_label(run: RunView, variant: str) -> str:
    """What one variant of the scores is called.

    Args:
        run: The run it belongs to.
        variant: Key of the run's scores.

    Returns:
        Words that name damping or label where they differ from the paper's.
    """
    spectrum = run.scores[variant].spectrum
    curvature = run.scores[variant].meta.get("curvature", {})
    if spectrum is None:
        damping = str(curvature.get("name", "curvature unknown"))
    elif curvature.get("damping") == "auto":
        damping = "automatic damping"  # another number in every run
    else:
        damping = f"damping {number(spectrum.damping)}" if spectrum.damping else "undamped"
    if variant in {UNDAMPED, DAMPED}:
        return damping
    names = {PREDICTED: "predicted label", BLOCK: "all fine-tuned blocks"}
    return f"{names.get(variant, variant)}, {damping}"


def blocks_label(k: int) -> str:
    """What was fine-tuned.

    Args:
        k: Number of blocks.

    Returns:
        Words.
    """
    if k == 0:
        return "head only"
    return "head and last block" if k == 1 else f"head and last {k} blocks"


def group_label(group: Group, groups: Sequence[Group]) -> str:
    """Heading of a group among others.

    Args:
        group: The group.
        groups: All of the report.

    Returns:
        k in words, and data set and n where these differ between groups.
    """
    parts = ["every k" if group.k is None else f"k = {group.k}: {blocks_label(group.k)}"]
    if len({g.n for g in groups}) > 1:
        parts.append(f"{group.n} train examples")
    if len({g.data for g in groups}) > 1:
        parts.append(group.data or "unnamed data")
    return ", ".join(parts)
