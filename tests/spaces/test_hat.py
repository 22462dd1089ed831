# SPDX-License-Identifier: Apache-2.0
"""HAT: sub-networks are what they extract to, and what the decoder reads of the encoder."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch

from contracts.layer_contract import assert_nothing_shared, assert_plain
from contracts.space_contract import GOLDEN
from sartor.spaces.hat import FEATURES, HAT, features
from sartor.supernet import activated, extract, search_space
from sartor.workload import macs, parameters, trace

torch.set_num_threads(1)
GENERATOR = torch.Generator().manual_seed(0)
SOURCE, TARGET = torch.randint(2, 20, (3, 7), generator=GENERATOR), torch.randint(2, 20, (3, 6), generator=GENERATOR)
SOURCE[1, 5:] = 1  # pads


def network() -> HAT:
    torch.manual_seed(0)
    return HAT(
        20, embed=(24, 32), ffn=(32, 64), heads=(2, 4), depth=(1, 2, 3), layers=3, inner=16, read=(1, 2, 3), longest=30
    ).eval()


def test_names_are_golden() -> None:
    assert json.loads(search_space(network()).to_json()) == json.loads((GOLDEN / "hat.json").read_text())


def test_extraction_equals_activation() -> None:
    net = network()
    space, rng = search_space(net), random.Random(0)
    for _ in range(12):
        arch = space.sample(rng)
        small: Any = extract(net, arch)
        assert_plain(small)
        with activated(net, arch), torch.no_grad():
            assert torch.equal(net(SOURCE, TARGET), small(SOURCE, TARGET)), arch
        assert small.head.weight is small.target.embedding.weight
    assert_nothing_shared(net, small)


def test_reading_one_layer_is_ordinary_attention_to_the_last() -> None:
    net = network()
    layer, outputs = net.decoder[0], [torch.randn(2, 5, 32) for _ in range(3)]
    y, hidden = torch.randn(2, 4, 32), torch.zeros(2, 1, 1, 5, dtype=torch.bool)
    with activated(net, {"decoder.0.read": 1}), torch.no_grad():
        one, last = layer(y, outputs, hidden), layer(y, outputs[-1:], hidden)
    with torch.no_grad():
        three = layer(y, outputs, hidden)
    assert torch.equal(one, last) and not torch.allclose(one, three)


def test_pads_and_what_follows_are_not_seen() -> None:
    net = network()
    with torch.no_grad():
        before = net(SOURCE, TARGET)
        cut = net(SOURCE[1:2, :5], TARGET[1:2])
        later = TARGET.clone()
        later[:, 4:] = 9
        assert torch.allclose(before[1:2], cut, atol=1e-5)
        assert torch.equal(before[:, :4], net(SOURCE, later)[:, :4])


def test_layers_beyond_the_depth_change_nothing() -> None:
    net = network()
    space, rng = search_space(net), random.Random(1)
    arch = space.canonical({**space.sample(rng), "decoder.depth": 1})
    other = {**arch, "decoder.2.ffn": 64, "decoder.1.heads": 4}
    assert space.canonical(other) == arch and features(arch)[5] == 1
    assert macs(trace(extract(net, other), SOURCE, TARGET)) == macs(trace(extract(net, arch), SOURCE, TARGET))


def test_heads_change_no_weight() -> None:
    with torch.device("meta"):
        net = HAT(20)
    space = search_space(net)
    largest = space.largest()
    few = {name: 4 if name.endswith("heads") else option for name, option in largest.items()}
    counts = [parameters(trace(extract(net, arch), SOURCE, TARGET)) for arch in (largest, few)]
    assert counts[0] == counts[1]
    assert space.choices["decoder.depth"] == (1, 2, 3, 4, 5, 6) and space.choices["encoder_embed"] == (512, 640)


def test_features_are_the_papers() -> None:
    space = search_space(network())
    assert len(FEATURES) == len(features(space.largest())) == 10
    assert features(space.largest()) == (32, 3, 64, 4, 32, 3, 64, 4, 4, 3)
    assert features(space.smallest()) == (24, 3, 32, 2, 24, 1, 32, 2, 2, 1)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="a width of 16 does not divide into 3 heads: change either"):
        HAT(20, heads=(2, 3), inner=16)
