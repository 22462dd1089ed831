# SPDX-License-Identifier: Apache-2.0
"""Calibration errors, against hand counts and the bias that the paper's finite samples must have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sartor import calibration

Floats = NDArray[np.float64]
Labels = NDArray[np.intp]


def two_classes(confidence: Floats, right: NDArray[np.bool_]) -> tuple[Floats, Labels]:
    """Return probabilities whose greatest is `confidence`, of class 0, and labels that agree where `right`."""
    return np.stack([confidence, 1 - confidence], axis=1), np.where(right, 0, 1)


def calibrated(count: int, rng: np.random.Generator) -> tuple[Floats, Labels]:
    """Draw a perfectly calibrated classifier: confidences from Beta(5, 1), ten classes."""
    confidence = rng.beta(5, 1, size=count)
    probabilities = np.repeat((1 - confidence)[:, None] / 9, 10, axis=1)
    probabilities[:, 0] = confidence
    label = np.where(rng.random(count) < confidence, 0, rng.integers(1, 10, size=count))
    return probabilities, label


BY_HAND = two_classes(np.array([0.6, 0.7, 0.9, 0.9]), np.array([True, False, True, True]))


def test_by_hand() -> None:
    """Two bins of width 1/2 hold nothing and all; of four, the third holds .6 and .7, the last .9 twice."""
    assert calibration.expected_calibration_error(*BY_HAND, bins=1) == pytest.approx(abs(0.75 - 0.775))
    assert calibration.expected_calibration_error(*BY_HAND, bins=4) == pytest.approx((0.15 + 0.1) / 2)
    assert calibration.maximum_calibration_error(*BY_HAND, bins=4) == pytest.approx(0.15)
    assert calibration.expected_calibration_error(*BY_HAND, bins=2, equal="mass") == pytest.approx((0.15 + 0.1) / 2)
    assert calibration.ks_calibration_error(*BY_HAND) == pytest.approx(0.4 / 4)  # sorted gaps .4, -.7, .1, .1
    assert calibration.brier(*BY_HAND) == pytest.approx(2 * (0.16 + 0.49 + 0.01 + 0.01) / 4)
    expected = -(math.log(0.6) + math.log(0.3) + 2 * math.log(0.9)) / 4
    assert calibration.negative_log_likelihood(*BY_HAND) == pytest.approx(expected)


def test_two_classes_have_one_classwise_error() -> None:
    """Both classes' probabilities are off by the same amounts; one bin: |.75 - .775| each."""
    assert calibration.classwise_calibration_error(*BY_HAND, bins=1) == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("count", "bins", "expected"), [(360, 5, 0.026), (360, 15, 0.042), (360, 100, 0.108), (10_000, 15, 0.008)]
)
def test_the_bias_of_a_perfect_classifier(count: int, bins: int, expected: float) -> None:
    rng = np.random.default_rng(0)
    errors = [calibration.expected_calibration_error(*calibrated(count, rng), bins=bins) for _ in range(60)]
    assert np.mean(errors) == pytest.approx(expected, abs=0.005)


def test_a_confidence_that_is_always_too_high() -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = two_classes(np.full(20_000, 0.9), rng.random(20_000) < 0.5)
    for measure in (
        calibration.expected_calibration_error,
        calibration.maximum_calibration_error,
        calibration.classwise_calibration_error,
    ):
        assert measure(probabilities, labels) == pytest.approx(0.4, abs=0.01)
    assert calibration.ks_calibration_error(probabilities, labels) == pytest.approx(0.4, abs=0.01)
    assert calibration.mmce(probabilities[:2000], labels[:2000]) == pytest.approx(0.4, abs=0.03)


def test_order_does_not_matter_and_errors_are_from_0_to_1() -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = calibrated(300, rng)
    order = rng.permutation(300)
    for measure in (calibration.expected_calibration_error, calibration.ks_calibration_error, calibration.mmce):
        value = measure(probabilities, labels)
        assert 0 <= value <= 1 and measure(probabilities[order], labels[order]) == pytest.approx(value)


def test_the_edges_of_bins() -> None:
    probabilities, labels = two_classes(np.array([1.0, 0.5, 1.0]), np.array([True, True, False]))
    assert 0 <= calibration.expected_calibration_error(probabilities, labels, bins=2) <= 1
    assert calibration.classwise_calibration_error(probabilities, labels, bins=4) <= 1  # holds probabilities of 0


def test_temperature_scaling() -> None:
    """Logits that are three times too large need the temperature 3; no prediction changes."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(20_000, 5))
    labels = (calibration.softmax(logits).cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    found = calibration.temperature(3 * logits, labels)
    assert found == pytest.approx(3, rel=0.05)
    before, after = calibration.softmax(3 * logits), calibration.softmax(3 * logits, found)
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    for measure in (calibration.expected_calibration_error, calibration.brier, calibration.negative_log_likelihood):
        assert measure(after, labels) < measure(before, labels)


def test_softmax_of_large_logits() -> None:
    np.testing.assert_allclose(calibration.softmax([[1e4, 1e4, -1e4]]), [[0.5, 0.5, 0]])


@pytest.mark.parametrize(
    ("probabilities", "labels", "complaint"),
    [
        ([[0.5, 0.6]], [0], "sum to 1"),
        ([[math.nan, 1.0]], [0], "sum to 1"),
        ([[0.5, 0.5]], [2], "from 0 to 1"),
        ([[0.5, 0.5]], [0.5], "from 0 to 1"),
        ([[0.5, 0.5]], [0, 1], "shapes"),
        ([], [], "shapes"),
    ],
)
def test_what_is_no_prediction(probabilities: list[list[float]], labels: list[int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        calibration.expected_calibration_error(probabilities, labels)


def test_bins_out_of_range() -> None:
    with pytest.raises(ValueError, match="bins is 0"):
        calibration.expected_calibration_error(*BY_HAND, bins=0)
    with pytest.raises(ValueError, match="equal is 'size'"):
        calibration.expected_calibration_error(*BY_HAND, equal="size")  # type: ignore[arg-type]
