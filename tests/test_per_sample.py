# SPDX-License-Identifier: Apache-2.0
"""An option for each sample: in every layer, each sample's output is that of its own sub-network."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import sartor.nn as elastic
from contracts.layer_contract import LayerCase, distance
from layer_cases import CASES
from sartor.architecture import Architecture
from sartor.assignments import PerSample
from sartor.choice import Choice, Derived
from sartor.sizes import position
from sartor.supernet import activated, named_choices, search_space
from test_bypass import CASES as BYPASS

torch.set_num_threads(1)

F64 = torch.float64
OTHERS = (
    "kernel",
    "kernel_size",
    "depth",
    "choice",
    "kept",
    "bits",
    "resolution",
)  # roles of choices that are no width


def is_width(name: str) -> bool:
    return not name.endswith(OTHERS)


def all_widths(case: LayerCase) -> bool:
    with torch.device("meta"):
        choices = named_choices(case.build())
    return any(map(is_width, choices))


WIDE = [case for case in [*CASES, *BYPASS] if all_widths(case)]
OF_SAMPLES = [case for case in WIDE if "batchnorm-bare" not in case.name]  # which never leaves the batch's statistics


def per_sample(network: nn.Module, archs: list[Architecture]) -> Mapping[str, object]:
    """Widths for each sample, all else that of the first."""
    return {
        name: PerSample(torch.tensor([position(choice.options, arch[name]) for arch in archs]))
        if is_width(name)
        else archs[0][name]
        for name, choice in named_choices(network).items()
    }


def drawn(network: nn.Module, count: int, seed: int = 0) -> list[Architecture]:
    """Architectures that differ in their widths alone."""
    space, rng = search_space(network), random.Random(seed)
    first = space.sample(rng)
    fixed = space.restrict({name: (first[name],) for name in first if not is_width(name)})
    return [fixed.sample(rng) for _ in range(count)]


@pytest.mark.parametrize("case", OF_SAMPLES, ids=lambda case: case.name)
@pytest.mark.parametrize("seed", range(3))
def test_each_sample_is_that_of_its_own_sub_network(case: LayerCase, seed: int) -> None:
    network, x = case.network().eval(), case.inputs()
    archs = drawn(network, len(x), seed)
    with activated(network, per_sample(network, archs)):  # type: ignore[arg-type]
        found = network(x)
    for arch, row, output in zip(archs, x, found, strict=True):
        with activated(network, arch):
            assert distance(output[None], network(row[None])) <= 1e-12, arch


@pytest.mark.parametrize("case", WIDE, ids=lambda case: case.name)
def test_one_option_for_all_trains_as_the_option_does(case: LayerCase) -> None:
    """Gradients and statistics of norms too: what is active is what counts."""
    one, x = case.network().train(), case.inputs()
    two = copy.deepcopy(one)
    arch = drawn(one, 1)[0]
    with activated(one, arch):
        hard = one(x)
    with activated(two, per_sample(two, [arch] * len(x))):  # type: ignore[arg-type]
        masked = two(x)
    assert distance(masked, hard) <= 1e-12
    for out in (hard, masked):
        (out * torch.linspace(-1, 1, out.numel(), dtype=F64).view(out.shape)).sum().backward()
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.allclose(_zeros(a), _zeros(b), atol=1e-10), name
    for (name, before), (_, after) in zip(one.named_buffers(), two.named_buffers(), strict=True):
        assert torch.allclose(before, after, rtol=1e-12), name


def _zeros(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


# ---- batch norm -----------------------------------------------------------------------------------------------


def normed(width: Choice) -> elastic.BatchNorm2d:
    return elastic.BatchNorm2d(width, momentum=0.1).double().train()


def test_statistics_of_a_channel_are_those_of_the_samples_that_keep_it() -> None:
    norm, x = normed(Choice([1, 2, 3], name="w")), torch.randn(4, 3, 5, 5, dtype=F64) + 3
    with activated(norm, {"w": PerSample(torch.tensor([0, 1, 1, 2]))}):
        y = norm(x)
    for channel, keep in enumerate(([0, 1, 2, 3], [1, 2, 3], [3])):
        of_channel = x[keep, channel]
        mean, var = of_channel.mean(), of_channel.var(correction=0)
        torch.testing.assert_close(y[keep, channel], (of_channel - mean) / (var + norm.eps).sqrt())
        assert norm.running_mean is not None and norm.running_var is not None
        assert float(norm.running_mean[channel]) == pytest.approx(0.1 * float(mean))
        assert float(norm.running_var[channel]) == pytest.approx(0.9 + 0.1 * float(of_channel.var()))


def test_zeros_would_shift_them() -> None:
    """The pitfall: a plain batch norm over masked zeros has another mean and a smaller variance."""
    x = torch.randn(8, 2, 6, 6, dtype=F64) + 3
    x[4:, 1] = 0
    norm = normed(Choice([1, 2], name="w"))
    with activated(norm, {"w": PerSample(torch.tensor([1] * 4 + [0] * 4))}):
        norm(x)
    assert norm.running_mean is not None and abs(float(norm.running_mean[1]) / 0.1 - 3) < 0.3
    plain = nn.BatchNorm2d(2).double().train()
    plain(x)
    assert plain.running_mean is not None and abs(float(plain.running_mean[1]) / 0.1 - 1.5) < 0.3


def test_a_channel_that_no_sample_keeps_changes_nothing() -> None:
    norm = normed(Choice([1, 3], name="w"))
    x = torch.randn(2, 3, 4, 4, dtype=F64, requires_grad=True)
    with activated(norm, {"w": PerSample(torch.tensor([0, 0]))}):
        y = norm(x)
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.running_mean[1:].tolist() == [0, 0] and norm.running_var[1:].tolist() == [1, 1]
    assert bool(y.isfinite().all())
    y[:, :1].square().sum().backward()
    assert x.grad is not None and not x.grad[:, 1:].any()


# ---- sizes ----------------------------------------------------------------------------------------------------


def test_masks_of_choices_and_of_what_follows_from_them() -> None:
    width, times = Choice([1, 3], name="w"), Choice([1, 2], name="t")
    hidden, like = width * times, torch.zeros(1)
    width.set(PerSample(torch.tensor([1, 0])))
    assert width.mask(like).tolist() == [[1, 1, 1], [1, 0, 0]]
    assert hidden.mask(like).tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    times.set(PerSample(torch.tensor([0, 1])))
    assert hidden.mask(like).sum(1).tolist() == [3, 2]
    assert width.hard is None and width.is_soft and isinstance(hidden, Derived)
    times.set(torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="mixes PerSample with weights"):
        hidden.mask(like)


def test_what_cannot_be_per_sample() -> None:
    width, rows = Choice([2, 4], name="w"), PerSample(torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="needs \\(N,\\) int64 positions"):
        width.set(PerSample(torch.tensor([0.5])))
    layer = elastic.Linear(width, 3)
    with activated(layer, {"w": rows}), pytest.raises(ValueError, match="options for 3 samples, the input has 2"):
        layer(torch.randn(2, 4))
    kernel = elastic.Conv2d(1, 1, Choice([1, 3], name="k"), padding="same")
    depth = elastic.Repeat(nn.Identity(), depth=Choice([0, 1], name="d"))
    mixed = elastic.OneOf({"a": nn.Identity(), "b": nn.Identity()}, name="o")
    for name, net in (("k", kernel), ("d", depth), ("o", mixed)):
        with activated(net, {name: rows}), pytest.raises(ValueError, match="only a width can be"):
            net(torch.randn(3, 1, 4, 4))
