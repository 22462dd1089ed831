# SPDX-License-Identifier: Apache-2.0
"""Weights that are mixed from experts: encodings, routers, mixtures, and what is extracted."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sartor.nn as elastic
from contracts import layer_contract as law
from contracts.layer_contract import LayerCase, assert_plain, distance
from sartor.assignments import PerSample
from sartor.choice import Choice
from sartor.nn import Encoding, Router, route
from sartor.nn.parametrized import originals
from sartor.nn.routed import Routing
from sartor.supernet import activated, extract, named_choices, search_space

torch.set_num_threads(1)

F64 = torch.float64
LIKE = torch.zeros(1)
ROUTINGS: tuple[Routing, ...] = ("layer", "neuron")


class Net(nn.Module):
    """Every kind of choice: a width, an index list, a kernel, a flag and an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.listed = Choice([2, 4, 6]), Choice([(0, 2), (0, 1, 2, 3)])
        self.conv = elastic.Conv2d(2, self.width, 1)
        self.wide = elastic.Conv2d(self.width, self.listed, Choice([1, 3]), padding="same", bias=False)
        self.act = elastic.OneOf({"tanh": nn.Tanh(), "relu": nn.ReLU(), "none": nn.Identity()})
        self.head = elastic.Linear(self.listed, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.act(self.wide(torch.tanh(self.conv(x)))).mean((2, 3)))
        return logits


def routed(routing: Routing = "layer", experts: int = 2, noise: float = 0.3) -> Net:
    net = Net()
    encoding, generator = Encoding(named_choices(net).values()), torch.Generator().manual_seed(1)
    for layer in (net.conv, net.wide, net.head):
        route(layer, encoding, experts=experts, routing=routing, noise=noise, generator=generator)
    return net


def routers(net: nn.Module) -> list[Router]:
    return [module for module in net.modules() if isinstance(module, Router)]


def images() -> Tensor:
    return torch.randn(4, 2, 5, 5)


CASES = [LayerCase(routing, lambda routing=routing: routed(routing), images) for routing in ROUTINGS]  # type: ignore[misc]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "check",
    [law.one_hot_equals_hard, law.extraction_shares_nothing, law.state_dict_round_trip, law.exports, law.prints],
    ids=lambda check: check.__name__,
)
def test_law(check: Any, case: LayerCase) -> None:
    check(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_extracted_equals_what_is_routed(case: LayerCase) -> None:
    law.extraction_equals_activation(case, F64)
    law.gradients_reach_every_choice(case, training=False)
    network, x = case.network(torch.float32).eval(), case.inputs(torch.float32)
    for arch in law.sampled(network, 8):
        small: Any = extract(network, arch)
        assert_plain(small)
        assert not any(parametrize.is_parametrized(module) for module in small.modules()) and not routers(small)
        assert {name for name, _ in small.named_parameters()} == {name for name, _ in Net().named_parameters()}
        with activated(network, arch):
            assert distance(small(x), network(x)) <= 1e-6


def test_names_of_choices_are_those_of_the_plain_network() -> None:
    assert search_space(routed()) == search_space(Net())


def test_copies_are_independent() -> None:
    net, x = routed(), images()
    twin = copy.deepcopy(net)
    smallest = search_space(net).smallest()
    before = twin(x)
    with activated(net, smallest):
        assert torch.equal(twin(x), before) and not torch.equal(net(x), before)
    law.assert_nothing_shared(net, twin)


# ---- the encoding ---------------------------------------------------------------------------------------------


def test_the_encoding_is_scaled_numbers_and_one_hot_operations() -> None:
    net = Net()
    choices = named_choices(net)
    assert list(choices) == ["width", "listed", "wide.kernel_size", "act.choice"]
    encoding = Encoding(choices.values())
    assert encoding.size == 1 + 1 + 1 + 3
    assert encoding(LIKE).tolist() == [1, 1, 1, 0, 0, 1]
    with activated(net, {"width": 4, "listed": (0, 2), "wide.kernel_size": 1, "act.choice": "tanh"}):
        assert encoding(LIKE).tolist() == [0.5, 0, 0, 1, 0, 0]
    assert encoding(LIKE).tolist() == [1, 1, 1, 0, 0, 1]  # nothing is remembered
    with activated(net, {"width": torch.tensor([0.5, 0.0, 0.5])}):
        assert encoding(LIKE).tolist() == [0.5, 1, 1, 0, 0, 1]


def test_what_cannot_be_encoded() -> None:
    net = Net()
    encoding = Encoding(named_choices(net).values())
    with activated(net, {"width": PerSample(torch.tensor([0]))}), pytest.raises(ValueError, match="under PerSample"):
        encoding(LIKE)
    with pytest.raises(ValueError, match="no choice to encode"):
        Encoding([])
    assert Encoding([Choice([(0, 1), (0, 2)])]).size == 2  # of equal length
    assert Encoding([Choice([7])])(LIKE).tolist() == [0]


# ---- routers and experts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", ROUTINGS)
def test_weights_of_experts_sum_to_one(routing: Routing) -> None:
    net = routed(routing, experts=3)
    for arch in law.sampled(net, 6):
        with activated(net, arch):
            for router, outputs in zip(routers(net), (6, 4, 3), strict=True):
                alpha = router()
                assert alpha.shape == (outputs if routing == "neuron" else 1, 3)
                torch.testing.assert_close(alpha.sum(1), torch.ones(len(alpha)))


def test_neurons_have_mixtures_of_their_own() -> None:
    net = routed("neuron")
    chain: Any = net.head.parametrizations["weight"]  # type: ignore[index]
    bias: Any = net.head.parametrizations["bias"]  # type: ignore[index]
    alpha = chain[0].router()
    expected = torch.stack(
        [sum(alpha[row, j] * getattr(chain, f"original{j}")[row] for j in range(2)) for row in range(3)]
    )
    torch.testing.assert_close(net.head.weight, expected)
    torch.testing.assert_close(net.head.bias, alpha[:, 0] * bias.original0 + alpha[:, 1] * bias.original1)
    assert len({round(value, 6) for value in alpha[:, 0].tolist()}) == 3


@pytest.mark.parametrize("routing", ROUTINGS)
def test_one_expert_is_the_plain_supernet_exactly(routing: Routing) -> None:
    torch.manual_seed(0)
    net, x = Net(), images()
    state = torch.random.get_rng_state()
    one = copy.deepcopy(net)
    encoding = Encoding(named_choices(one).values())
    for layer in (one.conv, one.wide, one.head):
        route(layer, encoding, experts=1, routing=routing)
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing was drawn from torch's own generator
    for arch in law.sampled(net, 6):
        with activated(net, arch), activated(one, arch):
            a, b = net(x), one(x)
        assert torch.equal(a, b)
        for loss in (a, b):
            loss.square().sum().backward()
    experts = dict(one.named_parameters())
    for name, parameter in net.named_parameters():
        path, _, tensor = name.rpartition(".")
        assert torch.equal(parameter.grad, experts[f"{path}.parametrizations.{tensor}.original0"].grad)  # type: ignore[arg-type]


def test_with_equal_experts_the_router_does_not_matter() -> None:
    torch.manual_seed(0)
    plain, x = Net(), images()
    net = copy.deepcopy(plain)
    encoding = Encoding(named_choices(net).values())
    for layer in (net.conv, net.wide, net.head):
        route(layer, encoding, experts=3, routing="neuron", noise=0.0)
    for arch in law.sampled(net, 6):
        with activated(net, arch), activated(plain, arch):
            assert distance(net(x), plain(x)) <= 1e-6
    for router in routers(net):
        nn.init.normal_(router.last.weight, 0.0, 3.0)
    assert distance(net(x), plain(x)) <= 1e-6


@pytest.mark.parametrize("routing", ROUTINGS)
def test_gradients_reach_every_router_under_any_architecture(routing: Routing) -> None:
    net, x = routed(routing, noise=0.1), images()
    space, rng = search_space(net), random.Random(0)
    for _ in range(8):
        net.zero_grad()
        with activated(net, space.sample(rng)):
            net(x).square().sum().backward()
        for router in routers(net):
            assert all(p.grad is not None and bool(p.grad.any()) for p in (router.hidden.weight, router.last.weight))


def test_the_same_layer_has_other_weights_in_another_architecture() -> None:
    net = routed()
    one, two = (search_space(net).largest().replace({"act.choice": option}) for option in ("tanh", "relu"))
    assert not torch.equal(extract(net, one).head.weight, extract(net, two).head.weight)  # type: ignore[union-attr, arg-type]


def test_noise_is_a_share_of_the_deviation_and_leaves_the_first() -> None:
    torch.manual_seed(0)
    layer = elastic.Linear(Choice([50, 100]), 100)
    before, deviation = layer.weight.detach().clone(), float(layer.weight.detach().std(correction=0))
    route(layer, Encoding([layer.in_features]), experts=2, noise=0.5)
    chain: Any = layer.parametrizations["weight"]  # type: ignore[index]
    assert torch.equal(chain.original0, before)
    assert float((chain.original1.detach() - before).std()) == pytest.approx(0.5 * deviation, rel=0.05)
    assert len(originals(layer)) == 4


def test_what_cannot_be_routed() -> None:
    net = routed()
    encoding = Encoding(named_choices(net).values())
    with pytest.raises(ValueError, match="cannot be routed"):
        route(net.head, encoding)
    with pytest.raises(ValueError, match="cannot be routed"):
        route(nn.Linear(2, 2), encoding)
    for wrong in ({"experts": 0}, {"routing": "head"}):
        with pytest.raises(ValueError, match="give at least 1, and 'layer' or 'neuron'"):
            route(elastic.Linear(2, 2), encoding, **wrong)
