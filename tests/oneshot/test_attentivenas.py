# SPDX-License-Identifier: Apache-2.0
"""Which of several sub-networks of equal cost are trained, and that looking at them leaves no trace."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sartor.architecture import Architecture
from sartor.nn import resized
from sartor.oneshot import Recipe
from sartor.oneshot._training import draws
from sartor.oneshot.alphanet import AlphaNet
from sartor.oneshot.attentivenas import RECIPE, AttentiveNAS
from sartor.supernet import activated, search_space
from toy_supernet import ToyNet, toy_batch


def learner(**given: object) -> AttentiveNAS:
    torch.manual_seed(0)
    net = ToyNet(dropout=0.1)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    given = {"samples": 400, "bins": 8, "recipe": Recipe(lr=0.3), **given}
    return AttentiveNAS(net, search_space(net), steps=20, batch_size=32, **given)  # type: ignore[arg-type]


def loss_of(net: nn.Module, arch: Architecture, seed: int) -> float:
    """The loss of one sub-network on the batch, written out."""
    images, labels = toy_batch(seed)
    net = copy.deepcopy(net).train()
    net.dropout.eval()  # type: ignore[union-attr]
    with torch.no_grad(), activated(net, arch):
        return float(F.cross_entropy(net(resized(images, net)), labels))


@pytest.mark.parametrize(("pick", "wanted"), [("best", min), ("worst", max)])
def test_the_best_or_worst_of_three_candidates_of_one_cost_is_trained(pick: str, wanted: object) -> None:
    one = learner(pick=pick)
    found = one.attended(toy_batch(0))
    rng = draws(0, 0)
    for arch in found:
        place = one.bins.draw(rng)
        candidates = [one.bins.sample(place, rng) for _ in range(3)]
        assert [one.bins.of(candidate) for candidate in candidates] == [place] * 3
        losses = {loss_of(one.net, candidate, 0): candidate for candidate in candidates}
        assert arch == losses[wanted(losses)]  # type: ignore[operator]


def test_a_look_leaves_gradients_and_norms_as_they_were() -> None:
    one = learner()
    torch.manual_seed(1)
    for parameter in one.net.parameters():
        parameter.grad = torch.randn_like(parameter)
    gradients = [p.grad.clone() for p in one.net.parameters() if p.grad is not None]
    state = copy.deepcopy(one.net.state_dict())
    one.attended(toy_batch(0))
    assert all(map(torch.equal, gradients, [p.grad for p in one.net.parameters() if p.grad is not None]))
    assert all(torch.equal(value, state[name]) for name, value in one.net.state_dict().items())
    assert one.effort == (0, 6, 0)


def test_a_step_trains_the_largest_two_of_drawn_costs_and_the_smallest() -> None:
    one = learner()
    one.step(toy_batch(0))
    assert one.effort == (4, 6, 1) and one.passes_per_step == 4.0


def test_one_candidate_is_taken_without_a_look() -> None:
    one = learner(candidates=1)
    one.step(toy_batch(0))
    assert one.effort == (4, 0, 1)


def test_the_middle_ones_have_the_costs_of_uniform_sampling() -> None:
    one = learner(candidates=1, sampled=600, bins=40, samples=4000)
    batch = toy_batch(0)
    costs = [one.bins.cost(arch) for arch in one.attended(batch)]
    rng = random.Random(0)
    uniform = [one.bins.cost(one.space.sample(rng)) for _ in range(1000)]
    assert sum(costs) / len(costs) == pytest.approx(sum(uniform) / len(uniform), rel=0.1)


def test_parts_of_a_batch_decide_together() -> None:
    from sartor.oneshot import Means

    whole, parts = learner(), learner(means=Means(accumulate=2))
    assert parts.step(toy_batch(0)).keys() == whole.step(toy_batch(0)).keys()
    assert parts.effort == whole.effort == (4, 6, 1)


def test_its_recipe_is_the_papers() -> None:
    assert RECIPE.learning_rate(180, 360, 2048) == pytest.approx(
        0.8 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 175 / 355)).item())
    )
    assert (RECIPE.nesterov, RECIPE.clip_value, RECIPE.dropout, RECIPE.weight_decay) == (True, 1.0, 0.2, 1e-5)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="candidates is 0"):
        learner(candidates=0)
    with pytest.raises(ValueError, match="pick 'middle'"):
        learner(pick="middle")


def test_alphanet_with_both_alphas_at_one_is_bignas() -> None:
    from sartor.oneshot import BigNAS

    steps = []
    for kind, given in ((AlphaNet, {"alpha_min": 1.0, "alpha_max": 1.0}), (BigNAS, {})):
        torch.manual_seed(0)
        net = ToyNet(dropout=0.0)
        recipe = Recipe(lr=0.3, weight_decay=0.0, dropout=0.0)
        one = kind(net, search_space(net), steps=10, batch_size=32, recipe=recipe, **given)  # type: ignore[arg-type]
        steps.append([one.step(toy_batch(i)) for i in range(3)])
    for ours, theirs in zip(*steps, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
