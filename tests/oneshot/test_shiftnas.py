# SPDX-License-Identifier: Apache-2.0
"""Bins shift to what has most left to learn; the generator meets the costs it is asked for, not with one network."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.learner_contract import LAWS, counted, its_effort_is_saved, steps
from sartor.architecture import Architecture
from sartor.data.pairs import Pairs
from sartor.oneshot import Recipe
from sartor.oneshot.shiftnas import ShiftNAS, bin_chances
from sartor.oneshot.shiftnas_generator import (
    CostNetwork,
    Generator,
    cost_loss,
    learn_from_cost,
    relative_error,
    seeded,
    straight_through,
)
from sartor.space import SearchSpace
from sartor.supernet import activated, search_space
from sartor.task import load_task
from toy_supernet import ToyNet, toy_batch

SPACE = SearchSpace({f"c{i}": (1.0, 2.0, 3.0, 4.0) for i in range(8)})


def product_cost(arch: Architecture) -> float:
    """Products of neighbours, as of the widths of layers: it does not add up over choices."""
    values = [float(str(value)) for value in arch.values()]
    return sum(a * b for a, b in itertools.pairwise(values)) + sum(values)


def toy_cost(arch: Architecture) -> float:
    hidden = sum(int(str(arch[f"blocks.{i}.hidden"])) for i in range(int(str(arch["blocks.depth"]))))
    return float(int(str(arch["width"])) * (8 + hidden))


def pair(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return toy_batch(2 * seed), toy_batch(2 * seed + 1)


def learner(**given: Any) -> ShiftNAS:
    torch.manual_seed(0)
    net = ToyNet(dropout=0.0)
    made = {"bins": 4, "samples": 200, "warm_steps": 5, "interval": 3, "generator_every": 2, "recipe": Recipe(lr=1.0)}
    return ShiftNAS(net, search_space(net), steps=20, batch_size=32, **{**made, "cost": toy_cost, **given})


@pytest.mark.parametrize("law", [*LAWS, its_effort_is_saved], ids=lambda law: law.__name__)
def test_law(law: Callable[..., None]) -> None:
    law(learner, pair)


def test_effort_counts_the_passes_of_all_three_kinds() -> None:
    one = learner(uniform_part=0.0)
    one.bins((1, 8, 8))  # the generator learns from costs alone
    with counted() as counts:
        steps(one, pair, 0, 12)
    looks = len(one.bins((1, 8, 8)).met) * 4  # of steps 0, 3, 6 and 9
    assert one.effort == (12 + 6 + looks, 0, 12 + 6)
    assert counts == {"passes": one.effort.passes, "updates": one.effort.updates}


def test_chances_sum_to_one_and_never_fall_below_the_floor() -> None:
    for scores in ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [1e-9, 1e9, 1.0], [5.0]):
        chances = bin_chances(scores, 1.0, 0.2)
        assert sum(chances) == pytest.approx(1.0)
        assert min(chances) >= 0.2 / len(scores) - 1e-12
    assert bin_chances([1.0, 9.0], 1.0, 1.0) == [0.5, 0.5]


def test_probability_shifts_to_the_bin_with_the_greatest_gradient() -> None:
    one = learner(uniform_part=0.0, interval=1)
    assert one.step(pair(0))["most_likely"] == pytest.approx(1 / len(one.bins((1, 8, 8)).met))
    scores = one.scores
    chances = one.chances()
    assert max(chances) > 1 / len(chances)
    assert chances.index(max(chances)) == [*scores.values()].index(max(scores.values()))


def test_bins_stay_uniform_through_the_first_part() -> None:
    one = learner(uniform_part=0.5, interval=1)
    steps(one, pair, 0, 10)
    assert not one.scores and one.effort.passes == 10 + 5
    steps(one, pair, 10, 11)
    assert one.scores


def test_a_look_at_the_bins_leaves_gradients_alone() -> None:
    one = learner()
    one.bins((1, 8, 8))
    one._look(toy_batch(0), random.Random(0))
    assert all(parameter.grad is None for parameter in one.net.parameters())
    sizes = dict(one.scores)
    one._look(toy_batch(1), random.Random(0))
    assert sizes != one.scores and set(sizes) == set(one.scores)


def trained() -> tuple[Generator, tuple[float, float]]:
    generator, network = Generator(SPACE), CostNetwork(SPACE)
    generator.know(*network.fit(product_cost, samples=2000, steps=500))
    low, high = 15.0, 144.0

    def wanted(rng: random.Random) -> Tensor:
        return torch.tensor([rng.uniform(low, high) for _ in range(48)], dtype=torch.float64)

    learn_from_cost(generator, network, product_cost, wanted, steps=900, rng=random.Random(0))
    return generator, (low, high)


@pytest.mark.slow
def test_the_generator_meets_costs_that_do_not_add_up_and_not_with_one_network_each() -> None:
    generator, (low, high) = trained()
    targets = torch.linspace(low, high, 200, dtype=torch.float64)
    with torch.no_grad():
        drawn = generator.architectures(generator(targets, seeded(random.Random(1))))
        middle = generator.architectures(generator(torch.full((20,), 70.0).double(), seeded(random.Random(2))))
    errors = relative_error(torch.tensor([product_cost(arch) for arch in drawn]), targets)
    assert float(errors.median()) < 0.03
    assert float((errors * targets <= (high - low) / 10).double().mean()) >= 0.95
    distances = [sum(a[name] != b[name] for name in a) for a, b in itertools.combinations(middle, 2)]
    assert sum(distances) / len(distances) > 1.0


def test_without_randomness_the_generator_is_deterministic_and_a_cold_gradient_vanishes() -> None:
    generator = Generator(SPACE)
    costs = torch.tensor([20.0, 60.0], dtype=torch.float64)
    one, two = generator(costs), generator(costs, None, 0.01)
    assert all(torch.equal(one[name], two[name]) for name in one)
    logits = torch.tensor([[1.0, 2.0]], requires_grad=True)
    hard = straight_through(logits, None, 1e-3)
    assert hard.tolist() == [[0.0, 1.0]]
    assert torch.autograd.grad(hard[0, 1], logits)[0].abs().max() < 1e-6


def test_drawn_options_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(4000, 3)
    share = straight_through(logits, seeded(random.Random(0))).mean(0)
    torch.testing.assert_close(share, logits[0].softmax(0), atol=0.03, rtol=0)


def test_the_gradient_of_the_cost_loss_is_the_numeric_one() -> None:
    network = CostNetwork(SPACE).double()
    logits = [torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(8)]

    def loss(*parts: Tensor) -> Tensor:
        weights = {name: part.softmax(1) for name, part in zip(SPACE.choices, parts, strict=True)}
        return cost_loss(network(weights), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64))

    assert torch.autograd.gradcheck(loss, [part.requires_grad_() for part in logits])


def test_true_costs_are_in_force_with_the_gradient_of_the_learnt_ones() -> None:
    predicted = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = cost_loss(predicted, torch.tensor([1.0, 1.0]), torch.tensor([4.0, 1.0]))
    assert float(loss.detach()) == pytest.approx(9.0 / 2)
    assert torch.autograd.grad(loss, predicted)[0].tolist() == [3.0, 0.0]


def test_masked_networks_are_the_sliced_ones_and_reach_the_generator() -> None:
    one = learner()
    images, _ = toy_batch(0)
    one.net.train()
    one.net.dropout.p = 0.0  # type: ignore[union-attr]
    one.bins((1, 8, 8))
    for seed in range(12):
        chosen = one.generator(torch.tensor([60.0]).double(), seeded(random.Random(seed)))
        (arch,) = one.generator.architectures(chosen)
        soft = one._soft(chosen, arch)
        assert soft["resolution"] == arch["resolution"]
        masked, sliced = (one.training.look(assignment, images) for assignment in (soft, arch))
        torch.testing.assert_close(masked, sliced, rtol=0, atol=1e-6)
    loss = one._task(soft, toy_batch(0))
    gradients = torch.autograd.grad(
        loss, list(one.generator.emit.parameters()), materialize_grads=True, allow_unused=True
    )
    assert sum(bool(gradient.any()) for gradient in gradients) > 4


def test_it_trains_on_pairs_of_two_shares() -> None:
    one, task = learner(), load_task("digits")
    assert one.needs == "pairs"
    data = one.data(task.train)
    assert isinstance(data, Pairs)
    (images, labels), (other, _) = data.batch(0, 8)
    assert len(images) == len(labels) == len(other) == 8


def test_it_gives_a_network_of_the_wanted_cost_after_training() -> None:
    one = learner(warm_steps=200)
    one.bins((1, 8, 8))
    costs = [toy_cost(one.generate(cost)) for cost in (60.0, 120.0, 240.0)]
    assert costs == sorted(costs) and costs[0] < costs[2]
    with activated(one.net, one.generate(100.0)):
        assert one.net(toy_batch(0)[0]).shape == (32, 4)
    with pytest.raises(ValueError, match="cost is 0"):
        one.generate(0.0)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="interval is 0"):
        learner(interval=0)
    with pytest.raises(ValueError, match="are shares"):
        learner(floor=1.5)
    net = ToyNet()
    with pytest.raises(ValueError, match="knows no constraint"):
        ShiftNAS(net, SearchSpace(search_space(net).choices, constraint=bool), steps=1, batch_size=1)
    one = learner(cost=lambda arch: -1.0)
    with pytest.raises(ValueError, match="costs above 0"):
        one.bins((1, 8, 8))
