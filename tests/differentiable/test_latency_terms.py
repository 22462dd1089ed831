# SPDX-License-Identifier: Apache-2.0
"""What a latency term is for, in little: a network for each device, and a weight that moves the latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from sartor.costs import CostTable
from sartor.differentiable.descent import Recipe
from sartor.differentiable.fbnet import FBNet
from sartor.differentiable.la_darts import LADARTSSearch
from sartor.differentiable.penalties import add, mul_log
from sartor.differentiable.proxylessnas import ProxylessNAS
from sartor.supernet import search_space
from toy_slots import Slots, toy_pair

SPACE = search_space(Slots())
RECIPE = Recipe(lr=0.02, alpha_lr=0.1, alpha_weight_decay=0.0)
FAST_CONVOLUTIONS = {"skip": 8.0, "pool": 8.0, "conv_1x1": 2.0, "conv_3x3": 1.0}
SLOW_CONVOLUTIONS = {"skip": 1.0, "pool": 2.0, "conv_1x1": 8.0, "conv_3x3": 8.0}
FACTORS = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3)  # of the latency over 15; larger ones find the fastest network
METHODS: Mapping[str, tuple[Callable[..., Any], Callable[[float], Any], tuple[float, ...]]] = {
    "fbnet": (FBNet, lambda weight: mul_log(1.0, weight), (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)),
    "proxylessnas": (ProxylessNAS, lambda weight: add(weight / 15.0), FACTORS),
    "la_darts": (LADARTSSearch, lambda weight: add(weight / 15.0), FACTORS),
}


def table(adds: Mapping[str, float]) -> CostTable:
    rows = {name: tuple(adds[str(one)] for one in options) for name, options in SPACE.choices.items()}
    return CostTable(SPACE, 2.0, rows)


def searched(method: str, cost: CostTable, weight: float, steps: int) -> Any:
    kind, penalty, _ = METHODS[method]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Slots()
    learner = kind(net, SPACE, steps=steps, cost=cost, penalty=penalty(weight), recipe=RECIPE)
    for step in range(steps):
        learner.step(toy_pair(step))
    return learner


@pytest.mark.parametrize("method", METHODS)
def test_two_devices_with_opposite_costs_get_a_network_each_that_is_faster_there(method: str) -> None:
    devices = table(FAST_CONVOLUTIONS), table(SLOW_CONVOLUTIONS)
    first, second = (searched(method, device, 4.0, 60).architecture() for device in devices)
    assert first != second
    assert float(devices[0](first)) < float(devices[0](second))
    assert float(devices[1](second)) < float(devices[1](first))


@pytest.mark.parametrize("method", METHODS)
def test_the_weight_of_the_latency_moves_it(method: str) -> None:
    cost, weights = table(SLOW_CONVOLUTIONS), METHODS[method][2]
    expected = []
    for weight in weights:
        alphas = searched(method, cost, weight, 40).alphas
        expected.append(float(cost(alphas.assignment(alphas.probabilities()))))
    assert spearmanr(weights, expected).statistic < -0.9
