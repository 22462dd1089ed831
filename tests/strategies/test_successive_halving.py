# SPDX-License-Identifier: Apache-2.0
"""Successive halving: the rungs and brackets of the papers, and promotions that no worker waits for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.strategy_contract import ERROR, OBJECTIVES, TOY, StrategyContract, cost, error
from sartor import tables
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies import RandomSearch, SuccessiveHalving
from sartor.trial import Trial, TrialLog


def noisy(arch: Architecture, budget: float = 1.0) -> float:
    """The error with a noise that a smaller budget leaves larger, and that is the same at each call."""
    return error(arch) + 6 * (1 - budget) * random.Random(f"{arch.to_json()} {budget}").gauss(0, 1)


FIDELITY = (Objective("error", noisy, fidelity=True), Objective("cost", cost))


class TestSuccessiveHalving(StrategyContract):
    """Without fidelities it is random search."""

    make = staticmethod(SuccessiveHalving)
    beats_random = False
    notes_what_runs = True


def halving(**options: float) -> SuccessiveHalving:
    return SuccessiveHalving(TOY, FIDELITY, **options)  # type: ignore[arg-type]


def test_rungs_and_brackets_are_the_papers() -> None:
    """Hyperband's table for R = 81 and eta = 3; 9, 3 and 1 of the ASHA paper's example for R = 9."""
    strategy = halving(smallest=1 / 81, brackets=5)
    assert strategy.sizes == [81, 34, 15, 8, 5]
    assert strategy.budgets == pytest.approx([1 / 81, 1 / 27, 1 / 9, 1 / 3, 1])
    assert halving(smallest=0.1).budgets == pytest.approx([1 / 9, 1 / 3, 1])


def test_of_nine_three_and_then_one_are_promoted() -> None:
    """Told from the best to the worst, none is promoted too early, and the counts are those of the halving."""
    strategy = halving(smallest=1 / 9)
    asked = Counter[float]()
    worse = 0.0
    values: dict[Architecture, float] = {}
    for number in range(13):
        arch, budget = strategy.ask(random.Random(number))
        asked[budget] += 1
        worse += 1
        values.setdefault(arch, worse)
        strategy.tell(Trial(number, arch, {"error": values[arch], "cost": 0.0}, budget, "done"))
    assert asked == {1 / 9: 9, 1 / 3: 3, 1.0: 1}


def test_only_the_best_third_of_a_rung_is_promoted_whatever_the_order() -> None:
    log = search(TOY, halving(smallest=1 / 9), FIDELITY, trials=400)
    rungs = {budget: [t for t in log if t.budget == budget] for budget in (1 / 9, 1 / 3, 1.0)}
    assert {t.arch for t in rungs[1 / 3]} <= {t.arch for t in rungs[1 / 9]}
    assert {t.arch for t in rungs[1.0]} <= {t.arch for t in rungs[1 / 3]}
    assert len(rungs[1 / 9]) / 3 - 1 <= len(rungs[1 / 3]) < len(rungs[1 / 9]) / 2
    assert len({(t.arch, t.budget) for t in log}) == 400


def test_brackets_start_in_proportion_to_their_sizes() -> None:
    log = search(TOY, halving(smallest=1 / 9, brackets=3), FIDELITY, trials=400)
    seen: set[Architecture] = set()
    started = Counter(t.budget for t in log if t.arch not in seen and not seen.add(t.arch))  # type: ignore[func-returns-value]
    total = sum(started.values())
    for budget, size in zip((1 / 9, 1 / 3, 1.0), (9, 5, 3), strict=True):
        assert abs(started[budget] - total * size / 17) <= 2


def test_failed_and_infeasible_ones_are_not_promoted() -> None:
    def broken(arch: Architecture, budget: float) -> float:
        return float("nan") if arch["c0"] == 0 else noisy(arch, budget)

    objectives = (Objective("error", broken, fidelity=True), Objective("cost", cost, at_most=60.0, cheap=True))
    log = search(TOY, SuccessiveHalving(TOY, objectives), objectives, trials=200)
    assert all(t.state == "done" for t in log if t.budget > 1 / 27)
    assert {t.state for t in log} == {"done", "failed", "infeasible"}


def test_a_bound_on_what_has_fidelities_is_one_of_the_full_value() -> None:
    objectives = (Objective("error", lambda arch, budget: error(arch) / budget, fidelity=True, at_most=60.0),)
    log = search(TOY, SuccessiveHalving(TOY, objectives), objectives, trials=300)
    assert {t.state for t in log if t.budget < 1} == {"done"}
    assert any(t.budget == 1 and t.state == "done" for t in log)
    assert all(t.values["error"] <= 60 for t in log.pareto(objectives))


@pytest.mark.parametrize("stop", [1, 30, 77])
def test_resume_is_exact_over_budgets(tmp_path: Path, stop: int) -> None:
    whole = list(search(TOY, halving(brackets=2), FIDELITY, trials=120, seed=3))
    for trials in (stop, 120):
        with TrialLog(tmp_path / "run.sqlite") as log:
            search(TOY, halving(brackets=2), FIDELITY, trials=trials, seed=3, log=log)
            assert list(log) == whole[:trials]
    assert len({t.budget for t in whole}) == 4


def test_workers_are_never_given_the_same_and_lost_asks_come_again() -> None:
    strategy = halving(smallest=1 / 9)
    asked = [strategy.ask(random.Random(number)) for number in range(30)]
    assert len(set(asked)) == 30 and {one.budget for one in asked} == {1 / 9}
    for number, (arch, budget) in enumerate(asked):
        strategy.tell(Trial(number, arch, {"error": float(number), "cost": 0.0}, budget, "done"))
    promoted = [strategy.ask(random.Random(number)) for number in range(10)]
    assert {one.arch for one in promoted} == {one.arch for one in asked[:10]}
    again = halving(smallest=1 / 9)
    for number, (arch, budget) in enumerate(asked):
        again.tell(Trial(number, arch, {"error": float(number), "cost": 0.0}, budget, "done"))
    assert again.ask(random.Random(0)) == promoted[0]


def test_several_workers_share_the_rungs() -> None:
    with ThreadPoolExecutor(4) as threads:
        log = search(TOY, halving(), FIDELITY, trials=100, executor=threads, workers=4)
        search(TOY, halving(), FIDELITY, trials=200, log=log, executor=threads, workers=4)
    assert not [t.note for t in log if t.note] and len({t.budget for t in log}) == 4


def test_it_finds_more_at_the_same_cost_than_random_search() -> None:
    def best(log: TrialLog, cost: float) -> float:
        found = []
        for trial in log:
            cost -= trial.budget
            if cost >= 0 and trial.budget == 1:
                found.append(trial.values["error"])
        return min(found)

    ours = [best(search(TOY, halving(), FIDELITY, trials=500, seed=seed), 40) for seed in range(5)]
    theirs = [best(search(TOY, RandomSearch(TOY), FIDELITY, trials=40, seed=seed), 40) for seed in range(5)]
    assert sum(ours) < sum(theirs)


def test_a_space_that_is_used_up_ends_nothing() -> None:
    tiny = SearchSpace({"c0": (0, 1), "c1": (0, 1)})
    log = search(tiny, SuccessiveHalving(tiny, FIDELITY, brackets=4), FIDELITY, trials=60)
    assert len({(t.arch, t.budget) for t in log}) <= 16


@pytest.mark.parametrize(
    "wrong",
    [{"eta": 1}, {"smallest": 0}, {"smallest": 2}, {"brackets": 0}, {"brackets": 9}, {"budgets": (0.5, 0.1, 1.0)},
     {"budgets": (0.1,)}, {"budgets": ()}, {"budgets": (-1.0, 1.0)}],
)  # fmt: skip
def test_it_refuses_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"eta is|brackets is|the budgets"):
        SuccessiveHalving(TOY, (*ERROR, OBJECTIVES[1]), **wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_nasbench201_with_12_epochs_as_the_low_fidelity() -> None:
    """200 epochs are the full budget, and 12 are 0.06 of it; 100 seeds, the cost of 20 full evaluations."""
    table = tables.load("nasbench201")
    objectives = [table.objective("cifar10", fidelities={0.06: "cifar10_val12"})]

    def mean(make: Callable[..., Strategy], **options: Any) -> float:
        found = []
        for seed in range(100):
            log = search(table.space, make(table.space, objectives, **options), objectives, trials=200, seed=seed)
            spent = np.cumsum([trial.budget for trial in log])
            full = [t.values["cifar10"] for t, cost in zip(log, spent, strict=True) if t.budget == 1 and cost <= 20]
            found.append(max(full))
        return float(np.mean(found))

    third, tenth = (mean(SuccessiveHalving, budgets=(0.06, 1.0), eta=eta) for eta in (3, 10))
    assert mean(RandomSearch) + 0.15 < third < tenth - 0.1
