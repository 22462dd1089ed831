# SPDX-License-Identifier: Apache-2.0
"""Local search: it climbs, stops at real optima only, and never asks twice."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from contracts.strategy_contract import ERROR, OBJECTIVES, TOY, StrategyContract, error
from sartor import tables
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies import LocalSearch, RandomSearch
from sartor.trial import Trial

RUGGED = SearchSpace({name: (0, 1, 2, 3) for name in "abcd"})
HEIGHTS = dict(
    zip(itertools.product(range(4), repeat=4), np.random.default_rng(0).permutation(256).tolist(), strict=True)
)


def height(arch: Architecture) -> float:
    """A random landscape without ties, of which everything is known."""
    return float(HEIGHTS[tuple(int(str(option)) for option in arch.values())])


PEAKS = [Objective("height", height, goal="max")]


def steepest(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """Evaluates whole neighbourhoods."""
    return LocalSearch(space, objectives, steepest=True, initial=3)


def best_first(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """Goes on from the best that is left."""
    return LocalSearch(space, objectives, restart=False)


class TestLocalSearch(StrategyContract):
    make = staticmethod(LocalSearch)


class TestSteepest(StrategyContract):
    make = staticmethod(steepest)


class TestBestFirst(StrategyContract):
    make = staticmethod(best_first)


def optima() -> set[Architecture]:
    everyone = [Architecture(dict(zip("abcd", options, strict=True))) for options in HEIGHTS]
    return {arch for arch in everyone if all(height(arch) > height(other) for other in RUGGED.neighbours(arch))}


@pytest.mark.parametrize("options", [{}, {"steepest": True}, {"initial": 5}])
def test_it_finds_exactly_the_local_optima_of_a_landscape(options: dict[str, bool]) -> None:
    strategy = LocalSearch(RUGGED, PEAKS, **options)
    search(RUGGED, strategy, PEAKS, trials=800)
    assert set(strategy.optima) == optima()


@pytest.mark.parametrize("options", [{}, {"steepest": True}, {"restart": False}, {"restart": False, "steepest": True}])
def test_nothing_is_asked_for_twice_until_everything_is_known(options: dict[str, bool]) -> None:
    log = search(RUGGED, LocalSearch(RUGGED, PEAKS, **options), PEAKS, trials=200)
    assert len({trial.arch for trial in log}) == 200


def test_a_best_first_search_knows_the_whole_space_in_as_many_trials() -> None:
    log = search(RUGGED, LocalSearch(RUGGED, PEAKS, restart=False), PEAKS, trials=260)
    assert len({trial.arch for trial in log[:256]}) == 256


def test_it_moves_to_the_first_that_is_better_and_steepest_to_the_best() -> None:
    start = Architecture({f"c{i}": 0 for i in range(6)})
    for is_steepest in (False, True):
        strategy = LocalSearch(TOY, ERROR, steepest=is_steepest)
        strategy.tell(Trial(0, start, {"error": error(start)}, state="done"))
        number = 1
        while strategy.current == start:
            arch = strategy.ask(random.Random(number))
            assert sum(arch[name] != start[name] for name in arch) == 1
            strategy.tell(Trial(number, arch, {"error": error(arch)}, state="done"))
            number += 1
        assert strategy.current is not None
        best = min(TOY.neighbours(start), key=error)
        assert (number == 25 and strategy.current == best) if is_steepest else number < 25
        assert error(strategy.current) < error(start)


def test_the_best_of_the_initial_ones_starts_a_climb() -> None:
    strategy = LocalSearch(TOY, ERROR, initial=4)
    archs = [TOY.sample(random.Random(seed)) for seed in range(4)]
    for number, arch in enumerate(archs):
        assert strategy.current is None
        strategy.tell(Trial(number, arch, {"error": error(arch)}, state="done"))
    assert strategy.current == min(archs, key=error)


def test_the_neighbourhood_is_symmetric_and_of_the_known_size() -> None:
    arch = TOY.sample(random.Random(0))
    assert len(TOY.neighbours(arch)) == 6 * 4
    assert all(arch in TOY.neighbours(other) for other in TOY.neighbours(arch))


def test_it_climbs_into_the_bounds_before_anything_else() -> None:
    objectives = (OBJECTIVES[0], Objective("cost", OBJECTIVES[1].measure, at_most=50.0, cheap=True))
    log = search(TOY, LocalSearch(TOY, objectives), objectives, trials=300)
    best = min(error(arch) for arch in _all() if objectives[1].measure(arch) <= 50)
    assert log.pareto(objectives[:1])[0].values["error"] == best and math.isfinite(best)


def _all() -> list[Architecture]:
    return [
        Architecture({f"c{i}": o for i, o in enumerate(options)}) for options in itertools.product(range(5), repeat=6)
    ]


def test_it_refuses_to_start_from_nothing() -> None:
    with pytest.raises(ValueError, match="initial is 0"):
        LocalSearch(TOY, ERROR, initial=0)


# ---- proofs on tables -----------------------------------------------------------------------------


@pytest.mark.slow
def test_nasbench201_is_solved_by_400_queries() -> None:
    """The means of 100 seeds are within two standard errors (.61, .27, .16, .00 over 100) of the reference."""
    table = tables.load("nasbench201")
    objectives = [table.objective("cifar10_val12")]
    found = []
    for seed in range(100):
        log = search(table.space, LocalSearch(table.space, objectives), objectives, trials=400, seed=seed)
        signal = np.array([trial.values["cifar10_val12"] for trial in log])
        value = table.values("cifar10", [trial.arch for trial in log])
        found.append([value[np.argmax(signal[:queries])] for queries in (50, 100, 200, 400)])
    reference, errors = np.array([93.87, 94.16, 94.32, 94.37]), np.array([0.061, 0.027, 0.016, 0.0])
    ours = np.array(found)
    allowed = 2 * np.hypot(errors, ours.std(axis=0) / 10) + 0.005
    assert (np.abs(ours.mean(axis=0) - reference) <= allowed).all()
    assert (ours[:, -1] == ours[:, -1].max()).mean() >= 0.98


@pytest.mark.slow
def test_nasbench_macro_has_15_local_optima_and_the_best_is_found() -> None:
    table = tables.load("nasbench_macro")
    objectives = [table.objective("accuracy")]
    accuracy = dict(zip(table.architectures(), table.columns["accuracy"].tolist(), strict=True))
    real = {arch for arch in accuracy if all(accuracy[arch] >= accuracy[n] for n in table.space.neighbours(arch))}
    assert len(real) == 15
    reached = 0
    for seed in range(100):
        strategy = LocalSearch(table.space, objectives)
        log = search(table.space, strategy, objectives, trials=600, seed=seed)
        assert set(strategy.optima) <= real
        reached += max(trial.values["accuracy"] for trial in log) == max(accuracy.values())
    assert reached >= 95


@pytest.mark.slow
def test_with_noise_it_finds_less_than_random_search_without() -> None:
    """Not to be oversold: 200 queries of a signal with a noise of 3 % accuracy, 50 seeds."""
    table = tables.load("nasbench201")
    archs = table.architectures()
    signal = table.columns["cifar10_val12"]
    true = dict(zip(archs, table.columns["cifar10"].tolist(), strict=True))

    def mean(make: Callable[[SearchSpace, Sequence[Objective]], Strategy], sigma: float) -> float:
        found = []
        for seed in range(50):
            noisy = signal + sigma * np.random.default_rng(seed).standard_normal(len(archs))
            values = dict(zip(archs, noisy.tolist(), strict=True))
            objectives = [Objective("accuracy", values.__getitem__, goal="max")]
            log = search(table.space, make(table.space, objectives), objectives, trials=200, seed=seed)
            found.append(true[max(log, key=lambda trial: trial.values["accuracy"]).arch])
        return float(np.mean(found))

    assert mean(LocalSearch, 3.0) < mean(RandomSearch, 0.0) - 0.2 < mean(LocalSearch, 0.0) - 0.4
