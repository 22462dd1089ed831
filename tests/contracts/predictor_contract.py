# SPDX-License-Identifier: Apache-2.0
"""What every predictor keeps. A predictor joins with one line in its test file: `make`."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.protocols import Predictor
from sartor.ranking import kendall_tau
from sartor.space import SearchSpace

Make = Callable[[SearchSpace], Predictor]
Floats = NDArray[np.float64]

TOY = SearchSpace(
    {"a": (8, 16, 24, 32), "b": ("x", "y", "z"), "c": ("x", "y", "z"), "d": (False, True), "e": (3, 5, 7)}
)
GATED = SearchSpace(
    {"depth": (1, 2, 3), "kernel2": (3, 5, 7), "kernel3": (3, 5, 7), "se": (False, True)},
    {"kernel2": ((("depth", (2, 3)),),), "kernel3": ((("depth", (3,)),),)},
)
LONE = SearchSpace({"only": ("one",), "other": (1, 2, 3)})


def sampled(space: SearchSpace, count: int, seed: int) -> list[Architecture]:
    """Draw architectures."""
    rng = random.Random(seed)
    return [space.sample(rng) for _ in range(count)]


def accuracy(arch: Architecture) -> float:
    """Additive, with an interaction, in percent; on any space."""
    total = 60.0
    for weight, (name, option) in enumerate(arch.items(), start=1):
        total += weight * (
            math.log(option + 1) if isinstance(option, (int, float)) else len(name) + ord(str(option)[0]) % 5
        )
    return total + 3.0 * (arch.get("b") == arch.get("c"))


def accuracies(archs: list[Architecture]) -> Floats:
    """Measure architectures."""
    return np.array([accuracy(arch) for arch in archs])


class PredictorContract:
    """The suite; a subclass sets `make`, from a space to a new predictor."""

    make: Make

    @pytest.fixture
    def fitted(self) -> Predictor:
        archs = sampled(TOY, 60, 0)
        return self.make(TOY).fit(archs, accuracies(archs))

    def test_is_a_predictor_that_returns_itself(self) -> None:
        predictor, archs = self.make(TOY), sampled(TOY, 12, 0)
        assert isinstance(predictor, Predictor)
        assert predictor.fit(archs, accuracies(archs)) is predictor

    def test_shapes_and_uncertainties(self, fitted: Predictor) -> None:
        for count in (0, 1, 7):
            mean, deviation = fitted.predict(sampled(TOY, count, 1))
            assert mean.shape == deviation.shape == (count,)
            assert mean.dtype == deviation.dtype == np.float64
            assert np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation >= 0).all()

    def test_deterministic_and_blind_to_the_state_of_generators(self, fitted: Predictor) -> None:
        archs, asked = sampled(TOY, 60, 0), sampled(TOY, 20, 1)
        before = torch.random.get_rng_state()
        with torch.random.fork_rng():
            torch.manual_seed(1234)
            again = self.make(TOY).fit(archs, accuracies(archs)).predict(asked)
        assert torch.equal(torch.random.get_rng_state(), before)
        np.testing.assert_array_equal(again, fitted.predict(asked))

    def test_a_fit_depends_on_its_samples_alone(self, fitted: Predictor) -> None:
        few, asked = sampled(TOY, 20, 3), sampled(TOY, 20, 1)
        alone = self.make(TOY).fit(few, accuracies(few)).predict(asked)
        np.testing.assert_array_equal(fitted.fit(few, accuracies(few)).predict(asked), alone)

    def test_a_prediction_depends_on_its_architecture_alone(self, fitted: Predictor) -> None:
        asked = sampled(TOY, 20, 1)
        together, alone = fitted.predict(asked)[0], np.concatenate([fitted.predict([arch])[0] for arch in asked])
        np.testing.assert_allclose(together, alone, rtol=1e-5)

    def test_the_caller_keeps_threads_and_samples(self) -> None:
        threads, archs = torch.get_num_threads(), sampled(TOY, 12, 0)
        values = accuracies(archs)
        kept, kept_archs = values.copy(), copy.copy(archs)
        self.make(TOY).fit(archs, values).predict(archs)
        assert torch.get_num_threads() == threads
        assert archs == kept_archs and np.array_equal(values, kept)

    def test_better_than_the_mean(self, fitted: Predictor) -> None:
        held = sampled(TOY, 200, 2)
        true = accuracies(held)
        mean = fitted.predict(held)[0]
        assert np.sqrt(np.mean((mean - true) ** 2)) < 0.7 * true.std()
        assert kendall_tau(mean, true) > 0.6

    def test_unit_and_offset_of_the_values_go_through(self, fitted: Predictor) -> None:
        archs, asked = sampled(TOY, 60, 0), sampled(TOY, 20, 1)
        mean, deviation = fitted.predict(asked)
        scaled = self.make(TOY).fit(archs, 1e-3 * accuracies(archs) - 7).predict(asked)
        np.testing.assert_allclose(scaled[0], 1e-3 * mean - 7, atol=2e-3)
        np.testing.assert_allclose(scaled[1], 1e-3 * deviation, atol=2e-3)

    @pytest.mark.parametrize("count", [2, 3, 12])
    def test_constant_values(self, count: int) -> None:
        archs = sampled(TOY, count, 0)
        mean, deviation = self.make(TOY).fit(archs, np.full(count, 42.0)).predict(sampled(TOY, 9, 1))
        np.testing.assert_allclose(mean, 42.0, atol=1.0)
        assert np.isfinite(deviation).all()

    @pytest.mark.parametrize("space", [TOY, GATED, LONE, SearchSpace({"only": ("one",)})])
    def test_two_samples_of_any_space(self, space: SearchSpace) -> None:
        archs = sampled(space, 2, 0)
        mean, deviation = self.make(space).fit(archs, np.array([1.0, 2.0])).predict(sampled(space, 5, 1))
        assert np.isfinite(mean).all() and (deviation >= 0).all()
        assert (np.abs(mean - 1.5) < 5).all()

    def test_gated_space(self) -> None:
        archs = sampled(GATED, 60, 0)
        held = sampled(GATED, 60, 1)
        mean, _ = self.make(GATED).fit(archs, accuracies(archs)).predict(held)
        assert kendall_tau(mean, accuracies(held)) > 0.5

    @pytest.mark.parametrize("wrong", [math.nan, math.inf])
    def test_values_that_are_no_numbers(self, wrong: float) -> None:
        with pytest.raises(ValueError, match="value 2 is"):
            self.make(TOY).fit(sampled(TOY, 3, 0), np.array([1.0, 2.0, wrong]))

    @pytest.mark.parametrize(("archs", "values"), [(3, 2), (1, 1), (0, 0)])
    def test_too_few_samples(self, archs: int, values: int) -> None:
        with pytest.raises(ValueError, match=r"too few|one for each"):
            self.make(TOY).fit(sampled(TOY, archs, 0), np.ones(values))

    def test_predicting_before_learning(self) -> None:
        with pytest.raises(ValueError, match="call fit first"):
            self.make(TOY).predict(sampled(TOY, 2, 0))

    def test_architectures_of_another_space(self, fitted: Predictor) -> None:
        with pytest.raises(ValueError, match=r"of another space|is no option"):
            fitted.predict(sampled(GATED, 2, 0))
