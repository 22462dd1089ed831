# SPDX-License-Identifier: Apache-2.0
"""The evolution of SPOS: its generations, its limits, and that nothing is evaluated twice."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from contracts.strategy_contract import ERROR, OBJECTIVES, TOY, StrategyContract, cost, error
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies.spos_evolution import SPOSEvolution
from sartor.trial import Trial


def small(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """Generations that turn over within a short test."""
    return SPOSEvolution(space, objectives, population=20, best=5, mutations=10, crossovers=10)


class TestSPOSEvolution(StrategyContract):
    make = staticmethod(small)
    keeps_cheap_bounds = True


def test_defaults_are_those_of_the_authors_code() -> None:
    one = SPOSEvolution(TOY, ERROR)
    assert (one.population, one.best, one.mutations, one.crossovers, one.rate) == (50, 10, 25, 25, 0.1)


def test_a_generation_mutates_and_crosses_the_best_of_all() -> None:
    one = SPOSEvolution(TOY, ERROR, population=50)
    errors: dict[Architecture, float] = {}
    for number in range(200):
        arch = one.ask(random.Random(number))
        assert arch not in errors  # the visited set
        if number >= 50:
            assert number % 50 or one.parents == sorted(errors, key=errors.__getitem__)[:10]
        if 75 <= number < 100:  # the first crossovers, of parents that differ
            ours = [{parent[name] for parent in one.parents} for name in arch]
            assert all(option in options for option, options in zip(arch.values(), ours, strict=True))
        errors[arch] = error(arch)
        one.tell(Trial(number, arch, {"error": errors[arch]}, state="done"))


def test_no_network_beyond_a_cheap_limit_is_asked_for() -> None:
    limited = (OBJECTIVES[0], replace(OBJECTIVES[1], cheap=True, at_most=45.0))
    log = search(TOY, SPOSEvolution(TOY, limited), limited, trials=300)
    assert {trial.state for trial in log} == {"done"} and max(cost(trial.arch) for trial in log) <= 45


@pytest.mark.parametrize("wrong", [{"best": 0}, {"mutations": 60}, {"rate": 2.0}, {"mutations": 0, "crossovers": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"give parents and children|do not fit|a probability"):
        SPOSEvolution(TOY, ERROR, **wrong)  # type: ignore[arg-type]
