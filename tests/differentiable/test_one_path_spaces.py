# SPDX-License-Identifier: Apache-2.0
"""Methods that sample paths, on spaces whose choices share names between cells, gate each other or may be nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from sartor.architecture import Architecture
from sartor.differentiable.fbnet import FBNet
from sartor.differentiable.fbnetv5 import FBNetV5
from sartor.differentiable.fp_nas import FPNAS
from sartor.differentiable.gdas import GDAS
from sartor.differentiable.parsec import PARSEC
from sartor.differentiable.proxylessnas import ProxylessNAS
from sartor.differentiable.snas import SNAS
from sartor.spaces.darts import DartsNetwork
from sartor.spaces.micro import Micro
from sartor.spaces.nasbench201 import NASBench201
from sartor.spaces.proxylessnas import ProxylessNAS as Chain
from sartor.supernet import extract, search_space
from toy_networks import noise

METHODS: dict[str, Callable[..., Any]] = {
    "snas": SNAS,
    "gdas": GDAS,
    "fbnet": partial(FBNet, frozen=0),
    "proxylessnas": partial(ProxylessNAS, warm_up=0, epochs=5, every=1),
    "proxylessnas-two": partial(ProxylessNAS, mode="two", warm_up=0, epochs=5, every=1),
    "proxylessnas-reinforce": partial(ProxylessNAS, mode="reinforce", samples=2, warm_up=0, epochs=5, every=1),
    "parsec": partial(PARSEC, samples=2),
    "fp_nas": partial(FPNAS, per_nat=0.0),
    "fbnetv5": FBNetV5,
}
SPACES: dict[str, Callable[[], nn.Module]] = {
    "darts": lambda: DartsNetwork(10, 1, (8, 8), width=2, cells=3),
    "nasbench201": lambda: NASBench201(10, 1, (8, 8), width=2, cells=1),
    "chain": lambda: Chain(10, 1, (8, 8)),
}


CASES = [(method, space) for space in ("darts", "nasbench201") for method in METHODS]
CASES += [("proxylessnas-two", "chain")]  # the others are the same there, and as large as the chain is


@pytest.mark.parametrize(("method", "space"), CASES)
def test_a_step_moves_the_logits_and_what_is_read_out_is_a_network(method: str, space: str) -> None:
    torch.manual_seed(0)
    net = SPACES[space]()
    domain = search_space(net)
    search = METHODS[method](net, domain, steps=5)
    search.descent.done = 4  # past what is frozen, and the last fifth of an epoch
    before = [p.detach().clone() for p in search.descent.alpha_parameters]
    batch = noise(4), torch.arange(4)
    for _ in range(2):  # a baseline needs a step before
        search.step((batch, batch) if search.needs == "pairs" else batch)
    moved = [not torch.equal(p, old) for p, old in zip(search.descent.alpha_parameters, before, strict=True)]
    assert any(moved) or method == "proxylessnas-reinforce"  # equal rewards of four images teach nothing
    arch: Architecture = search.architecture()
    assert arch in domain
    assert extract(net, arch)(noise(2)).shape == (2, 10)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_stops_before_anything_changes(method: str) -> None:
    net = Micro()
    search = METHODS[method](net, search_space(net), steps=5)
    batch = torch.full((4, 1, 8, 8), torch.nan), torch.arange(4)
    before = [p.detach().clone() for p in search.descent.weight_parameters]
    with pytest.raises(ValueError, match=r"loss of the weights.* is nan at step 1, on batch 0.*lower the learning"):
        search.step((batch, batch) if search.needs == "pairs" else batch)
    assert all(map(torch.equal, before, search.descent.weight_parameters))
