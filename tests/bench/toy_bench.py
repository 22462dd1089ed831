"""A small problem that is known whole, and searches for it; importable, so that processes find them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.bench import Problem
from sartor.objective import Objective
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies.random_search import RandomSearch
from sartor.trial import Trial, TrialLog

SPACE = SearchSpace({"a": (0, 1, 2), "b": (0, 1, 2), "c": (0, 1)})


def signal(arch: Architecture) -> float:
    """What the searches read: 9a + 3b + c, from 0 to 25."""
    return float(9 * int(arch["a"]) + 3 * int(arch["b"]) + int(arch["c"]))  # type: ignore[arg-type]


def cost(arch: Architecture) -> float:
    """A second objective, against the first."""
    return float(int(arch["a"]) + int(arch["b"]))  # type: ignore[arg-type]


def reported(archs: Sequence[Architecture]) -> NDArray[np.float64]:
    """What is reported: the signal, but that c counts the other way."""
    return np.array([signal(arch) - 2 * int(arch["c"]) for arch in archs])  # type: ignore[arg-type]


ALL = [Architecture(dict(zip("abc", options, strict=True))) for options in product((0, 1, 2), (0, 1, 2), (0, 1))]
SIGNAL = Objective("signal", signal, goal="max", cheap=True)
COST = Objective("cost", cost, cheap=True)


def toy(objectives: tuple[Objective, ...] = (SIGNAL,), *, whole: bool = True) -> Problem:
    columns = [reported(ALL), *(np.array([float(one.measure(arch)) for arch in ALL]) for one in objectives)]
    everything = np.column_stack(columns) if whole else None
    return Problem("toy", SPACE, objectives, reported, "reported", everything)


class Broken:
    """Raises at the fifth ask."""

    def __init__(self, space: SearchSpace, objectives: Sequence[Objective]) -> None:
        self.space, self.told = space, 0

    def ask(self, rng: random.Random) -> Architecture:
        if self.told == 4:
            raise RuntimeError("no more ideas")
        return self.space.sample(rng)

    def tell(self, trial: Trial) -> None:
        self.told += 1


class Aware:
    """Draws the first half of its budget from one part of the space, and the rest from the other."""

    def __init__(self, space: SearchSpace, objectives: Sequence[Objective], *, queries: int = 1000) -> None:
        self.space, self.queries, self.told = space, queries, 0

    def ask(self, rng: random.Random) -> Architecture:
        return self.space.restrict(a=0 if self.told < self.queries // 2 else 2).sample(rng)

    def tell(self, trial: Trial) -> None:
        self.told += 1


def learned(seed: int, queries: int) -> TrialLog:
    """A search that is no strategy of the scoreboard's."""
    return search(SPACE, RandomSearch(SPACE), [SIGNAL], trials=queries + 3, seed=seed)


def short(seed: int, queries: int) -> TrialLog:
    """One that stops too early."""
    return search(SPACE, RandomSearch(SPACE), [SIGNAL], trials=2, seed=seed)
