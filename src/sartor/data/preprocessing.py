"""From an image file to the network's input: the transform that training used and deployment repeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sartor.data.source import LONGEST_SIDE, SHORTEST_SIDE, DataError

__all__ = ["Preprocessing", "decode", "fitted_size", "probe", "resized"]

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_MOST_PIXELS = 64 * 2**20  # far beyond any photograph of a training set, below Pillow's own warning
_GREY = {"1", "L", "LA", "La"}
_WIDE = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input; JSON-able, and enough to repeat it without this package.

    Decode to 8 bits in `mode` (``L`` or ``RGB``; alpha and EXIF rotation are dropped); if the size differs
    from (height, width), resize the whole image to it with Pillow's `resize` filter, aspect ratio not kept;
    then per channel ``(pixel / scale - mean) / std`` as float32 in `layout` order.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    resize: str = "bilinear"
    layout: str = "NCHW"

    @property
    def mode(self) -> str:
        """The Pillow mode, or ``tensor`` where the input is no image file."""
        return {1: "L", 3: "RGB"}.get(self.channels, "tensor")

    def image(self, path: str | Path) -> NDArray[np.float32]:
        """Return the input (1, C, H, W) for an image file; raises `DataError` if it cannot be read."""
        if self.mode == "tensor":
            raise DataError(f"{path}: inputs have {self.channels} channels, so an image file cannot be one")
        pixels = decode(Path(path), str(path), self.mode, (self.height, self.width))
        shape = (1, self.channels, 1, 1)
        mean, std = (np.array(values, dtype=np.float32).reshape(shape) for values in (self.mean, self.std))
        scaled = pixels[np.newaxis].astype(np.float32) / np.float32(self.scale)
        return np.asarray((scaled - mean) / std, dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `mode` as JSON values."""
        return {"mode": self.mode, **asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def files(self) -> dict[str, bytes]:
        """Return what is beside a deployed network, by file name: nothing."""
        return {}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Return what `to_dict` wrote."""
        fields = {name: value for name, value in values.items() if name != "mode"}
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


def probe(source: Path | IO[bytes], name: str) -> tuple[bool, tuple[int, int]]:
    """Return whether an encoded image is grey, and its (height, width), from its header.

    Raises:
        DataError: not a PNG, JPEG, WebP or BMP image, too large to decode, or more than 8 bits a channel.
    """
    with _opened(source, name) as image:
        return image.mode in _GREY, (image.height, image.width)


def decode(source: Path | IO[bytes], name: str, mode: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the pixels (C, H, W) of an encoded image, converted to `mode` and resized to `size` (H, W).

    Raises:
        DataError: the image cannot be decoded; the message names it.
    """
    with _opened(source, name) as image:
        try:
            if "transparency" in image.info:  # Pillow warns unless a palette's alpha is spelt out first
                converted = image.convert("RGBA").convert(mode)
            else:
                converted = image.convert(mode)
        except Exception as error:  # a damaged file makes Pillow raise almost anything
            raise DataError(_unreadable(name, error)) from error
    if converted.size != (size[1], size[0]):
        converted = converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.array(converted, dtype=np.uint8)
    return pixels[np.newaxis] if mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def fitted_size(size: tuple[int, int], wanted: int | tuple[int, int] | None, place: str) -> tuple[int, int]:
    """Return the (height, width) that networks will see for images of `size`.

    That is `wanted` if it is given; otherwise the size itself, scaled down to a longest side of 224.

    Raises:
        DataError: a side below 8, or a `wanted` size outside 8..224.
    """
    shortest, longest = SHORTEST_SIDE, LONGEST_SIDE
    if wanted is not None:
        height, width = (wanted, wanted) if isinstance(wanted, int) else wanted
        if not (shortest <= min(height, width) and max(height, width) <= longest):
            raise DataError(f"image size {height}x{width} is out of range; choose sides from {shortest} to {longest}")
        return height, width
    if max(size) > longest:
        size = (round(size[0] * longest / max(size)), round(size[1] * longest / max(size)))
    if min(size) < shortest:
        raise DataError(
            f"{place}: images of {size[0]}x{size[1]} pixels are too small; sides are at least {shortest},"
            " so give larger images or an image size"
        )
    return size


def resized(images: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return images (N, C, H, W), uint8 or float32, at `size` (H, W), with the filter that `decode` uses."""
    out = np.empty((*images.shape[:2], *size), dtype=images.dtype)
    mode = "L" if images.dtype == np.uint8 else "F"
    for place in np.ndindex(images.shape[0], images.shape[1]):
        plane = Image.fromarray(np.ascontiguousarray(images[place]))
        assert plane.mode == mode
        out[place] = plane.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return out


def _opened(source: Path | IO[bytes], name: str) -> Image.Image:
    """Open an image and check what its header says; the pixels are not decoded yet."""
    try:
        image = Image.open(source, formats=_FORMATS)
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except Exception as error:  # a damaged file makes Pillow raise almost anything, its bomb errors included
        raise DataError(_unreadable(name, error)) from error
    if image.width * image.height > _MOST_PIXELS:
        image.close()
        raise DataError(f"{name}: {image.height}x{image.width} pixels are more than {_MOST_PIXELS}; make it smaller")
    if image.mode in _WIDE:
        image.close()
        raise DataError(f"{name}: pixels of mode {image.mode} have more than 8 bits; convert it to 8 bits")
    return image


def _unreadable(name: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "cannot identify" in reason:
        reason = f"not a {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} image"
    return f"{name}: unreadable image ({reason}); replace or remove it"
