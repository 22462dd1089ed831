# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from sartor.architecture import Architecture
from sartor.choice import indices
from sartor.costs import cost_table
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.darts import DARTS
from sartor.differentiable.descent import Recipe
from sartor.differentiable.la_darts import LADARTSSearch, measured, near_networks
from sartor.differentiable.penalties import add
from sartor.differentiable.readout import strongest_edges
from sartor.differentiable.relaxations import softmax
from sartor.encodings import onehot
from sartor.predictors import LADARTS
from sartor.space import SearchSpace
from sartor.spaces.cell_operations import OPERATIONS
from sartor.spaces.darts import DartsNetwork
from sartor.supernet import search_space
from toy_slots import Slots, toy_pair

SLOTS = search_space(Slots())
MS = {"skip": 0.0, "pool": 1.0, "conv_1x1": 2.0, "conv_3x3": 5.0}


def latency_ms(arch: Architecture) -> float:
    """Not a sum: a second convolution is fused with the first."""
    convolutions = sum(str(option).startswith("conv") for option in arch.values())
    return 1.0 + sum(MS[str(option)] for option in arch.values()) - 1.5 * max(convolutions - 1, 0)


@functools.cache
def predictor() -> LADARTS:
    archs, ms = measured(SLOTS, latency_ms, 48)
    return LADARTS(SLOTS, steps=300, keep=None).fit(archs, ms)


def search(strength: float = 1.0, **arguments: Any) -> LADARTSSearch:
    recipe = Recipe(lr=0.1, alpha_lr=0.1)
    given = {"steps": 20, "cost": predictor(), "unit": 6.0, "penalty": add(strength), "recipe": recipe}
    return LADARTSSearch(Slots(), SLOTS, **{**given, **arguments})


def test_measured_networks_are_distinct_and_drawn_from_the_space() -> None:
    archs, ms = measured(SLOTS, latency_ms, 40)
    assert len(set(archs)) == 40
    assert all(arch in SLOTS for arch in archs)
    np.testing.assert_array_equal(ms, [latency_ms(arch) for arch in archs])
    assert measured(SLOTS, latency_ms, 40)[0] == archs
    assert len(measured(SLOTS, latency_ms, 1000)[0]) == 64
    with pytest.raises(ValueError, match="count is 1"):
        measured(SLOTS, latency_ms, 1)


def test_a_table_serves_as_the_cost_too() -> None:
    table = cost_table(SLOTS, lambda arch: sum(MS[str(option)] for option in arch.values()))
    learner = search(cost=table)
    assert learner.step(toy_pair(0))["cost"] == pytest.approx(float(table.costs([learner.architecture()])[0]), abs=5.0)


def test_the_cost_is_that_of_the_network_that_would_be_read_out() -> None:
    learner = search()
    mean, _ = learner.cost.predict([learner.architecture()])  # type: ignore[attr-defined]
    assert float(learner.predicted().detach()) == pytest.approx(float(mean[0]), rel=1e-5)


def test_the_gradient_is_that_of_all_operations() -> None:
    learner = search()
    (gradient,) = torch.autograd.grad(learner.predicted(), learner.alphas.table)
    assert bool((gradient != 0).all())
    torch.testing.assert_close(gradient.sum(1), torch.zeros(3), atol=1e-5, rtol=0)  # a softmax's


def test_the_gradient_of_the_soft_code_is_that_of_finite_differences() -> None:
    learner = search(near=False)
    table = learner.alphas.table
    (gradient,) = torch.autograd.grad(learner.predicted(), table)
    sides = []
    for shift in (1e-2, -1e-2):
        with torch.no_grad():
            table[1, 3] += shift
            sides.append(float(learner.predicted()))
            table[1, 3] -= shift
    assert (sides[0] - sides[1]) / 2e-2 == pytest.approx(float(gradient[1, 3]), rel=0.05)


def test_the_regressor_is_frozen() -> None:
    learner = search(10.0)
    net: Any = learner.cost._net  # type: ignore[attr-defined]
    before = [p.clone() for p in net.parameters()]
    for step in range(3):
        learner.step(toy_pair(step))
    assert all(map(torch.equal, net.parameters(), before))
    assert all(p.grad is None for p in net.parameters())


def test_strength_0_is_darts_and_a_large_one_finds_the_fastest() -> None:
    plain = DARTS(Slots(), SLOTS, steps=20, recipe=Recipe(lr=0.1, alpha_lr=0.1))
    none, strong = search(0.0), search(20.0)
    for step in range(12):
        for learner in (plain, none, strong):
            learner.step(toy_pair(step))
    assert torch.equal(plain.alphas.table, none.alphas.table)
    assert set(strong.architecture().values()) == {"skip"}
    assert latency_ms(strong.architecture()) < latency_ms(none.architecture())


def test_what_the_regressor_is_asked_is_a_network_and_not_what_lies_between() -> None:
    found = predictor()
    net = Slots()
    alphas = Alphas(net, SLOTS, scale=1.0)
    weights = softmax(alphas.logits).detach()
    hard, soft = (near_networks(alphas, net, weights, SLOTS, hard=hard) for hard in (True, False))
    arch = alphas.architecture()
    assert float(found(hard)) == pytest.approx(latency_ms(arch), rel=0.15)
    torch.testing.assert_close(soft, alphas.named(weights))


def test_arguments_that_do_not_fit_say_so() -> None:
    with pytest.raises(ValueError, match="unit is 0"):
        search(unit=0)
    other = SearchSpace({"elsewhere": ("a", "b")})
    learner = search(cost=cost_table(other, lambda arch: 1.0))
    with pytest.raises(ValueError, match="asks for 'elsewhere', which is not searched"):
        learner.step(toy_pair(0))
    learner = search(cost=cost_table(SearchSpace({"slot_0": ("skip", "conv_9x9")}), lambda arch: 1.0))
    with pytest.raises(ValueError, match="asks for 'conv_9x9' of 'slot_0', which is not searched"):
        learner.step(toy_pair(0))


class TestCells:
    three = ("none", "skip_connect", "sep_conv_3x3")

    def made(self) -> tuple[DartsNetwork, Alphas, SearchSpace]:
        torch.manual_seed(0)
        operations = {name: OPERATIONS[name] for name in self.three}
        net = DartsNetwork(4, 1, (8, 8), width=4, cells=3, operations=operations)
        alphas = Alphas(net, search_space(net), scale=1.0)
        without = {name: self.three[1:] for name in alphas.options}
        return net, alphas, search_space(net).restrict(without)

    def test_none_is_left_out_and_two_edges_a_node_are_in_the_code(self) -> None:
        net, alphas, known = self.made()
        code = LADARTS(known)._relaxation.code(near_networks(alphas, net, softmax(alphas.logits), known))
        arch = strongest_edges(alphas, net)
        arch = known.canonical({name: option for name, option in arch.items() if option != "none"})  # those off
        ones = [name for name, options in known.choices.items() for _ in options]
        kept = [
            name for name, value in zip(ones, code.detach().tolist(), strict=True) if value > 0.999 and "_op_" in name
        ]
        wanted = [
            f"{kind}_op_{i}{n}"
            for kind in ("normal", "reduce")
            for n in (2, 3, 4, 5)
            for i in indices(arch[f"{kind}_inputs_{n}"])
        ]
        assert sorted(kept) == sorted(wanted)
        assert len(kept) == 16  # the paper's number of ones
        np.testing.assert_allclose(code.detach().numpy(), onehot(known, [arch])[0], atol=1e-6)

    def test_a_cost_that_knows_no_nodes_is_refused(self) -> None:
        net, alphas, known = self.made()
        edges = SearchSpace({name: options for name, options in known.choices.items() if "_op_" in name})
        with pytest.raises(ValueError, match="knows no choice 'normal_inputs_2'"):
            near_networks(alphas, net, softmax(alphas.logits), edges)

    def test_every_alpha_of_an_operation_has_a_gradient(self) -> None:
        net, alphas, known = self.made()
        costs = {"skip_connect": 1.0, "sep_conv_3x3": 4.0}

        def cost(arch: Architecture) -> float:
            return sum(
                costs[str(arch[f"{kind}_op_{i}{n}"])]
                for kind in ("normal", "reduce")
                for n in (2, 3, 4, 5)
                for i in indices(arch[f"{kind}_inputs_{n}"])
            )

        archs, values = measured(known, cost, 60)
        found = LADARTS(known, steps=100, keep=None).fit(archs, values)
        predicted = found(near_networks(alphas, net, softmax(alphas.logits), known))
        (gradient,) = torch.autograd.grad(predicted, alphas.table)
        assert bool((gradient != 0).any(1).all())
        with pytest.raises(ValueError, match="needs weights of shape"):
            found({**known.largest(), **alphas.named(softmax(alphas.logits))})
