# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from candidate_networks import Candidates, table
from sartor.differentiable.penalties import add
from sartor.differentiable.relaxations import concrete, draws, one_hot
from sartor.differentiable.snas import SNAS
from sartor.supernet import search_space
from toy_supernet import toy_batch


def snas(steps: int = 10, **options: object) -> SNAS:
    net = Candidates()
    return SNAS(net, search_space(net), steps=steps, **options)  # type: ignore[arg-type]


def test_temperature_falls_from_1_to_003() -> None:
    learner = snas(steps=2)
    assert learner.temperature == 1.0
    learner.descent.done = 1
    assert learner.temperature == pytest.approx(0.515)
    learner.descent.done = 2
    assert learner.temperature == pytest.approx(0.03)


def test_one_batch_trains_weights_and_distribution() -> None:
    learner = snas()
    weights = learner.net.get_parameter("stem.0.weight").detach().clone()
    logits = learner.alphas.table.detach().clone()
    learner.step(toy_batch(0))
    assert not torch.equal(weights, learner.net.get_parameter("stem.0.weight"))
    assert not torch.equal(logits, learner.alphas.table)


def test_a_strong_cost_finds_the_cheapest_network() -> None:
    net = Candidates()
    cost = table(net, [5.0, 0.0, 3.0])
    learner = SNAS(net, search_space(net), steps=30, cost=cost, penalty=add(10.0))
    for group in learner.descent.alpha_optimizer.param_groups:
        group["lr"] = 0.1
    told = [learner.step(toy_batch(step)) for step in range(30)]
    assert dict(learner.architecture()) == {"first": "op1", "second": "op1"}
    assert told[-1]["cost"] < told[0]["cost"]


def test_expected_cost_of_one_hot_logits_is_the_cost_of_the_table() -> None:
    learner = snas()
    cost = table(learner.net, [5.0, 1.0, 3.0])
    with torch.no_grad():
        learner.alphas.table.copy_(100.0 * one_hot(torch.tensor([2, 0]), learner.alphas.table))
    z = concrete(learner.alphas.logits, 0.03, draws(0, 0))
    assert float(cost(learner.alphas.assignment(z.detach()))) == pytest.approx(10.0 + 3.0 + 5.0)
    assert float(cost(learner.architecture())) == pytest.approx(18.0)


def test_at_the_end_a_draw_is_nearly_the_network_that_is_read_out() -> None:
    learner = snas(steps=1)
    learner.descent.done = 1
    with torch.no_grad():
        learner.alphas.table[:, 1] += 12.0
    rows = torch.stack([row for row in learner.sampled().values() if isinstance(row, Tensor)])
    assert float(rows[:, 1].min()) > 0.999
    assert dict(learner.architecture()) == {"first": "op1", "second": "op1"}


def _loss(z: Tensor) -> Tensor:
    """Of (N, 2, 3) weights: not linear in them."""
    left, right = torch.tensor([1.0, 2.0, -0.5]), torch.tensor([0.3, -1.0, 1.5])
    return ((z[:, 0] @ left) * (z[:, 1] @ right) - 0.7) ** 2


def test_the_concrete_gradient_tends_to_the_exact_one_while_its_variance_grows() -> None:
    logits = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.4, -0.3]], requires_grad=True)
    p = logits.softmax(1)
    exact = torch.zeros(())
    for i, j in itertools.product(range(3), repeat=2):
        z = one_hot(torch.tensor([i, j]), torch.zeros(2, 3)).unsqueeze(0)
        exact = exact + p[0, i] * p[1, j] * _loss(z)[0]
    (truth,) = torch.autograd.grad(exact, logits)
    error, spread = {}, {}
    for temperature in (1.0, 0.1):
        count = 40_000
        many = logits.detach().repeat(count, 1).requires_grad_()
        z = concrete(many, temperature, draws(0, 0)).view(count, 2, 3)
        (found,) = torch.autograd.grad(_loss(z).sum(), many)
        each = found.view(count, 2, 3)
        error[temperature] = float((each.mean(0) - truth).norm())
        spread[temperature] = float(each.var(0).sum())
    assert error[0.1] < 0.3 * error[1.0]
    assert spread[0.1] > 5.0 * spread[1.0]
