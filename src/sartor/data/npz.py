"""`.npz` archives with images and labels by split."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.source import Arrays, DataError, Source

__all__ = ["read_npz"]

_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels")),
    "validation": (("x_val", "y_val"), ("x_validation", "y_validation"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}


def read_npz(path: Path, *, memory_mb: float) -> Source:
    """Read ``x_train``, ``y_train`` and, if they exist, ``x_val``, ``y_val``, ``x_test``, ``y_test``.

    The names of MedMNIST (``train_images``, ``train_labels``, ...) are read as well. Nothing is unpickled.

    Raises:
        DataError: the file is missing, empty, damaged or too large, a key is missing, an array cannot be read
            or the lengths of images and labels differ.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a .npz archive with x_train, y_train, x_test, y_test")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; write or download it again")
    keys = _checked_keys(path, memory_mb)
    parts: dict[str, Arrays] = {}
    for split, pairs in _NAMES.items():
        pair = _pair(path, split, pairs, keys)
        if pair is not None:
            parts[split] = _part(path, *pair)
    if "train" not in parts:
        present = ", ".join(keys) or "none"
        raise DataError(f"{path}: no x_train and y_train among its keys ({present}); rename them")
    return Source(parts["train"], parts.get("validation"), parts.get("test"), record={"kind": "npz"})


def _checked_keys(path: Path, memory_mb: float) -> list[str]:
    """Return the names of the arrays; raise if the archive is damaged or unpacks to more than the bound."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
    except Exception as error:  # a damaged directory makes zipfile raise many kinds
        reason = "no directory at its end" if isinstance(error, zipfile.BadZipFile) else type(error).__name__
        raise DataError(
            f"{path}: not a whole .npz archive ({reason}), perhaps half-written; write or download it again"
        ) from error
    if not members:
        raise DataError(f"{path}: the archive holds no arrays; save x_train, y_train, x_test, y_test in it")
    needed = sum(member.file_size for member in members) / 2**20
    if needed > memory_mb:
        raise DataError(
            f"{path}: unpacks to {needed:.0f} MB, more than memory_mb = {memory_mb:g}; raise the bound,"
            " store uint8, or use a folder of images, which streams"
        )
    return [member.filename.removesuffix(".npy") for member in members]


def _pair(path: Path, split: str, pairs: tuple[tuple[str, str], ...], keys: list[str]) -> tuple[str, str] | None:
    """Return the names of images and labels of a split, or None if it has neither."""
    for images, labels in pairs:
        if (images in keys) != (labels in keys):
            has, lacks = (images, labels) if images in keys else (labels, images)
            present = ", ".join(keys)
            raise DataError(f"{path}: has {has} but no {lacks} (keys: {present}); save both or neither")
        if images in keys:
            return images, labels
    return None


def _part(path: Path, images: str, labels: str) -> Arrays:
    x, y = _array(path, images), _array(path, labels)
    return Arrays.checked(x, y, f"{path}: {images}", f"{path}: {labels}")


def _array(path: Path, key: str) -> NDArray[Any]:
    """Return one array, or say why it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            array = arrays[key]
    except Exception as error:  # damage surfaces as errors of zip, zlib, the npy header or the allocator
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path}: {key} has dtype object, which is never unpickled; save numbers (or strings as str)"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: {key} cannot be read ({reason}), perhaps half-written; write or download it again"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind in "OV":
        raise DataError(f"{path}: {key} is not an array of numbers or strings; save it with numpy.savez")
    return array
