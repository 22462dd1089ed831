# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from candidate_networks import Candidates, gradients_of_steps, pair
from sartor.differentiable.descent import logits_of
from sartor.differentiable.diagnostics import calls, saved_activations
from sartor.differentiable.gdas import GDAS
from sartor.differentiable.mixers import gated, mixed, zero_valued
from sartor.differentiable.relaxations import draws, straight_through
from sartor.supernet import search_space


def gdas(count: int = 3, steps: int = 10, **options: Any) -> GDAS:
    net = Candidates(count)
    return GDAS(net, search_space(net), steps=steps, **options)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_each_operation_is_drawn_with_its_probability_at_any_temperature(temperature: float) -> None:
    p, count = torch.tensor([0.5, 0.2, 0.2, 0.1]), 100_000
    drawn = straight_through(p.log().repeat(count, 1), temperature, draws(0, 0)).sum(0)
    statistic = ((drawn - count * p) ** 2 / (count * p)).sum()
    assert float(statistic) < 16.27  # chi-square of 3 degrees of freedom, 0.1 %


def test_one_operation_of_each_choice_runs() -> None:
    learner = gdas(count=5)
    counted = calls(learner.net, lambda: learner.step(pair(0)))
    assert counted["stem.0"] == 2  # a pass of the weights and one of the logits
    convolutions = {name: times for name, times in counted.items() if name.endswith(".1") and name[:4] != "stem"}
    assert sum(convolutions.values()) == 2 * 2


def test_the_fast_form_is_the_full_sum() -> None:
    learner = gdas()
    images = pair(0)[0][0]
    weights = learner.draw("alphas")
    fast = logits_of(learner.net, mixed(learner.alphas.assignment(weights), zero_valued), images)

    def every(row: torch.Tensor, operations: object, x: torch.Tensor) -> torch.Tensor:
        return sum((w * o(x) for w, o in zip(row, operations, strict=True)), torch.zeros(()))  # type: ignore[call-overload]

    full = logits_of(learner.net, mixed(learner.alphas.assignment(weights), every), images)
    torch.testing.assert_close(fast, full, rtol=0, atol=0)


def test_logits_of_operations_that_did_not_run_learn() -> None:
    learner = gdas()
    assignment = mixed(learner.alphas.assignment(learner.draw("alphas")), zero_valued)
    images, labels = pair(0)[1]
    loss = nn.functional.cross_entropy(logits_of(learner.net, assignment, images), labels)
    (gradient,) = torch.autograd.grad(loss, learner.alphas.table)
    assert bool((gradient != 0).all())
    torch.testing.assert_close(gradient.sum(1), torch.zeros(2), atol=1e-6, rtol=0)


def test_the_gradient_of_the_weights_is_that_of_the_output_for_the_drawn_one_and_its_sum_for_the_others() -> None:
    x, upstream = torch.randn(4, generator=draws(0, 1)), torch.tensor([1.0, -2.0, 0.5, 3.0])
    weights = torch.tensor([0.0, 1.0, 0.0], requires_grad=True)
    out = zero_valued(weights, [lambda x: 2 * x, lambda x: x**2, torch.zeros_like], x)
    (found,) = torch.autograd.grad(out, weights, upstream)
    others = float(upstream.sum())
    torch.testing.assert_close(found, torch.tensor([others, float((upstream * x**2).sum()), others]))


def test_with_gates_the_logits_have_the_gradient_of_the_straight_through_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = gdas(mix=gated)
    found: list[torch.Tensor] = []
    monkeypatch.setattr(learner.descent, "step_weights", lambda _: None)
    monkeypatch.setattr(learner.descent, "step_architecture", found.extend)
    learner.step(pair(0))
    learner.descent.done = 0  # the same draw again

    def every(row: torch.Tensor, operations: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([w * o(x) for w, o in zip(row, operations, strict=True)]).sum(0)

    images, labels = pair(0)[1]
    out = logits_of(learner.net, mixed(learner.alphas.assignment(learner.draw("alphas")), every), images)
    (wanted,) = torch.autograd.grad(nn.functional.cross_entropy(out, labels), learner.alphas.table)
    torch.testing.assert_close(found[0], wanted, atol=1e-6, rtol=1e-4)
    counted = calls(learner.net, lambda: learner.step(pair(0)))
    assert sum(times for name, times in counted.items() if name.endswith(".1") and "op" in name) == 2 * (1 + 3)


@pytest.mark.parametrize("mix", [zero_valued, gated])
def test_memory_does_not_grow_with_the_number_of_operations(mix: Any) -> None:
    few, many = (saved_activations(partial(gdas(count, mix=mix).step, pair(0))) for count in (2, 8))
    assert abs(many - few) < 0.005 * few  # rows of logits


def test_operations_that_are_off_have_no_gradient_and_stay() -> None:
    learner = gdas()
    seen = gradients_of_steps(learner)
    before = {name: p.detach().clone() for name, p in learner.net.named_parameters()}
    learner.step(pair(0))
    on = [name for name in seen[0] if name.startswith(("first", "second")) and seen[0][name]]
    assert len({name.split(".")[1] + name.split(".")[0] for name in on}) == 2
    for name, parameter in learner.net.named_parameters():
        assert torch.equal(parameter, before[name]) != seen[0][name], name


def test_weights_come_first_then_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = gdas()
    order: list[str] = []
    for name in ("step_weights", "step_architecture"):
        monkeypatch.setattr(learner.descent, name, lambda *_, name=name: order.append(name))
    learner.step(pair(0))
    assert order == ["step_weights", "step_architecture"]


def test_tau_falls_from_10_to_01() -> None:
    learner = gdas(steps=4)
    assert learner.temperature == 10.0
    learner.descent.done = 4
    assert learner.temperature == pytest.approx(0.1)
