# SPDX-License-Identifier: Apache-2.0
"""Costs are all-minimise and never NaN; violations are relative and zero exactly where feasible."""

import math

import pytest

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names, costs, violation
from sartor.trial import Trial

ARCH = Architecture({"a": 1})


def zero(arch: Architecture) -> float:
    return 0.0


ERROR = Objective("error", zero)
ACCURACY = Objective("accuracy", zero, goal="max", at_least=0.9)
LATENCY = Objective("latency_ms", zero, at_most=0.2)


def test_costs_are_to_be_minimised() -> None:
    trial = Trial(0, ARCH, {"error": 0.1, "accuracy": 0.9, "latency_ms": 3.0})
    assert costs(trial, [ERROR, ACCURACY, LATENCY]) == (0.1, -0.9, 3.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_missing_or_not_finite_costs_infinity(value: float) -> None:
    assert costs(Trial(0, ARCH, {"accuracy": value}), [ERROR, ACCURACY]) == (math.inf, math.inf)


def test_violation_is_the_sum_of_relative_excesses() -> None:
    bounds = [ERROR, ACCURACY, LATENCY]
    assert violation(Trial(0, ARCH, {"accuracy": 0.9, "latency_ms": 0.2}), bounds) == 0
    assert violation(Trial(0, ARCH, {"accuracy": 0.45, "latency_ms": 0.3}), bounds) == pytest.approx(1.0)
    assert violation(Trial(0, ARCH, {"latency_ms": 0.3}), bounds) == pytest.approx(0.5)
    assert violation(Trial(0, ARCH, {"latency_ms": math.nan}), bounds) == math.inf
    assert violation(Trial(0, ARCH, {"x": 2.0}), [Objective("x", zero, at_most=0.0)]) == 2.0
    assert violation(Trial(0, ARCH, {"x": -2.0}), [Objective("x", zero, at_least=-1.0)]) == 1.0
    assert violation(Trial(0, ARCH, {"error": math.nan}), [ERROR]) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "the name of an objective"),
        ({"measure": 3}, "which cannot be called"),
        ({"goal": "least"}, "goal is 'least': use 'min' or 'max'"),
        ({"at_most": math.nan}, "is not finite"),
        ({"at_least": math.inf}, "is not finite"),
        ({"at_most": 1.0, "at_least": 2.0}, "at_most 1.0 is below at_least 2.0"),
    ],
)
def test_wrong_objectives(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**{"name": "x", "measure": zero, **fields})  # type: ignore[arg-type]


def test_names_are_unique() -> None:
    check_names([ERROR, LATENCY])
    with pytest.raises(ValueError, match="two objectives are named 'error'"):
        check_names([ERROR, ERROR])
    with pytest.raises(ValueError, match="there is no objective"):
        check_names([])
