# SPDX-License-Identifier: Apache-2.0
"""The entangled macro space: the space contract, and what superposition promises."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from contracts import space_contract as law
from contracts.layer_contract import distance
from contracts.space_contract import SpaceCase
from sartor.choice import Choice
from sartor.nn import Conv2d
from sartor.nn.superposed import SuperposedConv2d
from sartor.spaces.entangled_macro import EntangledMacro
from sartor.supernet import activated, extract, named_choices, search_space

torch.set_num_threads(1)

CASES = [
    SpaceCase("entangled_macro", EntangledMacro, (2, 1, 8, 8)),
    SpaceCase("entangled_macro-depth", partial(EntangledMacro, depth=True), (2, 1, 8, 8)),
    SpaceCase("entangled_macro-28", partial(EntangledMacro, 10, 1, (28, 28)), (2, 1, 28, 28)),
]
SUPERPOSED = SpaceCase("entangled_macro", partial(EntangledMacro, superposed=True), (2, 1, 8, 8))
DEEP = SpaceCase("entangled_macro-depth", partial(EntangledMacro, depth=True, superposed=True), (2, 1, 8, 8))
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_form = pytest.mark.parametrize("case", [*CASES[:2], SUPERPOSED, DEEP], ids=["plain", "depth", "paper", "both"])


def write_golden() -> None:
    for case in CASES:
        law.write(case)


@every
def test_names_are_golden(case: SpaceCase) -> None:
    law.names_are_golden(case)


@every_form
def test_searching_stays_in_the_space(case: SpaceCase) -> None:
    law.searching_stays_in_the_space(case)


@every_form
def test_equal_networks_are_equal_keys(case: SpaceCase) -> None:
    law.equal_networks_are_equal_keys(case)


@every_form
def test_extraction_equals_activation(case: SpaceCase) -> None:
    law.extraction_equals_activation(case, torch.float64, count=10)


@every_form
def test_one_hot_equals_hard(case: SpaceCase) -> None:
    law.one_hot_equals_hard(case)


@every_form
def test_gradients_reach_every_choice(case: SpaceCase) -> None:
    law.gradients_reach_every_choice(case)


@every_form
def test_meta_build_takes_no_memory(case: SpaceCase) -> None:
    law.meta_build_takes_no_memory(case)


@every_form
def test_copies_are_independent(case: SpaceCase) -> None:
    law.copies_are_independent(case)


def test_exports() -> None:
    law.exports(CASES[0])


def test_sizes() -> None:
    assert search_space(CASES[0].ghost()).size == 216
    assert search_space(CASES[1].ghost()).size == 3 * 2 * (1 + 2 + 4)
    with pytest.raises(ValueError, match="images of 3x8 do not fit EntangledMacro"):
        EntangledMacro(size=(3, 8))


# ---- superposition ------------------------------------------------------------------------------------------


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def weights(count: int) -> Tensor:
    return draw(count).softmax(0)


def outputs_of_slices(layer: Any, x: Tensor, kernels: Any, inputs: Any, outputs: Any) -> tuple[Tensor, Tensor]:
    """Sum over all slices of weight times output, each by a convolution of its own; the largest as the padding."""
    total, calls = torch.zeros(len(x), 16, *x.shape[2:], dtype=x.dtype), 0
    for (k, wk), (i, wi), (o, wo) in itertools.product(kernels, inputs, outputs):
        cut = (5 - k) // 2
        slice_ = layer.weight[:o, :i, cut : 5 - cut, cut : 5 - cut]
        bias = None if layer.bias is None else layer.bias[:o]
        total = total + wk * wi * wo * F.pad(F.conv2d(x[:, :i], slice_, bias, padding=k // 2), (0, 0, 0, 0, 0, 16 - o))
        calls += 1
    return total, torch.tensor(calls)


@pytest.mark.parametrize("bias", [False, True])
def test_a_mixture_of_outputs_is_one_convolution_of_a_mixture(bias: bool) -> None:
    """sum_i w_i conv(x, slice_i) = conv(x, sum_i w_i pad(slice_i)), for products over three dimensions."""
    torch.manual_seed(0)
    kernel, before, after = Choice((3, 5)), Choice((4, 8, 16)), Choice((4, 8, 16))
    layer = SuperposedConv2d(before, after, kernel, padding="same", bias=bias).double()
    x, mixed = draw(2, 16, 6, 6), {"kernel_size": weights(2), "in_channels": weights(3), "out_channels": weights(3)}
    pairs = [
        [*zip(size.options, mixed[name], strict=True)]
        for size, name in ((kernel, "kernel_size"), (before, "in_channels"), (after, "out_channels"))
    ]
    expected, calls = outputs_of_slices(layer, x, *pairs)
    counted = Calls()
    with activated(layer, mixed), counted:
        found = layer(x)
    assert distance(found, expected) <= 1e-10
    assert (counted.convolutions, int(calls)) == (1, 18)


def test_kernels_alone() -> None:
    torch.manual_seed(0)
    kernel = Choice((3, 5))
    layer, x, w = Conv2d(3, 16, kernel, padding="same").double(), draw(2, 3, 6, 6), weights(2)
    expected, _ = outputs_of_slices(layer, x, [*zip((3, 5), w, strict=True)], [(3, 1.0)], [(16, 1.0)])
    with activated(layer, {"kernel_size": w}):
        assert distance(layer(x), expected) <= 1e-10


def test_elastic_layers_weight_what_they_read_alone() -> None:
    """The same sum without the weights of the outputs, which the reader applies."""
    torch.manual_seed(0)
    before, after = Choice((4, 8, 16)), Choice((4, 8, 16))
    layer, x = Conv2d(before, after, 5, padding="same", bias=False).double(), draw(2, 16, 6, 6)
    wi, wo = weights(3), weights(3)
    expected, _ = outputs_of_slices(layer, x, [(5, 1.0)], [*zip((4, 8, 16), wi, strict=True)], [(16, 1.0)])
    with activated(layer, {"in_channels": wi, "out_channels": wo}):
        assert distance(layer(x), expected) <= 1e-10


def test_behind_a_norm_the_equality_is_gone() -> None:
    torch.manual_seed(0)
    kernel, norm = Choice((3, 5)), nn.BatchNorm2d(16).double()
    layer, x, w = Conv2d(3, 16, kernel, padding="same").double(), draw(2, 3, 6, 6), weights(2)
    outputs = []
    for k in (3, 5):
        with activated(layer, {"kernel_size": k}):
            outputs.append(norm(layer(x)))
    with activated(layer, {"kernel_size": w}):
        assert distance(norm(layer(x)), w[0] * outputs[0] + w[1] * outputs[1]) > 1e-3


def test_one_hot_superposition_is_the_slice() -> None:
    torch.manual_seed(0)
    before, after, kernel = Choice((4, 8, 16)), Choice((4, 8, 16)), Choice((3, 5))
    layer, x = SuperposedConv2d(before, after, kernel, padding="same").double(), draw(2, 16, 6, 6)
    one = {name: torch.eye(len(c.options), dtype=torch.float64)[0] for name, c in named_choices(layer).items()}
    with activated(layer, {"kernel_size": 3, "in_channels": 4, "out_channels": 4}):
        hard = layer(x[:, :4])
    with activated(layer, one):
        soft = layer(x)
    assert distance(soft[:, :4], hard) <= 1e-12 and not soft[:, 4:].any()
    soft.square().sum().backward()
    gradient = layer.weight.grad
    assert gradient is not None and gradient[:4, :4, 1:4, 1:4].all()
    gradient[:4, :4, 1:4, 1:4] = 0
    assert not gradient.any()  # nothing outside of the slice


# ---- costs of a mixture -------------------------------------------------------------------------------------


class Calls(TorchFunctionMode):
    """How often a convolution is called."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.convolutions += function in (F.conv2d, torch.conv2d)
        return function(*args, **(kwargs or {}))


def saved_activations(net: nn.Module, x: Tensor) -> int:
    """Elements kept for the backward pass whose first dimension is the batch, each tensor once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.dim() and tensor.shape[0] == len(x):
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = net(x)
    assert held.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("superposed", [False, True])
def test_a_mixture_costs_the_largest_network_alone(superposed: bool) -> None:
    torch.manual_seed(0)
    network, x = EntangledMacro(superposed=superposed).train(), torch.randn(37, 1, 8, 8)
    space = search_space(network)
    soft = {name: torch.zeros(len(c), requires_grad=True).softmax(0) for name, c in space.choices.items()}
    largest = saved_activations(extract(network, space.largest()), x)
    counted = Calls()
    with activated(network, soft), counted:
        assert saved_activations(network, x) <= 1.001 * largest
    assert counted.convolutions == 3
    assert sum(p.numel() for p in network.parameters()) == sum(
        p.numel() for p in extract(network, space.largest()).parameters()
    )
