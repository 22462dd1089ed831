# SPDX-License-Identifier: Apache-2.0
"""The weight of the latency is a knob: the more of it, the faster the network, on digits with real training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sartor.costs import CostTable
from sartor.differentiable import fbnet, proxylessnas
from sartor.differentiable.penalties import add_linear, mul_log
from sartor.ranking import spearman
from sartor.spaces.micro import Micro
from sartor.supernet import search_space
from sartor.task import load_task

WEIGHTS = (0.0, 0.1, 0.3, 0.6, 1.0, 2.0, 3.0)  # times what is published
MICROSECONDS = (0.0, 20.0, 30.0, 90.0)
STEPS = 200


def by_fbnet(net: Micro, cost: CostTable, weight: float) -> Any:
    recipe = replace(fbnet.RECIPE, alpha_lr=0.05)
    penalty = mul_log(0.2, 0.6 * weight)
    return fbnet.FBNet(net, cost.space, steps=STEPS, cost=cost, penalty=penalty, recipe=recipe)


def by_proxylessnas(net: Micro, cost: CostTable, weight: float) -> Any:
    recipe = replace(proxylessnas.RECIPE, alpha_lr=0.02)
    penalty = add_linear(0.1 * weight, 160.0)
    return proxylessnas.ProxylessNAS(
        net, cost.space, steps=STEPS, cost=cost, penalty=penalty, recipe=recipe, every=1, mode="two"
    )


@pytest.mark.slow
@pytest.mark.parametrize("made", [by_fbnet, by_proxylessnas])
def test_the_latency_falls_with_its_weight(made: Callable[[Micro, CostTable, float], Any]) -> None:
    task, found = load_task("digits"), []
    for weight in WEIGHTS:
        torch.manual_seed(0)
        net = Micro(affine=False)
        space = search_space(net)
        cost = CostTable(space, 50.0, dict.fromkeys(space.choices, MICROSECONDS))
        search = made(net, cost, weight)
        for step in range(STEPS):
            search.step((task.train.batch(2 * step, 32), task.train.batch(2 * step + 1, 32)))
        found.append(float(cost(search.alphas.assignment(search.alphas.probabilities()))))
    assert spearman(WEIGHTS, found) < -0.9, found
    assert found[-1] < 0.6 * found[0], found
