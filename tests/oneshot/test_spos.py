# SPDX-License-Identifier: Apache-2.0
"""SPOS and FairNAS: what a step trains, from which prior, and what it leaves alone."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from sartor.evaluation import specialised
from sartor.nn import at_resolution
from sartor.oneshot import Recipe
from sartor.oneshot._binned import Bins
from sartor.oneshot._training import draws
from sartor.oneshot.fairnas import FairNAS
from sartor.oneshot.few_shot import FewShot
from sartor.oneshot.gm_nas import GMNAS
from sartor.oneshot.pa_da import PADA
from sartor.oneshot.spos import RECIPE, SPOS, binned
from sartor.space import SearchSpace
from sartor.spaces.mobilenet import MobileNet
from sartor.supernet import activated, search_space
from toy_operations import Mixed
from toy_supernet import ToyNet, toy_batch

DECAYING = Recipe(optimizer="sgd", lr=0.1, lr_batch=32, weight_decay=0.1, schedule="constant")


def test_weights_off_the_path_are_left_alone_bit_for_bit_by_decay_and_momentum_too() -> None:
    torch.manual_seed(0)
    net = Mixed()
    learner = SPOS(net, search_space(net), steps=30, batch_size=32, recipe=DECAYING)
    for step in range(10):  # by then most weights have momentum
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        moments = {p: dict(state) for p, state in learner.training.optimizer.state.items()}
        kept = {p: state["momentum_buffer"].clone() for p, state in moments.items()}
        arch = learner.space.sample(draws(learner.seed, step))
        learner.step(toy_batch(step))
        for name, p in net.named_parameters():
            layer = name.split(".")
            on_path = layer[0] != "layers" or arch[f"layers.{layer[1]}.choice"] == layer[2]
            assert torch.equal(p, before[name]) != on_path, name
            if not on_path and p in kept:
                assert torch.equal(learner.training.optimizer.state[p]["momentum_buffer"], kept[p])


def test_every_option_is_drawn_equally_often() -> None:
    net = Mixed()
    learner = SPOS(net, search_space(net), steps=1, batch_size=32)
    drawn = [learner.prior(learner.space, draws(0, step)) for step in range(10_000)]
    for name in learner.space.choices:
        counts = Counter(arch[name] for arch in drawn)
        assert len(counts) == 4 and chisquare([*counts.values()]).pvalue > 0.01


def test_a_prior_may_balance_costs() -> None:
    space = SearchSpace({f"c{i}": (0, 1, 2, 3) for i in range(4)})
    bins = Bins(space, lambda arch: float(sum(arch.values())), width=1.0, samples=4000)  # type: ignore[arg-type]
    rng, prior = random.Random(0), binned(bins)
    found = Counter(bins.of(prior(space, rng)) for _ in range(2000))
    assert len(found) == len(bins.met) == 13
    assert max(found.values()) < 2 * min(found.values())  # uniform draws: 44 of the middle sum to 1 of each end
    net = Mixed()
    fixed = search_space(net).smallest()
    learner = SPOS(net, search_space(net), steps=5, batch_size=32, prior=lambda space, rng: fixed)
    learner.step(toy_batch(0))
    with pytest.raises(ValueError, match="prior='flops' is unknown"):
        SPOS(net, search_space(net), steps=5, batch_size=32, prior="flops")  # type: ignore[arg-type]


def test_the_network_alone_is_the_path_of_the_supernet() -> None:
    torch.manual_seed(0)
    net = ToyNet()
    space = search_space(net)
    learner = SPOS(net, space, steps=10, batch_size=32)
    for step in range(10):
        learner.step(toy_batch(step))
    images, _ = toy_batch(99)
    for seed in range(5):
        arch = space.sample(random.Random(seed))
        alone = specialised(net, arch, [toy_batch(7)[0]])
        assert torch.isfinite(at_resolution(alone, images)).all()
    mixed = Mixed().eval()
    arch = search_space(mixed).sample(random.Random(1))
    with activated(mixed, arch), torch.no_grad():
        shared = mixed(images)
    torch.testing.assert_close(specialised(mixed, arch, [images])(images), shared, atol=1e-6, rtol=0)


def test_the_recipe_is_that_of_the_authors_code() -> None:
    assert (RECIPE.lr, RECIPE.lr_batch, RECIPE.momentum, RECIPE.weight_decay) == (0.5, 1024, 0.9, 4e-5)
    assert RECIPE.learning_rate(75_000, 150_000, 1024) == 0.25 and RECIPE.learning_rate(150_000, 150_000, 1024) == 0


def test_a_step_of_fairnas_trains_each_option_once_and_adds_gradients() -> None:
    torch.manual_seed(0)
    net = Mixed()
    learner = FairNAS(net, search_space(net), steps=10, batch_size=32, recipe=DECAYING)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    learner.step(toy_batch(0))
    assert all(not torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert (*learner.effort,) == (4, 0, 1) and learner.passes_per_step == 4
    with pytest.raises(ValueError, match="meets no constraint"):
        FairNAS(net, SearchSpace({"a": (1, 2)}, {}, bool), steps=1, batch_size=1)


@pytest.mark.parametrize(
    ("kind", "given"),
    [(SPOS, {}), (FairNAS, {}), (PADA, {"epoch_steps": 1}), (FewShot, {}), (GMNAS, {"stages": (1, 4), "matching": 1})],
)
def test_all_learners_of_paths_train_an_elastic_network(kind: Any, given: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = MobileNet(10, 1, (8, 8))
    learner = kind(net, search_space(net), steps=8, batch_size=16, **given)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    losses = [learner.step((images, labels))["loss"] for _ in range(8)]
    assert all(map(math.isfinite, losses)) and learner.effort.passes == pytest.approx(
        learner.passes_per_step * 8, rel=0.2
    )
