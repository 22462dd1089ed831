# SPDX-License-Identifier: Apache-2.0
"""The regressor of LA-DARTS: the contract, its gradient, its weights, and soft codes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.predictor_contract import TOY, PredictorContract, accuracies, sampled
from sartor.architecture import Architecture
from sartor.predictors import Ridge
from sartor.predictors.la_darts import LADARTS, off_manifold_gap
from sartor.ranking import kendall_tau
from sartor.tables import load

SPACE = load("nasbench201").space
MS = {"none": 0.0, "skip_connect": 0.1, "nor_conv_1x1": 0.6, "nor_conv_3x3": 1.0, "avg_pool_3x3": 0.4}


def critical_path(arch: Architecture) -> float:
    """A device with parallel branches: 1 + the critical path of the cell + .3 of the sum of its operators."""
    cost = {name: MS[str(option)] for name, option in arch.items()}
    second = cost["op_01"]
    third = max(cost["op_02"], second + cost["op_12"])
    last = max(cost["op_03"], second + cost["op_13"], third + cost["op_23"])
    return 1 + last + 0.3 * sum(cost.values())


def latencies(archs: list[Architecture]) -> np.ndarray:
    return np.array([critical_path(arch) for arch in archs])


@pytest.fixture(scope="module")
def fitted() -> LADARTS:
    archs = sampled(SPACE, 500, 0)
    return LADARTS(SPACE, steps=800, keep=None).fit(archs, latencies(archs))


def logits(scale: float, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.softmax(scale * torch.randn(len(options), generator=generator), 0)
        for name, options in SPACE.choices.items()
    }


class TestLADARTS(PredictorContract):
    make = partial(LADARTS, steps=200)


def test_within_ten_percent_and_ahead_of_a_table_of_operators(fitted: LADARTS) -> None:
    """The paper's relative error is below 10 %; parallel branches do not add up."""
    held = sampled(SPACE, 300, 1)
    true, known = latencies(held), sampled(SPACE, 500, 0)
    additive = Ridge(SPACE, alpha=1e-3).fit(known, latencies(known)).predict(held)[0]
    ours = fitted.predict(held)[0]
    error, of_table = (float(np.mean(np.abs(found / true - 1))) for found in (ours, additive))
    assert error < 0.05 < 0.1
    assert error < of_table
    assert kendall_tau(ours, true) > max(0.85, kendall_tau(additive, true))


def test_hard_and_one_hot_architectures_have_their_prediction(fitted: LADARTS) -> None:
    arch = sampled(SPACE, 1, 5)[0]
    hot = {name: torch.tensor([float(o == arch[name]) for o in options]) for name, options in SPACE.choices.items()}
    wanted = float(fitted.predict([arch])[0][0])
    assert float(fitted(arch)) == pytest.approx(wanted, rel=1e-5)
    assert float(fitted(hot)) == pytest.approx(wanted, rel=1e-5)


def test_the_gradient_is_that_of_finite_differences(fitted: LADARTS) -> None:
    weights = {name: value.requires_grad_() for name, value in logits(1.0, 0).items()}
    fitted(weights).backward()  # type: ignore[no-untyped-call]
    for name in list(weights)[:3]:
        for place in range(len(weights[name])):
            ends = []
            for step in (1e-3, -1e-3):
                moved = {key: value.detach().clone() for key, value in weights.items()}
                moved[name][place] += step
                ends.append(float(fitted(moved)))
            gradient = weights[name].grad
            assert gradient is not None
            assert float(gradient[place]) == pytest.approx((ends[0] - ends[1]) / 2e-3, abs=0.02)


def test_a_search_changes_alpha_and_not_the_regressor(fitted: LADARTS) -> None:
    before = [p.clone() for p in fitted._net.parameters()]
    alphas = {name: torch.zeros(len(options), requires_grad=True) for name, options in SPACE.choices.items()}
    optimiser = torch.optim.Adam(alphas.values(), lr=0.3)
    for _ in range(30):
        optimiser.zero_grad()
        fitted({name: torch.softmax(alpha, 0) for name, alpha in alphas.items()}).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, fitted._net.parameters(), strict=True))
    found = {name: SPACE.choices[name][int(alpha.argmax())] for name, alpha in alphas.items()}
    assert critical_path(SPACE.canonical(found)) < np.quantile(latencies(sampled(SPACE, 200, 2)), 0.05)


def mean_gap(predictor: LADARTS, keep: int | None) -> float:
    predictor.keep = keep
    rng = np.random.default_rng(0)
    return float(np.mean([off_manifold_gap(predictor, logits(1.0, seed), rng=rng) for seed in range(12)]))


def test_mixtures_look_too_cheap_and_there_are_two_corrections() -> None:
    """What the perceptron has not seen it takes for fast, so that indecision would be rewarded."""
    archs = sampled(SPACE, 500, 0)
    measured = load("nasbench201").values("help_raspi4_ms", archs)
    corners = LADARTS(SPACE, steps=800).fit(archs, measured)
    raw = mean_gap(corners, None)
    assert raw < -0.05
    assert abs(mean_gap(corners, 2)) < 0.75 * abs(raw)  # the two strongest options of each choice
    inside = LADARTS(SPACE, steps=800, mixtures=1).fit(archs, measured)
    assert abs(mean_gap(inside, None)) < 0.3 * abs(raw)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        LADARTS(TOY, keep=0)
    with pytest.raises(ValueError, match="too small"):
        LADARTS(TOY, steps=0)
    with pytest.raises(ValueError, match="call fit first"):
        LADARTS(TOY)(TOY.largest())
    archs = sampled(TOY, 5, 0)
    with pytest.raises(ValueError, match="is missing"):
        LADARTS(TOY, steps=1).fit(archs, accuracies(archs))({"a": 8})
