# SPDX-License-Identifier: Apache-2.0
"""Weights in int8 after training: what is stored, how far it is off, and what it takes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import sartor.nn as elastic
from sartor.choice import Choice
from sartor.deploy.quantize import size_in_bytes, weights_int8
from sartor.nn.quantize import Int8


class Tied(nn.Module):
    """An embedding and a head of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.embedding(ids)))
        return logits


def test_entries_are_rounded_to_127_steps_of_their_row() -> None:
    """By hand: 2.54 / 127 = .02, so that 1.27 is 63.5 steps, which round to the even 64."""
    values, scale = Int8().right_inverse(torch.tensor([[2.54, -1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert values.dtype is torch.int8
    assert values.tolist() == [[127, -50, 0], [0, 0, 0]]
    assert scale.flatten().tolist() == pytest.approx([0.02, 1.0])


def test_no_weight_is_off_by_more_than_half_a_step() -> None:
    torch.manual_seed(0)
    plain: Any = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    rounded: Any = weights_int8(copy.deepcopy(plain))
    for before, after in ((plain[0], rounded[0]), (plain[2], rounded[2])):
        step = before.weight.abs().amax(1, keepdim=True) / 127
        assert bool(((after.weight - before.weight).abs() <= 0.5001 * step).all())
        assert torch.equal(after.bias, before.bias)
    x = torch.randn(8, 16)
    torch.testing.assert_close(rounded(x), plain(x), rtol=0.0, atol=0.02)


def test_size_is_that_of_the_stored_tensors() -> None:
    net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 4))
    assert size_in_bytes(net) == 4 * (16 * 32 + 32 + 4 * 32 + 32 * 4 + 4) + 8
    assert size_in_bytes(weights_int8(net)) == 16 * 32 + 32 * 4 + 4 * (32 + 4 + 32 + 4 * 32 + 4) + 8


def test_tied_weights_stay_tied_and_count_once() -> None:
    torch.manual_seed(0)
    net = Tied()
    ids, before = torch.arange(11)[None], size_in_bytes(net)
    assert before == 4 * (11 * 8 + 16)
    plain = net(ids)
    rounded: Any = weights_int8(net)
    assert size_in_bytes(rounded) == 11 * 8 + 4 * 11 + 4 * 16
    assert torch.equal(rounded.embedding.weight, rounded.head.weight)
    torch.testing.assert_close(rounded(ids), plain, rtol=0.0, atol=0.1)
    again = Tied()
    weights_int8(again).load_state_dict(rounded.state_dict())
    assert torch.equal(again(ids), rounded(ids))


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ValueError, match="no linear layer"):
        weights_int8(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="extract"):
        weights_int8(nn.Sequential(elastic.Linear(4, Choice([2, 4]))))
    with pytest.raises(ValueError, match="already"):
        weights_int8(weights_int8(nn.Sequential(nn.Linear(2, 2))))
