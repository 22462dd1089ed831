# SPDX-License-Identifier: Apache-2.0
"""RARTS: its fixed point on a problem with a closed form, the Lagrangian that never rises, and its limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.differentiable import penalties, relaxations
from sartor.differentiable.descent import Descent, Recipe, total_loss
from sartor.differentiable.rarts import RARTS, lagrangian, sweep, tie
from sartor.spaces.micro import Micro
from sartor.supernet import search_space
from sartor.task import load_task
from toy_supernet import CLASSES, toy_batch


class Scalar(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))


def plain(both: nn.Module, alphas: nn.Module, rate: float) -> Descent:
    """Gradient descent and nothing else, as the theorem has it."""
    recipe = Recipe(lr=rate, lr_min=rate, momentum=0.0, weight_decay=0.0, clip=math.inf)
    descent = Descent(both, alphas, steps=1, recipe=recipe)
    descent.alpha_optimizer = torch.optim.SGD(alphas.parameters(), lr=rate)
    return descent


def solved(lambda_: float, beta: float, sweeps: int) -> tuple[float, float, float]:
    """alpha, w and y after `sweeps` on L_val = alpha y - 2 alpha + 1, L_train = (w - alpha)^2, from (2, -2)."""
    alpha, w, y = Scalar(2.0), Scalar(-2.0), Scalar(-2.0)
    descent = plain(nn.ModuleList([w, y]), alpha, 0.9 / (2 * lambda_ + beta))

    def train(net: nn.Module) -> Tensor:
        return (net.value - alpha.value) ** 2  # type: ignore[operator]

    def validation(net: nn.Module) -> Tensor:
        return alpha.value * net.value - 2.0 * alpha.value + 1.0  # type: ignore[operator]

    for _ in range(sweeps):
        sweep(descent, w, y, train, validation, lambda_=lambda_, beta=beta)
    return alpha.value.item(), w.value.item(), y.value.item()


def point(lambda_: float, beta: float) -> tuple[float, float, float]:
    """The stationary alpha, w and y of the relaxed Lagrangian of that problem."""
    alpha = 2.0 / (2.0 - 1.0 / (2.0 * lambda_) - 1.0 / beta)
    return alpha, alpha * (1.0 - 1.0 / (2.0 * lambda_)), 2.0 - alpha


@pytest.mark.parametrize(
    ("coupling", "sweeps", "expected"),
    [
        (10.0, 500, (1.0811, 1.0270, 0.9189)),
        pytest.param(50.0, 2000, (1.0152, 1.0051, 0.9848), marks=pytest.mark.slow),
        (2.0, 100, (1.6, 1.2, 0.4)),
        (1.0, 100, (4.0, 2.0, -2.0)),
    ],
)
def test_the_fixed_point_of_the_solvable_problem(
    coupling: float, sweeps: int, expected: tuple[float, float, float]
) -> None:
    """The bilevel optimum is 1 and first-order DARTS ends at 2; at (1, 1), coupled too weakly, RARTS ends at 4."""
    assert point(coupling, coupling) == pytest.approx(expected, abs=1e-4)
    assert solved(coupling, coupling, sweeps) == pytest.approx(expected, abs=1e-3)


def test_a_sweep_uses_what_it_has_just_moved() -> None:
    """Gauss-Seidel: y sees the new w, and alpha the new ones of both."""
    alpha, w, y = 2.0, -2.0, -2.0
    lambda_, beta = 2.0, 3.0
    rate = 0.9 / (2 * lambda_ + beta)
    w -= rate * (lambda_ * 2.0 * (w - alpha) + beta * (w - y))
    y -= rate * (alpha + beta * (y - w))
    alpha -= rate * (lambda_ * -2.0 * (w - alpha) + y - 2.0)
    assert solved(lambda_, beta, 1) == pytest.approx((alpha, w, y), abs=1e-12)


def test_the_error_vanishes_as_the_coupling_grows() -> None:
    errors = [abs(point(c, c)[0] - 1.0) for c in (2.0, 10.0, 50.0, 1e3, 1e6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] == pytest.approx(0.081, abs=1e-3)
    assert errors[-1] < 1e-5


class Mixture(nn.Module):
    """A tanh network in float64: (N, 64) -> (N, 10), its hidden layer a mixture of a tanh and a linear one."""

    def __init__(self, share: Callable[[], Tensor]) -> None:
        super().__init__()
        self.share = share
        self.layers = nn.ModuleList([nn.Linear(64, 8, dtype=torch.float64), nn.Linear(64, 8, dtype=torch.float64)])
        self.head = nn.Linear(8, 10, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        share = self.share()
        hidden = share * torch.tanh(self.layers[0](x)) + (1.0 - share) * self.layers[1](x)
        logits: Tensor = self.head(torch.tanh(hidden))
        return logits


def test_small_steps_never_raise_the_lagrangian() -> None:
    images, labels = load_task("digits").train.batch(0, 96)
    images = images.double().flatten(1)
    alpha = Scalar(0.0)
    torch.manual_seed(0)
    y, w = (Mixture(lambda: alpha.value.sigmoid()) for _ in range(2))
    w.load_state_dict(y.state_dict())
    lambda_, beta = 10.0, 10.0
    descent = plain(nn.ModuleList([w, y]), alpha, 2e-3)

    def train(net: nn.Module) -> Tensor:
        return F.cross_entropy(net(images[:48]), labels[:48])

    def validation(net: nn.Module) -> Tensor:
        return F.cross_entropy(net(images[48:]), labels[48:])

    values = []
    for _ in range(500):
        values.append(lagrangian(w, y, train, validation, lambda_=lambda_, beta=beta).item())
        sweep(descent, w, y, train, validation, lambda_=lambda_, beta=beta)
    rises = [after - before for before, after in itertools.pairwise(values)]
    assert max(rises) <= 1e-6
    assert values[-1] < 0.8 * values[0]


PLAIN = Recipe(lr=0.05, lr_min=0.05, momentum=0.0, weight_decay=0.0, alpha_weight_decay=0.0)


def learner(**keywords: Any) -> RARTS:
    torch.manual_seed(0)
    net = Micro(CLASSES, width=4)
    return RARTS(net, search_space(net), steps=20, **keywords)


def pair(step: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return toy_batch(2 * step), toy_batch(2 * step + 1)


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.parameters(), other.parameters()))


def test_both_copies_start_identical_and_share_the_alphas() -> None:
    made = learner()
    assert equal(made.net, made.copy)
    assert not {id(p) for p in made.net.parameters()} & {id(p) for p in made.copy.parameters()}
    made.step(pair(0))
    assert not equal(made.net, made.copy)
    assert len(made.descent.alpha_parameters) == 1


def test_a_strong_tie_keeps_the_copies_together() -> None:
    recipe = replace(PLAIN, lr=2e-3, lr_min=2e-3, clip=math.inf)
    distances = []
    for beta in (0.0, 40.0, 400.0):
        made = learner(recipe=recipe, beta=beta, lambda_=5.0)
        distances.append([made.step(pair(step))["distance"] for step in range(10)][-1])
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.25 * distances[0]


def test_without_lambda_and_beta_the_alphas_step_as_in_first_order_darts_on_y() -> None:
    made, other = learner(recipe=PLAIN, lambda_=0.0, beta=0.0), learner(recipe=PLAIN)
    before = [one.clone() for one in made.copy.parameters()]
    made.step(pair(0))
    assert all(map(torch.equal, before, made.copy.parameters()))  # nothing pulls at w

    # by hand: y descends on the validation half, then alpha does
    def validation() -> Tensor:
        assignment = other.alphas.assignment(relaxations.softmax(other.alphas.logits))
        return total_loss(other.net, assignment, pair(0)[1])[0]

    other.descent.weights(validation())
    other.descent.architecture(validation())
    torch.testing.assert_close(made.alphas.table, other.alphas.table, rtol=0.0, atol=0.0)
    assert equal(made.net, other.net)


def test_the_gradient_of_the_alphas_is_the_sum_of_those_of_the_copies() -> None:
    made = learner(recipe=PLAIN, lambda_=3.0)
    taken: list[Tensor | None] = []
    made.descent.step_architecture = taken.extend  # type: ignore[assignment, method-assign]
    made.step(pair(0))

    def of(net: nn.Module, half: int) -> Tensor:
        assignment = made.alphas.assignment(relaxations.softmax(made.alphas.logits))
        loss = total_loss(net, assignment, pair(0)[half])[0]
        return torch.autograd.grad(loss, made.alphas.table)[0]

    torch.testing.assert_close(taken[0], 3.0 * of(made.copy, 0) + of(made.net, 1))


def test_a_sweep_takes_four_backward_passes() -> None:
    """Second-order DARTS takes five."""
    made = learner()
    forwards = []
    handles = [net.register_forward_hook(lambda *_: forwards.append(1)) for net in (made.net, made.copy)]
    made.step(pair(0))
    for handle in handles:
        handle.remove()
    assert len(forwards) == 4


def test_the_tie_moves_one_side_and_no_buffers() -> None:
    made = learner()
    made.step(pair(0))
    made.net.zero_grad()
    tie(made.net, made.copy, 2.0).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in made.copy.parameters())
    for moving, fixed in zip(made.net.parameters(), made.copy.parameters(), strict=True):
        assert moving.grad is not None
        torch.testing.assert_close(moving.grad, 2.0 * (moving - fixed).detach())
    buffers = list(map(torch.equal, made.net.buffers(), made.copy.buffers()))
    assert not all(buffers)


def test_a_cost_pulls_the_alphas_and_is_told() -> None:
    costs = torch.tensor([0.0, 1.0, 2.0, 3.0])

    def cost(assignment: Mapping[str, Any]) -> Tensor:
        return torch.stack([(weights * costs).sum() for weights in assignment.values()]).sum()

    recipe = Recipe(alpha_lr=0.1)
    free, taxed = learner(recipe=recipe), learner(recipe=recipe, cost=cost, penalty=penalties.add(50.0))
    for step in range(8):
        free.step(pair(step))
        scalars = taxed.step(pair(step))
    assert "cost" in scalars
    mean = [float((one.alphas.probabilities() @ costs).sum()) for one in (free, taxed)]
    assert mean[1] < mean[0]
    assert set(taxed.architecture().values()) == {"skip"}


def test_a_tie_too_strong_for_the_learning_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="lower either"):
        learner(beta=100.0)
    for weight in ({"lambda_": -1.0}, {"beta": -1.0}):
        with pytest.raises(ValueError, match="0 or more"):
            learner(**weight)
