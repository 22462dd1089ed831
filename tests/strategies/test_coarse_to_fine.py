# SPDX-License-Identifier: Apache-2.0
"""Coarse-to-fine selection: the grid, the small changes, and the contract of strategies."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from contracts.strategy_contract import OBJECTIVES, TOY, StrategyContract
from sartor.objective import Objective
from sartor.protocols import Strategy
from sartor.space import SearchSpace
from sartor.strategies.coarse_to_fine import CoarseToFine, dimension
from sartor.trial import Trial


def quick(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """A grid that is over within a short test."""
    return CoarseToFine(space, objectives, coarse=15)


class TestCoarseToFine(StrategyContract):
    make = staticmethod(quick)
    keeps_cheap_bounds = True


def test_the_grid_gives_every_stage_the_same_and_fine_trials_are_neighbours_of_the_front() -> None:
    names = [f"stages.{i}.{role}" for i in range(4) for role in ("width", "kernel")]
    space = SearchSpace({name: (1, 2, 3, 4, 5) for name in names})
    strategy = CoarseToFine(space, [Objective("error", lambda arch: 0.0)], levels=3)
    assert strategy.coarse == 9  # two dimensions of three levels
    for number in range(40):
        arch = strategy.ask(random.Random(number))
        for role in ("width", "kernel"):
            values = {arch[name] for name in names if dimension(name) == role}
            if number < 9:
                assert len(values) == 1 and values <= {1, 3, 5}
        if number >= 9:
            parents = strategy.front()
            steps = [[abs(int(str(arch[n])) - int(str(one[n]))) for n in names] for one in parents]
            assert any(max(step) == 1 for step in steps)
        error = sum(int(str(arch[name])) for name in names)
        strategy.tell(Trial(number, arch, {"error": -float(error)}, state="done"))
    assert len(strategy.told) == 40


def test_a_grid_of_few_options_ends_when_it_is_told_and_nothing_random_takes_its_place() -> None:
    names = [f"stages.{i}.{role}" for i in range(6) for role in ("width", "kernel")]
    space = SearchSpace({name: (1, 2) if name.endswith("kernel") else (1, 2, 3, 4, 5) for name in names})
    strategy = CoarseToFine(space, [Objective("error", lambda arch: 0.0)], levels=4)
    assert strategy.coarse == 4 * 2
    skeletons = set()
    for number in range(8):
        arch = strategy.ask(random.Random(number))
        assert all(len({arch[name] for name in names if dimension(name) == role}) == 1 for role in ("width", "kernel"))
        skeletons.add(arch)
        strategy.tell(Trial(number, arch, {"error": 0.0}, state="done"))
    assert len(skeletons) == 8
    limited = SearchSpace({name: (1, 2, 3) for name in names}, constraint=lambda arch: arch[names[0]] != 1)
    strategy = CoarseToFine(limited, [Objective("error", lambda arch: 0.0)])
    for number in range(12):  # six of nine skeletons are allowed
        parents = strategy.front() if strategy.told else []
        arch = strategy.ask(random.Random(number))
        distance = min((max(abs(int(str(arch[n])) - int(str(one[n]))) for n in names) for one in parents), default=0)
        assert number < 6 or distance == 1
        strategy.tell(Trial(number, arch, {"error": 0.0}, state="done"))


@pytest.mark.parametrize("wrong", [{"levels": 1}, {"coarse": 0}, {"rate": 1.5}])
def test_wrong_arguments(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="levels"):
        CoarseToFine(TOY, OBJECTIVES, **wrong)  # type: ignore[arg-type]
