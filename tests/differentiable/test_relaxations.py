# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from sartor.differentiable import relaxations
from sartor.differentiable.relaxations import draws

LOGITS = torch.tensor([[0.5, -1.0, 2.0], [0.3, 0.1, -torch.inf]])
Relax = Callable[[Tensor, Generator], Tensor]
RELAXATIONS: dict[str, Relax] = {
    "softmax": lambda logits, generator: relaxations.softmax(logits),
    "concrete": lambda logits, generator: relaxations.concrete(logits, 0.7, generator),
    "straight_through": lambda logits, generator: relaxations.straight_through(logits, 0.7, generator),
    "dirichlet": relaxations.dirichlet,
}
each = pytest.mark.parametrize("relax", RELAXATIONS.values(), ids=RELAXATIONS)


@each
def test_rows_sum_to_one_and_an_option_that_is_not_there_weighs_nothing(relax: Relax) -> None:
    for seed in range(20):
        weights = relax(LOGITS, draws(seed, 0))
        assert weights.shape == (2, 3)
        assert bool((weights >= 0).all())
        assert weights[1, 2] == 0.0
        torch.testing.assert_close(weights.sum(1), torch.ones(2))


@each
def test_gradients_are_finite_and_reach_all_logits_that_are_there(relax: Relax) -> None:
    table = LOGITS.masked_fill(~LOGITS.isfinite(), 7.0).requires_grad_()
    weights = relax(table.masked_fill(~LOGITS.isfinite(), -torch.inf), draws(1, 0))
    (found,) = torch.autograd.grad((weights * torch.tensor([[1.0, 2.0, 4.0]])).sum(), table)
    assert bool(found.isfinite().all())
    assert bool((found[LOGITS.isfinite()] != 0).all())
    assert found[1, 2] == 0.0


@each
def test_equal_generators_draw_equally(relax: Relax) -> None:
    assert torch.equal(relax(LOGITS, draws(3, 5)), relax(LOGITS, draws(3, 5)))


def test_draws_differ_by_seed_step_and_purpose() -> None:
    several = [draws(seed, step, purpose) for seed in (0, 1) for step in (0, 1) for purpose in ("", "alphas", "ab")]
    assert len({float(torch.rand((), generator=one, dtype=torch.float64)) for one in several}) == len(several)


def test_a_gradient_of_softmax_is_that_of_central_differences() -> None:
    table = torch.randn(2, 4, dtype=torch.float64, generator=draws(0, 0)).requires_grad_()
    assert torch.autograd.gradcheck(relaxations.softmax, table)
    assert torch.autograd.gradcheck(relaxations.entropy, table)


def test_concrete_goes_to_one_hot_as_the_temperature_falls_and_to_uniform_as_it_rises() -> None:
    cold, hot = (relaxations.concrete(LOGITS, t, draws(0, 0)) for t in (1e-3, 1e4))
    assert bool((cold.max(1).values > 0.999).all())
    torch.testing.assert_close(hot[0], torch.full((3,), 1 / 3), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="temperature"):
        relaxations.concrete(LOGITS, 0.0, draws(0, 0))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_straight_through_is_one_hot_in_value_and_drawn_with_the_softmax_probability(temperature: float) -> None:
    logits = LOGITS[:1].expand(4000, 3)
    weights = relaxations.straight_through(logits, temperature, draws(0, 0))
    assert set(weights.flatten().tolist()) == {0.0, 1.0}
    assert bool((weights.sum(1) == 1).all())
    torch.testing.assert_close(weights.mean(0), LOGITS[0].softmax(0), atol=0.025, rtol=0)  # 3 standard errors


def test_straight_through_has_the_gradient_of_the_concrete_draw() -> None:
    def gradient(relax: Relax) -> Tensor:
        table = LOGITS[:1].clone().requires_grad_()
        weights = relax(table, draws(0, 0))
        return torch.autograd.grad((weights * torch.tensor([1.0, 2.0, 4.0])).sum(), table)[0]

    assert torch.equal(gradient(RELAXATIONS["straight_through"]), gradient(RELAXATIONS["concrete"]))


def test_dirichlet_draws_have_the_mean_of_the_concentrations() -> None:
    weights = relaxations.dirichlet(LOGITS[:1].expand(4000, 3), draws(0, 0))
    concentration = torch.nn.functional.elu(LOGITS[0]) + 1
    torch.testing.assert_close(weights.mean(0), concentration / concentration.sum(), atol=0.02, rtol=0)


def test_dirichlet_bears_logits_far_below() -> None:
    table = torch.full((2, 3), -50.0, requires_grad=True)
    weights = relaxations.dirichlet(table, draws(0, 0))
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert bool(torch.autograd.grad(weights[:, 0].sum(), table)[0].isfinite().all())


def test_max_w_gives_the_largest_weight_one_and_the_others_their_distance() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2, 0.0]], requires_grad=True)
    scaled = relaxations.max_w(weights)
    torch.testing.assert_close(scaled, torch.tensor([[1.0, 0.8, 0.7, 0.0]]))
    (through,) = torch.autograd.grad(scaled.sum(), weights)
    assert through.tolist() == [[-2.0, 1.0, 1.0, 0.0]]  # its own is 0, and each of the others falls by as much
    (without,) = torch.autograd.grad(relaxations.max_w(weights, detach=True).sum(), weights)
    assert without.tolist() == [[1.0, 1.0, 1.0, 0.0]]


def test_one_hot_and_samples() -> None:
    assert relaxations.one_hot(torch.tensor([2, 0]), LOGITS).tolist() == [[0, 0, 1], [1, 0, 0]]
    drawn = torch.stack([relaxations.sample(LOGITS, draws(0, step)) for step in range(3000)])
    assert not bool((drawn[:, 1] == 2).any())
    frequency = torch.bincount(drawn[:, 0], minlength=3) / 3000
    torch.testing.assert_close(frequency, LOGITS[0].softmax(0), atol=0.03, rtol=0)


def test_log_probability_has_the_gradient_one_hot_minus_softmax() -> None:
    table = LOGITS.clone().requires_grad_()
    places = torch.tensor([0, 1])
    value = relaxations.log_probability(table, places)
    probabilities = LOGITS.softmax(1)
    torch.testing.assert_close(value, (probabilities[0, 0] * probabilities[1, 1]).log())
    (found,) = torch.autograd.grad(value, table)
    torch.testing.assert_close(found, relaxations.one_hot(places, LOGITS) - probabilities)


def test_entropy_is_that_of_all_choices_together() -> None:
    assert float(relaxations.entropy(torch.zeros(3, 4))) == pytest.approx(3 * math.log(4))
    table = torch.zeros(2, 3, requires_grad=True)
    value = relaxations.entropy(table.masked_fill(~LOGITS.isfinite(), -torch.inf))
    assert float(value.detach()) == pytest.approx(math.log(3) + math.log(2))
    assert bool(torch.autograd.grad(value, table)[0].isfinite().all())
    assert float(relaxations.entropy(torch.tensor([[200.0, -200.0]]))) == 0.0


def test_linear_between_stays_between() -> None:
    assert [relaxations.linear_between(10.0, 0.1, part) for part in (-1.0, 0.0, 1.0, 2.0)] == [10.0, 10.0, 0.1, 0.1]
    assert relaxations.linear_between(10.0, 0.0, 0.25) == 7.5
