"""Sizes that must move together: channels and the groups they divide into."""

from __future__ import annotations

from functools import partial
from typing import TypeGuard

from sartor.architecture import Option
from sartor.choice import Derived, Size, extent, indices

__all__ = ["lengths", "width_of_groups"]


def lengths(a: int | Size, b: int | Size) -> set[tuple[int, int]]:
    """Every pair of lengths that two sizes can have together, as they share their choices."""
    return {pair for pair in Derived(_lengths, a, b).options if _is_pair(pair)}


def width_of_groups(size: int | Size, groups: int | Size, name: str) -> int:
    """The constant width of a searched number of groups that come and go whole; ValueError if it is not
    constant.

    `name` is what the layer calls `size`, for the message.
    """
    width = max(1, extent(size) // extent(groups))
    misfits = [value for value in Derived(partial(_misfit, width), size, groups).options if value is not None]
    if misfits:
        raise ValueError(
            f"{name} holds {misfits[0]}: with a searched number of groups each has one constant width and "
            f"comes and goes whole; give {name}=groups * width"
        )
    return width


def _misfit(width: int, size: Option, groups: Option) -> Option:
    fits = list(indices(size)) == [g * width + i for g in indices(groups) for i in range(width)]
    return None if fits else f"{size!r} for {groups!r} groups"


def _lengths(a: Option, b: Option) -> Option:
    return len(indices(a)), len(indices(b))


def _is_pair(value: Option) -> TypeGuard[tuple[int, int]]:
    return isinstance(value, tuple) and len(value) == 2
