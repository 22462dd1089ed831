# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from sartor.architecture import Architecture
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.readout import derived, edges_of, sample_and_select, strongest_options
from sartor.differentiable.relaxations import draws
from sartor.spaces.darts import DartsNetwork
from sartor.supernet import search_space
from toy_slots import Slots


def alphas() -> Alphas:
    net = Slots()
    return Alphas(net, search_space(net), scale=0.0)


def test_excluded_options_are_taken_only_where_there_is_no_other() -> None:
    net = Slots()
    made = Alphas(net, search_space(net).restrict(slot_2=["skip"]), scale=0.0)
    with torch.no_grad():
        made.table[:, 0] = 5.0
        made.table[1, 3] = 1.0
    assert set(strongest_options(made).values()) == {"skip"}
    assert strongest_options(made, exclude=["skip"]) == {"slot_0": "pool", "slot_1": "conv_3x3", "slot_2": "skip"}


def test_the_edges_of_a_node_are_told_in_their_order_and_once_for_all_cells() -> None:
    with torch.device("meta"):
        net = DartsNetwork(cells=6, width=4)
    found = edges_of(net)
    assert len(found) == 8
    assert found["reduce_inputs_4"] == tuple(f"reduce_op_{source}4" for source in range(4))


def test_the_best_of_several_drawn_is_selected_and_each_is_scored_once() -> None:
    made, scored = alphas(), list[Architecture]()

    def score(arch: Architecture) -> float:
        scored.append(arch)
        return float(sum(option == "conv_3x3" for option in arch.values()))

    best = sample_and_select(made, draws(0, 0), 200, score)
    assert set(best.values()) == {"conv_3x3"}  # all 64 networks are equally likely
    assert scored[0] == derived(made, Slots())
    assert len(set(scored)) == len(scored) <= 64
    with pytest.raises(ValueError, match="count is 0"):
        sample_and_select(made, draws(0, 0), 0, score)
