# SPDX-License-Identifier: Apache-2.0
"""Each bin of costs keeps its best architecture, which never gets worse, and all bins have children."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from contracts.strategy_contract import OBJECTIVES, TOY, StrategyContract, cost, done, error
from sartor.objective import Objective, costs
from sartor.pareto import hypervolume
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies import RandomSearch
from sartor.strategies.alphanet_evolution import AlphaNetEvolution
from sartor.trial import Candidate


def small(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """A first population within a short test."""
    return AlphaNetEvolution(space, objectives, population=20)


class TestAlphaNetEvolution(StrategyContract):
    make = staticmethod(small)


def test_the_best_of_a_bin_never_gets_worse() -> None:
    strategy = AlphaNetEvolution(TOY, OBJECTIVES, population=20, width=10.0)
    best: dict[int, float] = {}
    for number in range(300):
        trial = done(number, Candidate(strategy.ask(random.Random(number))))
        strategy.tell(trial)
        for place, (value, arch) in strategy.archive.items():
            assert value <= best.get(place, value) and value == error(arch)
            assert place == round(cost(arch) / 10.0)
            best[place] = value
    assert best.keys() == strategy.archive.keys() and len(best) > 8


def test_it_starts_with_the_smallest_and_bins_by_the_first_population() -> None:
    strategy = small(TOY, OBJECTIVES)
    log = search(TOY, strategy, OBJECTIVES, trials=20)
    assert log[0].arch == TOY.smallest()
    found = [trial.values["cost"] for trial in log]
    assert isinstance(strategy, AlphaNetEvolution) and strategy.width is not None
    assert strategy.width == pytest.approx((max(found) - min(found)) / 40)
    assert {place for place in strategy.archive} == {round(value / strategy.width) for value in found}


def test_what_is_beyond_a_bound_is_not_kept() -> None:
    objectives = (OBJECTIVES[0], Objective("cost", cost, at_most=30.0))
    strategy = AlphaNetEvolution(TOY, objectives, population=20, width=10.0)
    search(TOY, strategy, objectives, trials=100)
    assert strategy.archive and max(cost(arch) for _, arch in strategy.archive.values()) <= 30.0


def test_it_beats_random_search_in_hypervolume() -> None:
    for seed in range(3):
        logs = [search(TOY, make(TOY, OBJECTIVES), OBJECTIVES, trials=300, seed=seed) for make in (small, RandomSearch)]
        ours, theirs = (hypervolume([costs(trial, OBJECTIVES) for trial in log], [90.0, 120.0]) for log in logs)
        assert ours > theirs


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="width -1"):
        AlphaNetEvolution(TOY, OBJECTIVES, width=-1.0)
