# SPDX-License-Identifier: Apache-2.0
"""GBDT-NAS: the contract, its rounds and its pruning."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from contracts.strategy_contract import ERROR, GATED, OBJECTIVES, TOY, StrategyContract, cost, error
from sartor.architecture import Architecture
from sartor.encodings import onehot
from sartor.objective import Objective
from sartor.predictors import GBDT, Ridge
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies.gbdt_nas import GBDTNAS
from sartor.trial import Trial

FAST = partial(GBDT, members=0, rounds=20, learning_rate=0.1)


def small(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """Several rounds within a short test."""
    return GBDTNAS(space, objectives, initial=20, batch=30, predictor=FAST)


def pruning(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """Several rounds of pruning within a short test."""
    return GBDTNAS(space, objectives, initial=20, batch=30, prune=4, predictor=FAST)


class TestGBDTNAS(StrategyContract):
    make = staticmethod(small)
    keeps_cheap_bounds = True


class TestGBDTNAS3S(StrategyContract):
    make = staticmethod(pruning)
    keeps_cheap_bounds = True


def told(strategy: GBDTNAS, count: int, start: int = 0) -> list[Architecture]:
    """Run some trials of the toy and return what was asked for."""
    archs = []
    for number in range(start, start + count):
        archs.append(strategy.ask(random.Random(number)))
        values = {"error": error(archs[-1]), "cost": cost(archs[-1])}
        strategy.tell(Trial(number, archs[-1], values, state="done"))
    return archs


def test_defaults_are_the_papers() -> None:
    strategy = GBDTNAS(TOY, ERROR)
    assert (strategy.initial, strategy.batch, strategy.pool, strategy.prune) == (1000, 300, 5000, 0)
    assert (GBDTNAS(TOY, ERROR, queries=200).initial, GBDTNAS(TOY, ERROR, queries=200).batch) == (100, 33)


def test_a_round_evaluates_the_best_predicted_that_are_new() -> None:
    strategy = GBDTNAS(TOY, ERROR, initial=40, batch=10, predictor=FAST)
    first = told(strategy, 40)
    proposed = told(strategy, 10, 40)
    assert not set(proposed) & set(first) and len(set(proposed)) == 10
    model = FAST(TOY).fit(list(dict.fromkeys(first)), np.array([error(arch) for arch in dict.fromkeys(first)]))
    everyone = [arch for arch in GBDTNAS(TOY, ERROR)._candidates or [] if arch not in set(first)]
    threshold = np.sort(model.predict(everyone)[0])[9]
    assert (model.predict(proposed)[0] <= threshold + 1e-9).all()
    assert np.mean([error(arch) for arch in proposed]) < np.mean([error(arch) for arch in first]) - 10


def test_shap_values_add_up_to_the_prediction() -> None:
    archs = [TOY.sample(random.Random(seed)) for seed in range(80)]
    model = GBDT(TOY, members=0).fit(archs, np.array([error(arch) for arch in archs]))
    rest = model.predict(archs)[0] - model.contributions(archs).sum(axis=1)
    np.testing.assert_allclose(rest, rest[0], atol=1e-6)


def test_a_pruned_option_is_never_proposed_and_every_choice_keeps_one() -> None:
    strategy = GBDTNAS(TOY, ERROR, initial=60, batch=10, prune=4, predictor=FAST)
    told(strategy, 60)
    for start in range(60, 90, 10):
        left = strategy.pruned.choices
        assert all(left.values())
        for arch in told(strategy, 10, start):
            assert all(arch[name] in left[name] for name in arch)
    assert strategy.pruned.size < TOY.size / 10
    assert all(4 in strategy.pruned.choices[name] for name in ("c3", "c4", "c5")), "the best of what matters stays"


def test_pruning_maximises_where_the_goal_is_to() -> None:
    quality = Objective("quality", lambda arch: -error(arch), goal="max")
    strategy = GBDTNAS(TOY, (quality,), initial=60, batch=10, prune=4, predictor=FAST)
    search(TOY, strategy, (quality,), trials=70)
    assert all(4 in strategy.pruned.choices[name] for name in ("c3", "c4", "c5"))


def test_a_large_gated_space_is_sampled_and_stays_canonical() -> None:
    names = {f"x{i}": (0, 1, 2, 3) for i in range(10)}
    space = SearchSpace({**names, **GATED.choices}, GATED.gates)
    strategy = GBDTNAS(space, ERROR, initial=30, batch=10, pool=200, prune=5, predictor=FAST)
    assert strategy._candidates is None
    for number in range(70):
        arch = strategy.ask(random.Random(number))
        assert arch in space
        value = float(sum(arch[name] for name in names))  # type: ignore[misc]
        strategy.tell(Trial(number, arch, {"error": value}, state="done"))
    assert strategy.pruned.size < space.size


def test_bounds_are_kept_by_prediction_or_by_measuring_what_is_cheap() -> None:
    for cheap in (False, True):
        objectives = (ERROR[0], Objective("cost", cost, at_most=50.0, cheap=cheap))
        strategy = GBDTNAS(TOY, objectives, initial=100, batch=50, predictor=partial(GBDT, members=0))
        log = search(TOY, strategy, objectives, trials=200)
        kept = [trial.state == "done" for trial in log[100:]]
        assert all(kept) if cheap else np.mean(kept) > 0.6
        best = min(trial.values["error"] for trial in log[:100] if trial.state == "done")
        assert min(trial.values["error"] for trial in log[100:] if trial.state == "done") < best


def test_objectives_without_a_bound_do_not_count() -> None:
    assert [one.name for one in GBDTNAS(TOY, OBJECTIVES).objectives] == ["error"]


def test_any_predictor_serves_but_pruning_needs_contributions() -> None:
    strategy = GBDTNAS(TOY, ERROR, initial=20, batch=10, predictor=Ridge)
    assert np.mean([error(arch) for arch in told(strategy, 40)[20:]]) < 20
    with pytest.raises(ValueError, match="no contributions"):
        GBDTNAS(TOY, ERROR, prune=3, predictor=Ridge)


@pytest.mark.parametrize("wrong", [{"initial": 1}, {"batch": 0}, {"pool": 0}, {"prune": -1}])
def test_sizes_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        GBDTNAS(TOY, ERROR, **wrong)  # type: ignore[arg-type]


def test_features_have_names() -> None:
    archs = [TOY.sample(random.Random(seed)) for seed in range(5)]
    assert GBDT(TOY).fit(archs, np.arange(5.0)).contributions(archs).shape == onehot(TOY, archs).shape
