# SPDX-License-Identifier: Apache-2.0
"""Errors and their intervals, against the plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.costs.errors import MEASURES, Interval, errors
from sartor.ranking import kendall_tau, spearman

latencies = st.lists(st.integers(1, 6).map(float), min_size=2, max_size=12)


@given(st.data())
def test_they_equal_the_definitions_on_every_resample_ties_included(data: st.DataObject) -> None:
    true = np.array(data.draw(latencies))
    predicted = np.array(data.draw(st.lists(st.integers(1, 6).map(float), min_size=len(true), max_size=len(true))))
    rows = np.array(data.draw(st.lists(st.integers(0, len(true) - 1), min_size=len(true), max_size=len(true))))
    weights = np.bincount(rows, minlength=len(true)).astype(float)[None]
    p, t = predicted[rows], true[rows]
    expected = {"mape": np.mean(np.abs(p / t - 1)), "spearman": spearman(p, t), "kendall": kendall_tau(p, t)}
    expected["r2"] = 1 - np.square(t - p).sum() / np.square(t - t.mean()).sum() if np.ptp(t) else np.nan
    for name, measure in MEASURES.items():
        assert measure(predicted, true, weights)[0] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), name


def test_a_perfect_prediction_and_its_interval() -> None:
    true = np.linspace(1.0, 2.0, 20)
    found = errors(true, true)
    assert found["mape"] == Interval(0.0, 0.0, 0.0)
    assert found["spearman"].value == found["kendall"].value == pytest.approx(1.0)
    assert found["r2"].value == pytest.approx(1.0)


def test_an_interval_covers_what_more_networks_would_show() -> None:
    rng = np.random.default_rng(0)

    def drawn(count: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...]:
        true = rng.uniform(1, 3, count)
        return true * rng.uniform(0.9, 1.1, count), true

    (large_p, large_t), inside = drawn(1000), 0
    truth = errors(large_p, large_t)["mape"].value
    for _ in range(60):
        found = errors(*drawn(40))["mape"]
        assert found.low is not None and found.high is not None and found.value is not None
        assert found.low <= found.value <= found.high
        inside += found.low <= (truth or 0) <= found.high
    assert inside >= 0.85 * 60


def test_constant_predictions_have_no_ranking() -> None:
    found = errors(np.full(5, 2.0), np.arange(1.0, 6.0))
    assert found["spearman"].to_list() == [None, None, None]
    assert found["mape"].value is not None


@pytest.mark.parametrize(
    ("predicted", "true", "match"),
    [([1.0], [1.0], "2 or more"), ([1.0, 2.0], [1.0], "one length"), ([1.0, np.nan], [1.0, 2.0], "not finite"),
     ([1.0, 2.0], [0.0, 1.0], "above 0")],
)  # fmt: skip
def test_what_cannot_be_judged(predicted: list[float], true: list[float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        errors(predicted, true)
