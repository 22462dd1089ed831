# SPDX-License-Identifier: Apache-2.0
"""An architecture as a sequence of decisions, for strategies that decide one choice after the other.

Such a strategy knows the next choice that is open and what is left of its options, nothing else; which choices
follow may depend on those decided before. This is how the searchers of DeepArchitect see a space (Negrinho and
Gordon 2017, arXiv:1704.08792).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from sartor.architecture import Architecture, Option
from sartor.gates import key, parents_first
from sartor.space import SearchSpace


def traversal(space: SearchSpace) -> list[str]:
    """Return the names of all choices, each after those that its gate asks for, otherwise by name."""
    return [name for name in space.choices if name not in space.gates] + parents_first(space.gates)


class Move(NamedTuple):
    """A decision: of the choice `name`, the options number `low` to `high - 1` are left."""

    name: str
    low: int
    high: int


class Partial(NamedTuple):
    """An architecture under way: options, the first where nothing is decided, and the last move."""

    values: dict[str, Option]
    last: Move | None = None


class Decisions:
    """The decision tree of a space.

    order: names of the choices in the order in which they are decided; those that gates ask for must come first.
        None takes the order of the names, gated choices after those that have no gate.
    bisect: decide by halves of the ordered options, ceil(log2 k) moves for k of them, instead of by one move.

    Raises ValueError for an order that is not one of this space.
    """

    def __init__(self, space: SearchSpace, order: Sequence[str] | None = None, *, bisect: bool = False) -> None:
        self.space = space
        self.bisect = bisect
        order = traversal(space) if order is None else order
        _check(space, order)
        self._free = [name for name in order if len(space.choices[name]) > 1]
        self._after: dict[str | None, int] = {None: 0, **{name: i + 1 for i, name in enumerate(self._free)}}
        self._index = {name: {key(o): i for i, o in enumerate(options)} for name, options in space.choices.items()}
        self.start = Partial({name: options[0] for name, options in space.choices.items()})

    def decided(self, arch: Architecture) -> list[tuple[str, Option]]:
        """Return the choices that matter in `arch` with their options, in order."""
        return [(name, arch[name]) for name in self._free if self.space.is_active(name, arch)]

    def path(self, arch: Architecture) -> list[Move]:
        """Return the moves that lead to `arch`."""
        path = []
        for name, option in self.decided(arch):
            index = self._index[name][key(option)]
            moves = self._first(name)
            while moves:
                path.append(next(move for move in moves if move.low <= index < move.high))
                moves = self._split(path[-1])
        return path

    def moves(self, partial: Partial) -> list[Move]:
        """Return the moves that are open, at least two; none where every choice is decided."""
        if partial.last is not None and (halves := self._split(partial.last)):
            return halves
        name = self._next(partial)
        return [] if name is None else self._first(name)

    def after(self, partial: Partial, move: Move) -> Partial:
        """Return what a move leads to; `partial` itself stays as it is."""
        return Partial({**partial.values, move.name: self.space.choices[move.name][move.low]}, move)

    def completed(self, partial: Partial, rng: random.Random) -> Architecture:
        """Decide at random what is open: each choice uniformly, a halved one among the options that are left."""
        values = dict(partial.values)
        if partial.last is not None:
            name, low, high = partial.last
            values[name] = self.space.choices[name][rng.randrange(low, high)]
        for name in self._free[self._after[partial.last.name if partial.last else None] :]:
            if self.space.is_active(name, values):
                values[name] = rng.choice(self.space.choices[name])
        return Architecture(values)

    def _next(self, partial: Partial) -> str | None:
        left = self._free[self._after[partial.last.name if partial.last else None] :]
        return next((name for name in left if self.space.is_active(name, partial.values)), None)

    def _first(self, name: str) -> list[Move]:
        count = len(self.space.choices[name])
        return self._split(Move(name, 0, count)) if self.bisect else [Move(name, i, i + 1) for i in range(count)]

    def _split(self, move: Move) -> list[Move]:
        """Return the two halves of what is left, none where it is one option."""
        name, low, high = move
        middle = (low + high) // 2
        return [] if high - low == 1 else [Move(name, low, middle), Move(name, middle, high)]


def _check(space: SearchSpace, order: Sequence[str]) -> None:
    if sorted(order) != list(space.choices):
        raise ValueError(f"order is {list(order)}: give each of {', '.join(space.choices)} once")
    known: set[str] = set()
    for name in order:
        for other in (other for one in space.gates.get(name, ()) for other, _ in one):
            if other not in known:
                raise ValueError(f"order has {name!r} before {other!r}, which its gate asks for: swap them")
        known.add(name)
