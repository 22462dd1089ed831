# SPDX-License-Identifier: Apache-2.0
"""Architectures of any space as arrays, and back; the columns come from the space, never from data.

Letters of shapes: N architectures, C choices (in the order of their names), D options in all (choice by choice),
V = C + 1 nodes of a graph. A choice that its gate switches off is not there: its index is 0, as in the canonical
form, and its entries in the other encodings are zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture, Option
from sartor.gates import key, parents_first
from sartor.space import SearchSpace

__all__ = [
    "active",
    "architectures",
    "enumerated",
    "graph",
    "indices",
    "neighbourhood",
    "onehot",
    "onehot_names",
    "option_counts",
    "ordinal",
]

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]

_PLAIN = frozenset((int, str))


def indices(space: SearchSpace, archs: Sequence[Architecture]) -> Indices:
    """Return the (N, C) positions of the options; ValueError names what is not of the space.

    Choices that only the architectures have are left out, so that a part of a space can be encoded alone.
    """
    table = np.empty((len(space.choices), len(archs)), dtype=np.intp)
    values = [arch._values for arch in archs]
    for row, (name, options) in zip(table, space.choices.items(), strict=True):
        places = {key(option): place for place, option in enumerate(options)}
        try:
            column = [one[name] for one in values]
            # An int or a str is its own key: no call for each of them.
            row[:] = [places[one] for one in column] if _PLAIN.issuperset(map(type, column)) else _keyed(places, column)
        except KeyError:
            raise _stranger(space, archs) from None
    return table.T


def architectures(space: SearchSpace, table: Indices) -> list[Architecture]:
    """Return the N architectures of (N, C) positions, in canonical form; the inverse of `indices`."""
    table = np.where(active(space, table), table, 0)
    columns = [
        [options[place] for place in column]
        for options, column in zip(space.choices.values(), table.T.tolist(), strict=True)
    ]
    names = list(space.choices)
    return [Architecture._trusted(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def active(space: SearchSpace, table: Indices) -> Mask:
    """Return for (N, C) positions which choices matter, as (N, C)."""
    place = {name: column for column, name in enumerate(space.choices)}
    alive = np.ones(table.shape, dtype=bool)
    for name in parents_first(space.gates):
        holds = np.zeros(len(table), dtype=bool)
        for alternative in space.gates[name]:
            one = np.ones(len(table), dtype=bool)
            for other, options in alternative:
                one &= alive[:, place[other]] & np.isin(table[:, place[other]], _places(space, other, options))
            holds |= one
        alive[:, place[name]] = holds
    return alive


def onehot(space: SearchSpace, archs: Sequence[Architecture]) -> Floats:
    """Return (N, D): 1 where the architecture holds the option; `onehot_names` tells the columns."""
    table = indices(space, archs)
    counts = [len(options) for options in space.choices.values()]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    encoded = np.zeros((len(archs), sum(counts)))
    encoded[np.arange(len(archs))[:, None], table + starts] = active(space, table)
    return encoded


def onehot_names(space: SearchSpace) -> list[tuple[str, Option]]:
    """Return the D pairs of a choice and its option that the columns of `onehot` stand for."""
    return [(name, option) for name, options in space.choices.items() for option in options]


def option_counts(space: SearchSpace, archs: Sequence[Architecture]) -> Floats:
    """Return (N, K): how many choices hold each of the K different options of the space, in order of appearance."""
    columns: dict[object, int] = {}
    places = [columns.setdefault(key(option), len(columns)) for _, option in onehot_names(space)]
    return onehot(space, archs) @ np.eye(len(columns))[places]


def ordinal(space: SearchSpace, archs: Sequence[Architecture]) -> Floats:
    """Return (N, C) from 0 to 1: a number between the least and greatest option, else its place among them."""
    table = indices(space, archs)
    columns = [_levels(options)[column] for options, column in zip(space.choices.values(), table.T, strict=True)]
    return np.where(active(space, table), np.stack(columns, axis=1), 0.0)


def graph(space: SearchSpace, archs: Sequence[Architecture], *, places: bool = True) -> Floats:
    """Return the features of the nodes as (N, V, F): one node for each choice, and a global one that comes last.

    Choices with the same options share their columns. `places` adds to each choice's node which one it is; leave it
    out where the links alone tell the nodes apart, as in a cell.
    """
    table = indices(space, archs)
    alive = active(space, table)
    kinds: dict[object, int] = {}
    width = 0
    for options in space.choices.values():
        if (kind := key(options)) not in kinds:
            kinds[kind] = width
            width += len(options)
    starts = np.array([kinds[key(options)] for options in space.choices.values()])
    count = len(space.choices)
    nodes = np.zeros((len(archs), count + 1, width + 1 + count * places))
    nodes[np.arange(len(archs))[:, None], np.arange(count), table + starts] = alive
    nodes[:, count, width] = 1.0
    if places:
        nodes[:, np.arange(count), width + 1 + np.arange(count)] = 1.0
    return nodes


def neighbourhood(space: SearchSpace, links: Iterable[tuple[str, str]] = ()) -> Floats:
    """Return (V, V) for a graph network: 1 where the node of the row hears the node of the column.

    links: pairs of choices, the second of which hears the first: in a cell, the operation whose output it reads. A
        gate is a link as well. Every node hears itself, and the global node, which comes last, hears all.

    Raises ValueError for the name of a choice that is not there.
    """
    place = {name: row for row, name in enumerate(space.choices)}
    heard = np.eye(len(place) + 1)
    heard[-1] = 1.0
    gates = [(other, name) for name, gate in space.gates.items() for one in gate for other, _ in one]
    for source, target in [*links, *gates]:
        for name in (source, target):
            if name not in place:
                raise ValueError(f"a link names {name!r}, but no choice has that name: {', '.join(place)}")
        heard[place[target], place[source]] = 1.0
    return heard


def enumerated(space: SearchSpace) -> Indices:
    """Return every architecture of the space once, as (size, C) positions; the constraint is ignored.

    The memory is that of the result: a gated choice is unfolded only where it matters. The last choices without
    gates vary fastest.
    """
    names = list(space.choices)
    table = np.zeros((1, len(names)), dtype=np.intp)
    for name in [*(name for name in names if name not in space.gates), *parents_first(space.gates)]:
        column, count = names.index(name), len(space.choices[name])
        copies = np.where(active(space, table)[:, column], count, 1)
        first = np.repeat(np.cumsum(copies) - copies, copies)
        table = np.repeat(table, copies, axis=0)
        table[:, column] = np.arange(len(table)) - first
    return table


def _keyed(places: Mapping[object, int], column: Sequence[Option]) -> list[int]:
    return [places[key(option)] for option in column]


def _places(space: SearchSpace, name: str, options: Sequence[Option]) -> list[int]:
    wanted = set(map(key, options))
    return [place for place, option in enumerate(space.choices[name]) if key(option) in wanted]


def _levels(options: Sequence[Option]) -> Floats:
    """Return where each option lies from 0 to 1."""
    if all(isinstance(option, (int, float)) for option in options):
        levels = np.array(options, dtype=np.float64)
    else:
        levels = np.arange(len(options), dtype=np.float64)
    spread = float(np.ptp(levels))
    return (levels - levels.min()) / spread if spread else np.zeros(len(options))


def _stranger(space: SearchSpace, archs: Sequence[Architecture]) -> ValueError:
    """Return the error that names the first architecture, choice or option that the space does not have."""
    for arch in archs:
        for name, options in space.choices.items():
            if name not in arch:
                return ValueError(f"{arch!r} lacks the choice {name!r}: it is of another space")
            if key(arch[name]) not in set(map(key, options)):
                return ValueError(f"{arch[name]!r} is no option of {name!r}: its options are {options!r}")
    raise AssertionError("every architecture is of the space")
