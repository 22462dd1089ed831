# SPDX-License-Identifier: Apache-2.0
"""Channels: found in every layer and space, permuted without a change of function, sorted by importance."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import sartor.nn as elastic
from contracts.layer_contract import LayerCase
from elastic_networks import Net
from layer_cases import CASES
from sartor.choice import Choice, Derived, Size
from sartor.permutation import Channels, channel_groups, importance, permute, sort_channels
from sartor.sizes import ascending, blocks, within
from sartor.spaces.bypass_chain import BypassChain
from sartor.spaces.entangled_macro import EntangledMacro
from sartor.spaces.mobilenet import MobileNet
from sartor.spaces.ofa_mobilenetv3 import OFAMobileNetV3
from sartor.spaces.ofa_proxylessnas import OFAProxylessNAS
from sartor.spaces.ofa_resnet50 import OFAResNet50
from sartor.spaces.single_path import SinglePath
from sartor.supernet import activated, search_space
from toy_supernet import ToyNet, toy_batch

torch.set_num_threads(1)

grey = partial(torch.randn, 2, 1, 8, 8)
SPACES = [
    LayerCase("mobilenet-8", partial(MobileNet, 10, 1, (8, 8)), grey),
    LayerCase("mobilenet-28", partial(MobileNet, 10, 1, (28, 28)), grey),
    LayerCase("single-path", partial(SinglePath, 10, 1, (8, 8)), grey),
    LayerCase("entangled", EntangledMacro, grey),
    LayerCase("entangled-depth", partial(EntangledMacro, depth=True, superposed=True), grey),
    LayerCase("ofa-mobilenetv3", partial(OFAMobileNetV3, 10, 1, (8, 8)), grey),
    LayerCase("ofa-proxylessnas", partial(OFAProxylessNAS, 10, 1, (8, 8)), grey),
    LayerCase("ofa-resnet50", partial(OFAResNet50, 10, 1, (8, 8)), grey),
    LayerCase("toy", ToyNet, grey),
    LayerCase("elastic", Net, partial(torch.randn, 2, 2, 5, 5)),
]
REFUSED = ("channel-multiplier", "groups", "width-per-group", "transposed-groups", "transposed-per-group", "groupnorm")


def filled(case: LayerCase) -> nn.Module:
    """The network with weights and statistics that differ from channel to channel."""
    torch.manual_seed(0)
    net = case.build().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-0.5, 0.5)
        for buffer in net.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return net


def shuffled(net: nn.Module) -> list[Channels]:
    """Permute all that can be, nothing staying in place; return it."""
    groups = [channels for channels in channel_groups(net) if channels.fault is None]
    for channels in groups:
        cycle = torch.randperm(channels.extent)
        permute(channels, torch.empty_like(cycle).scatter(0, cycle, cycle.roll(1)))
    return groups


@pytest.mark.parametrize("case", [*CASES, *SPACES], ids=lambda case: case.name)
def test_the_function_of_the_full_network_stays(case: LayerCase) -> None:
    net, inputs = filled(case), case.example()
    before = net(inputs).detach()
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    groups = shuffled(net)
    torch.testing.assert_close(net(inputs), before, rtol=1e-5, atol=1e-5 * before.abs().max().item())
    changed = any(not torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert changed == any(channels.extent > 1 for channels in groups)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_would_leave_its_group_is_refused_with_a_reason(case: LayerCase) -> None:
    faults = {channels.fault for channels in channel_groups(filled(case))} - {None}
    refused = case.name.startswith(REFUSED)
    assert bool(faults) == refused, faults
    assert all("which no channel may leave" in str(fault) for fault in faults)


@pytest.mark.parametrize("case", SPACES, ids=lambda case: case.name)
def test_every_channel_of_the_spaces_can_move(case: LayerCase) -> None:
    groups = channel_groups(case.build())
    assert groups and not [channels.fault for channels in groups if channels.fault]


def test_refusals() -> None:
    width = Choice([2, 4])
    net = nn.Sequential(elastic.Conv2d(1, width, 1), elastic.GroupNorm(2, width), elastic.Conv2d(width, 3, 1))
    (channels,) = channel_groups(net)
    with pytest.raises(ValueError, match="channels of 0 cannot be permuted: 1 normalises groups"):
        permute(channels, torch.arange(4))
    (channels,) = channel_groups(nn.Sequential(elastic.Linear(1, width), elastic.Linear(width, 3)))
    for order in (torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2, 2]), torch.arange(4.0)):
        with pytest.raises(ValueError, match="is no permutation of the 4 channels"):
            permute(channels, order)


def test_more_that_is_refused() -> None:
    width = Choice([2, 4])

    def fault(*layers: nn.Module) -> str:
        (channels,) = channel_groups(nn.Sequential(elastic.Linear(1, width), *layers, elastic.Linear(width, 3)))
        return str(channels.fault)

    class Own(elastic.Elastic):
        def __init__(self) -> None:
            super().__init__()
            self.width = width

        def extract(self) -> nn.Module:
            return nn.Identity()

    tied = elastic.Linear(width, width, bias=False)
    plain = nn.Linear(4, 4, bias=False)
    plain.weight = tied.weight
    assert "of whose tensors nothing is known" in fault(Own())
    assert "is parametrized" in fault(elastic.quantized(elastic.Linear(width, width), 4))
    assert "is shared with a layer of other sizes" in fault(tied, plain)
    assert "which nothing makes" in fault(elastic.Linear(half(width), 3))
    assert fault(nn.ReLU()) == "None"


def half(width: Choice) -> Size:
    return width // 2


def test_a_bypass_ties_channels_of_several_sizes() -> None:
    assert all("Bypass" in str(channels.fault) for channels in channel_groups(BypassChain(10)))


def test_the_importance_is_the_l1_norm_of_all_that_reads() -> None:
    net = filled(SPACES[-2])
    assert isinstance(net, ToyNet)
    groups = {channels.name: importance(channels) for channels in channel_groups(net)}
    weights = {name: weight.detach().abs() for name, weight in net.named_parameters() if name.endswith("weight")}
    torch.testing.assert_close(groups["blocks.0.conv1"], weights["blocks.0.conv2.weight"].sum((0, 2, 3)))
    readers = [weights[f"blocks.{i}.conv1.weight"].sum((0, 2, 3)) for i in range(3)]
    readers += [weights["mix.conv.weight"].sum((0, 2, 3)), weights["head.weight"].sum(0)]
    torch.testing.assert_close(groups["stem"], torch.stack(readers).sum(0))


def test_flattened_channels_count_all_their_features_and_gates_do_not_count() -> None:
    width = Choice([1, 2])
    conv, linear = elastic.Conv2d(1, width, 1), elastic.Linear(width * 3, 1)
    linear.weight.data = torch.tensor([[1.0, -2.0, 3.0, 0.0, 5.0, 0.0]])
    net = nn.Sequential(conv, elastic.SqueezeExcite(width, 0.5, 1), nn.Flatten(), linear)
    groups = {channels.name: channels for channels in channel_groups(net)}
    assert importance(groups["0"]).tolist() == [6.0, 5.0]
    assert {place.role for place in groups["0"].places} == {"makes", "gates", "reads"}


def test_sorted_channels_fall_in_importance() -> None:
    net = filled(SPACES[0])
    groups = sort_channels(net)
    assert len(groups) == len(channel_groups(net))
    values = [importance(channels) for channels in groups if len(channels.size.roots) == 1]
    assert values and all((value.diff() <= 1e-6).all() for value in values)


@pytest.mark.parametrize("case", SPACES[:-1], ids=lambda case: case.name)
def test_no_sub_network_that_was_trained_changes(case: LayerCase) -> None:
    """Channels stay within the bands between the widths of the trained options."""
    net, inputs = filled(case), case.example()
    space = search_space(net)
    named = {
        name: options for name, options in space.choices.items() if not name.endswith("depth") and len(options) > 2
    }
    trained = space.restrict({name: ascending(options)[-2:] for name, options in named.items()})
    archs = [trained.sample(random.Random(seed)) for seed in range(5)]

    def outputs() -> list[Tensor]:
        found = []
        for arch in archs:
            with activated(net, arch):
                found.append(net(inputs))
        return found

    before, weights = outputs(), [parameter.clone() for parameter in net.parameters()]
    sort_channels(net, trained)
    assert not all(map(torch.equal, net.parameters(), weights))
    for one, other in zip(outputs(), before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


def test_moments_and_gradients_go_along() -> None:
    """A training goes on as if nothing had been sorted."""
    nets = [ToyNet(dropout=0.0).train() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    losses: list[list[float]] = [[], []]
    for net, found in zip(nets, losses, strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for step in range(6):
            images, labels = toy_batch(step)
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            found.append(loss.item())
            if net is nets[1] and step == 2:
                assert sort_channels(net, optimizer=optimizer)
            optimizer.step()
            optimizer.zero_grad()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert not torch.allclose(nets[0].stem.weight, nets[1].stem.weight)


def test_heads_move_whole() -> None:
    torch.manual_seed(0)
    attention = elastic.MultiheadAttention(6, Choice([1, 4], name="heads"), 3, queries_per_head=2)
    (heads,) = channel_groups(attention)
    assert heads.extent == 4 and {place.block for place in heads.places} == {3, 6}
    values = importance(heads)
    weights = attention.out_proj.weight.detach().abs().sum(0).view(4, 6).sum(1)
    torch.testing.assert_close(values, weights)
    keys = attention.k_proj.weight.detach().clone().view(4, 3, 6)
    sort_channels(attention)
    assert torch.equal(attention.k_proj.weight.view(4, 3, 6), keys[values.argsort(descending=True)])


def test_heads_that_one_layer_writes_as_a_product_are_heads_too() -> None:
    heads = Choice([1, 2])
    net = nn.Sequential(elastic.Linear(1, Derived(blocks, heads, 3)), elastic.Linear(heads * 3, 2))
    (group,) = channel_groups(net)
    assert [(place.role, place.block) for place in group.places] == [("makes", 3), ("makes", 3), ("reads", 3)]


def test_one_choice_for_two_places_keeps_an_order_for_each() -> None:
    width = Choice([1, 4])
    net = nn.Sequential()
    for place in ("a", "b"):
        own = Derived(partial(within, place), width)
        net += nn.Sequential(elastic.Linear(2, own), elastic.Linear(own, 2))
    assert [group.name for group in channel_groups(net)] == ["0", "2"]


def test_index_lists_name_channels_and_are_left_alone() -> None:
    width = Choice([(0, 2), (0, 1, 2)])
    net = nn.Sequential(elastic.Linear(1, width), elastic.Linear(width, 3))
    assert len(channel_groups(net)) == 1 and sort_channels(net) == []


def test_channels_of_one_size_written_twice_are_one_group() -> None:
    width, expand = Choice([2, 4]), Choice([1, 3])
    layers = [elastic.Linear(1, width), elastic.Linear(width, width * expand), elastic.Linear(expand * width, 3)]
    groups = channel_groups(nn.Sequential(*layers))
    assert [(channels.name, channels.extent, len(channels.places)) for channels in groups] == [
        ("0", 4, 3),
        ("1", 12, 3),
    ]
