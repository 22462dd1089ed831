# SPDX-License-Identifier: Apache-2.0
"""Multi-layer coordinate descent: targets, shrinking, and fewer steps than one choice at a time."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from contracts.strategy_contract import ERROR, GATED, OBJECTIVES, TOY, StrategyContract, cost, error
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.protocols import Strategy
from sartor.space import SearchSpace
from sartor.strategies.coordinate_descent import CoordinateDescent
from sartor.trial import Trial


def quick(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """A few candidates for each step, and large steps."""
    return CoordinateDescent(space, objectives, samples=5, layers=0.4, step=0.1)


class TestCoordinateDescent(StrategyContract):
    make = staticmethod(quick)


def told(strategy: CoordinateDescent, number: int) -> Trial:
    arch = strategy.ask(random.Random(number))
    trial = Trial(number, arch, {"error": error(arch), "cost": cost(arch)}, state="done")
    strategy.tell(trial)
    return trial


def test_every_candidate_meets_the_target_of_its_step_by_shrinking_few_choices() -> None:
    strategy = CoordinateDescent(TOY, OBJECTIVES, resource=cost, budget=20.0, samples=10, layers=0.34, step=0.1)
    assert told(strategy, 0).arch == TOY.largest()
    targets = []
    for number in range(1, 61):
        current, target = strategy.current, strategy.target
        assert current is not None
        arch = told(strategy, number).arch
        changed = [name for name in arch if arch[name] != current[name]]
        assert cost(arch) <= target and all(arch[name] < current[name] for name in changed)  # type: ignore[operator]
        # Only the last that was changed need be more than two: with each choice, the cost falls by 2 or more.
        assert 1 <= len(changed) <= 4
        targets.append(target)
    steps = targets[::10]
    top = cost(TOY.largest())
    assert steps[0] == pytest.approx(0.9 * top)
    assert all(later < earlier for earlier, later in itertools.pairwise(steps))


def test_the_most_accurate_candidate_goes_on_and_the_reduction_decays() -> None:
    strategy = CoordinateDescent(TOY, OBJECTIVES, resource=cost, samples=10, layers=0.3, step=0.1, decay=0.5)
    told(strategy, 0)
    for step in range(2):
        before = strategy.target
        trials = [told(strategy, 10 * step + number) for number in range(10)]
        best = min((trial for trial in trials if cost(trial.arch) <= before), key=lambda one: one.values["error"])
        assert strategy.current == best.arch
        reduction = 0.1 * 0.5 ** (step + 1) * cost(TOY.largest())
        assert strategy.target == pytest.approx(min(before, cost(best.arch)) - reduction)


def test_the_least_ratio_of_loss_to_reduction_goes_on() -> None:
    strategy = CoordinateDescent(TOY, OBJECTIVES, resource=cost, samples=10, layers=0.3, step=0.1, keep="ratio")
    top = told(strategy, 0)
    before = strategy.target
    trials = [told(strategy, number) for number in range(1, 11)]

    def ratio(trial: Trial) -> float:
        return (trial.values["error"] - top.values["error"]) / (cost(top.arch) - cost(trial.arch))

    best = min((trial for trial in trials if cost(trial.arch) <= before), key=ratio)
    assert strategy.current == best.arch


def test_a_descent_ends_at_the_budget_and_the_next_begins_at_the_top() -> None:
    strategy = CoordinateDescent(TOY, OBJECTIVES, resource=cost, budget=60.0, samples=4, step=0.2)
    lows = []
    for number in range(80):
        before = strategy.steps
        trial = told(strategy, number)
        lows.append(cost(trial.arch))
        if strategy.steps < before:
            assert strategy.current == TOY.largest() and trial.values["cost"] <= 60.0
    assert min(lows) >= 60.0 - 4 * 9 and sum(value <= 60 for value in lows) >= 8


@pytest.mark.parametrize("queries", [30, 60, 200])
def test_known_queries_make_one_descent_from_end_to_end(queries: int) -> None:
    """Steps of 100 candidates would still be beside the largest network."""
    strategy = CoordinateDescent(TOY, OBJECTIVES, resource=cost, budget=10.0, queries=queries)
    used = [told(strategy, number).values["cost"] for number in range(queries)]
    assert used[0] == cost(TOY.largest()) and min(used) <= 10.0
    assert strategy.samples < queries / 2 and len({round(one / 20) for one in used}) >= 5


def test_a_candidate_shrinks_two_choices_of_a_small_space() -> None:
    assert CoordinateDescent(TOY, OBJECTIVES).layers == pytest.approx(2 / 6)
    assert CoordinateDescent(SearchSpace({f"c{i:02}": (1, 2) for i in range(30)}), ERROR).layers == 0.1
    assert CoordinateDescent(SearchSpace({"op": ("only",)}), ERROR).layers == 1.0


def test_a_resource_of_several_fidelities_is_not_taken() -> None:
    objectives = (OBJECTIVES[0], replace(OBJECTIVES[1], cheap=True, fidelity=True, measure=lambda arch, budget: 1.0))
    assert CoordinateDescent(TOY, objectives).resource(TOY.largest()) == 1.0 * 6 / 6
    assert CoordinateDescent(TOY, objectives).resource(TOY.smallest()) == 0.0


def test_with_a_bound_the_first_step_goes_below_it_at_once() -> None:
    objectives = (OBJECTIVES[0], replace(OBJECTIVES[1], cheap=True, at_most=50.0))
    strategy = CoordinateDescent(TOY, objectives, samples=5)
    costs = [told(strategy, number).values["cost"] for number in range(40)]
    assert costs[0] == cost(TOY.largest()) and max(costs[1:]) <= 50.0


def test_options_without_an_order_are_shrunk_by_the_resource() -> None:
    space = SearchSpace({f"op{i}": ("pool", "conv", "none") for i in range(4)})
    prices = {"pool": 1.0, "conv": 5.0, "none": 0.0}
    strategy = CoordinateDescent(space, ERROR, resource=lambda arch: sum(prices[str(op)] for op in arch.values()))
    assert set(strategy.largest().values()) == {"conv"}


def test_networks_whose_resource_is_not_known_are_passed_over() -> None:
    def partly(arch: Architecture) -> float:
        return math.nan if arch["c0"] in (2, 4) else cost(arch)

    strategy = CoordinateDescent(TOY, OBJECTIVES, resource=partly, samples=5, step=0.1)
    trials = [told(strategy, number) for number in range(40)]
    assert trials[0].arch == TOY.largest().replace(c0=3)
    assert not any(math.isnan(partly(trial.arch)) for trial in trials)


def test_gated_spaces_without_a_resource_shrink_by_the_place_of_options() -> None:
    strategy = CoordinateDescent(GATED, ERROR, samples=3, step=0.3)
    assert told(strategy, 0).arch == GATED.largest()
    sizes = [strategy.resource(told(strategy, number).arch) for number in range(1, 30)]
    assert max(sizes) < strategy.resource(GATED.largest()) and min(sizes) < 0.5


WRONG = ({"queries": 0}, {"samples": 0}, {"layers": 1.5}, {"step": 0.0}, {"decay": 1.5}, {"keep": "x"})


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"queries is|samples is|step is|keep='x' is unknown"):
        CoordinateDescent(TOY, ERROR, **wrong)  # type: ignore[arg-type]


def descents(seeds: int, *, samples: int, layers: float, step: float) -> list[float]:
    """Return means over seeds on NAS-Bench-Macro down to 40 % FLOPs: steps, queries, accuracy there."""
    from sartor.tables import load

    table = load("nasbench_macro")
    objectives = (table.objective("accuracy"), table.objective("flops_m"))
    budget = 0.4 * float(table.column("flops_m").max())
    rows = []
    for seed in range(seeds):
        strategy = CoordinateDescent(table.space, objectives, budget=budget, samples=samples, layers=layers, step=step)
        best, steps, number = 0.0, 0, 0
        while strategy.steps >= steps:
            steps = strategy.steps
            arch = strategy.ask(random.Random(f"{seed}/{number}"))
            values = {one.name: one.measure(arch) for one in objectives}
            strategy.tell(Trial(number, arch, values, state="done"))
            best = max(best, values["accuracy"]) if values["flops_m"] <= budget else best
            number += 1
        rows.append((steps + 1, number, best))
    return [float(mean) for mean in np.mean(rows, axis=0)]


@pytest.mark.slow
def test_several_choices_at_once_reach_the_budget_in_fewer_steps() -> None:
    """Ten seeds, 24 candidates a step: half the steps or less, at an accuracy that is 0.4 % lower at most."""
    single = descents(10, samples=24, layers=1 / 8, step=0.05)
    several = descents(10, samples=24, layers=2 / 8, step=0.10)
    assert several[0] <= 0.6 * single[0] and several[1] <= 0.6 * single[1]
    assert several[2] > single[2] - 0.4
