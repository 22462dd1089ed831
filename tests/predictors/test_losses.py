# SPDX-License-Identifier: Apache-2.0
"""The losses: their values by hand, limits, ties and gradients."""

from __future__ import annotations

import math

import pytest
import torch

from sartor.predictors.losses import Loss, bpr, diffkendall, huber, mse, pairwise_hinge
from sartor.ranking import kendall_tau

ALL = (mse, huber, pairwise_hinge, bpr, diffkendall)
ORDER = (pairwise_hinge, bpr, diffkendall)
SCORES, VALUES = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.0, 2.0, 1.0])


def test_by_hand() -> None:
    assert mse(SCORES, VALUES).item() == pytest.approx((0 + 1 + 4) / 3)
    assert huber(SCORES, VALUES).item() == pytest.approx((0 + 0.5 + 1.5) / 3)
    # Of the differences 1, 3 and 2 of scores, the last is against the values.
    assert pairwise_hinge(SCORES, VALUES, margin=1.5).item() == pytest.approx((0.5 + 0 + 3.5) / 3)
    expected = sum(math.log1p(math.exp(-difference)) for difference in (1, 3, -2)) / 3
    assert bpr(SCORES, VALUES).item() == pytest.approx(expected)
    pairs = [(1, 2), (3, 1), (2, -1)]
    expected = 1 - sum(math.tanh(0.25 * ds) * math.tanh(0.25 * dv) for ds, dv in pairs) / 3
    assert diffkendall(SCORES, VALUES).item() == pytest.approx(expected)


def test_diffkendall_becomes_the_exact_tau() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, values = torch.randn(2, 30, generator=generator)
    exact = kendall_tau(scores.numpy(), values.numpy())
    assert 1 - diffkendall(scores, values, alpha=1e6).item() == pytest.approx(exact, abs=1e-5)
    assert diffkendall(values, values, alpha=1e6).item() == pytest.approx(0, abs=1e-5)
    assert diffkendall(-values, values, alpha=1e6).item() == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize("loss", ORDER)
def test_a_loss_of_the_order_ignores_the_level_and_falls_with_better_order(loss: Loss) -> None:
    assert loss(SCORES + 7, VALUES).item() == pytest.approx(loss(SCORES, VALUES).item(), rel=1e-5)
    assert loss(VALUES, VALUES) < loss(SCORES, VALUES) < loss(-VALUES, VALUES)


@pytest.mark.parametrize("loss", ALL)
def test_one_loss_for_each_network_and_any_order_of_samples(loss: Loss) -> None:
    several = torch.stack([SCORES, VALUES])
    assert loss(several, VALUES).tolist() == pytest.approx([loss(SCORES, VALUES).item(), loss(VALUES, VALUES).item()])
    order = torch.tensor([2, 0, 1])
    assert loss(SCORES[order], VALUES[order]).item() == pytest.approx(loss(SCORES, VALUES).item())


@pytest.mark.parametrize("loss", ORDER)
def test_tied_values_give_no_pair_and_tied_scores_a_gradient(loss: Loss) -> None:
    scores = torch.zeros(3, requires_grad=True)
    constant = loss(scores, torch.ones(3))
    constant.backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None and torch.equal(scores.grad, torch.zeros(3))
    scores.grad = None
    loss(scores, VALUES).backward()  # type: ignore[no-untyped-call]
    moved: torch.Tensor | None = scores.grad
    assert moved is not None and moved[0] > 0 > moved[1], "the best value's score rises"
