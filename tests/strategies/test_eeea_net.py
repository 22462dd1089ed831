# SPDX-License-Identifier: Apache-2.0
"""Early-exit initialisation, and the genetic algorithm of the paper."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from contracts.strategy_contract import ERROR, OBJECTIVES, TOY, StrategyContract, cost, error
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.pareto import hypervolume
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import NothingFound, SearchSpace
from sartor.strategies.eeea_net import EEEANet, EliteGenetics
from sartor.strategies.nsga2 import NSGA2
from sartor.trial import Candidate, Trial

CHEAP = (OBJECTIVES[0], replace(OBJECTIVES[1], cheap=True))


def small(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """Bounded by the contract's cost; its generations turn over within a short test."""
    return EEEANet(space, objectives, cost=cost, population=20)


class TestEEEANet(StrategyContract):
    make = staticmethod(small)


def test_the_first_generation_is_below_the_threshold_and_later_ones_need_not_be() -> None:
    threshold = 40.0
    strategy = EEEANet(TOY, OBJECTIVES, cost=cost, threshold=threshold)
    log = search(TOY, strategy, OBJECTIVES, trials=400)
    costs = [trial.values["cost"] for trial in log]
    assert max(costs[:40]) < threshold <= max(costs[40:])


def test_the_threshold_is_the_median_of_the_cheap_objective_unless_given() -> None:
    rng = random.Random(1)
    median = np.median([cost(TOY.sample(rng)) for _ in range(2000)])
    assert EEEANet(TOY, CHEAP).threshold == pytest.approx(median, abs=3)
    assert EEEANet(TOY, OBJECTIVES).threshold == math.inf  # nothing is cheap
    assert EEEANet(TOY, CHEAP, threshold=30.0).threshold == 30.0


@pytest.mark.parametrize("evolution", [EliteGenetics, NSGA2])
def test_without_a_threshold_it_is_its_evolution_bit_for_bit(evolution: Callable[..., Strategy]) -> None:
    def plain() -> Strategy:
        return evolution(TOY, CHEAP, population=20)

    early = EEEANet(TOY, CHEAP, threshold=math.inf, population=20, evolution=plain())
    assert [*search(TOY, early, CHEAP, trials=150)] == [*search(TOY, plain(), CHEAP, trials=150)]


def test_costs_that_are_not_known_and_those_of_a_budget_are_left_out() -> None:
    partly = Objective("cost", lambda arch: math.nan if arch["c0"] == 1 else cost(arch), cheap=True)
    known = [
        cost(arch) for arch in (TOY.sample(rng) for rng in [random.Random(0)] for _ in range(500)) if arch["c0"] != 1
    ]
    assert EEEANet(TOY, (ERROR[0], partly)).threshold == np.median(known)
    budgeted = Objective("cost", lambda arch, budget: cost(arch), cheap=True, fidelity=True)
    assert EEEANet(TOY, (ERROR[0], budgeted)).threshold == math.inf


def test_a_threshold_that_nothing_meets_is_one_clear_error() -> None:
    with pytest.raises(NothingFound, match="10,000 random networks is allowed and costs less than 0: raise"):
        search(TOY, EEEANet(TOY, OBJECTIVES, cost=cost, threshold=0.0), OBJECTIVES, trials=1)


def test_defaults_are_the_papers() -> None:
    strategy = EEEANet(TOY, ERROR)
    genetics = strategy.evolution
    assert isinstance(genetics, EliteGenetics)
    assert (strategy.population, genetics.population, genetics.survivors) == (40, 40, 4)
    assert (genetics.mutation, genetics.inversion) == (0.1, 0.1)


def test_four_of_forty_survive_and_no_child_was_seen_before() -> None:
    strategy = EliteGenetics(TOY, ERROR)
    told: list[tuple[float, Architecture]] = []
    for number in range(40 + 3 * 36):
        arch = strategy.ask(random.Random(number))
        assert arch not in {one for _, one in told}
        told.append((error(arch), arch))
        strategy.tell(Trial(number, arch, {"error": error(arch)}, state="done"))
        if number >= 39 and (number - 39) % 36 == 0:
            assert len(strategy.parents) == 4
            assert sorted(map(error, strategy.parents)) == sorted(value for value, _ in told)[:4]


def test_inversion_exchanges_neighbours_of_equal_options() -> None:
    space = SearchSpace({"a": (0, 1), "b": (0, 1), "c": (0, 1, 2)})
    strategy = EliteGenetics(space, ERROR)
    arch = Architecture({"a": 0, "b": 1, "c": 2})
    assert strategy._inverted(arch, random.Random(0)) == Architecture({"a": 1, "b": 0, "c": 2})


@pytest.mark.parametrize("wrong", [{"population": 1}, {"threshold": 1.0}])
def test_wrong_arguments(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"population is|nothing says of what"):
        EEEANet(TOY, OBJECTIVES, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"survivors": 1.0}, {"mutation": 1.1}])
def test_wrong_arguments_of_the_genetics(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"survivors|mutation is"):
        EliteGenetics(TOY, OBJECTIVES, **wrong)  # type: ignore[arg-type]


def macro(make: Callable[[SearchSpace, Sequence[Objective]], Strategy], seeds: int) -> list[float]:
    """Return after 200 queries on NAS-Bench-Macro: share of the whole hypervolume, mean FLOPs in M, best accuracy."""
    from sartor.tables import load

    table = load("nasbench_macro")
    objectives = (table.objective("accuracy"), table.objective("flops_m"))
    points = np.stack([-table.column("accuracy"), table.column("flops_m")], axis=1)
    whole = hypervolume(points, points.max(axis=0))
    rows = []
    for seed in range(seeds):
        strategy = make(table.space, objectives)
        found = []
        for number in range(200):
            arch = Candidate.of(strategy.ask(random.Random(f"{seed}/{number}"))).arch
            found.append(table.row(arch))
            values = {one.name: one.measure(arch) for one in objectives}
            strategy.tell(Trial(number, arch, values, state="done"))
        own = points[found]
        rows.append((hypervolume(own, points.max(axis=0)) / whole, own[:, 1].mean(), -own[:, 0].min()))
    return [float(mean) for mean in np.mean(rows, axis=0)]


@pytest.mark.slow
def test_nasbench_macro() -> None:
    """30 seeds: a better front from cheaper networks than NSGA-II alone, and a lower best accuracy."""

    def plain(space: SearchSpace, objectives: Sequence[Objective]) -> NSGA2:
        return NSGA2(space, objectives, population=40, mutation=1 / 8)

    def early(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
        return EEEANet(space, objectives, evolution=plain(space, objectives))

    volume, flops, best = macro(early, 30)
    other_volume, other_flops, other_best = macro(plain, 30)
    assert volume > other_volume + 0.005 and flops < 0.9 * other_flops and best < other_best
    assert volume == pytest.approx(0.978, abs=0.01) and other_volume == pytest.approx(0.959, abs=0.01)
