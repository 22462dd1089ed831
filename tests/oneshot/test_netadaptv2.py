# SPDX-License-Identifier: Apache-2.0
"""NetAdaptV2: a pass of ordered dropout is the weighted sum of sliced passes; descent goes with what it trains."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sartor.nn as elastic
from sartor.architecture import Architecture
from sartor.assignments import PerSample
from sartor.choice import Choice
from sartor.nn import Bypass, Filters
from sartor.objective import Objective
from sartor.oneshot import Means, Recipe
from sartor.oneshot.netadaptv2 import NetAdaptV2, per_image, widths
from sartor.oneshot.sampling import ordered
from sartor.spaces.bypass_chain import BypassChain
from sartor.spaces.mobilenet import MobileNet
from sartor.strategies.coordinate_descent import CoordinateDescent
from sartor.supernet import activated, extract, named_choices, search_space
from sartor.trial import Trial
from sartor.workload import macs, trace
from toy_supernet import ToyNet, toy_batch

torch.set_num_threads(1)

PLAIN = Recipe(label_smoothing=0.0, dropout=0.0, weight_decay=0.0)


class Normless(nn.Module):
    """Bypasses, a searched width and an expansion, with a norm within each sample; no statistics of a batch."""

    def __init__(self) -> None:
        super().__init__()
        stem, hidden = Choice([3, 6], name="stem.width"), Choice([4, 8], name="hidden.width")
        first, second = Filters([0, 4, 8], name="a.width"), Filters([0, 8], name="b.width")
        one = Bypass(nn.Sequential(elastic.Conv2d(stem, first, 3, 1, "same"), nn.Tanh()), stem, first)
        two = Bypass(elastic.Conv2d(one.width, second, 3, 2, "same"), one.width, second, 2)
        self.net = nn.Sequential(elastic.Conv2d(1, stem, 3), nn.ReLU(), one, two, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.mlp = nn.Sequential(
            elastic.Linear(two.width, hidden), elastic.LayerNorm(hidden), elastic.Linear(hidden, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.mlp(self.net(x))
        return logits


def learner(net: nn.Module | None = None, **given: object) -> NetAdaptV2:
    torch.manual_seed(0)
    net = Normless() if net is None else net
    keywords = {"steps": 20, "batch_size": 16, "recipe": PLAIN, **given}
    return NetAdaptV2(net, search_space(net), **keywords)  # type: ignore[arg-type]


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def logits(net: nn.Module, archs: Sequence[Architecture], images: Tensor, names: Sequence[str]) -> Tensor:
    with activated(net, per_image(named_choices(net), archs, names)):
        out: Tensor = net(images)
    return out


# ---- ordered dropout ------------------------------------------------------------------------------------------


def test_one_pass_is_the_weighted_sum_of_sliced_passes() -> None:
    """The core of the method: gradients agree to 1e-5, with the share of the images as weight."""
    net = learner().net
    images, labels = toy_batch(0, 16)
    space, rng = search_space(net), random.Random(0)
    few = [space.sample(rng) for _ in range(5)]
    archs = [rng.choice(few) for _ in labels]
    together, apart = copy.deepcopy(net), copy.deepcopy(net)
    F.cross_entropy(logits(together, archs, images, widths(net)), labels).backward()  # type: ignore[no-untyped-call]
    for arch, count in Counter(archs).items():
        own = torch.tensor([one == arch for one in archs])
        with activated(apart, arch):
            loss = F.cross_entropy(apart(images[own]), labels[own])
        torch.autograd.backward(loss * count / len(labels))
    found, expected = gradients(together), gradients(apart)
    assert all(gradient.any() for gradient in expected.values())
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_masked_channels_have_no_gradient_and_nothing_is_rescaled() -> None:
    net = learner().net
    images, _ = toy_batch(0, 2)
    space = search_space(net)
    archs = [space.largest(), space.largest().replace({"a.width": 4})]
    logits(net, archs, images, widths(net))[1].sum().backward()  # type: ignore[no-untyped-call]
    found = gradients(net)["net.2.branch.0.weight"]
    assert found[:4].any() and not found[4:].any()
    with activated(net, archs[1]), torch.no_grad():
        torch.testing.assert_close(logits(net, archs, images, widths(net))[1], net(images)[1])


def test_the_step_is_one_pass_and_one_update() -> None:
    one = learner()
    images, labels = toy_batch(0, 16)
    archs = one.drawn(16)
    with torch.no_grad():
        expected = F.cross_entropy(logits(copy.deepcopy(one.net), archs, images, one.per_sample), labels)
    scalars = one.step((images, labels))
    assert scalars["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert one.effort == (1, 0, 1) and one.passes_per_step == 1.0


def test_parts_of_a_batch_take_the_same_step() -> None:
    whole, parted = learner(), learner(means=Means(accumulate=4))
    for step in range(2):
        assert whole.step(toy_batch(step, 16))["loss"] == pytest.approx(
            parted.step(toy_batch(step, 16))["loss"], rel=1e-4
        )
    assert parted.effort == whole.effort == (2, 0, 2)


def test_images_draw_their_widths_and_batches_all_else() -> None:
    one = learner(ToyNet())
    assert set(one.per_sample) == {"width", *(f"blocks.{i}.hidden" for i in range(3))}
    archs = one.drawn(64)
    assert archs == one.drawn(64)
    for name, options in one.space.choices.items():
        drawn = {arch[name] for arch in archs if one.space.is_active(name, arch)}
        assert len(drawn) <= 1 or name in one.per_sample, name
        if name == "width":
            assert drawn == {*options}
    expanding = learner(MobileNet(10, 1, (8, 8)), per_sample=["stages.0.width", "stages.1.0.expand"])
    assert expanding.step(_digits_like())["loss"] > 0


def test_a_choice_that_hangs_on_a_width_is_drawn_for_all() -> None:
    """The kernel of a layer that the first draw leaves out matters to images that keep the layer."""
    space = search_space(BypassChain(4))
    names = [name for name in space.choices if name.endswith(".width")]
    kernels = set()
    for seed in range(20):
        archs = ordered(space, random.Random(seed), 32, names)
        drawn = {arch["layers.3.kernel"] for arch in archs if arch["layers.3.width"]}
        assert len(drawn) == 1
        kernels |= drawn
    assert kernels == {1, 3}


def test_workers_draw_on_for_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    one = learner()
    whole = one.drawn(16)
    monkeypatch.setattr("sartor.distributed.world", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr("sartor.distributed.rank", lambda rank=rank: rank)
        parts += one.drawn(8)
    assert parts == whole


@pytest.mark.parametrize("net", [MobileNet(10, 1, (8, 8)), BypassChain(10)], ids=["mobilenet", "bypass_chain"])
def test_it_trains_real_spaces(net: nn.Module) -> None:
    one = learner(net, recipe=Recipe(lr=0.3))
    assert all(one.step(_digits_like())["loss"] < 10 for _ in range(2))
    assert all(name.endswith("width") for name in one.per_sample)
    small = extract(one.net, one.space.smallest())
    assert small(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def _digits_like() -> tuple[Tensor, Tensor]:
    images, labels = toy_batch(0, 16)
    return images, labels


def test_without_widths_there_is_nothing_to_drop() -> None:
    net = elastic.OneOf({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="the network has no searched width"):
        learner(net)
    with pytest.raises(ValueError, match=r"'x' is no choice of the space: .* such as a\.width"):
        learner(per_sample=["x"])


# ---- multi-layer coordinate descent ---------------------------------------------------------------------------


def test_descent_by_width_alone_leaves_layers_out() -> None:
    """Depth is a width of 0, and after each step the resource is at most its target."""
    net = BypassChain(10)
    space = search_space(net)
    resource = Costs(net)
    budget = 0.2 * resource(space.largest())
    objectives = (Objective("error", early_filters),)
    descent = CoordinateDescent(space, objectives, resource=resource, budget=budget, samples=8, layers=0.2, step=0.2)
    ends: list[Architecture] = []
    for number in range(200):
        target, before = descent.target, descent.steps
        arch = descent.ask(random.Random(number))
        descent.tell(Trial(number, arch, {"error": early_filters(arch)}, state="done"))
        assert descent.steps <= before or descent.current is None or resource(descent.current) <= target
        if resource(arch) <= budget:
            ends.append(arch)
        if descent.steps < before:
            break
    assert ends and descent.current == space.largest()  # the next descent begins
    assert any(0 in [arch[f"layers.{i}.width"] for i in range(6)] for arch in ends)


class Costs:
    """Multiply-accumulates of a sub-network, counted once."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.known: dict[Architecture, float] = {}

    def __call__(self, arch: Architecture) -> float:
        if arch not in self.known:
            self.known[arch] = float(macs(trace(extract(self.net, arch), torch.empty(1, 1, 8, 8))))
        return self.known[arch]


def early_filters(arch: Architecture) -> float:
    """Any measure will do; this one wants filters in front."""
    return -float(sum(width for i in range(4) if isinstance(width := arch[f"layers.{i}.width"], int)))


def test_one_option_for_each_image_is_a_choice_of_the_network() -> None:
    net = learner().net
    space = search_space(net)
    archs = [space.largest(), space.smallest()]
    found = per_image(named_choices(net), archs, ["a.width"])
    assert isinstance(found["a.width"], PerSample) and found["a.width"].positions.tolist() == [2, 0]
    assert found["b.width"] == 8
