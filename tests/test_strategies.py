# SPDX-License-Identifier: Apache-2.0
"""The contract of every strategy, and a fact of each paper."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from contracts.strategy_contract import ERROR, OBJECTIVES, TOY, StrategyContract, error
from sartor.architecture import Architecture
from sartor.objective import Objective, costs
from sartor.pareto import hypervolume, non_dominated_sort
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies import NSGA2, RandomSearch, RegularizedEvolution
from sartor.strategies.nsga2 import _constrained_fronts
from sartor.trial import Trial


def small_evolution(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """A population that turns over within a short test."""
    return RegularizedEvolution(space, objectives, population=20, tournament=5)


def small_nsga2(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """A population that turns over within a short test."""
    return NSGA2(space, objectives, population=20)


class TestRandomSearch(StrategyContract):
    make = staticmethod(RandomSearch)
    beats_random = False


class TestRegularizedEvolution(StrategyContract):
    make = staticmethod(small_evolution)


class TestNSGA2(StrategyContract):
    make = staticmethod(small_nsga2)


def done(number: int, arch: Architecture, **values: float) -> Trial:
    return Trial(number, arch, values, state="done")


# ---- random search --------------------------------------------------------------------------------


def test_random_search_meets_the_order_statistic_of_drawing_without_replacement() -> None:
    """The best of Q among N is of rank r with chance C(N - r, Q - 1) / C(N, Q); N = 27, Q = 5, 2000 runs."""
    space = SearchSpace({name: (0, 1, 2) for name in "abc"})
    ranks = {
        Architecture(dict(zip("abc", o, strict=True))): i + 1
        for i, o in enumerate(itertools.product((0, 1, 2), repeat=3))
    }
    best = []
    for seed in range(2000):
        strategy = RandomSearch(space, unique=True)
        archs = []
        for number in range(5):
            archs.append(strategy.ask(random.Random(f"{seed}/{number}")))
            strategy.tell(done(number, archs[-1]))
        assert len(set(archs)) == 5
        best.append(min(ranks[arch] for arch in archs))
    mean = (27 + 1) / (5 + 1)
    expected = sum(r * math.comb(27 - r, 4) / math.comb(27, 5) for r in range(1, 24))
    assert expected == pytest.approx(mean)
    assert abs(np.mean(best) - expected) < 4 * np.std(best) / 2000**0.5


def test_unique_random_search_exhausts_the_space_and_goes_on() -> None:
    space = SearchSpace({"a": (0, 1, 2), "b": (0, 1)})
    log = search(space, RandomSearch(space, unique=True), ERROR, trials=8)
    assert len({trial.arch for trial in log[:6]}) == 6 and log[6].note.startswith("repeats trial")


# ---- regularized evolution ------------------------------------------------------------------------


def test_evolution_defaults_are_the_papers() -> None:
    strategy = RegularizedEvolution(TOY, ERROR)
    assert (strategy.size, strategy.tournament) == (100, 25)


def test_an_individual_lives_exactly_p_steps_and_a_child_differs_in_one_choice() -> None:
    strategy = RegularizedEvolution(TOY, ERROR, population=10, tournament=3)
    for number in range(100):
        alive = [trial.arch for trial in strategy.population]
        arch = strategy.ask(random.Random(number))
        if number >= 10:
            assert [trial.number for trial in strategy.population] == list(range(number - 10, number))
            assert any(sum(arch[name] != parent[name] for name in arch) == 1 for parent in alive)
        strategy.tell(done(number, arch, error=error(arch)))
        assert len(strategy.population) == min(number + 1, 10)


def test_the_tournament_takes_the_best_and_feasible_before_infeasible_before_failed() -> None:
    objectives = (Objective("error", error, goal="max"), Objective("ms", error, at_most=1.0))
    archs = [Architecture({f"c{i}": option for i in range(6)}) for option in range(4)]
    strategy = RegularizedEvolution(TOY, objectives, population=4, tournament=200)  # all four take part
    told = [
        Trial(0, archs[0], {"error": 9.0, "ms": 2.0}, state="infeasible"),
        done(1, archs[1], error=1.0, ms=0.5),
        done(2, archs[2], error=2.0, ms=0.5),
        Trial(3, archs[3], {}, state="failed"),
    ]
    for trial in told:
        strategy.tell(trial)
    child = strategy.ask(random.Random(0))
    assert sum(child[name] != archs[2][name] for name in child) == 1
    for trial in (told[0], told[3], told[3]):
        strategy.tell(trial)  # only 3, 0, 3, 3 live on
    child = strategy.ask(random.Random(0))
    assert sum(child[name] != archs[0][name] for name in child) == 1


@pytest.mark.parametrize("sizes", [{"population": 0}, {"tournament": 0}])
def test_evolution_refuses_empty_sizes(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="both must be at least 1"):
        RegularizedEvolution(TOY, ERROR, **sizes)


# ---- NSGA-II --------------------------------------------------------------------------------------


def test_nsga2_is_elitist() -> None:
    """No survivor is dominated by one that died, and the best of each objective is never lost."""
    strategy = NSGA2(TOY, OBJECTIVES, population=20)
    best = [math.inf, math.inf]
    for number in range(400):
        everyone = strategy._members
        arch = strategy.ask(random.Random(number))
        values = {objective.name: objective.measure(arch) for objective in OBJECTIVES}
        strategy.tell(done(number, arch, **values))
        if number % 20 == 19:
            assert len(strategy.parents) == len(set(strategy.parents)) == 20
            survivors = np.array([member.costs for member in strategy._members])
            for died in (member.costs for member in everyone if member.arch not in strategy._alive):
                assert not any((died <= point).all() and (died < point).any() for point in survivors)
            assert (survivors.min(axis=0) <= best).all()
            best = survivors.min(axis=0).tolist()


def test_nsga2_makes_nobody_twice_while_there_are_others() -> None:
    strategy = NSGA2(TOY, OBJECTIVES, population=20)
    for number in range(200):
        alive = set(strategy._alive)
        arch = strategy.ask(random.Random(number))
        assert arch not in alive
        strategy.tell(done(number, arch, error=error(arch), cost=-error(arch)))


def test_nsga2_finds_the_whole_front_of_a_small_problem() -> None:
    """Minimise (sum, -product of weights): the exact front is known by enumeration."""
    space = SearchSpace({f"x{i}": (0, 1, 2, 3) for i in range(4)})
    objectives = (
        Objective("weight", lambda arch: float(sum((i + 1) * int(str(v)) for i, v in enumerate(arch.values())))),
        Objective("value", lambda arch: float(sum(int(str(v)) ** 0.5 for v in arch.values())), goal="max"),
    )
    log = search(space, NSGA2(space, objectives, population=40), objectives, trials=1200)
    found = {costs(trial, objectives) for trial in log.pareto(objectives)}
    everyone = [Architecture({f"x{i}": v for i, v in enumerate(o)}) for o in itertools.product((0, 1, 2, 3), repeat=4)]
    points = np.array([[objectives[0].measure(arch), -objectives[1].measure(arch)] for arch in everyone])
    front = {tuple(point) for point in points[non_dominated_sort(points)[0]]}
    assert len(found & front) >= 0.95 * len(front)


def test_constrained_dominance() -> None:
    points = np.array([[1.0, 1.0], [0.0, 0.0], [2.0, 0.5], [0.0, 9.0], [3.0, 3.0]])
    fronts = _constrained_fronts(points, np.array([0.0, 0.5, 0.0, np.inf, 0.1]))
    ranked = [np.flatnonzero(fronts == number).tolist() for number in np.unique(fronts)]
    assert ranked == [[0, 2], [4], [1], [3]]


def test_nsga2_beats_random_search_on_both_objectives() -> None:
    reference = [90.0, 120.0]

    def volume(strategy: Strategy, seed: int) -> float:
        log = search(TOY, strategy, OBJECTIVES, trials=300, seed=seed)
        return hypervolume([costs(trial, OBJECTIVES) for trial in log], reference)

    for seed in range(3):
        assert volume(NSGA2(TOY, OBJECTIVES, population=30), seed) > volume(RandomSearch(TOY, OBJECTIVES), seed)


@pytest.mark.parametrize("wrong", [{"population": 1}, {"crossover": 1.5}, {"mutation": -0.1}])
def test_nsga2_refuses_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"population is|probabilities"):
        NSGA2(TOY, OBJECTIVES, **wrong)  # type: ignore[arg-type]
