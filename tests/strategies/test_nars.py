# SPDX-License-Identifier: Apache-2.0
"""NARS: the contract, its batches, and its predictor."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from contracts.strategy_contract import ERROR, GATED, OBJECTIVES, TOY, StrategyContract, cost, error
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.predictors import PretrainedMLP, Ridge
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies.nars import NARS
from sartor.trial import Trial

LARGE = SearchSpace({f"x{i:02}": (0, 1, 2, 3) for i in range(12)})
BRIEF = partial(PretrainedMLP, unlabelled=300, pretraining=60, frozen=10, steps=40, units=16, members=2)


def small(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """Several batches within a short test."""
    return NARS(space, objectives, initial=20, batch=30, iterations=2, pool=64, population=20, predictor=Ridge)


class TestNARS(StrategyContract):
    make = staticmethod(small)
    keeps_cheap_bounds = True


def total(arch: Architecture) -> float:
    return float(sum(arch.values()))  # type: ignore[arg-type]


def far(arch: Architecture) -> float:
    """Best at 12 given options, none of them an end."""
    return float(sum((int(str(option)) - 1 - place % 2) ** 2 for place, option in enumerate(arch.values())))


def told(strategy: NARS, start: int, stop: int) -> list[Architecture]:
    """Run some trials of the toy and return what was asked for."""
    archs = []
    for number in range(start, stop):
        archs.append(strategy.ask(random.Random(number)))
        strategy.tell(Trial(number, archs[-1], {"error": error(archs[-1])}, state="done"))
    return archs


def test_a_batch_is_half_predicted_and_half_spread_and_later_all_predicted() -> None:
    strategy = NARS(TOY, ERROR, initial=40, batch=20, iterations=1, predictor=Ridge)
    first = [error(arch) for arch in told(strategy, 0, 40)]
    mixed = sorted(error(arch) for arch in told(strategy, 40, 60))
    predicted = [error(arch) for arch in told(strategy, 60, 80)]
    assert max(mixed[:10]) < np.quantile(first, 0.1), "the predicted half is good"
    assert abs(np.mean(mixed[10:]) - np.mean(first)) < 12, "the other is as anywhere"
    assert np.mean(predicted) < np.mean(mixed[:10]) + 3 < np.mean(first) - 15


def test_sobol_points_cover_every_option_and_differ_between_searches() -> None:
    strategy = NARS(TOY, ERROR, initial=32, predictor=Ridge)
    archs = told(strategy, 0, 32)
    for name, options in TOY.choices.items():
        counts = [sum(arch[name] == option for arch in archs) for option in options]
        assert min(counts) >= 3, f"{name}: {counts}"
    other = NARS(TOY, ERROR, initial=32)
    other.tell(Trial(0, TOY.largest(), {"error": 1.0}, state="done"))
    assert set(other._proposed) != set(archs[1:])


@pytest.mark.parametrize("space", [TOY, LARGE])
def test_bounds_of_cheap_objectives_hold_for_every_proposal(space: SearchSpace) -> None:
    objectives = (Objective("far", far), Objective("total", total, at_most=10.0, cheap=True))
    strategy = NARS(space, objectives, initial=10, batch=10, iterations=2, pool=512, population=20, predictor=Ridge)
    log = search(space, strategy, objectives, trials=60)
    assert all(trial.state == "done" for trial in log)


def test_the_evolution_finds_the_optimum_of_a_large_additive_space() -> None:
    """4^12 architectures, of which 200 are measured."""
    objectives = (Objective("far", far),)
    strategy = NARS(LARGE, objectives, initial=100, batch=25, iterations=2, pool=256, predictor=Ridge)
    log = search(LARGE, strategy, objectives, trials=200)
    assert min(trial.values["far"] for trial in log) == 0
    assert min(trial.values["far"] for trial in log[:100]) > 4


def test_the_papers_predictor_is_the_default_and_is_pretrained_once() -> None:
    calls = []

    def statistics(archs: Sequence[Architecture]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        calls.append(len(archs))
        return np.array([[cost(arch) + 1] for arch in archs])

    strategy = NARS(TOY, ERROR, statistics=statistics, initial=20, batch=20)
    found = told(strategy, 0, 39)
    assert calls == [2000]
    assert np.mean([error(arch) for arch in found[20:]]) < np.mean([error(arch) for arch in found[:20]]) - 10


def test_recipe_and_architecture_are_searched_together() -> None:
    """The best recipe depends on the architecture, so that neither is found without the other."""
    space = SearchSpace({**{f"a{i}": (0, 1, 2) for i in range(4)}, "lr": (0, 1, 2), "decay": (0, 1, 2)})

    def loss(arch: Architecture) -> float:
        size = sum(int(str(arch[f"a{i}"])) for i in range(4))
        return float(8 - size + 2 * abs(int(str(arch["lr"])) - size // 3) + abs(int(str(arch["decay"])) - size // 4))

    objectives = (Objective("loss", loss),)
    make = partial(BRIEF, recipe=("lr", "decay"), members=3, steps=100)
    log = search(space, NARS(space, objectives, initial=30, batch=10, predictor=make), objectives, trials=70)
    start, found = (min(trial.values["loss"] for trial in part) for part in (log[:30], log[30:]))
    assert found <= 1 < start


# ---- the predictor --------------------------------------------------------------------------------


def test_the_statistics_are_learnt_and_the_encoder_is_kept_in_the_frozen_phase() -> None:
    model = PretrainedMLP(
        TOY,
        statistics=lambda archs: np.array([[cost(a) + 1, error(a)] for a in archs]),
        unlabelled=500,
        pretraining=120,
        members=2,
        units=32,
    )
    assert model.pretrain() > 0.95
    assert model._pretrained is not None
    before = [weight.detach().clone() for weight in model._pretrained.parameters()]
    archs = [TOY.sample(random.Random(seed)) for seed in range(20)]
    values = np.array([error(arch) for arch in archs])
    model.fit(archs, values)
    assert all((a == b).all() for a, b in zip(before, model._pretrained.parameters(), strict=True))
    model.steps, model._encoder = 0, model._pretrained
    model.fit(archs, values)
    assert all((a == b).all() for a, b in zip(before, model._encoder.parameters(), strict=True))


def test_pretraining_lifts_the_ranking_from_few_labels() -> None:
    """Error and free cost depend on the same choices: with 15 labels the statistic tells which."""
    from sartor.ranking import kendall_tau

    rng = random.Random(0)
    held = [TOY.sample(rng) for _ in range(300)]
    taus = {0: 0.0, 500: 0.0}
    for seed in range(3):
        archs = [TOY.sample(rng) for _ in range(15)]
        values = np.array([cost(arch) ** 2 for arch in archs])
        for unlabelled in taus:
            model = PretrainedMLP(
                TOY,
                statistics=lambda archs: np.array([[cost(arch)] for arch in archs]),
                unlabelled=unlabelled,
                members=1,
                units=32,
                pretraining=100,
                steps=80,
                seed=seed,
            )
            taus[unlabelled] += kendall_tau(model.fit(archs, values).predict(held)[0], [cost(a) for a in held]) / 3
    assert taus[500] > taus[0] + 0.1


def test_the_encoder_does_not_see_the_recipe() -> None:
    model = BRIEF(GATED, recipe=("op", "se"))
    model.pretrain()
    assert model._pretrained is not None
    assert model._pretrained.weights[0].shape[1] == 3 + 2 + 3
    with pytest.raises(ValueError, match="recipe names"):
        PretrainedMLP(GATED, recipe=("momentum",))


def test_statistics_that_are_no_table_are_an_error() -> None:
    with pytest.raises(ValueError, match="must be finite numbers"):
        PretrainedMLP(TOY, statistics=lambda archs: np.ones(len(archs))).pretrain()


@pytest.mark.parametrize("wrong", [{"initial": 1}, {"batch": 1}, {"iterations": -1}, {"patience": 0}])
def test_sizes_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        NARS(TOY, OBJECTIVES, **wrong)  # type: ignore[arg-type]
