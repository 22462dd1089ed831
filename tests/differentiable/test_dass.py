# SPDX-License-Identifier: Apache-2.0
"""DASS: who moves in which stage, what masks keep, and a dense search where everything is kept."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracts.learner_contract import LAWS
from sartor.differentiable.darts import DARTS
from sartor.differentiable.dass import DASS, HYDRA, KEPT, Stages, sparse
from sartor.differentiable.descent import Recipe, logits_of
from sartor.nn import OneOf
from sartor.nn.parametrized import baked, parametrizations
from sartor.nn.sparsify import TopK
from sartor.supernet import extract, named_choices, search_space
from toy_slots import Slots, convolution, toy_pair
from toy_supernet import toy_batch

SPACE = search_space(Slots())
ARCH = {f"slot_{i}": "conv_3x3" for i in range(3)}
STAGES = Stages(rounds=2)


def learner(**keywords: Any) -> DASS:
    return DASS(Slots(), SPACE, **{"steps": 16, "recipe": Recipe(lr=0.2), "keep": 0.25, "stages": STAGES, **keywords})


def groups(made: DASS) -> dict[str, list[Tensor]]:
    return {
        "weights": [one.detach().clone() for one in made.descent.weight_parameters],
        "scores": [one.detach().clone() for one in made.scores.parameters],
        "alphas": [one.detach().clone() for one in made.descent.alpha_parameters],
    }


def moved(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> set[str]:
    return {name for name in before if not all(map(torch.equal, before[name], after[name]))}


def test_each_stage_moves_what_it_is_to_move() -> None:
    made = learner()
    expected = {0: {"weights", "alphas"}, 1: {"scores"}, 2: {"weights", "alphas"}}
    seen: Counter[int] = Counter()
    for step in range(16):
        before = groups(made)
        scalars = made.step(toy_pair(step))
        stage = int(scalars["stage"])
        seen[stage] += 1
        assert moved(before, groups(made)) == expected[stage]
        assert scalars["kept"] == (1.0 if stage == 0 else 0.25)
    assert seen == {0: 8, 1: 4, 2: 4}


def test_scores_are_weights_of_no_descent() -> None:
    made = learner()
    scores = {id(one) for one in made.scores.parameters}
    assert len(scores) == 7  # two convolutions in each slot, and the classifier
    assert not scores & {id(one) for one in made.descent.weight_parameters + made.descent.alpha_parameters}
    assert all(one.requires_grad for one in made.scores.parameters)


def test_exactly_the_share_is_kept() -> None:
    made = learner(keep=0.1)
    for step in range(10):
        made.step(toy_pair(step))
    network = extract(made.net, {**ARCH, KEPT: 0.1})
    masks = [mask.mask() for _, mask, _ in parametrizations(network, TopK)]
    assert [int(mask.sum()) for mask in masks] == [-(-mask.numel() // 10) for mask in masks]
    plain = baked(network)
    for layer in plain.modules():
        if isinstance(layer, nn.Linear):
            assert int((layer.weight != 0).sum()) == 2  # ceil(0.1 * 16)


def test_scores_of_weights_that_are_gone_have_a_gradient_and_can_return() -> None:
    made = learner(steps=40, keep=0.1, stages=Stages(1, (0.0, 1.0, 0.0)), prune_lr=2.0)
    masks = [mask for _, mask, _ in parametrizations(made.net, TopK)]
    made.scores.restart()

    def kept() -> list[Tensor]:
        with_share = extract(made.net, {**ARCH, KEPT: 0.1})
        return [mask.mask() for _, mask, _ in parametrizations(with_share, TopK)]

    before = kept()
    logits = logits_of(made.net, made.mixture(), toy_batch(0)[0])
    (gradient,) = torch.autograd.grad(logits.square().sum(), masks[1].score)
    assert (gradient != 0).all()
    for step in range(20):
        made.step(toy_pair(step))
    assert any(bool(((now == 1) & (then == 0)).any()) for now, then in zip(kept(), before, strict=True))


def test_the_gradient_of_kept_weights_is_that_of_finite_differences() -> None:
    made = learner(keep=0.5)
    net = made.net.double()
    mask, weight = next((mask, weight) for _, mask, weight in parametrizations(net, TopK))
    images = toy_batch(0)[0].double()
    assignment = {name: "conv_1x1" for name in SPACE.choices} | {KEPT: 0.5}

    def loss() -> Tensor:
        return logits_of(net, assignment, images).square().mean()

    (gradient,) = torch.autograd.grad(loss(), weight)
    chosen = (torch.as_tensor(mask.score.detach().abs().flatten()).argsort(descending=True))[:3].tolist()
    flat = weight.detach().view(-1)
    for place in chosen:
        values = []
        for step in (1e-6, -1e-6):
            flat[place] += step
            values.append(loss().item())
            flat[place] -= step
        assert gradient.flatten()[place].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)
    assert int((gradient == 0).sum()) == gradient.numel() // 2


@pytest.mark.parametrize("order", [1, 2])
def test_with_everything_kept_it_is_darts(order: Any) -> None:
    """As long as it only pre-trains. Masked weights come last among the parameters: norms differ in the last bit."""
    made = learner(keep=1.0, order=order, stages=Stages(1, (1.0, 0.0, 0.0)))
    darts = DARTS(Slots(), SPACE, steps=16, recipe=Recipe(lr=0.2), order=order)
    images = toy_batch(0)[0]
    outputs = [logits_of(one.net, one.mixture(), images) for one in (made, darts)]
    assert torch.equal(*outputs)
    for step in range(4):
        made.step(toy_pair(step))
        darts.step(toy_pair(step))
    torch.testing.assert_close(made.alphas.table, darts.alphas.table, rtol=1e-4, atol=1e-7)
    outputs = [logits_of(one.net, one.mixture(), images) for one in (made, darts)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_the_stages_are_laid_over_the_steps() -> None:
    stages = Stages(2, (0.5, 0.25, 0.25))
    assert [stages.at(done, 16)[1] for done in range(16)] == [0, 0, 0, 0, 1, 1, 2, 2] * 2
    assert [done for done in range(16) if stages.begins(done, 16)] == [0, 4, 6, 8, 12, 14]
    rates = [stages.learning_rate(done, 16, Recipe(lr=1.0, lr_min=0.5), 0.1, 0.01) for done in (0, 4, 6, 2)]
    assert rates == pytest.approx([1.0, 0.1, 0.01, 0.75])
    with pytest.raises(ValueError, match="sum to 1"):
        Stages(1, (0.5, 0.5, 0.5))


def test_depthwise_convolutions_and_the_stem_stay_dense() -> None:
    net = Slots()
    first = net.slots[0]
    assert isinstance(first, OneOf)
    first["conv_3x3"] = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    sparse(net, 0.1)
    names = [name for name, _, _ in parametrizations(net, TopK)]
    assert len(names) == 6
    assert not any("stem" in name or name.startswith("slots.0.conv_3x3") for name in names)
    assert named_choices(net)[KEPT].value == 1.0
    assert sparse(net, 0.1) is net
    with pytest.raises(ValueError, match="keeps shares"):
        sparse(net, 0.2)
    with pytest.raises(ValueError, match="nothing can be pruned"):
        sparse(convolution(4, 3), 0.1)


def test_the_share_is_no_part_of_the_space() -> None:
    net = sparse(Slots(), 0.1)
    with pytest.raises(ValueError, match="before the network is sparse"):
        DASS(net, search_space(net), steps=10)
    with pytest.raises(ValueError, match="order is 3"):
        learner(order=3)
    with pytest.raises(ValueError, match="no mask"):
        HYDRA(Slots(), steps=10)


def hydra(keep: float = 0.25) -> HYDRA:
    network = extract(sparse(Slots(), keep), {**ARCH, KEPT: keep})
    return HYDRA(network, steps=20, recipe=Recipe(lr=0.2), finetune_lr=0.1)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_hydra_is_a_learner(law: Any) -> None:
    law(lambda: hydra(0.5), toy_batch)


@pytest.mark.parametrize("step", [0, 12, 18])
def test_a_loss_that_is_not_a_number_stops_hydra_before_anything_changes(step: int) -> None:
    made = hydra()
    made.descent.done = step
    before = [p.detach().clone() for p in made.net.parameters()]
    images, labels = toy_batch(0)
    with pytest.raises(ValueError, match=f"is nan at step {step + 1}, on batch {step}"):
        made.step((images * float("nan"), labels))
    assert all(map(torch.equal, made.net.parameters(), before))


def test_hydra_prunes_with_frozen_weights_and_tunes_with_a_frozen_mask() -> None:
    made = hydra()
    for step in range(20):
        before = copy.deepcopy(made.net.state_dict())
        stage = made.step(toy_batch(step))["stage"]
        changed = {name for name, value in made.net.state_dict().items() if not torch.equal(value, before[name])}
        scores = {name for name in changed if name.endswith("score")}
        trained = {name for name in changed if name.endswith(("weight", "bias", "original"))}
        assert bool(scores) == (stage == 1.0)
        assert bool(trained) == (stage != 1.0)
    assert all(mask.keep == 0.25 for _, mask, _ in parametrizations(made.net, TopK))
