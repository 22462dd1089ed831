# SPDX-License-Identifier: Apache-2.0
"""Greedy slimming: every step takes the choice that costs the least, until the budget."""

from __future__ import annotations

import random

import pytest

from contracts.strategy_contract import ERROR, GATED, OBJECTIVES, TOY, StrategyContract, cost, error, weighed
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies.autoslim import AutoSlim
from sartor.trial import Trial


class TestAutoSlim(StrategyContract):
    make = staticmethod(AutoSlim)


def smooth(arch: Architecture) -> float:
    return 84 - weighed(arch, (1, 2, 3, 4, 5, 6))


def test_each_step_shrinks_the_choice_that_costs_the_least() -> None:
    """The error of a choice is its place, 1 to 6: they go down one after the other, each to the end."""
    objectives = (Objective("error", smooth),)
    strategy = AutoSlim(TOY, objectives)
    search(TOY, strategy, objectives, trials=92)  # the largest; four steps of 6, of 5, ... of 1
    assert len(strategy.path) == 25 and strategy.path[0] == TOY.largest() and strategy.path[-1] == TOY.smallest()
    expected = [Architecture({f"c{i}": max(0, 4 - max(0, step - 4 * i)) for i in range(6)}) for step in range(25)]
    assert strategy.path == expected


def test_a_step_evaluates_all_candidates_once_whatever_the_order() -> None:
    paths = []
    for seed in range(2):
        strategy = AutoSlim(TOY, ERROR, resource=cost, budget=60.0)
        log = search(TOY, strategy, ERROR, trials=40, seed=seed)
        assert len({trial.arch for trial in log[:7]}) == 7
        assert all(sum(arch.values()) == 23 for arch in (trial.arch for trial in log[1:7]))  # type: ignore[arg-type]
        paths.append(strategy.path)
    assert paths[0] == paths[1]


def test_it_stops_at_the_budget_and_goes_on_around_the_best() -> None:
    strategy = AutoSlim(TOY, ERROR, resource=cost, budget=60.0)
    log = search(TOY, strategy, ERROR, trials=200)
    assert [cost(arch) <= 60.0 for arch in strategy.path] == [False] * (len(strategy.path) - 1) + [True]
    within = [trial for trial in log if cost(trial.arch) <= 60.0]
    assert min(error(trial.arch) for trial in within) <= error(strategy.path[-1])


def test_it_beats_equal_shrinking_at_equal_cost() -> None:
    strategy = AutoSlim(TOY, ERROR, resource=cost, budget=60.0)
    search(TOY, strategy, ERROR, trials=100)
    equal = Architecture({name: 2 for name in TOY.choices})
    assert cost(strategy.path[-1]) <= 60.0 > cost(equal) and error(strategy.path[-1]) < error(equal)


def test_a_choice_that_does_not_matter_is_no_candidate() -> None:
    strategy = AutoSlim(GATED, ERROR)
    strategy.tell(Trial(0, GATED.largest().replace({"depth": 1}), {"error": 1.0}, state="done"))
    asked = {strategy.ask(random.Random(seed)) for seed in range(30)}
    assert all(arch["kernel1"] == 3 for arch in asked) and all(arch in GATED for arch in asked)


def test_beyond_a_cheap_bound_the_descent_goes_by_the_excess() -> None:
    objectives = (OBJECTIVES[0], Objective("cost", cost, at_most=60.0, cheap=True))
    strategy = AutoSlim(TOY, objectives)
    log = search(TOY, strategy, objectives, trials=100)
    assert strategy.budget == 60.0 and any(trial.state == "done" for trial in log)
    assert strategy.path[1]["c0"] == 3  # the most expensive


def test_a_budget_needs_a_resource() -> None:
    with pytest.raises(ValueError, match="of no resource"):
        AutoSlim(SearchSpace({"a": (1, 2)}), ERROR, budget=1.0)
