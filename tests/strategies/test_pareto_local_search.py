# SPDX-License-Identifier: Apache-2.0
"""The archive holds what nothing dominates, and its neighbours are what is evaluated."""

from __future__ import annotations

import random

import numpy as np
import pytest

from contracts.strategy_contract import OBJECTIVES, TOY, StrategyContract
from sartor.objective import Objective, costs
from sartor.pareto import hypervolume, pareto_front
from sartor.search import search
from sartor.strategies import ParetoLocalSearch, RandomSearch
from sartor.trial import Trial


class TestParetoLocalSearch(StrategyContract):
    make = staticmethod(ParetoLocalSearch)


def test_the_archive_is_the_front_of_all_trials_and_each_is_asked_for_once() -> None:
    strategy = ParetoLocalSearch(TOY, OBJECTIVES)
    log = search(TOY, strategy, OBJECTIVES, trials=300)
    assert len({trial.arch for trial in log}) == 300
    points = np.array([costs(trial, OBJECTIVES) for trial in log])
    front = {log[i].arch for i in pareto_front(points).tolist()}
    assert set(strategy.archive) == front
    for trial in log[10:]:
        assert any(sum(trial.arch[n] != other.arch[n] for n in TOY.choices) == 1 for other in log)


def test_what_violates_least_is_kept_until_something_is_feasible() -> None:
    objectives = (OBJECTIVES[0], Objective("cost", OBJECTIVES[1].measure, at_most=10.0))
    strategy = ParetoLocalSearch(TOY, objectives)
    archs = [TOY.sample(random.Random(seed)) for seed in range(3)]
    strategy.tell(Trial(0, archs[0], {"error": 1.0, "cost": 30.0}, state="infeasible"))
    strategy.tell(Trial(1, archs[1], {"error": 9.0, "cost": 20.0}, state="infeasible"))
    assert list(strategy.archive) == [archs[1]]
    strategy.tell(Trial(2, archs[2], {"error": 99.0, "cost": 5.0}, state="done"))
    assert list(strategy.archive) == [archs[2]]


def test_it_beats_random_search_in_hypervolume() -> None:
    for seed in range(3):
        logs = [
            search(TOY, make(TOY, OBJECTIVES), OBJECTIVES, trials=300, seed=seed)
            for make in (ParetoLocalSearch, RandomSearch)
        ]
        ours, theirs = (hypervolume([costs(trial, OBJECTIVES) for trial in log], [90.0, 120.0]) for log in logs)
        assert ours > theirs


def test_it_refuses_to_start_from_nothing() -> None:
    with pytest.raises(ValueError, match="initial is 0"):
        ParetoLocalSearch(TOY, OBJECTIVES, initial=0)
