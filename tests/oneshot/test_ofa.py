# SPDX-License-Identifier: Apache-2.0
"""Progressive shrinking: its stages, what a step of each learns, the teacher, and sorted channels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sartor.nn as elastic
from sartor.architecture import Architecture
from sartor.checkpoint import flatten, unflatten
from sartor.choice import Choice
from sartor.nn import resized
from sartor.oneshot import Means, Recipe
from sartor.oneshot.ofa import OFA, RECIPE
from sartor.oneshot.ofa_stages import STAGES, Stage, phases, role
from sartor.permutation import channel_groups, importance
from sartor.space import SearchSpace
from sartor.supernet import activated, extract, recalibrate_batchnorm, search_space
from toy_supernet import CLASSES, ToyNet, toy_batch

PAPERS = SearchSpace({
    "resolution": (128, 160, 192, 224),
    "stages.0.depth": (2, 3, 4),
    "stages.0.0.kernel": (3, 5, 7),
    "stages.0.0.expand": (3, 4, 6),
})  # fmt: skip
SHORT = tuple(Stage(one.name, 2, one.networks, one.lr, one.warmup, one.admits, one.whole) for one in STAGES)
"""Two steps each, in a training of 12."""


def learner(steps: int = 12, **given: Any) -> OFA:
    torch.manual_seed(0)
    net = ToyNet(dropout=0.0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    recipe = Recipe(lr=0.3, dropout=0.0)
    return OFA(net, search_space(net), **{"steps": steps, "batch_size": 16, "recipe": recipe, "stages": SHORT, **given})


def trained(ofa: OFA, first: int, last: int) -> list[dict[str, float]]:
    found = []
    for step in range(first, last):
        torch.manual_seed(step)
        found.append(dict(ofa.step(toy_batch(step, 16))))
    return found


def weights(module: nn.Module | None) -> dict[str, Tensor]:
    assert module is not None
    return {name: value.clone() for name, value in module.state_dict().items()}


def outputs(net: nn.Module, arch: Architecture, images: Tensor) -> Tensor:
    """Those of the extracted network by batch statistics."""
    with torch.no_grad():
        network = extract(net, arch).train()
        found: Tensor = network(resized(images, network))
    return found


# ---- stages ---------------------------------------------------------------------------------------


def test_the_schedule_is_the_papers() -> None:
    found = phases(PAPERS, STAGES, 590)
    assert [phase.first for phase in found] == [0, 180, 300, 325, 445, 470]
    assert [phase.steps for phase in found] == [180, 120, 25, 120, 25, 120]
    assert [phase.stage.networks for phase in found] == [1, 1, 2, 2, 4, 4]
    admitted = [
        [phase.space.choices[name] for name in ("stages.0.0.kernel", "stages.0.depth", "stages.0.0.expand")]
        for phase in found
    ]
    assert admitted == [
        [(7,), (4,), (6,)],
        [(3, 5, 7), (4,), (6,)],
        [(3, 5, 7), (3, 4), (6,)],
        [(3, 5, 7), (2, 3, 4), (6,)],
        [(3, 5, 7), (2, 3, 4), (4, 6)],
        [(3, 5, 7), (2, 3, 4), (3, 4, 6)],
    ]
    assert all(phase.space.choices["resolution"] == PAPERS.choices["resolution"] for phase in found)


def test_the_learning_rates_are_the_papers() -> None:
    """2.6 for a batch of 2,048; then, for each GPU of 64 images, 3e-2, 2.5e-3, 7.5e-3, 2.5e-3 and 7.5e-3."""
    net = ToyNet()
    ofa = OFA(net, search_space(net), steps=5900, batch_size=64)
    assert ofa.training.recipe is RECIPE
    peaks = []
    for _, _, first, steps in ofa.phases:
        rates = []
        for step in range(first, first + steps):
            ofa.training.done = step
            rates.append(ofa.learning_rate)
        peaks.append(max(rates))
        assert rates[-1] < 0.01 * peaks[-1]
        assert (rates[0] < max(rates)) == (steps == 1200)  # a warm-up
    assert peaks == pytest.approx([2.6 / 32, 3e-2, 2.5e-3, 7.5e-3, 2.5e-3, 7.5e-3], rel=1e-6)


def test_a_stage_that_admits_nothing_new_leaves_its_steps_to_the_others() -> None:
    found = phases(SearchSpace({"width": (2, 4, 8), "a.kernel": (3,)}), STAGES, 325)
    assert [(one.stage.name, one.steps) for one in found] == [("largest", 180), ("expand 1", 25), ("expand 2", 120)]
    found = phases(SearchSpace({"a.expand": (2, 4), "op": ("conv", "pool")}), STAGES, 325)
    assert [(one.stage.name, one.steps) for one in found] == [("largest", 180), ("kernel", 120), ("expand 1", 25)]
    assert [one.space.choices["op"] for one in found] == [("pool",), ("conv", "pool"), ("conv", "pool")]


def test_roles_follow_from_the_last_word_of_a_name() -> None:
    names = (
        "stages.0.0.kernel",
        "stages.0.depth",
        "a.expand",
        "head_width",
        "layer_0.channels",
        "resolution",
        "x.squeeze.choice",
    )
    assert [role(name) for name in names] == ["kernel", "depth", "expand", "expand", "expand", "resolution", "kernel"]


def test_stages_must_end_with_the_whole_space() -> None:
    with pytest.raises(ValueError, match="'depth 2', leaves options out"):
        phases(PAPERS, STAGES[:4], 100)
    with pytest.raises(ValueError, match="stages is empty"):
        phases(PAPERS, (), 100)


def test_a_training_shorter_than_its_stages_skips_some() -> None:
    ofa = learner(steps=3, stages=STAGES)
    assert sum(phase.steps for phase in ofa.phases) == 3
    assert [one["stage"] for one in trained(ofa, 0, 3)] == [0.0, 1.0, 5.0]


# ---- a step ---------------------------------------------------------------------------------------


def test_sub_networks_are_of_the_stage_and_of_one_resolution() -> None:
    ofa = learner(steps=60)
    seen: dict[int, set[Architecture]] = {i: set() for i in range(6)}
    for step in range(60):
        ofa.training.done = step
        archs = ofa.drawn()
        assert archs == learner(steps=60).drawn() or step
        assert len(archs) == ofa.phase.stage.networks and all(arch in ofa.phase.space for arch in archs)
        assert len({arch["resolution"] for arch in archs}) == 1
        seen[step // 10].update(archs)
    assert {arch.replace({"resolution": 8}) for arch in seen[0]} == {ofa.largest} and len(seen[0]) == 2
    assert {arch["width"] for arch in seen[4]} == {6, 8} and {arch["width"] for arch in seen[5]} == {4, 6, 8}


def test_the_gradient_is_the_sum_of_labels_and_teacher_over_the_sub_networks() -> None:
    ofa = learner(kd_ratio=0.7)
    trained(ofa, 0, 11)
    images, labels = toy_batch(0, 16)
    archs = ofa.drawn()
    assert len(archs) == 4
    assert ofa.teacher is not None
    with torch.no_grad():
        teacher = copy.deepcopy(ofa.teacher).train()(resized(images, _at(ofa, archs[0]))).softmax(1)
    net = copy.deepcopy(ofa.net).train()
    for arch in archs:
        with activated(net, arch):
            logits = net(resized(images, net))
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1) + 0.7 * F.cross_entropy(logits, teacher)
        loss.backward()  # type: ignore[no-untyped-call]
    ofa.net.train()
    ofa.backward(images, labels, archs)
    for (name, found), expected in zip(ofa.net.named_parameters(), net.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None), name
        if found.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


def _at(ofa: OFA, arch: Architecture) -> nn.Module:
    return extract(ofa.net, arch)


def test_the_teacher_is_the_largest_after_its_stage_and_stays_bit_equal() -> None:
    ofa = learner()
    trained(ofa, 0, 2)
    assert "teacher" not in ofa.state_dict()
    expected = weights(extract(ofa.net, ofa.largest))
    trained(ofa, 2, 3)
    first = weights(ofa.teacher)
    trained(ofa, 3, 12)
    last = weights(ofa.teacher)
    assert all(torch.equal(value, expected[name]) and torch.equal(value, last[name]) for name, value in first.items())
    assert ofa.teacher is not None and not any(parameter.requires_grad for parameter in ofa.teacher.parameters())


def test_the_effort_counts_what_the_teacher_sees() -> None:
    ofa = learner()
    trained(ofa, 0, 12)
    assert ofa.effort == (2 * (1 + 1 + 2 + 2 + 4 + 4), 10 + 2 * 2, 12)  # twice, channels were sorted
    assert ofa.passes_per_step == 28 / 12
    assert OFA(ToyNet(), ofa.space, steps=590, batch_size=16).passes_per_step == pytest.approx(1170 / 590)
    parts = learner(means=Means(accumulate=2))
    trained(parts, 0, 12)
    assert parts.effort == ofa.effort
    alone = learner(kd_ratio=0.0, sort=False)
    assert all(one["distillation"] == 0.0 for one in trained(alone, 0, 12)) and alone.effort.looks == 0


# ---- sorted channels ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [4, 5])
def test_entering_an_expand_stage_changes_no_network_that_was_trained(stage: int) -> None:
    ofa = learner()
    trained(ofa, 0, 2 * stage)
    images = toy_batch(99, 16)[0]
    before = [outputs(ofa.net, arch, images) for arch in (ofa.largest, *_many(ofa, stage - 1))]
    old = weights(ofa.net)
    ofa._enter(images)
    assert any(not torch.equal(value, old[name]) for name, value in ofa.net.state_dict().items())
    for arch, expected in zip((ofa.largest, *_many(ofa, stage - 1)), before, strict=True):
        torch.testing.assert_close(outputs(ofa.net, arch, images), expected, rtol=1e-5, atol=1e-5)


def _many(ofa: OFA, stage: int) -> list[Architecture]:
    import random

    return [ofa.phases[stage].space.sample(random.Random(seed)) for seed in range(8)]


def test_channels_are_sorted_first_all_then_within_what_was_trained() -> None:
    ofa = learner()
    trained(ofa, 0, 8)
    ofa._enter(toy_batch(0, 16)[0])
    assert all((importance(one).diff() <= 1e-6).all() for one in channel_groups(ofa.net))
    trained(ofa, 8, 10)
    ofa._enter(toy_batch(0, 16)[0])
    for one in channel_groups(ofa.net):
        largest, second = sorted(one.size.options)[:0:-1]  # type: ignore[type-var]
        values = importance(one)
        assert (values[:second].diff() <= 1e-6).all() and (values[second:largest].diff() <= 1e-6).all()


class Shuffled(nn.Module):
    """Every second channel first."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, ::2], x[:, 1::2]], 1)


def test_a_module_that_mixes_channels_by_their_place_is_told() -> None:
    torch.manual_seed(0)
    width = Choice([4, 8], name="width")
    layers = [elastic.Conv2d(1, width, 3), nn.ReLU(), Shuffled(), elastic.Conv2d(width, CLASSES, 6)]
    net = nn.Sequential(*layers, nn.Flatten())
    ofa = OFA(net, search_space(net), steps=10, batch_size=8)
    with pytest.raises(ValueError, match="one of its modules mixes channels by their place"):
        trained(ofa, 0, 10)
    net[2] = nn.Identity()
    trained(OFA(net, search_space(net), steps=10, batch_size=8), 0, 10)


# ---- resumed, deployed ----------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 2, 3, 7, 8, 9, 10, 11])
def test_a_training_stopped_in_any_stage_goes_on_exactly(stop: int) -> None:
    one, two = learner(), learner()
    trained(one, 0, stop)
    packed, tree = flatten(one.state_dict())
    two.load_state_dict(unflatten(safetensors.torch.load(safetensors.torch.save(packed)), tree))
    assert trained(one, stop, 12) == trained(two, stop, 12)
    assert one.effort == two.effort
    both = flatten(one.state_dict())[0], flatten(two.state_dict())[0]
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())


def test_what_is_extracted_equals_the_network_in_place_after_recalibration_which_is_idempotent() -> None:
    ofa = learner()
    trained(ofa, 0, 12)
    batches = [toy_batch(step, 16)[0] for step in range(3)]
    arch = ofa.drawn()[0]
    network = extract(ofa.net, arch).eval()
    recalibrate_batchnorm(network, batches)
    once = weights(network)
    recalibrate_batchnorm(network, batches)
    again = weights(network)
    assert all(torch.equal(value, again[name]) for name, value in once.items())
    images = toy_batch(9, 16)[0]
    with activated(ofa.net.eval(), arch) as net, torch.no_grad():
        recalibrate_batchnorm(net, batches)
        torch.testing.assert_close(net(resized(images, net)), network(resized(images, network)), rtol=1e-6, atol=1e-6)
