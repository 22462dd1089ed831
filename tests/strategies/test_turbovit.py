# SPDX-License-Identifier: Apache-2.0
"""Generative search: the contract of every strategy, the generator, the indicator, and the published row."""

from __future__ import annotations

import math
import random

import pytest

from contracts.strategy_contract import ERROR, GATED, TOY, StrategyContract, cost, error
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.search import search
from sartor.strategies._indicator import cheap_excess
from sartor.strategies.turbovit import TurboViT, floored, netscore
from sartor.trial import Trial


class TestTurboViT(StrategyContract):
    make = staticmethod(TurboViT)
    keeps_cheap_bounds = True


def told(strategy: TurboViT, arch: Architecture, number: int, value: float) -> None:
    strategy.tell(Trial(number, arch, {"error": value}, state="done"))


def test_the_generator_moves_to_the_elite_by_the_smoothing() -> None:
    """Two of ten are the elite; they agree in c0 and differ in c1: .7 and .35 of the new, .3 of the old 1/5."""
    strategy = TurboViT(TOY, ERROR, batch=10, floor=0.0)
    base = Architecture({f"c{i}": 0 for i in range(6)})
    elite = [base.replace(c0=3, c1=1), base.replace(c0=3, c1=2)]
    rest = [base.replace(c2=i % 5, c3=1 + i // 5) for i in range(8)]
    for number, arch in enumerate([*elite, *rest]):
        told(strategy, arch, number, float(number))
    assert strategy.generator["c0"] == pytest.approx([0.06, 0.06, 0.06, 0.76, 0.06])
    assert strategy.generator["c1"] == pytest.approx([0.06, 0.41, 0.41, 0.06, 0.06])


def test_probabilities_stay_normal_and_above_the_floor() -> None:
    strategy = TurboViT(GATED, ERROR, batch=5)
    log = search(GATED, strategy, ERROR, trials=60)
    assert len(log) == 60
    for probabilities in strategy.generator.values():
        assert sum(probabilities) == pytest.approx(1) and min(probabilities) >= 0.02 - 1e-12
    assert floored([1.0, 0.0, 0.0], 0.1) == pytest.approx([0.8, 0.1, 0.1])
    assert floored([0.5, 0.5], 0.9) == [0.5, 0.5]


def test_a_choice_that_no_elite_uses_keeps_its_probabilities() -> None:
    strategy = TurboViT(GATED, ERROR, batch=2)
    shallow = GATED.smallest()
    for number, arch in enumerate([shallow, shallow.replace(se=not shallow["se"])]):
        told(strategy, arch, number, 1.0)
    assert strategy.generator["kernel2"] == [1 / 3] * 3
    assert strategy.generator["depth"] != [1 / 3] * 3


def test_everything_generated_meets_the_indicator() -> None:
    """1_r(G(s)) = 1 for all seeds s, where the bound leaves one design in 90."""
    objectives = (*ERROR, Objective("cost", cost, at_most=15.0, cheap=True))
    strategy = TurboViT(TOY, objectives)
    assert all(cost(strategy.ask(random.Random(seed))) <= 15 for seed in range(50))


def test_the_indicator_never_looks_at_what_is_searched() -> None:
    arch = TOY.smallest()
    searched = Objective("error", error, at_most=1.0, cheap=True)
    assert cheap_excess(arch, (searched,)) == 0
    assert cheap_excess(arch, (searched, Objective("same", error, at_most=42.0, cheap=True))) == 1
    assert cheap_excess(arch, (searched, Objective("nan", lambda arch: math.nan, at_most=1.0, cheap=True))) == math.inf
    assert cheap_excess(arch, (searched, Objective("costly", error, at_most=1.0))) == 0


def test_netscore() -> None:
    """20 log10(80^2 / (4 x 100)^.5), and monotone in each argument."""
    assert netscore(80.0, 4.0, 100.0) == pytest.approx(20 * math.log10(80**2 / 20))
    assert netscore(81.0, 4.0, 100.0) > netscore(80.0, 4.0, 100.0) > netscore(80.0, 5.0, 100.0)
    assert netscore(80.0, 4.0, 100.0) > netscore(80.0, 4.0, 101.0)
    with pytest.raises(ValueError, match="params is 0"):
        netscore(80.0, 0, 1.0)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"elites": 0}, {"elite": 0.0}, {"smoothing": 1.5}, {"floor": 1.0}])
def test_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is|{next(iter(wrong))} {next(iter(wrong.values()))}"):
        TurboViT(TOY, ERROR, **wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_published_row_of_nasbench201() -> None:
    """93.71, 94.03, 94.31 and 94.37 after 50, 100, 200 and 400 queries: 100 seeds, two standard errors."""
    from sartor.tables import load

    table = load("nasbench201")
    objectives = [table.objective("cifar10_val12")]
    found: list[list[float]] = [[], [], [], []]
    for seed in range(100):
        log = search(table.space, TurboViT(table.space, objectives), objectives, trials=400, seed=seed)
        signal = [trial.values["cifar10_val12"] for trial in log]
        value = table.values("cifar10", [trial.arch for trial in log])
        for curve, queries in zip(found, (50, 100, 200, 400), strict=True):
            curve.append(float(value[signal.index(max(signal[:queries]))]))
    published = ((93.71, 0.46), (94.03, 0.32), (94.31, 0.18), (94.37, 0.0))
    for curve, (mean, deviation) in zip(found, published, strict=True):
        ours = sum(curve) / len(curve)
        variance = sum((value - ours) ** 2 for value in curve) / (len(curve) - 1)
        assert abs(ours - mean) <= 2 * math.sqrt((variance + deviation**2) / 100) + 0.005
