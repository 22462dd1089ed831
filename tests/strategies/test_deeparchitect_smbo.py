# SPDX-License-Identifier: Apache-2.0
"""Model-based search with a ridge regression on n-grams."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from contracts.strategy_contract import ERROR, GATED, TOY, StrategyContract, error
from curves import incumbents
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.predictors.ridge import Ridge
from sartor.protocols import Predictor, Strategy
from sartor.space import SearchSpace
from sartor.strategies.deeparchitect_smbo import DeepArchitectSMBO, NGramRidge
from sartor.strategies.random_search import RandomSearch
from sartor.trial import Trial


def quick(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """A small pool."""
    return DeepArchitectSMBO(space, objectives, samples=50)


class TestDeepArchitectSMBO(StrategyContract):
    make = staticmethod(quick)


def samples(space: SearchSpace, count: int) -> list[Architecture]:
    rng = random.Random(0)
    return [space.sample(rng) for _ in range(count)]


def test_the_surrogate_is_a_predictor_that_solves_the_ridge_problem() -> None:
    """With unigrams of one kind of choice, the features are the counts of the options: solved here in the primal."""
    surrogate = NGramRidge(TOY, longest=1, alpha=2.0)
    assert isinstance(surrogate, Predictor)
    archs = samples(TOY, 40)
    values = np.array([error(arch) for arch in archs])
    counts = np.array([[list(arch.values()).count(option) for option in range(5)] + [6] for arch in archs], float)
    x, y = counts - counts.mean(axis=0), (values - values.mean()) / values.std()
    weights = np.linalg.solve(x.T @ x + 2.0 * np.eye(6), x.T @ y)
    mean, deviation = surrogate.fit(archs, values).predict(archs)
    assert mean == pytest.approx(values.mean() + values.std() * (x @ weights))
    assert not deviation.any()


def test_n_grams_of_three_decisions_are_told_apart_and_unknown_ones_count_nothing() -> None:
    space = SearchSpace({f"op{i}": ("a", "b") for i in range(3)})
    words = ["aab", "aba", "baa"]  # of the same unigrams
    archs = [Architecture({f"op{i}": letter for i, letter in enumerate(word)}) for word in words]
    values = np.array([0.0, 1.0, 2.0])
    flat = NGramRidge(space, longest=1, alpha=1e-9).fit(archs, values).predict(archs)[0]
    assert flat == pytest.approx([1.0, 1.0, 1.0])
    assert NGramRidge(space, alpha=1e-9).fit(archs, values).predict(archs)[0] == pytest.approx(values, abs=1e-6)
    stranger = Architecture({"op0": "b", "op1": "b", "op2": "b"})
    assert np.isfinite(NGramRidge(space).fit(archs, values).predict([stranger])[0]).all()


def test_inactive_choices_are_not_in_the_sequence() -> None:
    surrogate = NGramRidge(GATED)
    shallow = GATED.canonical({"depth": 1, "op": "conv", "se": False})
    deep = GATED.canonical({"depth": 3, "op": "conv", "se": False, "kernel1": 3, "kernel2": 3})
    grams = surrogate._grams([shallow, deep])
    assert (grams > 0).sum(axis=1).tolist() == [3 + 2 + 1, 5 + 4 + 3]


def test_it_asks_for_the_best_of_the_pool_by_the_surrogate() -> None:
    strategy = DeepArchitectSMBO(TOY, ERROR, exploration=0.0, samples=2000, surrogate=Ridge(TOY))
    for number, arch in enumerate(samples(TOY, 60)):
        strategy.tell(Trial(number, arch, {"error": error(arch)}, state="done"))
    values = [error(strategy.ask(random.Random(number))) for number in range(5)]
    assert max(values) < np.quantile([error(arch) for arch in samples(TOY, 2000)], 0.01)


@pytest.mark.parametrize("wrong", [{"exploration": 1.5}, {"samples": 0}])
def test_wrong_arguments(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"exploration is|samples is"):
        DeepArchitectSMBO(TOY, ERROR, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="longest is"):
        NGramRidge(TOY, longest=0)


@pytest.mark.slow
def test_nasbench201() -> None:
    """30 seeds: far above random search, which has 93.40, 93.68 and 93.88."""
    at = (50, 100, 200)
    found, chance = (incumbents(make, seeds=30, at=at) for make in (DeepArchitectSMBO, RandomSearch))
    assert (found.mean(axis=0) > chance.mean(axis=0) + 0.15).all()
