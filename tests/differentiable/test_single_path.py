# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sartor.architecture import Architecture
from sartor.choice import Choice
from sartor.differentiable import relaxations
from sartor.differentiable._superkernels import superkernels
from sartor.differentiable.descent import Recipe
from sartor.differentiable.penalties import add_log
from sartor.differentiable.single_path import SinglePathNAS
from sartor.differentiable.single_path_runtime import Corners, Layer
from sartor.nn import Conv2d
from sartor.spaces.single_path import SinglePath
from sartor.supernet import activated, extract, search_space
from sartor.task import load_task
from sartor.workload import macs, trace
from toy_superkernels import Superkernels
from toy_supernet import ToyNet, toy_batch

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> Superkernels:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Superkernels()


def learner(net: Superkernels, **arguments: object) -> SinglePathNAS:
    return SinglePathNAS(net, search_space(net), **{"steps": 40, "recipe": Recipe(lr=0.3), **arguments})  # type: ignore[arg-type]


def runtime(arch: Architecture) -> float:
    """A cost that no sum over the choices of a layer gives: kernel times expansion."""
    at: dict[str, Any] = dict(arch)
    first = 0.0 if at["first.skip"] == "skip" else (1.0 + at["first.kernel"]) * at["first.expand"]
    second = 3.0 if (at["second.kernel"], at["second.expand"]) == (3, 6) else 7.0 * at["second.expand"]
    return float(19.6 + first + second)


def size_of(what: str) -> Callable[[Architecture], float]:
    """A cost that is one of the sizes of both blocks, plus one."""

    def cost(arch: Architecture) -> float:
        at: dict[str, Any] = dict(arch)
        return float(1.0 + at[f"second.{what}"] + (0.0 if at["first.skip"] == "skip" else at[f"first.{what}"]))

    return cost


# ---- the indicator ------------------------------------------------------------------------------


def test_forward_is_0_or_1_and_backward_the_sigmoid() -> None:
    norm, threshold = torch.linspace(0.0, 3.0, 31), torch.full((31,), 1.5, requires_grad=True)
    found = relaxations.indicator(norm - threshold)
    assert set(found.tolist()) == {0.0, 1.0}
    assert torch.equal(found, (norm >= 1.5).float())
    (gradient,) = torch.autograd.grad(found.sum(), threshold)
    chance = (norm - 1.5).sigmoid()
    torch.testing.assert_close(gradient, -chance * (1 - chance))


def test_nested_options_need_all_smaller_parts() -> None:
    assert relaxations.nested(torch.tensor([1.0])).tolist() == [0.0, 1.0]
    assert relaxations.nested(torch.tensor([1.0, 0.0])).tolist() == [0.0, 1.0, 0.0]
    assert relaxations.nested(torch.tensor([0.0, 1.0])).tolist() == [1.0, 0.0, 0.0]


# ---- the superkernel ----------------------------------------------------------------------------


def test_superkernels_are_found_by_gates_and_sizes() -> None:
    net = SinglePath(10, 1, (8, 8))
    found = superkernels(net, search_space(net))
    names = [f"stages.{i}.blocks.{j}" for i, j in ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1))]
    assert [one.kernel for one in found] == [(f"{name}.kernel", (3, 5)) for name in names]
    assert [one.expand for one in found] == [(f"{name}.expand", (3, 6)) for name in names]
    assert [one.skip is None for one in found] == [False, True, False, True, False]
    for one in found:
        weight: Any = one.conv.weight
        channels = weight.shape[0]
        assert weight.shape[2:] == (5, 5) and one.bounds == (0, channels // 2, channels)


def test_weights_are_the_superkernel(net: Superkernels) -> None:
    (one, _) = superkernels(net, search_space(net))
    weight = one.conv.weight
    assert isinstance(weight, Tensor)
    inner = torch.nn.functional.pad(torch.ones(3, 3), (1, 1, 1, 1))
    for d55, d100, d50 in itertools.product((0.0, 1.0), repeat=3):
        parts: list[Tensor] = []
        answers = iter((d55, d100, d50))

        def on(part: Tensor, parts: list[Tensor] = parts, answers: object = answers) -> Tensor:
            parts.append(part)
            return torch.tensor(next(answers))  # type: ignore[call-overload]

        found = one.weights(on)
        ring, second, first = parts
        masked = weight * (inner + d55 * (1 - inner))
        torch.testing.assert_close(ring, weight * (1 - inner))
        torch.testing.assert_close(torch.cat([first, second]), masked)
        assert len(first) == len(second) == 24
        assert [found[name].tolist() for name in ("first.kernel", "first.expand", "first.skip")] == [
            [1 - d55, d55],
            [1 - d100, d100],
            [1 - d50, d50],
        ]


def test_without_its_ring_a_superkernel_is_the_centred_crop() -> None:
    kernel = Choice((3, 5), name="kernel")
    conv = Conv2d(4, 4, kernel, padding="same", groups=4).double()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    with activated(conv, {"kernel": relaxations.nested(torch.zeros(1, dtype=torch.float64))}):
        soft = conv(x)
    small = torch.nn.functional.conv2d(x, conv.weight[:, :, 1:4, 1:4], conv.bias, padding=1, groups=4)
    torch.testing.assert_close(soft, small, rtol=0, atol=1e-12)


def test_without_its_first_half_a_block_is_its_shortcut(net: Superkernels) -> None:
    x = torch.randn(2, 8, 6, 6)
    with activated(net, {"first.skip": relaxations.nested(torch.zeros(1))}):
        assert torch.equal(net.first(x), x)


def test_three_kernels_are_nested() -> None:
    kernel = Choice((7, 3, 5), name="kernel")
    conv = torch.nn.Sequential(Conv2d(2, 2, kernel, padding="same", groups=2))
    search = SinglePathNAS(conv, search_space(conv), steps=1)
    with torch.no_grad():
        search.thresholds.table[1] = 2.0  # the outermost ring is off
    assignment, margins = search.relaxed()
    assert margins.tolist() == [1.0, -1.0]
    assert assignment["kernel"].tolist() == [0.0, 0.0, 1.0]  # type: ignore[union-attr]
    assert dict(search.architecture()) == {"kernel": 5}


def test_what_belongs_to_no_superkernel_is_refused() -> None:
    net = ToyNet()
    with pytest.raises(ValueError, match=r"blocks.depth leaves a layer out by \(1,\) of \(1, 2, 3\): it must be one"):
        superkernels(net, search_space(net))
    lone = {"blocks.depth": 3, "resolution": 8, "mix.choice": "conv"}
    with pytest.raises(ValueError, match="width belong to no convolution with a searched kernel: restrict each"):
        superkernels(net, search_space(net).restrict(lone))
    lone["width"] = 8
    found = superkernels(net, search_space(net).restrict(lone))
    assert [one.expand for one in found] == [(f"blocks.{i}.hidden", (4, 8, 12)) for i in range(3)]
    assert found[0].bounds == (0, 4, 8, 12)


# ---- runtime ------------------------------------------------------------------------------------


def test_the_runtime_is_exact_at_all_corners(net: Superkernels) -> None:
    space = search_space(net)
    cost = Corners.measured(net, space, runtime)
    rng = random.Random(0)
    for arch in {space.sample(rng) for _ in range(100)}:
        assert float(cost(arch)) == pytest.approx(runtime(arch), abs=1e-5)
        soft = {
            name: torch.tensor([float(option == arch[name]) for option in options], dtype=torch.float64)
            for name, options in space.choices.items()
        }
        assert float(cost(soft)) == pytest.approx(runtime(arch), abs=1e-12)
    assert [len(layer.values) for layer in cost.layers] == [4, 4]
    assert [layer.skip for layer in cost.layers] == ["first.skip", None]


def test_with_one_ratio_it_is_the_paper_s_formula() -> None:
    r50, r100, rho = 2.0, 3.5, 0.6
    layer = Layer(("k", "e"), (rho * r50, rho * r100, r50, r100), "s")
    for d55, d100, d50 in itertools.product((0.0, 0.3, 1.0), repeat=3):
        weights = {n: torch.tensor([1 - d, d], dtype=torch.float64) for n, d in (("k", d55), ("e", d100), ("s", d50))}
        channels = d50 * (r50 + d100 * (r100 - r50))
        assert float(layer(weights)) == pytest.approx(channels * rho + channels * (1 - rho) * d55)


def test_the_supernet_is_as_large_as_its_largest_network() -> None:
    net = SinglePath(10, 1, (8, 8))
    space = search_space(net)
    search = SinglePathNAS(net, space, steps=1)
    largest = sum(p.numel() for p in extract(net, space.largest()).parameters())
    assert sum(p.numel() for p in search.descent.weight_parameters) < 1.05 * largest


# ---- the search ---------------------------------------------------------------------------------


def test_the_search_starts_at_the_largest_network(net: Superkernels) -> None:
    search = learner(net)
    assert search.thresholds.table.tolist() == [0.0] * 5
    assert search.architecture() == search.space.largest()
    assert search.relaxed()[1].tolist() == pytest.approx([1.0] * 5)
    own = learner(net, relative=False)
    weight = net.second.depth_conv.weight
    assert float(own.relaxed()[1][4].detach()) == pytest.approx(float(weight[24:].detach().norm()), rel=1e-5)


def test_thresholds_are_trained_among_the_weights(net: Superkernels) -> None:
    search = learner(net, cost=lambda _: torch.ones(()))
    assert any(p is search.thresholds.table for p in search.descent.weight_parameters)
    assert not search.descent.alpha_parameters
    search.step(toy_batch(0))
    assert bool((search.thresholds.table != 0).any())


def test_dropout_and_no_cost_in_the_warm_up_only(net: Superkernels) -> None:
    space, seen = search_space(net), []

    def cost(assignment: object) -> Tensor:
        seen.append(assignment["first.kernel"][1].item())  # type: ignore[index]
        return Corners.measured(net, space, runtime)(assignment)  # type: ignore[arg-type]

    charged: list[float] = []

    def penalty(loss: Tensor, value: Tensor) -> Tensor:
        charged.append(float(value.detach()))
        return loss

    search = SinglePathNAS(net, space, steps=16, cost=cost, penalty=penalty)
    for step in range(16):
        search.step(toy_batch(step))
        assert len(charged) == max(0, step + 1 - 10)  # 5 of 8 epochs
    assert {round(value, 4) for value in seen[:10]} == {0.0, round(1 / 0.6, 4)}
    assert set(seen[10:]) <= {0.0, 1.0}


def test_the_learning_rate_is_that_of_the_code(net: Superkernels) -> None:
    search = SinglePathNAS(net, search_space(net), steps=80)
    assert search.step(toy_batch(0, 32))["learning_rate"] == pytest.approx(0.016 * 32 / 256)
    assert search.learning_rate(79, 80) == pytest.approx(0.016 * 32 / 256 * 0.97**3)


def test_a_cost_decides_what_is_switched_off_and_the_supernet_is_what_is_read_out(net: Superkernels) -> None:
    space = search_space(net)

    found = []
    for cost in (size_of("kernel"), size_of("expand")):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Superkernels()
        search = learner(net, steps=40, cost=Corners.measured(net, space, cost), penalty=add_log(5.0))
        for step in range(40):
            search.step(toy_batch(step))
        found.append(search.architecture())
        assert cost(found[-1]) < cost(space.largest())
        assignment, _ = search.relaxed()
        alone = extract(net, found[-1]).train()
        with activated(net.train(), assignment):
            torch.testing.assert_close(net(IMAGES), alone(IMAGES), rtol=1e-4, atol=1e-5)
    assert (found[0]["second.kernel"], found[0]["second.expand"]) == (3, 6)
    assert found[1]["second.expand"] == 3


# ---- a planted kernel ---------------------------------------------------------------------------


def kept_rings(settings: Sequence[tuple[float, float]], seeds: int, steps: int = 3000) -> list[int]:
    """Of regressions on 5x5 patches with a planted kernel, how often the ring is on, for each (rho, lambda).

    The centre has norm 1, the ring norm rho, targets noise 0.3; R is 1 without and 1.8 with the ring; SGD at 0.05 on
    weights and thresholds, 16 patches a step; lambda is on after a tenth of the steps.
    """
    generator = torch.Generator().manual_seed(0)
    inner = torch.nn.functional.pad(torch.ones(3, 3), (1, 1, 1, 1)).flatten()
    outer, rows = 1.0 - inner, len(settings) * seeds
    rho, strength = torch.tensor(settings).repeat_interleave(seeds, 0).unbind(1)
    planted = torch.randn(rows, 25, generator=generator)
    centre, ring = planted * inner, planted * outer
    planted = centre / centre.norm(dim=1, keepdim=True) + rho.view(-1, 1) * ring / ring.norm(dim=1, keepdim=True)
    kernel = (0.02 * torch.randn(rows, 25, generator=generator)).requires_grad_()
    threshold = torch.zeros(rows, requires_grad=True)
    for step in range(steps):
        x = torch.randn(rows, 16, 25, generator=generator)
        noise = 0.3 * torch.randn(rows, 16, generator=generator)
        on = relaxations.indicator((kernel * outer).norm(dim=1) - threshold)
        weights = kernel * (inner + on.unsqueeze(1) * outer)
        errors = (torch.bmm(x, (weights - planted).unsqueeze(2)).squeeze(2) - noise).square().mean(1)
        loss = errors + strength * (step >= steps // 10) * (1.0 + 0.8 * on).log()
        gradients = torch.autograd.grad(loss.sum(), [kernel, threshold])
        with torch.no_grad():
            kernel -= 0.05 * gradients[0]
            threshold -= 0.05 * gradients[1]
    kept = (kernel * outer).norm(dim=1) >= threshold
    found: list[int] = kept.view(len(settings), seeds).sum(1).tolist()
    return found


def test_an_idle_ring_is_switched_off_and_a_useful_one_stays() -> None:
    assert kept_rings([(0.0, 0.05), (0.5, 0.02)], 4, 1500) == [0, 4]


@pytest.mark.slow
def test_planted_kernels() -> None:
    strengths = (0.0, 0.02, 0.05, 0.1, 0.2)
    found = kept_rings([*itertools.product((0.0, 0.3, 0.5), strengths)], 20)
    idle, weak, strong = found[:5], found[5:10], found[10:]
    assert idle == [0] * 5
    assert strong[:3] == [20] * 3
    assert weak == sorted(weak, reverse=True)
    assert weak[-1] < weak[0]


# ---- digits -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_runtime_falls_with_lambda() -> None:
    task, found = load_task("digits"), []
    strengths = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 1.0)
    for strength in strengths:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Superkernels(10)
        space = search_space(net)
        cost = Corners.measured(net, space, lambda arch, net=net: float(macs(trace(extract(net, arch), task.example))))  # type: ignore[misc]
        search = SinglePathNAS(net, space, steps=160, cost=cost, penalty=add_log(strength))
        for step in range(160):
            search.step(task.train.batch(step, 64))
        found.append(float(cost(search.architecture())))
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0]
