# SPDX-License-Identifier: Apache-2.0
"""Every method of differentiable search keeps the laws of learners: one line each in `LEARNERS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from contracts.learner_contract import LAWS
from sartor.costs import cost_table
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.balanced_mixture import BalancedMixture
from sartor.differentiable.darts import DARTS
from sartor.differentiable.darts_pt import DARTSPT
from sartor.differentiable.darts_pt_fixed import FixedAlphas
from sartor.differentiable.dass import DASS
from sartor.differentiable.descent import Descent, Recipe
from sartor.differentiable.fbnet import FBNet
from sartor.differentiable.fbnetv5 import FBNetV5
from sartor.differentiable.fp_nas import FPNAS
from sartor.differentiable.gdas import GDAS
from sartor.differentiable.la_darts import LADARTSSearch
from sartor.differentiable.mixers import gated
from sartor.differentiable.parsec import PARSEC
from sartor.differentiable.pc_darts import PCDARTS
from sartor.differentiable.proxylessnas import ProxylessNAS
from sartor.differentiable.rarts import RARTS
from sartor.differentiable.sd_darts import SDDARTS
from sartor.differentiable.sharp_darts import SharpDARTS
from sartor.differentiable.single_path import SinglePathNAS
from sartor.differentiable.snas import SNAS
from sartor.differentiable.tanglenas import TangleNAS
from sartor.spaces.entangled_macro import EntangledMacro
from sartor.spaces.pooling import PoolingResNet
from sartor.supernet import search_space
from toy_slots import Slots, toy_pair
from toy_superkernels import Superkernels
from toy_supernet import CLASSES, toy_batch

STEPS = 40
FAST: Any = {"steps": STEPS, "recipe": Recipe(lr=0.2)}  # a toy learns at once
ONE_PATH: Any = {"recipe": Recipe(lr=0.4), "seed": 1, "warm_up": 0, "every": 1}  # the loss of one path is noisy
SPACE = search_space(Slots())
TABLE = cost_table(SPACE, lambda arch: float(sum(len(str(option)) for option in arch.values())))


def made(method: Callable[..., Any], **arguments: Any) -> Callable[[], Any]:
    """Return what makes the method on a fresh toy; torch's generator is where a learner finds it."""

    def make() -> Any:
        torch.manual_seed(0)
        return method(Slots(), SPACE, **{**FAST, **arguments})

    return make


def made_on(net: Callable[..., Any], method: Callable[..., Any], **arguments: Any) -> Callable[[], Any]:
    """Return what makes a method that needs a network of another kind than the toy."""

    def make() -> Any:
        torch.manual_seed(0)
        supernet = net(CLASSES)
        return method(supernet, search_space(supernet), **{**FAST, **arguments})

    return make


def read_out(search: Callable[[], Any], **arguments: Any) -> Callable[[], Any]:
    return lambda: DARTSPT(search(), interval=10, **arguments)


LEARNERS: dict[str, Callable[[], Any]] = {
    "darts": made(DARTS),
    "darts-2": made(DARTS, order=2, cost=TABLE),
    "pc_darts": made(PCDARTS, frozen=0.05, cost=TABLE),
    "la_darts": made(LADARTSSearch, cost=TABLE),
    "darts_pt": read_out(made(DARTS, steps=2, recipe=Recipe(lr=2.0))),
    "darts_pt-projecting": read_out(made(DARTS, steps=0, recipe=Recipe(lr=2.0))),
    "fixed_alphas": made(FixedAlphas),
    "rarts": made(RARTS, lambda_=1.0, beta=1.0, cost=TABLE),
    "sharp_darts": made(SharpDARTS, cost=TABLE),
    "sd_darts": made(SDDARTS, every=2, ramp=0.05, cost=TABLE),
    "sd_darts-hard": made(SDDARTS, every=1, ramp=0.0, snapshots=1, voting="hard"),
    "dass": made(DASS, steps=6, keep=0.5, prune_lr=0.2, finetune_lr=0.2),
    "dass-long": made(DASS, keep=0.5, order=1, cost=TABLE),
    "snas": made(SNAS, cost=TABLE),
    "gdas": made(GDAS, cost=TABLE),
    "gdas-gated": made(GDAS, mix=gated),
    "fbnet": made(FBNet, cost=TABLE, frozen=0),
    "proxylessnas": made(ProxylessNAS, cost=TABLE, **ONE_PATH),
    "proxylessnas-two": made(ProxylessNAS, mode="two", **ONE_PATH),
    "proxylessnas-reinforce": made(ProxylessNAS, mode="reinforce", samples=2, **ONE_PATH),
    "parsec": made(PARSEC, samples=2),
    "fp_nas": made(FPNAS, cost=TABLE, joint_from=0.1, layers=[["slot_0", "slot_1"]]),
    "fbnetv5": made(FBNetV5, cost=TABLE),
    "single_path": made_on(Superkernels, SinglePathNAS, cost=lambda of: 2.0 + of["first.kernel"][1]),
    "tanglenas": made(TangleNAS, cost=TABLE),
    "tanglenas-macro": made_on(lambda classes: EntangledMacro(classes, depth=True), TangleNAS),
    "tanglenas-darts": made_on(EntangledMacro, TangleNAS, sampler="darts"),
    "tanglenas-gdas": made_on(EntangledMacro, TangleNAS, sampler="gdas"),
    "balanced_mixture": made_on(PoolingResNet, BalancedMixture, models=2, epochs=10),
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
def test_law(make: Callable[[], Any], law: Callable[..., None]) -> None:
    law(make, toy_pair if make().needs == "pairs" else toy_batch)


@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
def test_the_architecture_is_one_of_the_space(make: Callable[[], Any]) -> None:
    learner = make()
    batch = toy_pair(0) if learner.needs == "pairs" else toy_batch(0)
    space = getattr(learner, "space", SPACE)
    first = learner.architecture()
    learner.step(batch)
    assert first in space
    assert learner.architecture() in space


@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
def test_no_weight_optimiser_has_logits(make: Callable[[], Any]) -> None:
    learner = make()
    parts = [part for one in (learner, getattr(learner, "search", None)) if one for part in vars(one).values()]
    parts += [part for several in parts if isinstance(several, list) for part in several]
    descents = [part for part in parts if isinstance(part, Descent)]
    logits = [
        id(parameter)
        for part in parts
        if isinstance(part, nn.Module)
        for module in part.modules()
        if isinstance(module, Alphas)
        for parameter in module.parameters()
    ]
    held = {
        id(parameter)
        for descent in descents
        for group in descent.weight_optimizer.param_groups
        for parameter in group["params"]
    }
    assert held and held.isdisjoint(logits)
    assert logits or isinstance(learner, SinglePathNAS | BalancedMixture)  # they have none
