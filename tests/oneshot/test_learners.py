# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from contracts.learner_contract import LAWS, LAWS_OF_EFFORT, Batches, Make
from sartor.adapt import elastic
from sartor.adapt.networks import ImageClassifier
from sartor.oneshot import BigNAS, Recipe, Supervised
from sartor.oneshot.alphanet import AlphaNet
from sartor.oneshot.attentivenas import AttentiveNAS
from sartor.oneshot.autodistil import AutoDistil
from sartor.oneshot.bossnas import BossNAS
from sartor.oneshot.fairnas import FairNAS
from sartor.oneshot.few_shot import FewShot
from sartor.oneshot.gm_nas import GMNAS
from sartor.oneshot.instatune import InstaTune
from sartor.oneshot.llama_nas import LLaMANAS
from sartor.oneshot.mixture_of_supernets import MixtureOfSupernets
from sartor.oneshot.neas import NEAS
from sartor.oneshot.netadaptv2 import NetAdaptV2
from sartor.oneshot.ofa import OFA
from sartor.oneshot.ofa_stages import STAGES
from sartor.oneshot.pa_da import PADA
from sartor.oneshot.slimmable import Slimmable
from sartor.oneshot.spos import SPOS
from sartor.oneshot.universally_slimmable import UniversallySlimmable
from sartor.protocols import Learner
from sartor.supernet import extract, search_space
from toy_blocks import ToyBlocks
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


def ofa() -> Learner:
    """Most of the steps are of the last stage, and every stage begins within the first six."""
    torch.manual_seed(0)
    net = ToyNet(dropout=0.1)
    stages = [replace(stage, epochs=15 if stage is STAGES[-1] else 1, lr=1.0) for stage in STAGES]
    return OFA(net, search_space(net), steps=20, batch_size=32, recipe=RECIPE, stages=stages)


def slimmed(kind: Any) -> Callable[[], Learner]:
    def make() -> Learner:
        torch.manual_seed(0)
        net = ToyNet(dropout=0.1)
        learner: Learner = kind(net, search_space(net), steps=20, batch_size=32, recipe=RECIPE)
        return learner

    return make


def attentivenas() -> Learner:
    torch.manual_seed(0)
    net = ToyNet(dropout=0.1)
    return AttentiveNAS(net, search_space(net), steps=20, batch_size=32, recipe=RECIPE, samples=100, bins=5)


def single_paths(kind: Any, **given: Any) -> Callable[[], Learner]:
    """Of methods that train one sub-network at a time, each weight in few of the steps."""
    recipe = Recipe(optimizer="adam", lr=0.03, lr_batch=32, schedule="constant", label_smoothing=0.0)

    def make() -> Learner:
        torch.manual_seed(0)
        net = ToyNet(dropout=0.1)
        learner: Learner = kind(net, search_space(net), steps=20, batch_size=32, recipe=recipe, **given)
        return learner

    return make


def bossnas() -> Learner:
    """The first of two blocks has the first 20 steps."""
    torch.manual_seed(0)
    net = ToyBlocks(width=4)
    recipe = Recipe(optimizer="adam", lr=0.01, lr_batch=32, schedule="constant", dropout=None)
    given: dict[str, Any] = {"steps": 40, "batch_size": 32, "hidden": 16, "features": 8, "recipe": recipe}
    return BossNAS(net, search_space(net), **given)


def autodistil() -> Learner:
    """Of a tiny ViT, in two sub-spaces that take turns."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_channels=1, num_labels=2,
    )  # fmt: skip
    net = ImageClassifier(transformers.ViTForImageClassification(config))
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.3 * torch.randn_like(weight))  # a teacher whose tokens are related
    elastic(net, hidden=[8], heads=[1], mlp=[8], depth=[1], shared=("heads", "mlp"))
    recipe = Recipe(optimizer="adam", lr=0.01, lr_batch=32, schedule="constant", label_smoothing=0.0, dropout=None)
    return AutoDistil(net, search_space(net), steps=20, batch_size=32, parts=2, recipe=recipe)


LEARNERS = {"bignas": bignas, "supervised": supervised, "ofa": ofa}
LEARNERS |= {"slimmable": slimmed(Slimmable), "universally_slimmable": slimmed(UniversallySlimmable)}
LEARNERS |= {"netadaptv2": single_paths(NetAdaptV2), "mixture_of_supernets": slimmed(MixtureOfSupernets)}
LEARNERS |= {"spos": single_paths(SPOS), "fairnas": single_paths(FairNAS), "pa_da": single_paths(PADA, epoch_steps=3)}
LEARNERS |= {"neas": slimmed(NEAS)}
LEARNERS |= {"few_shot": single_paths(FewShot, choices=["mix.choice"])}
LEARNERS |= {"gm_nas": single_paths(GMNAS, stages=(1, 1), matching=2, choices=["mix.choice", "blocks.0.kernel"])}
LEARNERS |= {"autodistil": autodistil, "bossnas": bossnas, "instatune": single_paths(InstaTune)}
LEARNERS |= {"attentivenas": attentivenas, "alphanet": slimmed(AlphaNet)}
LEARNERS |= {"llama_nas": single_paths(LLaMANAS, distillation=0.5)}


@pytest.mark.parametrize("law", [*LAWS, *LAWS_OF_EFFORT], ids=lambda law: law.__name__)
@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
def test_law(make: Make, law: object) -> None:
    batches: Batches = toy_batch
    law(make, batches)  # type: ignore[operator]
