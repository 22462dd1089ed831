# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-Supernets: the sandwich through routed weights, one expert as the plain supernet, and what comes out."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sartor.nn as elastic
from contracts.layer_contract import assert_plain, distance
from sartor import adapt
from sartor.adapt.networks import TextClassifier
from sartor.architecture import Architecture
from sartor.choice import Choice
from sartor.nn import Router, resized
from sartor.oneshot import Recipe
from sartor.oneshot._training import Training, draws
from sartor.oneshot.mixture_of_supernets import MixtureOfSupernets, routable
from sartor.oneshot.sampling import sandwich
from sartor.space import SearchSpace
from sartor.spaces.mobilenet import MobileNet
from sartor.supernet import activated, extract, search_space
from toy_supernet import ToyNet, toy_batch

torch.set_num_threads(1)

RECIPE = Recipe(lr=1.0, dropout=0.0, weight_decay=0.01)


def learner(net: nn.Module | None = None, **given: object) -> MixtureOfSupernets:
    torch.manual_seed(0)
    net = ToyNet(dropout=0.0) if net is None else net
    keywords = {"steps": 20, "batch_size": 16, "recipe": RECIPE, **given}
    return MixtureOfSupernets(net, search_space(net), **keywords)  # type: ignore[arg-type]


class Plain:
    """The same sandwich without experts, written out."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = ToyNet(dropout=0.0)
        self.training = Training(self.net, steps=20, batch_size=16, recipe=RECIPE)

    def step(self, images: Tensor, labels: Tensor) -> float:
        largest, *others = sandwich(search_space(self.net), draws(0, self.training.done), 1)
        teacher = self.training.logits(largest, images)
        loss = F.cross_entropy(teacher, labels, label_smoothing=0.1)
        self.training.backward(loss)
        p = teacher.detach().softmax(1)
        for arch in others:
            log_q = self.training.logits(arch, images).log_softmax(1)
            divergence = (p * (p.log() - log_q)).sum(1).mean()
            self.training.backward(0.5 * divergence + 0.5 * F.nll_loss(log_q, labels))
        self.training.update()
        return loss.item()


def test_one_expert_trains_as_the_plain_supernet() -> None:
    plain = Plain()
    for routing in ("layer", "neuron"):
        one, other = learner(experts=1, routing=routing), copy.deepcopy(plain)
        for step in range(3):
            images, labels = toy_batch(step, 16)
            assert one.step((images, labels))["loss"] == pytest.approx(other.step(images, labels), rel=1e-6)
        state = one.net.state_dict()
        torch.testing.assert_close(state["head.parametrizations.weight.original0"], other.net.head.weight.data)
        torch.testing.assert_close(state["head.parametrizations.bias.original0"], other.net.head.bias.data)
        torch.testing.assert_close(state["stem.weight"], other.net.stem.weight.data)


def test_linear_layers_and_pointwise_convolutions_are_routed() -> None:
    one = learner()
    assert list(one.routers) == [*(f"blocks.{i}.conv2" for i in range(3)), "mix.conv", "head"]
    assert search_space(one.net) == search_space(ToyNet())
    named = learner(layers=["stem", "head"])
    assert list(named.routers) == ["stem", "head"]
    names = routable(MobileNet(10, 1, (8, 8)))
    assert "classifier" in names and "stages.0.0.expand_conv" in names
    assert not any(name.endswith(("depth_conv", "stem_conv")) for name in names)


def test_a_sandwich_is_three_passes_and_trains_the_routers() -> None:
    one = learner()
    before = {name: router.last.weight.detach().clone() for name, router in one.routers.items()}
    scalars = one.step(toy_batch(0, 16))
    assert one.effort == (3, 0, 1) and one.passes_per_step == 3.0
    assert scalars["distillation"] > 0
    assert all(not torch.equal(router.last.weight, before[name]) for name, router in one.routers.items())


def test_after_training_architectures_of_one_layer_size_have_other_weights() -> None:
    one = learner(noise=0.1)
    for step in range(10):
        one.step(toy_batch(step, 16))
    arch = one.space.largest()
    heads = [extract(one.net, arch.replace({"blocks.1.hidden": hidden})).head.weight for hidden in (4, 12)]  # type: ignore[union-attr]
    assert heads[0].shape == heads[1].shape and not torch.allclose(heads[0], heads[1], rtol=1e-4)  # type: ignore[arg-type]


def test_a_collapsed_child_is_plain_and_equal() -> None:
    one = learner(MobileNet(10, 1, (8, 8)), recipe=Recipe(lr=0.3))
    one.step(toy_batch(0, 16))
    net, x = one.net.eval(), torch.randn(4, 1, 8, 8)
    plain = {name: p.shape for name, p in extract(MobileNet(10, 1, (8, 8)), one.space.smallest()).named_parameters()}
    for arch in (one.space.smallest(), one.space.largest()):
        small = extract(net, arch)
        assert_plain(small)
        assert not any(isinstance(module, Router) for module in small.modules())
        with activated(net, arch):
            assert distance(small(x), net(x)) <= 1e-6
    assert {name: p.shape for name, p in extract(net, one.space.smallest()).named_parameters()} == plain


def test_a_fresh_network_and_learner_take_the_state() -> None:
    one, two = learner(), learner(seed=1)
    for step in range(2):
        one.step(toy_batch(step, 16))
    two.load_state_dict(one.state_dict())
    x = toy_batch(3, 4)[0]
    for arch in sandwich(one.space, draws(0, 7), 2):
        with activated(one.net.eval(), arch), activated(two.net.eval(), arch):
            assert torch.equal(one.net(resized(x, one.net)), two.net(resized(x, two.net)))


def test_wrong_arguments() -> None:
    net = learner().net
    with pytest.raises(ValueError, match="cannot be routed"):
        learner(net)
    only = nn.Sequential(elastic.Conv2d(1, Choice([2, 4]), 3), nn.Flatten())
    with pytest.raises(ValueError, match="no elastic linear layer or pointwise convolution"):
        learner(only)


# ---- on an adopted transformer: its MLPs are routed, its attention is shared ---------------------------


def bert(**given: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    net = TextClassifier(transformers.BertForSequenceClassification(config), pad=0)
    return adapt.elastic(net, **(given or {"hidden": [12, 18], "heads": [2], "mlp": [10, 20], "depth": [(0, 2), 2]}))


def sentences() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(1, 60, (6, 9), generator=rng), torch.randint(2, (6,), generator=rng)


def outputs(net: nn.Module, arch: Architecture) -> Tensor:
    with activated(net.eval(), arch), torch.no_grad():
        found: Tensor = net(sentences()[0])
    return found


def several(space: SearchSpace) -> list[Architecture]:
    return [space.largest(), space.smallest(), *(space.sample(random.Random(i)) for i in range(4))]


def test_of_a_transformer_the_mlps_are_routed_and_attention_is_shared() -> None:
    one = learner(bert())
    block = "model.bert.encoder.layer"
    assert [*one.routers] == [f"{block}.{i}.{part}.dense" for i in range(3) for part in ("intermediate", "output")]
    assert one.space == search_space(bert()) == search_space(one.net)
    assert routable(bert(heads=[2])) == []
    with pytest.raises(ValueError, match="cannot be routed"):
        learner(one.net)


def test_on_a_transformer_one_expert_is_the_plain_supernet() -> None:
    for routing in ("layer", "neuron"):
        plain, one = bert(), learner(bert(), experts=1, routing=routing)
        assert all(torch.equal(outputs(plain, arch), outputs(one.net, arch)) for arch in several(one.space))


@pytest.mark.parametrize("routing", ["layer", "neuron"])
def test_on_a_transformer_equal_experts_do_not_depend_on_routers(routing: str) -> None:
    one = learner(bert(), routing=routing, noise=0.0)
    before = [outputs(one.net, arch) for arch in several(one.space)]
    for router in one.routers.values():
        nn.init.normal_(router.last.weight)
    for arch, output in zip(several(one.space), before, strict=True):
        torch.testing.assert_close(outputs(one.net, arch), output)


@pytest.mark.parametrize("routing", ["layer", "neuron"])
def test_a_collapsed_transformer_equals_the_routed_one_and_has_no_routers(routing: str) -> None:
    one = learner(bert(), routing=routing, recipe=Recipe(lr=0.1, dropout=None))
    one.step(sentences())
    for arch in several(one.space):
        small = extract(one.net, arch)
        assert not any(isinstance(module, Router) or parametrize.is_parametrized(module) for module in small.modules())
        assert {*small.state_dict()} <= {*bert().state_dict()}
        assert distance(outputs(small, Architecture({})), outputs(one.net, arch)) <= 1e-6


@pytest.mark.parametrize("routing", ["layer", "neuron"])
def test_under_any_architecture_gradients_reach_the_routers_of_the_blocks_that_run(routing: str) -> None:
    one = learner(bert(), routing=routing)
    ids, labels = sentences()
    for arch in several(one.space):
        one.net.zero_grad(set_to_none=True)
        with activated(one.net, arch):
            F.cross_entropy(one.net(ids), labels).backward()  # type: ignore[no-untyped-call]
        depth = arch["model.bert.encoder.layer.depth"]
        running = {str(i) for i in (depth if isinstance(depth, tuple) else range(int(depth)))}  # type: ignore[arg-type]
        for path, router in one.routers.items():
            slope = router.last.weight.grad
            assert (slope is not None and bool(slope.abs().sum() > 0)) == (path.split(".")[4] in running), path
