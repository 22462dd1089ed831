# SPDX-License-Identifier: Apache-2.0
"""Ensembles as architectures: the space that follows from a supernet's, so that every strategy searches it.

An ensemble has the supernet's own choices, which are those of the trunk and of the first member; for each further
member j a choice `heads.<j>.<name>` for each choice of a block; and `apart`, how many of the last blocks each member
has for itself. With `apart` 0 there is one network, with all blocks apart nothing is shared. A head's choice matters
where its block is apart, and what a gate of the supernet asks of it is asked of the member: of the head's own choice
where that is apart, of the trunk's where it is shared.

The order of the members is part of the encoding, so that one ensemble of k heads has up to k! of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from sartor.architecture import Architecture, Option
from sartor.space import Condition, Gate, SearchSpace

__all__ = ["APART", "Encoding", "name_in_head"]

APART = "apart"


def name_in_head(head: int, name: str) -> str:
    """Return the name of the choice that member `head`, from 1, has of its own."""
    return f"heads.{head}.{name}"


@dataclass(frozen=True)
class Encoding:
    """How ensembles of sub-networks are written as architectures.

    space: of the supernet. block_of: the block, from 0, whose choice it is, by name; -1 for choices of the whole
    network, such as its resolution, which are always shared. blocks, members: how many there are.
    Raises ValueError for fewer than two members, and for a supernet with a choice named like one of these here.
    """

    space: SearchSpace
    block_of: Mapping[str, int]
    blocks: int
    members: int = 2

    def __post_init__(self) -> None:
        """Check."""
        if self.members < 2:
            raise ValueError(f"members is {self.members}: an ensemble has 2 or more")
        if taken := [name for name in self.space.choices if name == APART or name.startswith("heads.")]:
            raise ValueError(f"the supernet has a choice {taken[0]!r}, which an ensemble adds: name it otherwise")

    @cached_property
    def ensembles(self) -> SearchSpace:
        """All ensembles; where the supernet's space has a constraint, each member meets it."""
        choices: dict[str, tuple[Option, ...]] = {**self.space.choices, APART: tuple(range(self.blocks + 1))}
        gates: dict[str, Gate] = dict(self.space.gates)
        for head in range(1, self.members):
            for name in self.own:
                choices[name_in_head(head, name)] = self.space.choices[name]
                gates[name_in_head(head, name)] = self._gate(head, name)
        return SearchSpace(choices, gates, self._allowed if self.space.constraint else None)

    @cached_property
    def own(self) -> tuple[str, ...]:
        """The supernet's choices that a member can have for itself: those of blocks."""
        return tuple(name for name in self.space.choices if self.block_of[name] >= 0)

    def restricted(self, options: Mapping[str, Sequence[Option]]) -> Encoding:
        """Return the encoding with fewer options of the supernet's choices, in the trunk and in all members."""
        return replace(self, space=self.space.restrict(dict(options)))

    def is_apart(self, name: str, apart: int) -> bool:
        """Tell whether the block of a choice is behind the split."""
        return self.block_of[name] >= max(self.blocks - apart, 0)

    def networks(self, arch: Mapping[str, Option]) -> tuple[Architecture, ...]:
        """Return each member's sub-network, as an architecture of the supernet."""
        apart = arch[APART]
        assert isinstance(apart, int)
        return tuple(
            self.space.canonical(
                {
                    name: arch[name_in_head(member, name) if member and self.is_apart(name, apart) else name]
                    for name in self.space.choices
                }
            )
            for member in range(self.members)
        )

    def encoded(self, networks: Sequence[Mapping[str, Option]], apart: int) -> Architecture:
        """Return the ensemble of these sub-networks of which the last `apart` blocks are not shared.

        Raises ValueError for another number of networks, and where they differ in what is shared.
        """
        if len(networks) != self.members:
            raise ValueError(f"{len(networks)} networks where an ensemble has {self.members}: give as many")
        first, values = networks[0], {**networks[0], APART: apart}
        for head, other in enumerate(networks[1:], start=1):
            for name in self.space.choices:
                if self.is_apart(name, apart):
                    values[name_in_head(head, name)] = other[name]
                elif other[name] != first[name]:
                    raise ValueError(f"networks 0 and {head} share {name!r} with apart={apart}, but differ in it")
        return self.ensembles.canonical({**self._idle, **values})

    @cached_property
    def _idle(self) -> dict[str, Option]:
        return {name: options[0] for name, options in self.ensembles.choices.items()}

    def _allowed(self, arch: Architecture) -> bool:
        constraint = self.space.constraint
        return constraint is None or all(map(constraint, self.networks(arch)))

    def _gate(self, head: int, name: str) -> Gate:
        """When a head's own choice matters: its block is apart, and the member's other choices are as its gate asks."""
        return tuple(
            found
            for alternative in self.space.gates.get(name, ((),))
            for found in self._alternatives(head, name, alternative)
        )

    def _alternatives(
        self, head: int, name: str, alternative: tuple[Condition, ...]
    ) -> Iterator[tuple[Condition, ...]]:
        """One alternative of a supernet's gate, for each range of splits in which its choices stand alike."""
        start = self.blocks - self.block_of[name]
        asked = {self.block_of[other] for other, _ in alternative}
        # A choice of an earlier block is shared until the split moves in front of it.
        edges = sorted({start, *(self.blocks - b for b in asked if 0 <= b < self.block_of[name]), self.blocks + 1})
        for low, high in itertools.pairwise(edges):
            conditions = tuple(
                (name_in_head(head, other) if self.is_apart(other, low) else other, options)
                for other, options in alternative
            )
            yield ((APART, tuple(range(low, high))), *conditions)
