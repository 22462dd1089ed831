# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor

from sartor.differentiable.penalties import (
    Penalty,
    add,
    add_linear,
    add_log,
    hinge,
    mul_log,
    mul_log_ratio,
    reward_exponent,
)

LOSS, COST, TARGET = 2.0, 30.0, 20.0
# The value, and the derivative in the cost, by the published formula.
CASES: dict[str, tuple[Penalty, float, float]] = {
    "add": (add(0.1), LOSS + 0.1 * COST, 0.1),
    "add_linear": (add_linear(0.1, TARGET), LOSS + 0.1 * (COST - TARGET) / TARGET, 0.1 / TARGET),
    "add_log": (add_log(0.1), LOSS + 0.1 * math.log(COST), 0.1 / COST),
    "mul_log": (
        mul_log(),
        LOSS * 0.2 * math.log(COST) ** 0.6,
        LOSS * 0.2 * 0.6 * math.log(COST) ** -0.4 / COST,
    ),
    "mul_log_ratio": (
        mul_log_ratio(TARGET),
        LOSS * 0.2 * (math.log(COST) / math.log(TARGET)) ** 0.3,
        LOSS * 0.2 * 0.3 * (math.log(COST) / math.log(TARGET)) ** -0.7 / math.log(TARGET) / COST,
    ),
    "hinge": (hinge(0.1, TARGET), LOSS + 0.1 * 0.5, 0.1 / TARGET),
    "reward_exponent": (
        reward_exponent(TARGET),
        LOSS * (TARGET / COST) ** 0.1,
        -0.1 * LOSS * (TARGET / COST) ** 0.1 / COST,
    ),
}


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("penalty", "value", "slope"), CASES.values(), ids=CASES)
def test_value_and_gradient_are_the_published_ones(penalty: Penalty, value: float, slope: float) -> None:
    loss, cost = double(LOSS), double(COST)
    joined = penalty(loss, cost)
    assert float(joined.detach()) == pytest.approx(value, rel=1e-6)
    by_loss, by_cost = torch.autograd.grad(joined, (loss, cost))
    assert float(by_cost) == pytest.approx(slope, rel=1e-6)
    assert float(by_loss) > 0


@pytest.mark.parametrize(("penalty", "value", "slope"), CASES.values(), ids=CASES)
def test_a_higher_cost_is_worse(penalty: Penalty, value: float, slope: float) -> None:
    worse = float(penalty(double(LOSS), double(COST + 1)).detach())
    assert (worse > value) == (not isinstance(penalty, reward_exponent))


@pytest.mark.parametrize("name", CASES)
def test_a_penalty_is_a_value(name: str) -> None:
    penalty = CASES[name][0]
    assert pickle.loads(pickle.dumps(penalty)) == penalty


def test_a_hinge_is_flat_below_its_target() -> None:
    loss, cost = double(LOSS), double(TARGET / 2)
    joined = hinge(0.1, TARGET)(loss, cost)
    assert float(joined.detach()) == LOSS
    assert float(torch.autograd.grad(joined, cost)[0]) == 0.0


def test_a_reward_of_numbers_is_a_number() -> None:
    assert reward_exponent(10.0, 0.5)(0.8, 40.0) == pytest.approx(0.4)


def test_strength_zero_is_no_penalty() -> None:
    for penalty in (add(0.0), add_linear(0.0, TARGET), add_log(0.0), hinge(0.0, TARGET)):
        assert float(penalty(double(LOSS), double(COST)).detach()) == LOSS


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan])
def test_a_target_is_positive(target: float) -> None:
    for make in (lambda t: add_linear(1.0, t), lambda t: hinge(1.0, t), reward_exponent):
        with pytest.raises(ValueError, match="target"):
            make(target)


def test_a_logarithm_that_is_not_positive_says_so() -> None:
    for penalty in (mul_log(), mul_log_ratio(TARGET)):
        with pytest.raises(ValueError, match="smaller unit"):
            penalty(double(LOSS), double(0.9))
    with pytest.raises(ValueError, match="smaller unit"):
        mul_log_ratio(1.0)
    with pytest.raises(ValueError, match="above 0"):
        add_log(1.0)(double(LOSS), double(0.0))
    with pytest.raises(ValueError, match="above 0"):
        reward_exponent(1.0)(double(LOSS), double(0.0))
