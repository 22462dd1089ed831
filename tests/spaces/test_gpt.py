# SPDX-License-Identifier: Apache-2.0
"""GPT: sub-networks are what they extract to, positions are relative, and nothing looks ahead."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
import torch

from contracts.layer_contract import assert_nothing_shared, assert_plain, tensors
from contracts.space_contract import GOLDEN
from sartor.space import SearchSpace
from sartor.spaces.gpt import GPT, rotated, rotations
from sartor.supernet import activated, extract, search_space

torch.set_num_threads(1)


def network(tied: bool = True) -> GPT:
    torch.manual_seed(0)
    return GPT(50, 16, width=(16, 24, 32), heads=(1, 2, 4), ratio=(2, 4), depth=(1, 3), head=8, tied=tied).eval()


IDS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))


def test_names_are_golden() -> None:
    space = search_space(network())
    assert json.loads(space.to_json()) == json.loads((GOLDEN / "gpt.json").read_text())


@pytest.mark.parametrize("tied", [True, False])
def test_extraction_equals_activation(tied: bool) -> None:
    net = network(tied)
    space, rng = search_space(net), random.Random(0)
    for _ in range(12):
        arch = space.sample(rng)
        small: Any = extract(net, arch)
        assert_plain(small)
        with activated(net, arch), torch.no_grad():
            assert torch.equal(net(IDS), small(IDS)), arch
        assert (small.head.weight is small.tokens.weight) == tied
    assert_nothing_shared(net, small)
    assert SearchSpace.from_json(space.to_json()) == space


def test_no_position_sees_what_follows() -> None:
    net, changed = network(), IDS.clone()
    changed[:, 7:] = 3
    with torch.no_grad():
        before, after = net(IDS), net(changed)
    assert torch.equal(before[:, :7], after[:, :7]) and not torch.equal(before[:, 7:], after[:, 7:])


def test_scores_follow_from_the_distance_alone() -> None:
    """Su et al., equation 16: what a query and a key at m and n have in common depends on n - m."""
    cos, sin = rotations(12, 8)
    q, k = torch.randn(8, generator=torch.Generator().manual_seed(1)), torch.randn(8)
    scores = rotated(q.expand(12, 8), cos, sin) @ rotated(k.expand(12, 8), cos, sin).T
    for distance in range(-4, 5):
        along = scores.diagonal(distance)
        assert torch.allclose(along, along[:1].expand_as(along), atol=1e-5)
    assert torch.allclose(rotated(q, cos[0], sin[0]), q)


def test_a_network_on_the_meta_device_is_made_real() -> None:
    with torch.device("meta"):
        ghost = GPT(50, 16, width=(16, 32), heads=(1, 2), ratio=(2,), depth=(1, 2), head=8)
    small: Any = extract(ghost, search_space(ghost).smallest())
    assert all(tensor.is_meta for tensor in tensors(small).values())
    small.to_empty(device="cpu")
    small.reset_parameters()
    assert small(IDS).isfinite().all()
    assert torch.equal(small.cos, rotations(16, 8)[0])


def test_it_learns_and_copies_are_independent() -> None:
    net = network()
    twin = copy.deepcopy(net).train()
    optimizer = torch.optim.Adam(twin.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(twin(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert_nothing_shared(net, twin)


def test_long_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="sequences of 17 tokens are longer than the model's 16: cut them"):
        network()(torch.zeros(1, 17, dtype=torch.long))
