"""Random changes of training images: whole pixels of shift, a mirror, a rotation."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def augment(
    x: Float[Tensor, "b c h w"], draw: torch.Generator, *, shift: int = 0, flip: bool = False, rotate: float = 0.0
) -> Float[Tensor, "b c h w"]:
    """Shift each image by its own whole number of pixels, mirror half of them, and turn each by its own angle.

    Args:
        x: Images.
        draw: Decides all of it; on the CPU.
        shift: Largest shift in each direction, in pixels; what comes in is zero.
        flip: Whether to mirror left to right.
        rotate: Largest angle to either side, in degrees; bilinear, and what comes in is zero.

    Returns:
        As many images of the same size.
    """
    if shift:
        x = _shifted(x, torch.randint(2 * shift + 1, (2, len(x)), generator=draw).to(x.device) - shift)
    if flip:
        mirror = (torch.rand(len(x), generator=draw) < 0.5).to(x.device)
        x = torch.where(mirror[:, None, None, None], x.flip(3), x)
    if rotate:
        x = _turned(x, (math.radians(rotate) * (2 * torch.rand(len(x), generator=draw) - 1)).to(x))
    return x


def _shifted(x: Float[Tensor, "b c h w"], by: Int[Tensor, "2 b"]) -> Float[Tensor, "b c h w"]:
    """Every image read from `by` rows further down and columns further right."""
    b, c, h, w = x.shape
    reach = int(by.abs().max())
    padded = functional.pad(x, (reach, reach, reach, reach))
    rows = (torch.arange(h, device=x.device) + by[0, :, None] + reach)[:, None, :, None]
    columns = (torch.arange(w, device=x.device) + by[1, :, None] + reach)[:, None, None, :]
    batch = torch.arange(b, device=x.device)[:, None, None, None]
    channel = torch.arange(c, device=x.device)[None, :, None, None]
    return padded[batch, channel, rows, columns]


def _turned(x: Float[Tensor, "b c h w"], angle: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
    """Every image turned counterclockwise about its middle, by radians."""
    h, w = x.shape[2:]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # where each pixel comes from, in units of half the width and half the height; rows count downwards
    rows = torch.stack([cos, -sin * h / w, zero], dim=1), torch.stack([sin * w / h, cos, zero], dim=1)
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
