# SPDX-License-Identifier: Apache-2.0
"""LINAS and ConcurrentNAS: the contract, warm start, and stages."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from contracts.strategy_contract import ERROR, OBJECTIVES, TOY, StrategyContract, cost, error
from sartor.architecture import Architecture
from sartor.objective import Objective, costs
from sartor.pareto import hypervolume
from sartor.predictors import Ridge
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies._predicted_front import best, predicted_front
from sartor.strategies._surrogate import Belief, learnt
from sartor.strategies.concurrent_nas import ConcurrentNAS
from sartor.strategies.linas import LINAS
from sartor.strategies.random_search import RandomSearch
from sartor.trial import Trial

LARGE = SearchSpace({f"x{i:02}": (0, 1, 2, 3) for i in range(12)})


def small_linas(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """Several loops within a short test."""
    return LINAS(space, objectives, population=30, evaluations=200, predictor=Ridge)


def small_concurrent(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """Several loops within a short test."""
    return ConcurrentNAS(space, objectives, population=30, trials=30, evaluations=200, predictor=Ridge)


class TestLINAS(StrategyContract):
    make = staticmethod(small_linas)
    keeps_cheap_bounds = True


class TestConcurrentNAS(StrategyContract):
    make = staticmethod(small_concurrent)
    keeps_cheap_bounds = True


def total(arch: Architecture) -> float:
    return float(sum(arch.values()))  # type: ignore[arg-type]


def rugged(arch: Architecture) -> float:
    """Best where options are 3, but for some that are best at 1."""
    return float(sum(abs(option - (1 if place % 3 else 3)) for place, option in enumerate(arch.values())))  # type: ignore[operator, misc]


SUMS = (Objective("rugged", rugged), Objective("total", total))


def test_linas_defaults_are_the_papers() -> None:
    strategy = LINAS(TOY, OBJECTIVES)
    assert (strategy.population, strategy.evaluations) == (50, 20_000)


def test_linas_measures_nothing_twice_and_beats_random_search() -> None:
    log = search(TOY, LINAS(TOY, OBJECTIVES, population=20), OBJECTIVES, trials=100)
    assert len({trial.arch for trial in log}) == 100
    volume, theirs = (
        hypervolume([costs(trial, OBJECTIVES) for trial in one], [90.0, 120.0])
        for one in (log, search(TOY, RandomSearch(TOY), OBJECTIVES, trials=100))
    )
    assert volume > theirs


@pytest.mark.parametrize("strategy", [LINAS, ConcurrentNAS])
def test_a_warm_start_is_measured_first(strategy: type[LINAS] | type[ConcurrentNAS]) -> None:
    """In the authors' code a given population is ignored: a comparison of its type is never true."""
    front = search(TOY, LINAS(TOY, OBJECTIVES, population=20), OBJECTIVES, trials=80).pareto(OBJECTIVES)
    warm = [trial.arch for trial in front][:19]
    assert len(warm) == 19
    log = search(TOY, strategy(TOY, OBJECTIVES, population=20, warm=warm), OBJECTIVES, trials=20)
    assert {trial.arch for trial in log[:10]} == set(warm[::2]), "half a population, evenly spaced"
    assert not {trial.arch for trial in log[10:]} <= set(warm), "the other half is random"
    assert len({trial.arch for trial in log}) == 20
    with pytest.raises(ValueError, match="not in the space"):
        strategy(TOY, OBJECTIVES, warm=[LARGE.smallest()])


def test_the_inner_evolution_approaches_the_predicted_front_of_a_large_space() -> None:
    """4^12 architectures; the exact front of the linear predictors is known from the choices."""
    rng = random.Random(0)
    archs = [LARGE.sample(rng) for _ in range(200)]
    trials = [
        Trial(i, arch, {"rugged": rugged(arch), "total": total(arch)}, state="done") for i, arch in enumerate(archs)
    ]
    predictors = learnt(Ridge, LARGE, SUMS, trials)
    found = predicted_front(
        LARGE, predictors, SUMS, count=40, evaluations=4000, seen=set(archs), whole=None, rng=random.Random(1)
    )
    assert len(set(found)) == 40 and not set(found) & set(archs) and all(arch in LARGE for arch in found)

    # A unit of total buys at most a unit of rugged, so that their sum is 20 on the whole front and above it elsewhere.
    sums = [rugged(arch) + total(arch) for arch in found]
    assert min(sums) == 20 and np.mean(sums) < 22
    assert min(rugged(arch) + total(arch) for arch in archs) > 21
    assert len({total(arch) for arch in found}) > 10, "the front is covered"


def test_best_takes_fronts_then_crowding_then_the_least_excess() -> None:
    points = np.array([[0.0, 4.0], [1.0, 3.0], [4.0, 0.0], [5.0, 5.0], [0.0, 0.0], [0.0, 0.0]])
    belief = Belief(points, np.array([0.0, 0.0, 0.0, 0.0, 0.2, 0.1]))
    assert best(belief, 6).tolist() == [0, 2, 1, 3, 5, 4]
    assert best(belief, 2).tolist() == [0, 2] and best(belief, 9).tolist() == best(belief, 6).tolist()


def test_linas_keeps_bounds_that_it_learnt() -> None:
    objectives = (ERROR[0], Objective("cost", cost, at_most=50.0))
    log = search(TOY, LINAS(TOY, objectives, population=25, predictor=Ridge), objectives, trials=150)
    share = [np.mean([trial.state == "done" for trial in part]) for part in (log[:25], log[50:])]
    assert share[1] > 0.8 > share[0]


@pytest.mark.parametrize("space", [TOY, LARGE])
def test_what_a_cheap_bound_refuses_is_never_asked_for(space: SearchSpace) -> None:
    objectives = (Objective("rugged", rugged), Objective("total", total, at_most=11.0, cheap=True))
    log = search(space, small_linas(space, objectives), objectives, trials=90)
    assert all(trial.state == "done" for trial in log)


def noisy(arch: Architecture, budget: float) -> float:
    """A different order of architectures at each budget."""
    return error(arch) + 40 * (1 - budget) * (int(cost(arch)) * 37 % 7) / 7


STAGED = (Objective("error", noisy, fidelity=True), Objective("cost", cost))


def test_concurrent_nas_raises_the_budget_and_measures_the_front_again() -> None:
    strategy = ConcurrentNAS(TOY, STAGED, budgets=(0.5, 1.0), trials=40, population=20, predictor=Ridge)
    log = search(TOY, strategy, STAGED, trials=80)
    assert [trial.budget for trial in log] == [0.5] * 40 + [1.0] * 40
    early = [trial for trial in log[:40]]
    points = [costs(trial, STAGED) for trial in early]
    front = [early[i].arch for i in best(Belief(np.array(points), np.zeros(40)), 10)]
    assert {trial.arch for trial in log[40:50]} == set(front)


def test_concurrent_nas_learns_from_the_present_stage_alone() -> None:
    strategy = ConcurrentNAS(TOY, STAGED, budgets=(0.5, 1.0), trials=20, population=20, predictor=Ridge)
    search(TOY, strategy, STAGED, trials=25)
    assert strategy.stage == 1 and {trial.budget for trial in strategy._told.values()} == {1.0}
    before = dict(strategy._told)
    strategy.tell(Trial(99, TOY.smallest(), {"error": 0.0, "cost": 0.0}, 0.5, "done"))  # late, of the stage before
    assert strategy._told == before


def test_trials_of_an_earlier_stage_do_not_count_in_the_next() -> None:
    """Four were still running when the stage ended: the next is as long as it should be."""
    objectives = (Objective("noisy", noisy, fidelity=True), Objective("total", total))
    strategy = ConcurrentNAS(TOY, objectives, budgets=(0.5, 1.0), trials=20, population=10, predictor=Ridge)
    running = [(number, strategy.ask(random.Random(number))) for number in range(24)]
    told = []
    for number, (arch, budget) in running:
        values = {"noisy": noisy(arch, budget), "total": total(arch)}
        strategy.tell(Trial(number, arch, values, budget, state="done"))
        told.append(strategy._count)
    assert strategy.stage == 1 and told[-5:] == [0] * 5


def test_known_queries_leave_room_for_several_populations_and_for_full_evaluations() -> None:
    assert [LINAS(TOY, SUMS, queries=count).population for count in (6, 60, 100, 400)] == [2, 15, 25, 50]
    assert ConcurrentNAS(TOY, SUMS, queries=100).population == 25
    objectives = (Objective("noisy", noisy, fidelity=True), Objective("total", total))
    strategy = ConcurrentNAS(TOY, objectives, queries=100, predictor=Ridge)
    assert (strategy.trials, strategy.population) == (25, 12)
    log = search(TOY, strategy, objectives, trials=100)
    assert [trial.budget for trial in log] == [0.25] * 25 + [0.5] * 25 + [0.75] * 25 + [1.0] * 25


def test_one_stage_where_nothing_has_fidelities() -> None:
    assert ConcurrentNAS(TOY, OBJECTIVES).budgets == (1.0,)


@pytest.mark.parametrize("budgets", [(), (0.5, 0.5), (1.0, 0.5), (0.0, 1.0), (0.5, 1.5)])
def test_budgets_that_do_not_rise(budgets: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must rise"):
        ConcurrentNAS(TOY, STAGED, budgets=budgets)


def test_sizes_out_of_range() -> None:
    for wrong in ({"population": 1}, {"evaluations": 3}):
        with pytest.raises(ValueError, match="at least 2"):
            LINAS(TOY, OBJECTIVES, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2"):
        ConcurrentNAS(TOY, OBJECTIVES, trials=10)
