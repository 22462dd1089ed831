# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
import torch

from sartor.choice import Choice, Kept
from sartor.differentiable.alphas import Alphas, node_inputs
from sartor.differentiable.relaxations import softmax
from sartor.nn import Inputs, OneOf
from sartor.spaces.darts import DartsNetwork
from sartor.supernet import activated, search_space
from toy_slots import OPTIONS, Slots
from toy_supernet import ToyNet

SMALL = {"classes": 4, "channels": 1, "size": (8, 8), "width": 4, "cells": 3}
X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def slots(**arguments: object) -> Alphas:
    net = Slots()
    return Alphas(net, search_space(net), **arguments)  # type: ignore[arg-type]


def test_there_is_a_row_of_small_logits_for_each_choice() -> None:
    alphas = slots()
    assert list(alphas.options) == ["slot_0", "slot_1", "slot_2"]
    assert alphas.table.shape == (3, 4)
    assert 0.0 < float(alphas.table.detach().std()) < 3e-3
    assert torch.equal(alphas.table, slots().table)
    assert not torch.equal(alphas.table, slots(seed=1).table)
    assert not slots(scale=0.0).table.any()
    assert [name for name, _ in alphas.named_parameters()] == ["table"]


def test_choices_of_different_lengths_are_padded_with_options_of_no_weight() -> None:
    net = ToyNet()
    alphas = Alphas(net, search_space(net))
    rows = alphas.named(alphas.probabilities())
    assert {name: len(row) for name, row in rows.items()} == {n: len(o) for n, o in alphas.options.items()}
    for row in rows.values():
        torch.testing.assert_close(row.sum(), torch.ones(()))
    assert bool(torch.isfinite(torch.autograd.grad(alphas.entropy(), alphas.table)[0]).all())
    with activated(net, {**alphas.assignment(softmax(alphas.logits)), "resolution": 8}):
        assert net(X).shape == (2, 4)


def test_options_that_the_space_leaves_out_have_no_weight() -> None:
    net = Slots()
    space = search_space(net).restrict(slot_1=["conv_1x1", "pool"])
    alphas = Alphas(net, space)
    row = alphas.named(alphas.probabilities())["slot_1"]
    assert [option for option, weight in zip(OPTIONS, row.tolist(), strict=True) if weight] == ["pool", "conv_1x1"]
    assert alphas.architecture() in space


def test_the_architecture_has_the_most_probable_options() -> None:
    alphas = slots()
    with torch.no_grad():
        alphas.table[:, 2] = 5.0
        alphas.table[1, 0] = 9.0
    assert dict(alphas.architecture()) == {"slot_0": "conv_1x1", "slot_1": "skip", "slot_2": "conv_1x1"}
    assert dict(alphas.architecture(torch.tensor([0, 1, 3]))) == dict(
        zip(alphas.options, ("skip", "pool", "conv_3x3"), strict=True)
    )


def test_positions_and_architectures_are_each_others_inverse() -> None:
    alphas = slots()
    rng = random.Random(0)
    for _ in range(10):
        arch = alphas.space.sample(rng)
        assert alphas.architecture(alphas.positions(arch)) == arch


def test_a_hard_assignment_is_the_network_of_its_positions() -> None:
    net = Slots().eval()
    alphas = Alphas(net, search_space(net))
    positions = torch.tensor([3, 0, 1])
    with activated(net, alphas.hard(positions)):
        hard = net(X)
    with activated(net, alphas.architecture(positions)):
        assert torch.equal(net(X), hard)


def test_a_space_without_operations_to_choose_says_so() -> None:
    net = OneOf({"a": torch.nn.Identity()}, name="only")
    Alphas(net, search_space(net))
    edges = Inputs({str(i): torch.nn.Identity() for i in range(3)}, Choice([(0, 1), (0, 2), (1, 2)]))
    with pytest.raises(ValueError, match="no choice but inputs"):
        Alphas(edges, search_space(edges))


class TestCells:
    net = DartsNetwork(**SMALL)  # type: ignore[arg-type]
    space = search_space(net)

    def test_the_inputs_of_nodes_are_known_by_their_number_of_edges(self) -> None:
        assert node_inputs(self.net) == {
            f"{kind}_inputs_{node}": node for kind in ("normal", "reduce") for node in (2, 3, 4, 5)
        }

    def test_there_are_two_tables_of_14_by_8(self) -> None:
        alphas = Alphas(self.net, self.space)
        assert alphas.table.shape == (28, 8)
        assert alphas.edges is None
        assert not any("inputs" in name for name in alphas.options)

    def test_all_edges_count_one_while_searching(self) -> None:
        alphas = Alphas(self.net, self.space)
        assignment = alphas.assignment(softmax(alphas.logits))
        assert assignment.keys() == self.space.choices.keys()
        for name, count in alphas.inputs.items():
            kept = assignment[name]
            assert isinstance(kept, Kept)
            assert kept.weights.tolist() == [1.0] * count

    def test_edge_weights_sum_to_one_at_each_node_and_are_learnt(self) -> None:
        alphas = Alphas(self.net, self.space, edges=True)
        assert [name for name, _ in alphas.named_parameters()] == ["table", "edges"]
        for name, weights in alphas.edge_weights().items():
            assert weights.shape == (alphas.inputs[name],)
            torch.testing.assert_close(weights.sum(), torch.ones(()))
        assert alphas.edges is not None
        with activated(self.net, alphas.assignment(softmax(alphas.logits))):
            table, edges = torch.autograd.grad(self.net(X)[0, 0], [alphas.table, alphas.edges])
        assert bool((table != 0).any(1).all())
        assert [int((row != 0).sum()) for row in edges] == list(alphas.inputs.values())

    def test_given_edges_replace_those_of_a_node(self) -> None:
        alphas = Alphas(self.net, self.space)
        mask = torch.tensor([1.0, 0.0, 1.0])
        assignment = alphas.assignment(softmax(alphas.logits), {"normal_inputs_3": mask})
        kept, other = assignment["normal_inputs_3"], assignment["reduce_inputs_3"]
        assert isinstance(kept, Kept)
        assert isinstance(other, Kept)
        assert kept.weights is mask
        assert other.weights.tolist() == [1.0] * 3

    def test_inputs_can_be_given_to_an_architecture(self) -> None:
        alphas = Alphas(self.net, self.space)
        arch = alphas.architecture(normal_inputs_5=(2, 4))
        assert arch["normal_inputs_5"] == (2, 4)
        assert arch in self.space
