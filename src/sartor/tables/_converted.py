# SPDX-License-Identifier: Apache-2.0
"""What the reader of an original benchmark file hands on, and the small steps that readers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.space import SearchSpace
from sartor.tables._restricted_pickle import Refused, plain

__all__ = ["Converted", "entry", "mean", "number", "stacked"]


@dataclass(frozen=True)
class Converted:
    """Architectures with what was measured of them; `rule` names how equal networks are told, "" for not at all."""

    name: str
    space: SearchSpace
    archs: Sequence[Architecture]
    columns: Mapping[str, NDArray[Any]]
    rule: str = ""


def entry(holder: object, *keys: object) -> Any:
    """Return `holder[key1][key2]...`; Refused says which is missing."""
    for depth, key in enumerate(keys):
        found = plain(holder)
        if isinstance(found, Mapping) and key in found:
            holder = found[key]
        elif isinstance(found, (list, tuple)) and isinstance(key, int) and -len(found) <= key < len(found):
            holder = found[key]
        else:
            place = "/".join(map(str, keys[: depth + 1]))
            raise Refused(f"it has no entry {place[:120]!r}: it is not laid out as the published file is")
    return plain(holder)


def number(value: object) -> float:
    """Return a number, NaN for None; Refused for anything else."""
    if value is None:
        return float("nan")
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, np.ndarray) and value.size == 1:
        return float(value.reshape(())[()])
    raise Refused(f"it has {str(value)[:40]!r} where a number should be")


def mean(values: Iterable[object]) -> float:
    """Return the mean of numbers, NaN of none and where one is NaN."""
    numbers = [number(value) for value in values]
    return sum(numbers) / len(numbers) if numbers else float("nan")


def stacked(rows: Sequence[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    """Return a column for each name that any row has, NaN where a row lacks it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64) for name in names}
