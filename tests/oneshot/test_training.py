# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.oneshot import Means, Recipe
from sartor.oneshot._training import Effort, Training, draws
from sartor.oneshot.ofa import OFA
from sartor.oneshot.pa_da import PADA
from sartor.oneshot.shiftnas import ShiftNAS
from sartor.oneshot.slimmable import Slimmable
from sartor.supernet import search_space
from toy_group_net import GroupNet
from toy_supernet import ToyNet, toy_batch

RECIPE = Recipe(lr=1.0, weight_decay=0.1)
SGD = Recipe(optimizer="sgd", lr=0.1, lr_batch=16, weight_decay=0.1, schedule="constant")


def training(net: nn.Module | None = None, recipe: Recipe = RECIPE, **means: Any) -> Training:
    torch.manual_seed(0)
    return Training(net or GroupNet(), steps=10, batch_size=16, recipe=recipe, means=Means(**means))


def extremes(one: Training) -> list[Architecture]:
    space = search_space(one.net)
    return [space.largest(), space.smallest()]


def passes(one: Training, seed: int = 0, archs: list[Architecture] | None = None) -> float:
    """Add up the gradients of sub-networks, as a learner does; return the sum of their losses."""
    total = 0.0
    for images, labels in one.parts(toy_batch(seed, 16)):
        for arch in archs or extremes(one):
            loss = F.cross_entropy(one.logits(arch, images), labels)
            one.backward(loss)
            total += float(loss.detach()) / one.means.accumulate
    return total


def gradients(one: Training) -> list[Tensor]:
    one.collect()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in one.parameters]


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_accumulated_parts_have_the_gradient_of_the_whole_batch(parts: int) -> None:
    whole, divided = training(), training(accumulate=parts)
    assert passes(divided) == pytest.approx(passes(whole), abs=1e-6)
    for a, b in zip(gradients(divided), gradients(whole), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert divided.effort == whole.effort == Effort(passes=2)


def test_looks_at_parts_are_one_look_and_a_batch_that_does_not_divide_is_refused() -> None:
    divided = training(accumulate=4)
    for images, _ in divided.parts(toy_batch(0, 16)):
        divided.look(extremes(divided)[0], images)
    assert divided.effort == Effort(looks=1)
    with pytest.raises(ValueError, match="a batch of 10 does not divide into accumulate=4 parts"):
        next(iter(divided.parts(toy_batch(0, 10))))
    with pytest.raises(ValueError, match="accumulate is 0"):
        Means(accumulate=0)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_look_leaves_norms_gradients_and_generators_as_they_were(momentum: float | None) -> None:
    one = training(ToyNet(dropout=0.5))
    for module in one.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    passes(one)
    buffers = {name: buffer.clone() for name, buffer in one.net.named_buffers()}
    held = [None if p.grad is None else p.grad.clone() for p in one.parameters]
    state = torch.get_rng_state()
    images = toy_batch(3, 16)[0]
    found = one.look(extremes(one)[1], images)
    assert not found.requires_grad and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in one.net.named_buffers()) and buffers
    for p, before in zip(one.parameters, held, strict=True):
        assert (p.grad is None) == (before is None) and (before is None or torch.equal(p.grad, before))  # type: ignore[arg-type]
    assert one.effort == Effort(passes=2, looks=1)
    expected = copy.deepcopy(one).logits(extremes(one)[1], images, regularise=False).detach()
    assert torch.equal(found, expected)  # by the statistics of the batch, as in a pass


def test_what_no_sub_network_used_is_left_alone_by_decay_and_momentum() -> None:
    one = training(recipe=SGD)
    for step in range(2):
        passes(one, step)
        one.update()
    unused = {name: p.detach().clone() for name, p in one.net.named_parameters() if name.startswith("blocks.1.")}
    momentum = {
        name: one.optimizer.state[p]["momentum_buffer"].clone()
        for name, p in one.net.named_parameters()
        if name in unused
    }
    passes(one, 2, [extremes(one)[1]])
    one.update()
    now = dict(one.net.named_parameters())
    assert unused and all(torch.equal(now[name], before) for name, before in unused.items())
    assert all(torch.equal(one.optimizer.state[now[name]]["momentum_buffer"], old) for name, old in momentum.items())


def test_decay_acts_on_what_had_a_gradient_when_it_was_said() -> None:
    plain, decayed, some = training(recipe=Recipe(lr=1.0, weight_decay=0.0)), training(), training()
    space = search_space(GroupNet())
    small, large = space.smallest(), space.largest()
    for one in (plain, decayed, some):
        passes(one, 0, [small])
        if one is some:
            one.decay_what_has_gradients()
        passes(one, 0, [large])
        one.update()
    values = [dict(one.net.named_parameters()) for one in (plain, decayed, some)]
    for name, p in values[0].items():
        in_large_only = name.startswith("blocks.1.")
        decays = p.dim() > 1 and bool((values[1][name] != p).any())
        assert decays == (p.dim() > 1), name
        assert torch.equal(values[2][name], values[0][name] if in_large_only else values[1][name]), name


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_trains_float32_weights_to_nearly_the_same(precision: str) -> None:
    exact, rounded = training(recipe=SGD), training(recipe=SGD, precision=precision)
    for step in range(3):
        losses = passes(exact, step), passes(rounded, step)
        assert losses[1] == pytest.approx(losses[0], rel=0.02)
        exact.update()
        rounded.update()
    assert all(p.dtype == torch.float32 for p in rounded.parameters)
    for a, b in zip(rounded.parameters, exact.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.01)
    assert rounded.logits(extremes(rounded)[0], toy_batch(0, 4)[0]).dtype == torch.float32
    assert rounded.scaler.is_enabled() == (precision == "float16")
    assert ("scaler" in rounded.state_dict()) == (precision == "float16")


def test_an_overflow_skips_the_update_and_halves_the_scale() -> None:
    one = training(recipe=SGD, precision="float16")
    before, scale = [p.detach().clone() for p in one.parameters], one.scaler.get_scale()
    loss = one.logits(extremes(one)[0], toy_batch(0, 16)[0]).sum()
    one.backward(loss * float("inf"))
    one.update()
    assert all(map(torch.equal, one.parameters, before)) and one.scaler.get_scale() == scale / 2
    again = training(recipe=SGD, precision="float16")
    again.load_state_dict(one.state_dict())
    assert again.scaler.get_scale() == scale / 2


def test_an_overflow_of_one_worker_is_seen_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from sartor import distributed

    one = training(recipe=SGD, precision="float16")

    def averaged(parameters: list[nn.Parameter]) -> None:
        for p in parameters:  # the other worker's gradient was infinite
            p.grad = None if p.grad is None else p.grad + float("inf")

    monkeypatch.setattr(distributed, "average_gradients", averaged)
    before, scale = [p.detach().clone() for p in one.parameters], one.scaler.get_scale()
    passes(one)
    one.update()
    assert all(map(torch.equal, one.parameters, before)) and one.scaler.get_scale() == scale / 2


def test_gradients_are_collected_once_and_forgotten_after_the_update() -> None:
    one = training(precision="float16")
    passes(one)
    found = gradients(one)
    assert all(map(torch.equal, gradients(one), found))
    assert one.update() == RECIPE.learning_rate(0, 10, 16) and one.learning_rate == RECIPE.learning_rate(1, 10, 16)
    assert all(p.grad is None for p in one.parameters) and one.effort == Effort(2, 0, 1) and one.done == 1
    passes(one)
    assert one.update(rate=0.25) == 0.25 == one.optimizer.param_groups[0]["lr"]


def test_dropout_drops_where_it_is_asked_to() -> None:
    one = training(ToyNet(), Recipe(dropout=0.5))
    images = next(one.parts(toy_batch(0, 16)))[0]
    arch = extremes(one)[0]
    assert torch.equal(*(one.logits(arch, images, regularise=False) for _ in range(2)))
    assert not torch.equal(*(one.logits(arch, images) for _ in range(2)))


def test_frozen_weights_are_not_trained_and_take_no_moments() -> None:
    net = GroupNet()
    frozen = net.get_parameter("blocks.0.conv1.weight").requires_grad_(False)
    before = frozen.clone()
    one = training(net)
    passes(one)
    one.update()
    assert torch.equal(frozen, before) and frozen not in one.optimizer.state


def test_images_and_weights_are_channels_last_and_values_unchanged() -> None:
    one = training()
    images, _ = next(one.parts(toy_batch(0, 16)))
    assert images.is_contiguous(memory_format=torch.channels_last) and torch.equal(images, toy_batch(0, 16)[0])
    convolutions = [p for p in one.parameters if p.dim() == 4]
    assert convolutions and all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)


def test_draws_are_a_function_of_seed_and_step() -> None:
    assert draws(1, 2).random() == draws(1, 2).random()
    assert len({draws(seed, step).random() for seed in range(5) for step in range(5)}) == 25


@pytest.mark.parametrize("kind", [OFA, PADA, ShiftNAS, Slimmable])
def test_methods_that_need_whole_weights_refuse_divided_ones(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sartor.distributed.is_sharded", lambda tensor: True)
    net = ToyNet()
    with pytest.raises(ValueError, match="divided among workers: do not shard the network"):
        kind(net, search_space(net), steps=1, batch_size=8)


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="steps is -1"):
        Training(GroupNet(), steps=-1, batch_size=8)
