# SPDX-License-Identifier: Apache-2.0
"""Sampling policies: which sub-networks a step trains. Each is a function of a space and of randomness.

Every list is in the order in which the sub-networks are to be trained.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence

from sartor.architecture import Architecture, Option
from sartor.sizes import ascending
from sartor.space import NothingFound, SearchSpace

__all__ = [
    "at_random_width", "at_width", "at_widths", "ends", "fair", "largest", "ordered", "sandwich", "uniform", "weighted"
]  # fmt: skip

ATTEMPTS = 1000


def uniform(space: SearchSpace, rng: random.Random, count: int = 1) -> list[Architecture]:
    """Return sub-networks whose every choice is uniform and independent (Guo et al., ECCV 2020, arXiv:1904.00420)."""
    return [space.sample(rng) for _ in range(count)]


def largest(space: SearchSpace) -> Architecture:
    """Return the sub-network of the largest option of every choice; ValueError where a constraint excludes it."""
    return _admitted(space, space.largest(), "the largest sub-network")


def ends(space: SearchSpace) -> tuple[Architecture, Architecture]:
    """Return the largest and the smallest sub-network; ValueError where the space's constraint excludes one."""
    return largest(space), _admitted(space, space.smallest(), "the smallest sub-network")


def _admitted(space: SearchSpace, arch: Architecture, which: str) -> Architecture:
    if space.constraint is None or space.constraint(arch):
        return arch
    raise ValueError(f"the constraint of the space excludes {which}, which is trained: train without the constraint")


def sandwich(space: SearchSpace, rng: random.Random, count: int = 2) -> list[Architecture]:
    """Return the largest, the smallest and `count` uniform sub-networks (Yu and Huang, ICCV 2019, arXiv:1903.05134).

    Raises ValueError as `ends`.
    """
    return [*ends(space), *uniform(space, rng, count)]


def fair(space: SearchSpace, rng: random.Random) -> list[Architecture]:
    """Return sub-networks in which each option of a choice is drawn equally often: strict fairness, once a step.

    Every choice takes a random permutation of its options; one of fewer options than the widest choice begins another.
    Choices that an architecture leaves inactive are not counted.
    Chu et al., "FairNAS", ICCV 2021, arXiv:1907.01845.
    Raises NothingFound (a ValueError) where the space's constraint leaves no such draw.
    """
    for _ in range(ATTEMPTS):
        archs = _permuted(space, rng)
        if space.constraint is None or all(map(space.constraint, archs)):
            return archs
    raise NothingFound(f"none of {ATTEMPTS} fair draws meets the constraint of the space: widen it or draw otherwise")


def _permuted(space: SearchSpace, rng: random.Random) -> list[Architecture]:
    widest = max(map(len, space.choices.values()), default=1)
    columns = {}
    for name, options in space.choices.items():
        row: list[object] = []
        while len(row) < widest:
            row += rng.sample(options, len(options))
        columns[name] = row[:widest]
    return [space.canonical({name: row[i] for name, row in columns.items()}) for i in range(widest)]  # type: ignore[misc]


def weighted(space: SearchSpace, rng: random.Random, probabilities: Mapping[str, Sequence[float]]) -> Architecture:
    """Return a sub-network whose choices are independent, with given probabilities of their options.

    A choice that is not named is uniform. Raises NothingFound (a ValueError) where the space's constraint is not met.
    """

    def draw() -> Architecture:
        return space.canonical(
            {
                name: rng.choices(options, probabilities[name])[0] if name in probabilities else rng.choice(options)
                for name, options in space.choices.items()
            }
        )

    return _met(space, draw)


def _met(space: SearchSpace, draw: Callable[[], Architecture]) -> Architecture:
    """The first draw that the space's constraint allows."""
    for _ in range(ATTEMPTS):
        arch = draw()
        if space.constraint is None or space.constraint(arch):
            return arch
    raise NothingFound(f"none of {ATTEMPTS} draws meets the constraint of the space: widen it")


def ordered(space: SearchSpace, rng: random.Random, count: int, names: Collection[str]) -> list[Architecture]:
    """Return `count` uniform sub-networks that differ in the choices `names` alone: those of one batch.

    The other choices are drawn once, those too that matter under some options of `names` only.
    Ordered dropout of Yang, Liao and Sze, "NetAdaptV2", CVPR 2021, arXiv:2104.00031.
    """
    base = space.sample(rng)
    shared = {
        name: (base[name] if space.is_active(name, base) else rng.choice(options),)
        for name, options in space.choices.items()
        if name not in names
    }
    return uniform(space.restrict(shared), rng, count)


def at_width(space: SearchSpace, multiplier: float) -> Architecture:
    """Return the sub-network with every choice at the option nearest to `multiplier` (0 to 1) times its largest.

    The larger of two that are equally near. Options that are no numbers count by their place, from smallest to largest.
    Raises ValueError where the space's constraint excludes it.
    """
    return _admitted(space, _of_width(space, multiplier), f"the sub-network of width {multiplier:g}")


def at_random_width(space: SearchSpace, rng: random.Random, lowest: float) -> Architecture:
    """Return a sub-network as `at_width`, with one multiplier, uniform from `lowest` to 1.

    Raises NothingFound (a ValueError) where the space's constraint is not met.
    """
    return _met(space, lambda: _of_width(space, rng.uniform(lowest, 1.0)))


def at_widths(space: SearchSpace, rng: random.Random, lowest: float) -> Architecture:
    """Return a sub-network as `at_width`, with a multiplier of its own for each choice, uniform from `lowest` to 1.

    Raises NothingFound (a ValueError) where the space's constraint is not met.
    """

    def draw() -> Architecture:
        return space.canonical({n: _nearest(them, rng.uniform(lowest, 1.0)) for n, them in space.choices.items()})

    return _met(space, draw)


def _of_width(space: SearchSpace, multiplier: float) -> Architecture:
    return space.canonical({name: _nearest(options, multiplier) for name, options in space.choices.items()})


def _nearest(options: Sequence[Option], multiplier: float) -> Option:
    ordered = ascending(options)
    numbers = [float(option) for option in ordered if isinstance(option, (int, float))]
    if len(numbers) < len(ordered):
        return ordered[int(multiplier * (len(ordered) - 1) + 0.5)]
    gaps = [abs(number - multiplier * numbers[-1]) for number in numbers]
    return ordered[max(i for i, gap in enumerate(gaps) if gap == min(gaps))]
