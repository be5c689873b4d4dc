"""Images in memory or on disk, handed out in batches that fit what a network takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from .errors import DataError

Rows = slice | Int[Tensor, " b"] | Sequence[int]

_GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma, as PIL and torchvision use


class Pixels(Protocol):
    """Where the pixels of a data set lie; positions are counted over the whole data set."""

    def read(self, index: Int[Tensor, " b"], shape: tuple[int, int, int]) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1]; the shape is a hint for sources that have no size of their own."""
        ...

    def fingerprint(self) -> str:
        """A hash of the content."""
        ...


class ArrayPixels:
    """Pixels in memory: uint8 in 0..255, or floating point in [0, 1]."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def read(self, index: Int[Tensor, " b"], shape: tuple[int, int, int]) -> Float[Tensor, "b c h w"]:
        """Images at their own size."""
        picked = self.values[index]
        return picked.float() / 255 if picked.dtype == torch.uint8 else picked.float()

    def fingerprint(self) -> str:
        """A hash of shape, type and bytes."""
        values = self.values.contiguous().numpy()
        head = f"{values.shape} {values.dtype.str} ".encode()
        return hashlib.sha256(head + hashlib.sha256(values.data).digest()).hexdigest()


class FilePixels:
    """Image files, opened when they are asked for; the shorter side is scaled to the network's size, the middle kept."""

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self.root = root
        self.files = list(files)

    def read(self, index: Int[Tensor, " b"], shape: tuple[int, int, int]) -> Float[Tensor, "b c h w"]:
        """Images at the size that was asked for."""
        opened = [self._open(self.files[i], shape) for i in index.tolist()]
        return torch.stack(opened) if opened else torch.zeros(0, *shape)

    def _open(self, path: Path, shape: tuple[int, int, int]) -> Float[Tensor, "c h w"]:
        from PIL import Image, UnidentifiedImageError
        from torchvision.transforms import functional as vision

        try:
            with Image.open(path) as opened:
                pixels = vision.pil_to_tensor(opened.convert("L" if shape[0] == 1 else "RGB")).float() / 255
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"{path} cannot be read as an image ({error}); mend it or take it out of the folder."
            ) from error
        scale = max(shape[1] / pixels.shape[1], shape[2] / pixels.shape[2])
        size = [max(shape[1], round(pixels.shape[1] * scale)), max(shape[2], round(pixels.shape[2] * scale))]
        resized = _resize(pixels[None], (size[0], size[1]))[0]
        top, left = (size[0] - shape[1]) // 2, (size[1] - shape[2]) // 2
        return resized[:, top : top + shape[1], left : left + shape[2]]

    def fingerprint(self) -> str:
        """A hash of the names and sizes of the files; their content is not read."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(f"{path.relative_to(self.root).as_posix()}\0{path.stat().st_size}\0".encode())
        return digest.hexdigest()


def _resize(x: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c u v"]:
    """Bilinear, with a low-pass filter where an image shrinks."""
    if tuple(x.shape[-2:]) == size:
        return x
    shrinks = size[0] < x.shape[-2] or size[1] < x.shape[-1]
    return functional.interpolate(x, size, mode="bilinear", align_corners=False, antialias=shrinks).clamp(0, 1)


def adapt(x: Float[Tensor, "b c h w"], shape: tuple[int, int, int]) -> Float[Tensor, "b i u v"]:
    """Images in [0, 1] as a network wants them: grey or colour, and of its size.

    Args:
        x: Images with one or three channels.
        shape: Channels (1 or 3), height and width wanted.

    Returns:
        float32 of that shape.

    Raises:
        DataError: The channels cannot be turned into those wanted.
    """
    found, wanted = x.shape[1], shape[0]
    if found == 1 and wanted == 3:
        x = x.expand(-1, 3, -1, -1)
    elif found == 3 and wanted == 1:
        x = torch.einsum("bchw,c->bhw", x, x.new_tensor(_GREY))[:, None].clamp(0, 1)
    elif found != wanted:
        raise DataError(
            f"The images have {found} channels and the network takes {wanted}; use images with 1 or 3 channels."
        )
    return _resize(x, shape[1:])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSet(Dataset[tuple[Tensor, int]]):
    """Labelled images; nothing is converted before it is asked for."""

    pixels: Pixels
    labels: Int[Tensor, " n"]
    """True labels, int64."""
    index: Int[Tensor, " n"]
    """Position of each image in the data set it was read from, int64."""
    input_shape: tuple[int, int, int]
    """Channels, height and width that `images` gives."""
    resolution: int | None = None
    """Pixels a side that larger images are reduced to, before they are fitted to the network; None: as they are."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Float[Tensor, "c h w"], int]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} images")
        return self.images([row])[0], int(self.labels[row])

    def __getitems__(self, rows: list[int]) -> list[tuple[Float[Tensor, "c h w"], int]]:
        return list(zip(self.images(rows), self.labels[rows].tolist(), strict=True))

    def images(self, rows: Rows) -> Float[Tensor, "b c h w"]:
        """Pixels in [0, 1] as the network takes them.

        Args:
            rows: Rows of this set, in the order wanted.

        Returns:
            float32 in the input shape.
        """
        return adapt(self.raw_images(rows), self.input_shape).contiguous()

    def raw_images(self, rows: Rows) -> Float[Tensor, "b c h w"]:
        """Pixels in [0, 1] before they were fitted to the network: what a person looks at.

        Args:
            rows: Rows of this set, in the order wanted.

        Returns:
            float32 at the data set's own size, or reduced to `resolution`; image files come at the network's.
        """
        x = self.pixels.read(self.index[_positions(rows)], self.input_shape)
        if self.resolution is None:
            return x
        return _resize(x, (min(self.resolution, x.shape[2]), min(self.resolution, x.shape[3])))

    def subset(self, rows: Rows) -> ImageSet:
        """Some rows of this set, as a set of their own with the same numbering in `index`."""
        picked = _positions(rows)
        return replace(self, labels=self.labels[picked], index=self.index[picked])


def _positions(rows: Rows) -> slice | Tensor:
    return rows if isinstance(rows, slice | Tensor) else torch.as_tensor(rows, dtype=torch.int64)
