# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sartor.differentiable.alphas import Alphas
from sartor.differentiable.descent import Recipe, logits_of
from sartor.differentiable.diagnostics import saved_activations
from sartor.differentiable.pc_darts import PCDARTS, PartialChannels, shuffled
from sartor.differentiable.relaxations import softmax
from sartor.spaces.cell_operations import OPERATIONS
from sartor.spaces.darts import DartsNetwork, plain_mixed
from sartor.spaces.nasbench201 import NASBench201
from sartor.supernet import activated, extract, search_space
from toy_slots import OPTIONS, Slots, operations, toy_pair

FOUR = {name: OPERATIONS[name] for name in ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3")}


def cells(parts: int = 2, **arguments: Any) -> DartsNetwork:
    torch.manual_seed(0)
    mixed = PartialChannels(parts)
    return DartsNetwork(4, 1, (8, 8), **{"width": 4, "cells": 3, "operations": FOUR, "mixed": mixed, **arguments})


def search(**arguments: Any) -> PCDARTS:
    net = cells()
    return PCDARTS(net, search_space(net), **{"steps": 10, **arguments})


def edge(parts: int, width: int, stride: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return PartialChannels(parts)(operations, width, stride)


def soft(module: nn.Module) -> dict[str, Tensor]:
    (name,) = search_space(module).choices
    return {name: torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True)}


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_saved_activations_fall_to_one_part(parts: int) -> None:
    """The paper's point, measured: .494, .245 and .122 of what all channels need, here within 5 % of 1 / K."""

    def saved(parts: int) -> int:
        module, x = edge(parts, 64), torch.randn(2, 64, 16, 16, requires_grad=True)
        with activated(module, soft(module)):
            return saved_activations(lambda: module(x))

    assert saved(parts) / saved(1) == pytest.approx(1 / parts, rel=0.05)


def test_the_first_channels_go_through_the_operations_and_the_others_pass_by() -> None:
    module, x = edge(4, 8), torch.randn(2, 8, 5, 5)
    with activated(module, soft(module)):
        out = module(x)
        mixed = module.mixed(x[:, :2])  # type: ignore[operator]
    back = shuffled(out, 2)  # 8 / 4 groups
    torch.testing.assert_close(back[:, :2], mixed)
    assert torch.equal(back[:, 2:], x[:, 2:])


def test_channels_that_pass_by_have_the_identity_as_their_jacobian() -> None:
    module = edge(2, 4).eval()
    x = torch.randn(1, 4, 2, 2)
    with activated(module, soft(module)):
        jacobian: Tensor = torch.func.jacrev(lambda x: shuffled(module(x), 2))(x).reshape(16, 16)
    assert torch.equal(jacobian[8:, 8:], torch.eye(8))
    assert not jacobian[8:, :8].any()


def test_stride_2_halves_what_passes_by_with_a_max_pool() -> None:
    module = PartialChannels(2)(lambda width: {"a": nn.AvgPool2d(2, ceil_mode=True)}, 4, 2)
    x = torch.randn(1, 4, 5, 5)
    out = shuffled(module(x), 2)
    assert out.shape == (1, 4, 3, 3)
    assert torch.equal(out[:, 2:, :2, :2], x[:, 2:, :4, :4].reshape(1, 2, 2, 2, 2, 2).amax((3, 5)))


@pytest.mark.parametrize("groups", [1, 2, 4, 12])
def test_a_shuffle_is_a_permutation_that_the_other_grouping_undoes(groups: int) -> None:
    x = torch.randn(2, 12, 3, 3)
    dealt = shuffled(x, groups)
    assert torch.equal(dealt.sort(1).values, x.sort(1).values)
    assert torch.equal(shuffled(dealt, 12 // groups), x)
    assert torch.equal(dealt, nn.ChannelShuffle(groups)(x))


def test_a_shuffle_keeps_channels_last() -> None:
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    assert shuffled(x, 4).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("parts", [0, 3])
def test_parts_must_divide_the_width(parts: int) -> None:
    with pytest.raises(ValueError, match=f"4 channels has no {parts} equal parts"):
        edge(parts, 4)


def test_k_of_1_with_all_edges_is_darts() -> None:
    images = toy_pair(0, 4)[0][0]
    plain, partial = cells(mixed=plain_mixed), cells(1)
    alphas = Alphas(plain, search_space(plain))
    weights = softmax(alphas.logits)
    wanted = logits_of(plain, alphas.assignment(weights), images)
    assert torch.equal(logits_of(partial, alphas.assignment(weights), images), wanted)


def test_uniform_edges_are_darts_but_for_the_factor() -> None:
    net = cells(1)
    plain, edges = Alphas(net, search_space(net)), Alphas(net, search_space(net), edges=True, scale=0.0)
    node = net.cells[0].nodes[3]  # type: ignore[index]
    states = [torch.randn(2, 4, 8, 8) for _ in range(5)]
    weights = softmax(edges.logits)
    with activated(net, plain.assignment(weights)):
        wanted = node(*states)  # type: ignore[operator]
    with activated(net, edges.assignment(weights)):
        torch.testing.assert_close(5 * node(*states), wanted)  # type: ignore[operator]


def test_alpha_and_beta_rest_for_15_of_50_epochs() -> None:
    learner = search(steps=20)
    learner.net.train()
    before = [p.detach().clone() for p in learner.alphas.parameters()]
    for step in range(6):
        learner.step(toy_pair(step, 8))
        assert all(map(torch.equal, learner.alphas.parameters(), before))
        assert all(p.grad is None for p in learner.alphas.parameters())
        assert not learner.descent.alpha_optimizer.state
    learner.step(toy_pair(6, 8))
    for parameter, old in zip(learner.alphas.parameters(), before, strict=True):
        assert not torch.equal(parameter, old)


def test_the_read_out_multiplies_operation_and_edge() -> None:
    learner = search()
    with torch.no_grad():
        learner.alphas.table.zero_()
        assert learner.alphas.edges is not None
        learner.alphas.edges.zero_()
        rows, nodes = list(learner.alphas.options), list(learner.alphas.inputs)
        learner.alphas.table[rows.index("normal_op_05"), 3] = 1.0
        learner.alphas.table[rows.index("normal_op_15"), 3] = 1.0
        learner.alphas.edges[nodes.index("normal_inputs_5")] = torch.tensor([0.0, -3.0, 3.0, 0.5, 0.0])
    arch = learner.architecture()
    # softmax(alpha): .475 for the two, else .25; times softmax(beta): edge 2, then 0 (1 * .475) before 3 (1.65 * .25)
    assert arch["normal_inputs_5"] == (0, 2)
    assert arch["normal_op_05"] == "sep_conv_3x3"
    with torch.no_grad():
        learner.alphas.edges[nodes.index("normal_inputs_5"), 3] = 0.7
    assert learner.architecture()["normal_inputs_5"] == (2, 3)


def test_what_is_found_is_extracted_from_the_plain_network_and_from_the_search_s() -> None:
    learner = search()
    arch, images = learner.architecture(), toy_pair(0, 4)[0][0]
    plain = cells(form="evaluation", mixed=plain_mixed)
    assert search_space(plain) == search_space(learner.net)
    assert extract(plain, arch)(images).shape == (4, 4)
    own = extract(learner.net, arch).eval()
    with activated(learner.net.eval(), arch):
        torch.testing.assert_close(own(images), learner.net(images))


def test_without_nodes_there_is_no_beta() -> None:
    net = Slots()
    learner = PCDARTS(net, search_space(net), steps=10, frozen=0.0)
    assert learner.alphas.edges is None
    learner.step(toy_pair(0))
    assert set(learner.architecture().values()) <= set(OPTIONS)
    with pytest.raises(ValueError, match="share of the steps"):
        PCDARTS(net, search_space(net), steps=10, frozen=15)


def test_the_edges_of_nasbench201_can_be_partial() -> None:
    net = NASBench201(4, 1, (8, 8), width=4, cells=1, affine=False, mixed=PartialChannels(4))
    assert search_space(net) == search_space(NASBench201(4, 1, (8, 8), width=4, cells=1))
    learner = PCDARTS(net, search_space(net), steps=2, frozen=0.0)
    before = learner.alphas.table.detach().clone()
    learner.step(toy_pair(0, 8))
    assert bool((learner.alphas.table.detach() != before).all())


def test_the_recipe_is_the_paper_s() -> None:
    learner = search(steps=50)
    assert (learner.frozen, PartialChannels().parts) == (0.3, 4)
    assert learner.descent.recipe == Recipe(lr=0.1, lr_min=0.0, alpha_lr=6e-4)


@pytest.mark.slow
def test_edge_weights_find_the_edge_with_the_signal() -> None:
    """A node of two edges, one with the signal and one with noise: beta prefers the signal in 9 of 10 seeds."""
    assert sum(_signal_wins(seed) for seed in range(10)) >= 9


def _signal_wins(seed: int) -> bool:
    from sartor.choice import Choice
    from sartor.nn import Inputs
    from toy_supernet import toy_batch

    class Node(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.stems = nn.ModuleList(
                nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(2)
            )
            edges = {str(i): PartialChannels(4)(operations, 8, 1) for i in range(2)}
            self.node = Inputs(edges, Choice([(0,), (1,)], name="inputs"))
            self.head = nn.Linear(8, 4)

        def forward(self, images: Tensor) -> Tensor:
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(int(images.sum() * 1e4)))
            states = [stem(x) for stem, x in zip(self.stems, (noise, images), strict=True)]
            logits: Tensor = self.head(torch.relu(self.node(*states)).mean((2, 3)))
            return logits

    net = Node()
    recipe = Recipe(lr=0.1, lr_min=0.0, alpha_lr=0.02)
    learner = PCDARTS(net, search_space(net), steps=120, seed=seed, recipe=recipe)
    for step in range(120):
        learner.step((toy_batch(2 * step + 10_000 * seed), toy_batch(2 * step + 1 + 10_000 * seed)))
    return learner.architecture()["inputs"] == (1,)
