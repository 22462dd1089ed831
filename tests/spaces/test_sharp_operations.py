# SPDX-License-Identifier: Apache-2.0
"""The blocks of sharpDARTS: shapes, receptive fields, widths in the middle, and the cells of DARTS made of them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from sartor.spaces.cell_operations import OPERATIONS, Operation
from sartor.spaces.darts import DartsNetwork
from sartor.spaces.sharp_operations import SHARP_DARTS_OPERATIONS, SHARP_OPERATIONS, SharpSepConv
from sartor.supernet import extract, search_space


def receptive_field(block: nn.Module, channels: int) -> int:
    """The side of the square of input pixels that the middle output pixel depends on."""
    block = block.double().eval()
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)
    x = torch.ones(1, channels, 25, 25, dtype=torch.float64, requires_grad=True)
    block(x)[0, 0, 12, 12].backward()
    assert x.grad is not None
    rows = (x.grad[0, 0].abs().sum(1) > 0).nonzero().flatten()
    return int(rows[-1] - rows[0]) + 1


@pytest.mark.parametrize(("kernel", "dilation", "field"), [(3, 1, 5), (5, 1, 9), (7, 1, 13), (3, 2, 7), (5, 2, 13)])
def test_the_receptive_field(kernel: int, dilation: int, field: int) -> None:
    assert receptive_field(SharpSepConv(3, 2, kernel, dilation=dilation), 3) == field


@pytest.mark.parametrize("operations", [SHARP_OPERATIONS, SHARP_DARTS_OPERATIONS], ids=["sharp", "darts"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_every_operation_keeps_or_halves_the_sides(
    operations: Mapping[str, Operation], stride: int, size: tuple[int, int]
) -> None:
    for operation in operations.values():
        out = operation(4, stride, True)(torch.randn(2, 4, *size))
        assert out.shape == (2, 4, -(-size[0] // stride), -(-size[1] // stride))


def test_the_lists_are_the_published_ones() -> None:
    assert len(SHARP_OPERATIONS) == 9
    assert list(SHARP_DARTS_OPERATIONS) == list(OPERATIONS)
    mixed = [name for name, made in SHARP_DARTS_OPERATIONS.items() if isinstance(made(4, 1, True), SharpSepConv)]
    assert mixed == ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]


@pytest.mark.parametrize(
    ("name", "middle"),
    [("sep_conv_3x3", 6), ("flood_conv_3x3", 24), ("dil_flood_conv_3x3", 24), ("choke_conv_3x3", 32)],
)
def test_the_width_in_the_middle(name: str, middle: int) -> None:
    block = SHARP_OPERATIONS[name](6, 2, False)
    first, second = (m for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
    assert (first.in_channels, second.in_channels) == (6, middle)
    assert (first.stride, second.stride) == ((2, 2), (1, 1))
    assert (first.dilation[0], second.dilation[0]) == (2 if name.startswith("dil") else 1, 1)


def test_affine_norms_are_those_of_the_evaluation_form() -> None:
    norms = [m for m in SHARP_OPERATIONS["sep_conv_3x3"](4, 1, True).modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(norm.affine for norm in norms)
    assert all(norm.affine for norm in SharpSepConv(4, 4, 3) if isinstance(norm, nn.BatchNorm2d))


def test_the_cells_of_darts_take_them() -> None:
    net = DartsNetwork(3, 1, (8, 8), width=4, cells=3, operations=SHARP_OPERATIONS)
    plain = extract(net, search_space(net).largest())
    assert plain(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        SharpSepConv(4, 4, 4)
