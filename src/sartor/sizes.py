# SPDX-License-Identifier: Apache-2.0
"""The values that sizes take, without torch: a prefix is an int, an index list a tuple of increasing ints."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TypeGuard

from sartor.architecture import Option, same

__all__ = [
    "ascending",
    "before",
    "blocks",
    "concatenate",
    "floor_divide",
    "head_of_groups",
    "indices",
    "largest_option",
    "position",
    "times",
    "within",
]


def largest_option(options: Sequence[Option]) -> Option:
    """The largest number, the longest index list, otherwise the last option."""
    numbers = [o for o in options if isinstance(o, (int, float))]
    if len(numbers) == len(options):
        return max(numbers)
    tuples = [o for o in options if isinstance(o, tuple)]
    if len(tuples) == len(options):
        return max(reversed(tuples), key=len)
    return options[-1]


def ascending(options: Sequence[Option]) -> list[Option]:
    """The options from the smallest to the largest: numbers by value, tuples by length, all else as given."""
    if all(isinstance(option, (int, float)) for option in options):
        return sorted(options, key=float)  # type: ignore[arg-type]
    if all(isinstance(option, tuple) for option in options):
        return sorted(options, key=len)  # type: ignore[arg-type]
    return list(options)


def indices(value: Option) -> Sequence[int]:
    """The indices that a size of this value keeps; ValueError where the value is no size."""
    if isinstance(value, bool) or not isinstance(value, (int, tuple)):
        raise ValueError(f"{value!r} is no size: a size is a positive int or a tuple of increasing indices")
    if isinstance(value, int):
        if value < 1:
            raise ValueError(f"size {value} keeps nothing; a size is at least 1")
        return range(value)
    if not _is_index_list(value):
        raise ValueError(f"index list {value} must be non-empty, non-negative and strictly increasing")
    return value


def _is_index_list(value: tuple[Option, ...]) -> TypeGuard[tuple[int, ...]]:
    if not value or not all(type(i) is int for i in value):
        return False
    return all(a < b for a, b in itertools.pairwise((-1, *value)))  # type: ignore[operator]


def position(options: Sequence[Option], value: Option) -> int:
    """The place of a value among options; ValueError where it is none of them."""
    for i, option in enumerate(options):
        if same(option, value):
            return i
    raise ValueError(f"{value!r} is not one of the options {tuple(options)}")


def times(a: Option, b: Option) -> Option:
    """A product of prefixes; an index list times n keeps blocks of n (heads to rows)."""
    if isinstance(b, tuple):
        a, b = b, a
    if isinstance(a, tuple):
        if not isinstance(b, int):
            raise ValueError(f"index lists {a} and {b} cannot be multiplied; multiply an index list by an int")
        return tuple(i * b + j for i in indices(a) for j in range(b))
    return _whole(a) * _whole(b)


def blocks(count: Option, length: int) -> Option:
    """The entries of whole blocks of a length, as heads are: a product whose blocks never fall apart."""
    return times(count, length)


def within(place: str, value: Option) -> Option:
    """The value itself, where several places share a choice but each has units of its own, in an order of its own."""
    return value


def before(kept: Option, index: int) -> Option:
    """How many of the indices that are kept come before one: its place among them, where it is kept itself."""
    return sum(one < index for one in indices(kept))


def floor_divide(a: Option, b: Option) -> Option:
    """A quotient of prefixes, at least 1."""
    return max(1, _whole(a) // _whole(b))


def _whole(value: Option) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{value!r} cannot be multiplied or divided as a size; derive it by a named function")
    return value


@functools.lru_cache(maxsize=256)  # equal layers share their lists, which are long: one index for each entry
def concatenate(extents: tuple[int, ...], *values: Option) -> Option:
    """The indices that values keep of dimensions of these extents, one behind the other."""
    offsets = itertools.accumulate((0, *extents[:-1]))
    return tuple(offset + i for offset, value in zip(offsets, values, strict=True) for i in indices(value))


def head_of_groups(groups: int, extent: int, value: Option) -> Option:
    """The indices that a value keeps in each of several groups of an extent."""
    return tuple(g * extent + i for g in range(groups) for i in indices(value))
