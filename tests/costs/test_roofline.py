# SPDX-License-Identifier: Apache-2.0
"""The roofline: its two sides, its invariants, and its fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.costs.gemm import macs, moved_bytes
from sartor.costs.roofline import Roofline
from sartor.workload import Op


def linear(rows: int, wide: int, deep: int) -> Op:
    return Op("matmul", ((rows, deep), (deep, wide)), (rows, wide), (), "float32")


def relu(size: int) -> Op:
    return Op("relu", ((1, size),), (1, size), (), "float32")


OPS = [linear(2**a, 2**b, 2**c) for a in (0, 4, 8) for b in (3, 6, 9) for c in (4, 7)] + [relu(4**a) for a in range(9)]


def test_arithmetic_or_traffic() -> None:
    roof = Roofline(10, 2, 0.5)
    assert roof.op(linear(1000, 1000, 1000)) == pytest.approx(1e9 / 10e9 * 1e3 + 0.5)  # 1e9 products at 10e9 a second
    assert roof.op(relu(1_000_000)) == pytest.approx(8e6 / 2e9 * 1e3 + 0.5)  # 8 MB at 2 GB/s
    assert roof((relu(1_000_000),) * 3) == pytest.approx(3 * 4.5)
    assert roof(()) == 0.0
    assert roof.ridge == 5


def test_attainable_is_the_smaller_of_the_two() -> None:
    """What an operator attains is min(peak, I * bandwidth) (Williams et al.)."""
    roof = Roofline(10, 2)
    for op in OPS[:18]:
        attained = macs(op) / roof.op(op) / 1e6
        assert attained == pytest.approx(min(10, macs(op) / moved_bytes(op) * 2))


@given(st.floats(0.1, 1e4), st.floats(0.1, 1e4), st.floats(0, 1), st.sampled_from(OPS))
def test_never_faster_than_either_limit_or_a_better_device(peak: float, bandwidth: float, call: float, op: Op) -> None:
    ms = Roofline(peak, bandwidth, call).op(op)
    assert ms >= macs(op) / peak / 1e6
    assert ms >= moved_bytes(op) / bandwidth / 1e6
    assert Roofline(2 * peak, 3 * bandwidth, call / 2).op(op) <= ms


@pytest.mark.parametrize("true", [Roofline(10, 2, 0.001), Roofline(30, 2, 0.02), Roofline(0.5, 20, 0.0)])
def test_a_fit_finds_the_device_that_was_measured(true: Roofline) -> None:
    found = Roofline.fitted(OPS, [true.op(op) for op in OPS])
    for name in ("gmacs_per_s", "gbytes_per_s", "call_ms"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-6, abs=1e-9)


def test_a_fit_to_noise_is_close() -> None:
    true, rng = Roofline(10, 2, 0.001), np.random.default_rng(0)
    found = Roofline.fitted(OPS, [true.op(op) * rng.lognormal(0, 0.1) for op in OPS])
    errors = [found.op(op) / true.op(op) - 1 for op in OPS]
    assert np.abs(errors).mean() < 0.07


def test_a_limit_that_nothing_shows_is_none() -> None:
    found = Roofline.fitted([relu(4**a) for a in range(4, 9)], [1.0] * 5)
    assert found.gmacs_per_s == math.inf
    assert found((relu(64),)) == pytest.approx(1.0)
    out_of_reach = Roofline(500, 1, 0.02)  # no operator has 500 multiply-accumulates per byte
    assert Roofline.fitted(OPS, [out_of_reach.op(op) for op in OPS]).gmacs_per_s == math.inf


@pytest.mark.parametrize(
    ("ops", "ms", "message"),
    [
        ([], [], "0 operators"),
        (OPS[:2], [1.0], "give one for each"),
        (OPS[:2], [1.0, 0.0], "value 1 is 0"),
        (OPS[:2], [math.nan, 1.0], "value 0 is nan"),
    ],
)
def test_mistakes_of_a_fit(ops: list[Op], ms: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Roofline.fitted(ops, ms)


@pytest.mark.parametrize("numbers", [(0, 1, 0), (1, -1, 0), (1, 1, -1), (math.nan, 1, 0), (1, 1, math.inf)])
def test_numbers_out_of_range(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Roofline(*numbers)
