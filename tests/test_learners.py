# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from contracts.learner_contract import LAWS, Batches, Make
from sartor.oneshot import BigNAS, Recipe, Supervised
from sartor.protocols import Learner
from sartor.supernet import extract, search_space
from toy_supernet import ToyNet, toy_batch

RECIPE = Recipe(lr=0.3)


def bignas() -> Learner:
    torch.manual_seed(0)
    net = ToyNet(dropout=0.1)
    return BigNAS(net, search_space(net), steps=20, batch_size=32, recipe=RECIPE)


def supervised() -> Learner:
    torch.manual_seed(0)
    net = ToyNet(dropout=0.1)
    return Supervised(extract(net, search_space(net).largest()), steps=20, batch_size=32, recipe=RECIPE)


LEARNERS = {"bignas": bignas, "supervised": supervised}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
def test_law(make: Make, law: object) -> None:
    batches: Batches = toy_batch
    law(make, batches)  # type: ignore[operator]
