"""From image arrays as users store them to (N, C, H, W) in units of 8-bit pixels, 0..255."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.source import SHORTEST_SIDE, DataError

__all__ = ["mean_and_std", "to_pixels"]

_CHUNK = 4096
_SLACK = 1e-3  # resampling overshoots a range by this share at most; beyond it the unit is another one
_SAME = 1e-2  # of an 8-bit step: float32 keeps k / 255 to 1e-5 of a step, so nearer values are 8-bit values


def to_pixels(arrays: Mapping[str, tuple[NDArray[Any], str]]) -> dict[str, NDArray[Any]]:
    """Return the images of every part as (N, C, H, W): uint8 where that is exact, else float32 in 0..255.

    Args:
        arrays: images and the place to name in errors, for ``train`` and each other part.

    Layouts: (N, H, W) is grey; of (N, H, W, C) and (N, C, H, W), C is the axis of length 1 or 3. As sides
    are at least 8, only one reading can hold.
    Values: integers 0..255; floats in 0..1 or 0..255; Booleans, and integers that ``train`` only has as 0
    and 1, are black and white. The unit is decided on ``train`` and holds for all parts.

    Raises:
        DataError: a shape, dtype or value outside these, NaN or infinity, or parts of unequal image size.
    """
    ordered = {part: (_channels_first(images, place), place) for part, (images, place) in arrays.items()}
    train, train_place = ordered["train"]
    for images, place in ordered.values():
        if images.shape[1:] != train.shape[1:]:
            raise DataError(
                f"{place} has images of {_size(images)}, but {train_place} has {_size(train)}; bring them to one size"
            )
    limits = {part: _limits(images, place) for part, (images, place) in ordered.items()}
    factor = 255.0 if limits["train"][1] <= 1 + _SLACK else 1.0
    for part, (images, place) in ordered.items():
        _check_unit(limits[part], factor, images.dtype, place, train_place)
    compact = {part: _as_bytes(images, factor) for part, (images, _) in ordered.items()}
    exact = {part: images for part, images in compact.items() if images is not None}
    if len(exact) == len(ordered):
        return dict(exact)
    return {part: _as_floats(images, factor) for part, (images, _) in ordered.items()}


def mean_and_std(
    images: NDArray[Any], indices: NDArray[np.int64] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of (N, C, H, W) pixels 0..255, in units of 0..1.

    Args:
        images: the pixels.
        indices: which images count; None is all.

    The sums of 8-bit pixels are exact in float64, so the result does not depend on the platform; a channel
    that never varies gets a deviation of 1.
    """
    total = np.zeros(images.shape[1])
    squares = np.zeros(images.shape[1])
    chosen = np.arange(len(images)) if indices is None else indices
    for rows in _chunks(chosen):
        values = images[rows].astype(np.float64)
        total += values.sum(axis=(0, 2, 3))
        squares += np.square(values, out=values).sum(axis=(0, 2, 3))
    count = len(chosen) * images.shape[2] * images.shape[3]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0)) / 255.0
    return (
        tuple(round(float(value) / 255.0, 6) for value in mean),
        tuple(round(float(value), 6) if value > 1e-5 else 1.0 for value in std),
    )


def _channels_first(images: NDArray[Any], place: str) -> NDArray[Any]:
    """Return a view (N, C, H, W)."""
    if images.dtype.kind not in "biuf":
        raise DataError(f"{place} has dtype {images.dtype}; store images as uint8, or as floats in 0..1")
    if images.ndim == 3:
        images = images[:, np.newaxis]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            f"{place} has shape {images.shape}; images have shape (N, H, W), (N, H, W, C) or (N, C, H, W)"
            f" with 1 or 3 channels{_hint(images)}"
        )
    if len(images) == 0:
        raise DataError(f"{place} holds no images (shape {images.shape}); every split needs some")
    if min(images.shape[2:]) < SHORTEST_SIDE:
        raise DataError(
            f"{place} has images of {images.shape[2]}x{images.shape[3]} pixels;"
            f" sides are at least {SHORTEST_SIDE}, so enlarge them"
        )
    return images


def _hint(images: NDArray[Any]) -> str:
    """What to do about a shape that is often seen."""
    if images.ndim == 2:
        for channels in (1, 3):
            side = math.isqrt(images.shape[1] // channels)
            if side >= SHORTEST_SIDE and channels * side * side == images.shape[1]:
                shape = (len(images), side, side) if channels == 1 else (len(images), channels, side, side)
                return f"; flattened images must be reshaped, here perhaps to {shape}"
        return "; flattened images must be reshaped"
    if images.ndim == 4 and 4 in (images.shape[1], images.shape[3]):
        return "; drop the alpha channel"
    return ""


def _size(images: NDArray[Any]) -> str:
    return f"{images.shape[2]}x{images.shape[3]} pixels and {images.shape[1]} channel(s)"


def _chunks(images: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield consecutive runs of images, so that no temporary is as large as the whole."""
    for start in range(0, len(images), _CHUNK):
        yield images[start : start + _CHUNK]


def _limits(images: NDArray[Any], place: str) -> tuple[float, float]:
    """Return minimum and maximum; NaN and infinity raise."""
    if images.dtype.kind == "f":
        for number, chunk in enumerate(_chunks(images)):
            finite = np.isfinite(chunk)
            if not finite.all():
                at = tuple(int(i) for i in np.argwhere(~finite)[0])
                value = chunk[at]
                raise DataError(f"{place}[{number * _CHUNK + at[0]}] holds {value}; repair or drop it")
    return float(images.min()), float(images.max())


def _check_unit(limits: tuple[float, float], factor: float, dtype: np.dtype[Any], place: str, train_place: str) -> None:
    low, high = limits
    seen = f"{place} has values from {low:g} to {high:g}"
    if low < -_SLACK * 255.0 / factor or high > 255.0 * (1 + _SLACK):
        raise DataError(
            f"{seen}; images are in 0..255 or 0..1, so undo any normalisation (training normalises by itself)"
        )
    above = factor == 255.0 and high > 1 + _SLACK
    below = factor == 1.0 and dtype.kind == "f" and high <= 1 + _SLACK
    if above or below:
        raise DataError(f"{seen}, but {train_place} is in 0..{1 if above else 255}; bring both to one unit")


def _as_bytes(images: NDArray[Any], factor: float) -> NDArray[np.uint8] | None:
    """Return contiguous 8-bit pixels if they lose nothing, else None."""
    if images.dtype.kind != "f":
        whole = np.ascontiguousarray(images, dtype=np.uint8)
        return whole * np.uint8(255) if factor == 255.0 else whole
    out = np.empty(images.shape, dtype=np.uint8)
    for number, chunk in enumerate(_chunks(images)):
        scaled = np.clip(chunk.astype(np.float32) * np.float32(factor), 0.0, 255.0)
        rounded = np.rint(scaled)
        if np.abs(scaled - rounded).max() > _SAME:
            return None
        out[number * _CHUNK : number * _CHUNK + len(chunk)] = rounded
    return out


def _as_floats(images: NDArray[Any], factor: float) -> NDArray[np.float32]:
    scaled = np.ascontiguousarray(images, dtype=np.float32) * np.float32(factor)
    return np.clip(scaled, 0.0, 255.0, out=scaled)
