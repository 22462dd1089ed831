"""From labels as they are written (numbers or names) to class indices 0..K-1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.source import DataError

__all__ = ["IMBALANCE", "encode_labels", "imbalance_warning"]

Labels = NDArray[np.int64]

IMBALANCE = 5.0
"""A set whose largest class has more than this many times the samples of its smallest is imbalanced."""


def encode_labels(
    labels: Mapping[str, tuple[NDArray[Any], str]], names: Sequence[str] | None = None
) -> tuple[dict[str, Labels], tuple[str, ...]]:
    """Return the class index of every sample, by part, and the class names.

    Args:
        labels: for ``train`` and each other part, the labels (N,) or (N, 1) and the place to name in errors.
        names: the class names if the source declares them; labels are then integers, indices into them.

    Strings: the sorted distinct strings of ``train`` are the classes. Integers: the classes are the run of
    consecutive integers that ``train`` uses (0..K-1, or e.g. 1..26), named by their digits.

    Raises:
        DataError: labels of a wrong dtype or shape, fractional, negative, out of range or with gaps; fewer
            than two classes; a class that has samples in another part but none in ``train``.
    """
    plain = {part: _plain(values, place) for part, (values, place) in labels.items()}
    train, place = plain["train"], labels["train"][1]
    if len({values.dtype.kind for values in plain.values()}) > 1:
        kinds = ", ".join(f"{labels[part][1]} {values.dtype}" for part, values in plain.items())
        raise DataError(f"labels of different kinds: {kinds}; write all as integers or all as strings")
    classes, counts = np.unique(train, return_counts=True)
    if len(classes) < 2:
        raise DataError(f"{place}: all {len(train)} labels are {classes[0]!s}; a classifier needs at least two classes")
    if names is not None:
        _check_declared(plain, labels, names)
        classes = np.arange(len(names))
    for part, values in plain.items():
        _check_known(part, values, classes, labels[part][1], place)
    if names is None and train.dtype.kind == "i":
        _check_consecutive(train, classes, counts, place)
    encoded = {part: np.searchsorted(classes, values).astype(np.int64) for part, values in plain.items()}
    return encoded, tuple(names) if names is not None else tuple(str(name) for name in classes)


def imbalance_warning(counts: NDArray[np.int64], classes: Sequence[str]) -> str | None:
    """Return what to tell the user about class sizes `counts` (K,) that are imbalanced, else None."""
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] <= IMBALANCE * counts[least]:
        return None
    return (
        f"class {classes[most]!r} has {counts[most]} training samples and {classes[least]!r} only"
        f" {counts[least]}, more than {IMBALANCE:g} times fewer; balanced accuracy is reported"
    )


def _plain(values: NDArray[Any], place: str) -> NDArray[Any]:
    """Return labels (N,) as int64 or as strings."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        hint = "; take argmax(axis=1) of one-hot labels" if values.ndim == 2 else ""
        raise DataError(f"{place} has shape {values.shape}, but labels have shape (N,){hint}")
    if len(values) == 0:
        raise DataError(f"{place} holds no samples; every split needs some")
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "U":
        return values
    if values.dtype.kind not in "biuf":
        raise DataError(f"{place} has dtype {values.dtype}; labels are integers or strings, so convert them")
    if values.dtype.kind == "f":
        _check(np.isfinite(values) & (values == np.round(values)), values, place, "is not a whole number")
    _check(values >= 0, values, place, "is negative; classes are numbered from 0")
    _check(values < 2**31, values, place, "is out of range; classes are numbered from 0 without gaps")
    return values.astype(np.int64)


def _check(good: NDArray[np.bool_], values: NDArray[Any], place: str, complaint: str) -> None:
    """Raise about the first value that is not good."""
    if not good.all():
        at = int(np.argmin(good))
        raise DataError(f"{place}[{at}]: label {values[at]!s} {complaint}; correct or drop this sample")


def _check_declared(
    plain: Mapping[str, NDArray[Any]],
    labels: Mapping[str, tuple[NDArray[Any], str]],
    names: Sequence[str],
) -> None:
    for part, values in plain.items():
        complaint = f"is out of range for {len(names)} classes (0..{len(names) - 1})"
        _check(values < len(names), values, labels[part][1], complaint)


def _check_known(part: str, values: NDArray[Any], classes: NDArray[Any], place: str, train_place: str) -> None:
    """Every label of a part must be a class of the training part."""
    known = np.isin(values, classes)
    if known.all():
        return
    at = int(np.argmin(known))
    reason = f"class {values[at]!s} has samples in {part} but none in train"
    if values.dtype.kind == "i" and values[at] > classes[-1]:
        reason = f"label {values[at]!s} is out of range: {train_place} has {classes[0]!s}..{classes[-1]!s}"
    raise DataError(f"{place}[{at}]: {reason}; add training samples of it or drop it from {part}")


def _check_consecutive(train: NDArray[Any], classes: NDArray[Any], counts: NDArray[np.int64], place: str) -> None:
    """Integer classes with a gap are more likely a damaged label than a class of their own."""
    gaps = np.flatnonzero(np.diff(classes) > 1)
    if len(gaps) == 0 and classes[0] <= 1:
        return
    if len(gaps) == 0:
        value, missing = classes[0], "0"
    else:
        value, missing = classes[gaps[0] + 1], str(classes[gaps[0]] + 1)
    at = int(np.argmax(train == value))
    raise DataError(
        f"{place}[{at}]: label {value!s} is out of range, as no sample has label {missing};"
        f" number the {len(classes)} classes 0..{len(classes) - 1}, or write them as strings"
    )
