# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sartor.oneshot import Recipe
from sartor.optimizers import LARS, RMSProp


@pytest.mark.parametrize("steps", [1_000, 37_123])
def test_the_learning_rate_ends_at_exactly_five_percent(steps: int) -> None:
    rates = [Recipe().learning_rate(step, steps, 4096) for step in range(steps)]
    assert rates[0] == 0.256 and rates[-1] == 0.256 * 0.05
    assert rates == sorted(rates, reverse=True)
    first = rates.index(rates[-1]) / steps  # 0.97 ** 99 is the first power below 5 %
    assert first == pytest.approx(99 / 150, abs=1 / steps)


def test_the_learning_rate_falls_in_stairs_and_scales_with_the_batch() -> None:
    recipe = Recipe(lr=1.0, decays=10)
    assert [recipe.learning_rate(step, 100, 1024) for step in (0, 9, 10, 25)] == pytest.approx(
        [0.5, 0.5, 0.5 * 0.97, 0.5 * 0.97**2], rel=1e-12
    )


@pytest.mark.parametrize(("schedule", "last"), [("exponential", 0.05), ("cosine", 0.0), ("linear", 0.0)])
def test_beyond_its_end_a_schedule_stays_where_it_is(schedule: Any, last: float) -> None:
    recipe = Recipe(optimizer="sgd", lr=1.0, lr_batch=32, schedule=schedule, warmup=0.1)
    assert [recipe.learning_rate(step, 100, 32) for step in (100, 150)] == [last, last]


def test_label_smoothing_of_cross_entropy_is_that_of_torch() -> None:
    logits, labels = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    ours = Recipe(label_smoothing=0.1).smoothed(F.cross_entropy, logits, labels)
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, label_smoothing=0.1), rtol=1e-12, atol=0)
    plain = Recipe(label_smoothing=0.0).smoothed(F.cross_entropy, logits, labels)
    assert torch.equal(plain, F.cross_entropy(logits, labels))


def test_the_l2_term_spares_biases_norms_and_what_has_no_gradient() -> None:
    used, norm, idle = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)
    parameters = [*used.parameters(), *norm.parameters()]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    Recipe(weight_decay=0.5).decay_weights([*parameters, *idle.parameters()], 1.0)
    assert used.weight.grad is not None and torch.equal(used.weight.grad, 0.5 * used.weight)
    assert not any(p.grad is None or p.grad.any() for p in (used.bias, norm.weight, norm.bias))
    assert idle.weight.grad is None


@pytest.mark.parametrize(("value", "expected"), [(0.3, 0.3), (None, 0.7)])
def test_dropout_layers_get_the_recipes_probability(value: float | None, expected: float) -> None:
    net = nn.Sequential(nn.Dropout(0.7), nn.Sequential(nn.Dropout2d(0.7)))
    layers = Recipe(dropout=value).dropouts(net)
    assert [layer.p for layer in layers] == [expected, expected]


def test_rmsprop_is_tensorflows() -> None:
    weight, idle = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
    optimizer = RMSProp([weight, idle], lr=0.1, momentum=0.9, rho=0.8, eps=0.01)
    expected, square, velocity = 1.0, 1.0, 0.0
    for gradient in (2.0, -1.0, 3.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        square = 0.8 * square + 0.2 * gradient**2
        velocity = 0.9 * velocity + 0.1 * gradient / math.sqrt(square + 0.01)
        expected -= velocity
    assert weight.item() == pytest.approx(expected, rel=1e-6)
    assert idle.item() == 1.0 and idle not in optimizer.state


def test_rmsprop_without_gradients_does_nothing_and_takes_no_closure() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = RMSProp([weight], lr=0.1)
    optimizer.step()
    assert weight.item() == 1.0
    with pytest.raises(ValueError, match="takes no closure"):
        optimizer.step(lambda: 0.0)


def test_lars_moves_a_weight_by_a_share_of_its_size_and_a_bias_as_sgd() -> None:
    weight, bias, idle = (
        nn.Parameter(torch.tensor([[3.0, 4.0]])),
        nn.Parameter(torch.ones(1)),
        nn.Parameter(torch.ones(1, 1)),
    )
    optimizer = LARS([weight, bias, idle], lr=0.5, momentum=0.9, trust=0.01)
    expected, velocity, plain, moved = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), 1.0, 0.0
    for gradient in (torch.tensor([[0.0, 2.0]]), torch.tensor([[-1.0, 0.0]]), torch.zeros(1, 2)):
        weight.grad, bias.grad = gradient, torch.tensor([2.0])
        optimizer.step()
        ratio = 0.01 * expected.norm() / gradient.norm() if gradient.any() else 1.0
        velocity = 0.9 * velocity + 0.5 * ratio * gradient
        expected = expected - velocity
        moved = 0.9 * moved + 0.5 * 2.0
        plain -= moved
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=0)
    assert bias.item() == pytest.approx(plain) and idle.item() == 1.0
    with pytest.raises(ValueError, match="LARS takes no closure"):
        optimizer.step(lambda: 0.0)


def test_lars_scales_linearly_with_the_batch() -> None:
    recipe = Recipe(optimizer="lars", lr=4.8, schedule="cosine", warmup=0.25)
    assert recipe.learning_rate(1, 4, 1024) == pytest.approx(1.2)
    assert isinstance(recipe.optimizer_of([nn.Parameter(torch.ones(1))]), LARS)


def test_a_warm_up_rises_in_a_line_and_the_schedule_has_what_remains() -> None:
    warm, plain = (Recipe(optimizer="sgd", lr=1.0, lr_batch=64, schedule="cosine", warmup=part) for part in (0.2, 0.0))
    rates = [warm.learning_rate(step, 100, 64) for step in range(100)]
    assert rates[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert rates[20] == 1.0 and rates[20:] == pytest.approx([plain.learning_rate(step, 80, 64) for step in range(80)])


def test_linear_falls_to_zero_and_constant_stays() -> None:
    linear, constant = (Recipe(optimizer="sgd", lr=2.0, lr_batch=8, schedule=kind) for kind in ("linear", "constant"))
    assert [linear.learning_rate(step, 4, 8) for step in range(5)] == [2.0, 1.5, 1.0, 0.5, 0.0]
    assert {constant.learning_rate(step, 4, 8) for step in range(4)} == {2.0}


def test_sgd_scales_with_the_batch_and_adam_with_its_root() -> None:
    assert Recipe(optimizer="sgd", lr=1.0, lr_batch=256).learning_rate(0, 1, 64) == 0.25
    assert Recipe(optimizer="adam", lr=1.0, lr_batch=256).learning_rate(0, 1, 64) == 0.5


def test_gradients_are_clipped_by_norm_or_by_value() -> None:
    for recipe, expected in (
        (Recipe(clip_norm=1.0), [0.6, -0.8]),
        (Recipe(clip_value=3.5), [3.0, -3.5]),
        (Recipe(), [3.0, -4.0]),
    ):
        weights = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
        for weight, value in zip(weights, (3.0, -4.0), strict=False):
            weight.grad = torch.tensor([value])
        recipe.clip(weights)
        assert [float(w.grad) for w in weights[:2] if w.grad is not None] == pytest.approx(expected, rel=1e-5)
        assert weights[2].grad is None


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer='lamb' is unknown"):
        Recipe(optimizer="lamb").optimizer_of([nn.Parameter(torch.ones(1))])  # type: ignore[arg-type]
