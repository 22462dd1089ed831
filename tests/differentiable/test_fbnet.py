# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from candidate_networks import Candidates, pair, table
from sartor.architecture import Architecture
from sartor.differentiable.fbnet import RECIPE, FBNet
from sartor.differentiable.relaxations import concrete, draws
from sartor.supernet import search_space

P = torch.tensor([0.7, 0.2, 0.1])


def fbnet(steps: int = 90, **options: object) -> FBNet:
    net = Candidates()
    return FBNet(net, search_space(net), steps=steps, **options)  # type: ignore[arg-type]


def masks(temperature: float, count: int = 100_000) -> torch.Tensor:
    return concrete(P.log().repeat(count, 1), temperature, draws(0, 0))


@pytest.mark.parametrize(("tau", "mean"), [(5.0, (0.405, 0.318, 0.277)), (1.0, (0.592, 0.254, 0.154))])
def test_the_mean_mask_is_nearer_to_uniform_than_the_probabilities(tau: float, mean: tuple[float, ...]) -> None:
    torch.testing.assert_close(masks(tau).mean(0), torch.tensor(mean), atol=0.003, rtol=0)


@pytest.mark.parametrize(("tau", "share"), [(0.1, 0.70), (0.01, 0.97)])
def test_masks_become_one_hot(tau: float, share: float) -> None:
    assert float((masks(tau).amax(1) > 0.999).float().mean()) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
def test_the_largest_entry_has_its_probability_at_any_temperature(tau: float) -> None:
    count = 100_000
    drawn = torch.bincount(masks(tau, count).argmax(1), minlength=3)
    assert float(((drawn - count * P) ** 2 / (count * P)).sum()) < 13.82  # chi-square of 2 degrees of freedom, 0.1 %


def test_the_gradient_of_the_latency_is_the_finite_difference_under_the_same_noise() -> None:
    learner = fbnet()
    cost = table(learner.net, [5.0, 1.0, 3.0])
    learner.alphas.double()

    def latency() -> torch.Tensor:
        return cost(learner.alphas.assignment(learner.masks()))

    (found,) = torch.autograd.grad(latency(), learner.alphas.table)
    for place in ((0, 0), (1, 2)):
        with torch.no_grad():
            learner.alphas.table[place] += 1e-5
            high = float(latency())
            learner.alphas.table[place] -= 2e-5
            low = float(latency())
            learner.alphas.table[place] += 1e-5
        assert float(found[place]) == pytest.approx((high - low) / 2e-5, rel=1e-6)


def test_theta_waits_ten_epochs_of_ninety_then_gets_the_last_fifth_of_each() -> None:
    learner = fbnet(steps=900)
    theta = []
    for step in range(900):
        learner.descent.done = step
        theta.append(learner.trains_theta)
    assert not any(theta[:100])
    assert theta[100:110] == [False] * 8 + [True] * 2
    assert sum(theta) == 80 * 2


def test_theta_that_is_frozen_throughout_is_refused() -> None:
    with pytest.raises(ValueError, match="theta is frozen for 90 of 90 epochs: leave it at least one"):
        fbnet(frozen=90)


def test_a_step_moves_one_group_alone() -> None:
    learner = fbnet(steps=50)
    for step in range(12):
        before = learner.alphas.table.detach().clone(), learner.net.get_parameter("stem.0.weight").detach().clone()
        theta = learner.trains_theta
        learner.step(pair(step))
        assert torch.equal(before[0], learner.alphas.table) != theta
        assert torch.equal(before[1], learner.net.get_parameter("stem.0.weight")) == theta
    assert learner.descent.done == 12


def test_the_temperature_is_5_times_0956_to_the_epoch() -> None:
    learner = fbnet(steps=180)
    learner.descent.done = 2 * 20 + 1
    assert learner.epoch == 20
    assert learner.temperature == pytest.approx(5.0 * 0.956**20)


def test_select_takes_the_best_of_the_samples() -> None:
    learner = fbnet()
    cost = table(learner.net, [5.0, 1.0, 3.0])
    scored: list[Architecture] = []

    def score(arch: Architecture) -> float:
        scored.append(arch)
        return -float(cost(arch))

    best = learner.select(score, count=6)
    assert 2 <= len(scored) <= 7
    assert float(cost(best)) == min(float(cost(arch)) for arch in scored)


def test_two_devices_with_opposite_costs_get_a_network_each_that_is_faster_there() -> None:
    net = Candidates()
    tables = [table(net, adds, base=2.0) for adds in ([2.0, 20.0, 200.0], [200.0, 20.0, 2.0])]
    found = []
    for cost in tables:
        net = Candidates()
        recipe = type(RECIPE)(lr=0.02, clip=5.0, alpha_lr=0.3, alpha_weight_decay=0.0)
        learner = FBNet(net, search_space(net), steps=100, cost=cost, recipe=recipe)
        for step in range(100):
            told = learner.step(pair(step, 8))
        assert told["cost"] < 100.0
        found.append(learner.architecture())
    assert found[0] != found[1]
    assert float(tables[0](found[0])) < float(tables[0](found[1]))
    assert float(tables[1](found[1])) < float(tables[1](found[0]))
