# SPDX-License-Identifier: Apache-2.0
"""sharpDARTS: the schedule's values, what Max-W does to weights, and the best path against all paths."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sartor.differentiable import relaxations
from sartor.differentiable.darts import DARTS
from sartor.differentiable.descent import Recipe
from sartor.differentiable.sharp_darts import CosinePower, Edge, SharpDARTS, longest_path
from sartor.supernet import search_space
from toy_slots import Slots, toy_pair

SPACE = search_space(Slots())
POWERS = {
    1.0: (1.0, 0.927, 0.814, 0.671, 0.512, 0.354, 0.211, 0.098, 0.025, 0.0),
    2.0: (1.0, 0.902, 0.759, 0.594, 0.429, 0.280, 0.159, 0.071, 0.018, 0.0),
    10.0: (1.0, 0.831, 0.618, 0.416, 0.256, 0.144, 0.072, 0.029, 0.007, 0.0),
}


@pytest.mark.parametrize("power", POWERS)
def test_the_schedule_has_the_known_values(power: float) -> None:
    schedule = CosinePower(1.0, 0.0, power)
    assert [schedule(done, 10) for done in range(10)] == pytest.approx(POWERS[power], abs=6e-4)
    shifted = CosinePower(0.025, 1e-4, power)
    assert [shifted(done, 10) for done in range(10)] == pytest.approx(
        [1e-4 + (0.025 - 1e-4) * part for part in POWERS[power]], abs=2e-5
    )


def test_power_1_is_torchs_cosine_annealing_one_step_on() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    rates = []
    for _ in range(30):
        optimizer.step()
        torchs.step()
        rates.append(optimizer.param_groups[0]["lr"])
    mine = [CosinePower(rates[0], 0.0, 1.0)(done, 30) for done in range(30)]
    assert mine == pytest.approx(rates, abs=1e-12)


@pytest.mark.parametrize("power", [1.0, 2.0, 10.0])
def test_the_rate_rises_in_the_warm_up_and_falls_ever_after(power: float) -> None:
    schedule = CosinePower(0.4, 0.01, power, warm_up=0.1)
    rates = [schedule(done, 100) for done in range(100)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] == max(rates) == pytest.approx(0.4)
    assert rates[-1] == pytest.approx(0.01)


def test_a_schedule_of_no_length_or_no_power() -> None:
    assert CosinePower(0.4, 0.1)(0, 1) == 0.4
    assert CosinePower(0.4, 0.1)(50, 10) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="power"):
        CosinePower(0.4, power=0.5)


def test_max_w_gives_the_largest_1_and_equal_weights_all_1() -> None:
    weights = torch.tensor([[2.0, 0.5, -1.0, -torch.inf], [0.0, 0.0, 0.0, 0.0]]).softmax(1)
    scaled = relaxations.max_w(weights)
    assert scaled[0, 0] == 1.0
    torch.testing.assert_close(scaled[0, 1:3], 1.0 - weights[0, 0] + weights[0, 1:3])
    assert scaled[0, 3] == 0.0
    assert torch.equal(scaled[1], torch.ones(4))


@pytest.mark.parametrize("detach", [False, True])
def test_growing_the_largest_shrinks_the_others_alone(detach: bool) -> None:
    weights = torch.tensor([[0.6, 0.3, 0.1]], requires_grad=True)
    scaled = relaxations.max_w(weights, detach)[0]
    slopes = [torch.autograd.grad(one, weights, retain_graph=True)[0][0, 0].item() for one in scaled]
    assert slopes == ([1.0, 0.0, 0.0] if detach else [0.0, -1.0, -1.0])


def share_of_the_map(scaled: Callable[[Tensor], Tensor], seeds: int = 8) -> Tensor:
    """(seeds,) final weights of a linear map that learns slowly beside a strong shortcut, in 1,200 pairs of steps."""
    generator = torch.Generator().manual_seed(77)

    def normal(*shape: int) -> Tensor:
        return torch.randn(seeds, *shape, generator=generator)

    truth = 2.0 * torch.eye(8) + normal(8, 8) / 8**0.5
    learned, logits = (0.1 * normal(8, 8)).requires_grad_(), torch.zeros(seeds, 2, requires_grad=True)
    for _ in range(1200):
        for parameter, rate in ((logits, 0.3), (learned, 0.01)):
            x, noise = normal(64, 8), 0.3 * normal(64, 8)
            weights = scaled(logits.softmax(1))
            out = weights[:, 0, None, None] * x + weights[:, 1, None, None] * (x @ learned.mT)
            loss = (out - x @ truth.mT - noise).square().sum(2).mean(1).sum()
            with torch.no_grad():
                parameter -= rate * torch.autograd.grad(loss, parameter)[0]
    return logits.detach().softmax(1)[:, 1]


@pytest.mark.slow
def test_max_w_lets_a_slow_operation_win_against_a_strong_shortcut() -> None:
    """In this regime, and with the gradient through w_max; where operations learn fast the rules do not differ."""
    assert (share_of_the_map(lambda weights: weights) < 0.1).all()
    assert (share_of_the_map(lambda weights: relaxations.max_w(weights, detach=True)) < 0.1).all()
    assert (share_of_the_map(relaxations.max_w) > 0.5).sum() >= 7


def learner(**keywords: Any) -> SharpDARTS:
    return SharpDARTS(Slots(), SPACE, **{"steps": 20, "recipe": Recipe(lr=0.2), **keywords})


def test_the_defaults_are_those_of_the_published_search() -> None:
    made = SharpDARTS(Slots(), SPACE, steps=120)
    assert made.descent.recipe == Recipe(lr=0.025, lr_min=1e-4)
    assert made.descent.schedule == CosinePower(0.025, 1e-4, 2.0, 5 / 120)
    assert not made.detach


def test_the_operations_have_the_weights_of_max_w() -> None:
    made = learner()
    for step in range(3):
        made.step(toy_pair(step))
    expected = relaxations.max_w(made.alphas.probabilities())
    for row, weights in zip(expected, made.mixture().values(), strict=True):
        assert isinstance(weights, Tensor)
        torch.testing.assert_close(weights, row)
        assert weights.max().item() == 1.0


def test_the_alphas_move_otherwise_than_in_darts() -> None:
    tables = []
    for made in (learner(), learner(detach=True), DARTS(Slots(), SPACE, steps=20, recipe=Recipe(lr=0.2))):
        for step in range(3):
            made.step(toy_pair(step))
        tables.append(made.alphas.table.detach().clone())
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(tables, 2))


def test_the_rate_of_a_step_is_the_schedules() -> None:
    made = learner(power=10.0, warm_up=0.25)
    rates = [made.step(toy_pair(step))["learning_rate"] for step in range(8)]
    assert rates == pytest.approx([CosinePower(0.2, 0.001, 10.0, 0.25)(done, 20) for done in range(8)])


def cube(seed: int, layers: int = 3, widths: int = 3) -> list[Edge]:
    """A grid: two operations between every two widths of neighbouring layers, with random scores."""
    rng = random.Random(seed)
    edges: list[Edge] = [("in", (0, width), "stem", rng.random()) for width in range(widths)]
    for layer, before, after, op in itertools.product(range(layers), range(widths), range(widths), ("sep", "pool")):
        edges.append(((layer, before), (layer + 1, after), op, rng.uniform(-1.0, 1.0)))
    edges += [((layers, width), "out", "head", rng.random()) for width in range(widths)]
    rng.shuffle(edges)
    return edges


def paths(edges: list[Edge], node: Any) -> list[list[Edge]]:
    """All paths from a node to "out"."""
    if node == "out":
        return [[]]
    return [[edge, *rest] for edge in edges if edge[0] == node for rest in paths(edges, edge[1])]


@pytest.mark.parametrize("seed", range(5))
def test_the_longest_path_equals_brute_force(seed: int) -> None:
    edges = cube(seed)
    every = paths(edges, "in")
    assert len(every) == 3 * (2 * 3) ** 3
    best = max(every, key=lambda path: sum(edge[3] for edge in path))
    score, path = longest_path(edges, "in", "out")
    assert path == best
    assert score == pytest.approx(sum(edge[3] for edge in best))


def test_a_planted_path_is_found() -> None:
    planted = [("in", (0, 2), "stem"), ((0, 2), (1, 0), "pool"), ((1, 0), (2, 1), "sep"), ((2, 1), (3, 1), "sep")]
    edges = [(*edge[:3], edge[3] + 3.0 * (edge[:3] in planted)) for edge in cube(9)]
    assert [edge[:3] for edge in longest_path(edges, "in", "out")[1]][:4] == planted


def test_a_graph_without_a_way_or_with_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="no path"):
        longest_path([("in", "a", "op", 1.0)], "in", "out")
    circle: list[Edge] = [("in", "a", "op", 1.0), ("a", "b", "op", 1.0), ("b", "a", "op", 1.0), ("b", "out", "op", 1.0)]
    with pytest.raises(ValueError, match="cycle"):
        longest_path(circle, "in", "out")
    with pytest.raises(ValueError, match="cycle"):
        longest_path([("in", "a", "op", 1.0), ("a", "in", "op", 1.0), ("a", "out", "op", 1.0)], "in", "out")
