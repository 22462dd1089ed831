# SPDX-License-Identifier: Apache-2.0
"""FLASH: the contract of every strategy, NN-Degree, the accuracy model, and SHGO beside enumeration."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from contracts.strategy_contract import ERROR, GATED, StrategyContract
from sartor import encodings
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies._relaxation import Floats, Relaxation, hierarchical_shgo
from sartor.strategies.flash import FLASH, Cell, fitted_accuracy, nn_degree
from sartor.trial import Trial


def small_flash(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """Few fits, and few vertices."""
    return FLASH(space, objectives, samples=15, batch=45, block=3, vertices=8)


class TestFLASH(StrategyContract):
    make = staticmethod(small_flash)
    keeps_cheap_bounds = True


# ---- degree and accuracy ----------------------------------------------------------------------------


def test_nn_degree_by_hand() -> None:
    """Two cells: 8 + 16 / (8 x 4), and 16 without links; it rises with links, and is the width without."""
    assert nn_degree([Cell(8, 4, 16), Cell(16, 4, 0)]) == 8.5 + 16
    assert nn_degree([Cell(8, 4, 17)]) > nn_degree([Cell(8, 4, 16)])
    assert nn_degree([Cell(8, 4, 0), Cell(5, 9, 0)]) == 13
    with pytest.raises(ValueError, match="width 8 and depth 0"):
        nn_degree([Cell(8, 0, 1)])


def test_the_accuracy_model_is_recovered_and_never_falls_with_the_degree() -> None:
    degrees = [4.0, 8.0, 16.0, 40.0]
    assert fitted_accuracy(degrees, [1 / (2 / g + 1.1) for g in degrees]) == pytest.approx((2, 1.1))
    assert fitted_accuracy(degrees, [0.9, 0.8, 0.7, 0.6])[0] > 0
    for wrong in (([1.0, 0.0], [1.0, 1.0]), ([1.0, 2.0], [1.0, 0.0]), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="all above 0"):
            fitted_accuracy(*wrong)
    with pytest.raises(ValueError, match="all equal"):
        fitted_accuracy([2.0, 2.0], [0.5, 0.6])


# ---- relaxation ---------------------------------------------------------------------------------------


def test_positions_and_designs_are_each_others_inverse() -> None:
    space = SearchSpace({"a": (8, 2, 4), "b": ("x", "y"), "c": (1,)})
    relaxation = Relaxation(space, [np.zeros(3), np.array([1.0, 0.0]), np.zeros(1)])
    for arch in map(space.canonical, ({"a": a, "b": b, "c": 1} for a in (8, 2, 4) for b in "xy")):
        row = encodings.indices(space, [arch])[0]
        assert relaxation.rounded(relaxation.position(row)).tolist() == [row.tolist()]
    assert relaxation.values(np.array([1.5, 0.25, 0.0])) == {"a": 6.0, "b": 0.25, "c": 1.0}
    around = {tuple(row) for row in relaxation.rounded(np.array([1.5, 0.25, 0.0]))}
    assert around == {(2, 1, 0), (2, 0, 0), (0, 1, 0), (0, 0, 0)}


def test_the_coarse_level_moves_equal_cells_together() -> None:
    space = SearchSpace({"d1": (1, 2), "d2": (1, 2), "w1": (8, 16), "w2": (8, 16), "w3": (8,)})
    coarse, fine = Relaxation(space).levels_of_detail()
    assert coarse == [[0, 1], [2, 3]] and fine == [[0], [1], [2], [3]]


CELLS = SearchSpace({f"w{c}": (8, 16, 24, 32) for c in range(3)} | {f"s{c}": (0, 10, 20) for c in range(3)})


def degree(values: Mapping[str, float]) -> float:
    return nn_degree(Cell(values[f"w{c}"], 4, values[f"s{c}"]) for c in range(3))


def features(values: Mapping[str, float]) -> tuple[float, float]:
    macs = sum(2.0**-c * (4 * values[f"w{c}"] ** 2 + values[f"s{c}"] * values[f"w{c}"]) for c in range(3))
    return macs, 1.0


def accuracy(arch: Architecture) -> float:
    return 100 / (1 + 20 / degree(numbers(arch)))


def latency(arch: Architecture) -> float:
    return 1e-3 * features(numbers(arch))[0] + 0.5


def numbers(arch: Architecture) -> dict[str, float]:
    return {name: float(str(option)) for name, option in arch.items()}


DESIGNS = [
    Architecture(dict(zip(CELLS.choices, one, strict=True))) for one in itertools.product(*CELLS.choices.values())
]
BOUND = 4.0
OPTIMUM = max(accuracy(arch) for arch in DESIGNS if latency(arch) <= BOUND)
CO_DESIGN = (Objective("accuracy", accuracy, goal="max"), Objective("ms", latency, at_most=BOUND))


@pytest.mark.parametrize("block", [2, 6])
def test_rounded_minimisers_are_within_one_per_cent_of_enumeration(block: int) -> None:
    relaxation = Relaxation(CELLS)

    def slack(x: Floats) -> float:
        return 1 - (1e-3 * features(relaxation.values(x))[0] + 0.5) / BOUND

    def loss(x: Floats) -> float:
        return -degree(relaxation.values(x))

    pool = hierarchical_shgo(loss, relaxation, np.zeros(6), [slack], block=block, vertices=64)
    rows = np.concatenate([relaxation.rounded(x) for x in pool])
    found = [arch for arch in encodings.architectures(CELLS, rows) if latency(arch) <= BOUND]
    assert max(map(accuracy, found)) >= 0.99 * OPTIMUM


def test_ten_designs_after_25_samples_hold_the_optimum_and_meet_the_bound() -> None:
    strategy = FLASH(CELLS, CO_DESIGN, degree=degree, hardware=features)
    log = search(CELLS, strategy, CO_DESIGN, trials=35)
    assert {trial.state for trial in log[25:]} == {"done"}
    assert max(trial.values["accuracy"] for trial in log if trial.state == "done") == OPTIMUM
    assert len({trial.arch for trial in log}) == 35


def test_the_training_free_search_starts_at_the_largest_degree() -> None:
    strategy = FLASH(CELLS, CO_DESIGN[:1], degree=degree, samples=0, batch=1)
    assert accuracy(strategy.ask(random.Random(0))) == max(map(accuracy, DESIGNS))


def test_a_bound_that_next_to_nothing_meets_ends_the_design() -> None:
    """Of 4^20 networks none is allowed: a sample is asked for in the end, and trials are infeasible."""
    space = SearchSpace({f"c{i:02}": (0, 1, 2, 3) for i in range(20)})
    total = Objective("total", lambda arch: float(sum(arch.values())), cheap=True, at_most=-1.0)
    objectives = (Objective("error", lambda arch: -total.measure(arch)), total)
    strategy = FLASH(space, objectives, samples=5, batch=2)
    for number in range(6):
        arch = strategy.ask(random.Random(number))
        strategy.tell(Trial(number, arch, {"error": float(number)}, state="done"))


def test_an_estimated_degree_finds_the_optimum_of_a_sum() -> None:
    """Twelve unordered options, each adding its part: 25 samples tell which, but for noise there is none."""
    space = SearchSpace({f"op{i}": ("a", "b", "c", "d") for i in range(5)})
    worth = {"a": 3.0, "b": 1.0, "c": 4.0, "d": 1.5}
    objectives = [Objective("sum", lambda arch: sum(worth[str(option)] for option in arch.values()), goal="max")]
    log = search(space, FLASH(space, objectives, vertices=16), objectives, trials=35)
    assert max(trial.values["sum"] for trial in log) == 20


@pytest.mark.parametrize("wrong", [{"samples": 1}, {"batch": 0}, {"block": 0}, {"vertices": 0}])
def test_sizes_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 2, 1, 1 and 1"):
        FLASH(GATED, ERROR, **wrong)  # type: ignore[arg-type]
