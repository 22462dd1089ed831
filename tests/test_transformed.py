# SPDX-License-Identifier: Apache-2.0
"""The kernel transform of Once-for-All: smaller kernels as learned transforms of the larger one's centre."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sartor.choice import Choice
from sartor.nn import Conv2d, TransformedConv2d
from sartor.supernet import activated, extract

torch.set_num_threads(1)


def layer(options: tuple[int, ...] = (3, 5, 7)) -> TransformedConv2d:
    torch.manual_seed(0)
    return TransformedConv2d(4, 4, Choice(options, name="kernel"), padding="same", groups=4).double()


def learned(module: TransformedConv2d) -> TransformedConv2d:
    for matrix in module.transforms.values():
        torch.nn.init.normal_(matrix)
    return module


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_the_identity_is_the_centre_crop(kernel: int) -> None:
    module, crop = layer(), Conv2d(4, 4, Choice((3, 5, 7), name="kernel"), padding="same", groups=4).double()
    crop.load_state_dict({name: module.state_dict()[name] for name in ("weight", "bias")})
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    with activated(module, {"kernel": kernel}), activated(crop, {"kernel": kernel}):
        assert torch.equal(module(x), crop(x))


def test_sizes_are_a_chain() -> None:
    """3 from the transformed 5, and 5 from 7, by hand."""
    module = learned(layer())
    five = (module.weight[:, :, 1:6, 1:6].reshape(4, 25) @ module.transforms["to5"].T).view(4, 1, 5, 5)
    three = (five[:, :, 1:4, 1:4].reshape(4, 9) @ module.transforms["to3"].T).view(4, 1, 3, 3)
    for kernel, expected in ((7, module.weight), (5, five), (3, three)):
        small: Any = extract(module, {"kernel": kernel})
        assert type(small) is torch.nn.Conv2d and small.padding == (kernel // 2,) * 2
        assert torch.allclose(small.weight, expected, rtol=1e-12)


def test_kernels_follow_the_weights_at_once() -> None:
    """A kernel that was kept from an earlier pass would be stale after a step."""
    module, x = learned(layer()), torch.randn(1, 4, 9, 9, dtype=torch.float64)
    with activated(module, {"kernel": 3}):
        before = module(x)
        with torch.no_grad():
            module.weight.mul_(2.0)
            module.transforms["to5"].mul_(0.5)
            module.transforms["to3"].mul_(3.0)
        assert torch.allclose(module(x) - module.bias.view(4, 1, 1), 3.0 * (before - module.bias.view(4, 1, 1)))


def test_gradients_reach_the_transforms_on_the_way_only() -> None:
    module, x = layer(), torch.randn(1, 4, 9, 9, dtype=torch.float64)
    for kernel, reached in ((7, set()), (5, {"to5"}), (3, {"to5", "to3"})):
        module.zero_grad(set_to_none=True)
        with activated(module, {"kernel": kernel}):
            module(x).square().sum().backward()
        assert {name for name, matrix in module.transforms.items() if matrix.grad is not None} == reached


def test_soft_kernels_are_the_expectation() -> None:
    module, x = learned(layer()), torch.randn(2, 4, 9, 9, dtype=torch.float64)
    chances = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    expected = torch.zeros_like(x)
    for kernel, chance in zip((3, 5, 7), chances, strict=True):
        with activated(module, {"kernel": kernel}):
            expected += chance * module(x)
    with activated(module, {"kernel": chances}):
        assert torch.allclose(module(x), expected, rtol=1e-12)


def test_a_chain_may_leave_sizes_out_and_options_may_have_any_order() -> None:
    module = learned(layer((7, 3)))
    assert [(name, matrix.shape) for name, matrix in module.transforms.items()] == [("to3", (9, 9))]
    small: Any = extract(module, {"kernel": 3})
    expected = module.weight[:, :, 2:5, 2:5].reshape(4, 9) @ module.transforms["to3"].T
    assert torch.allclose(small.weight.view(4, 9), expected, rtol=1e-12)


def test_a_fixed_kernel_has_no_transform() -> None:
    fixed = TransformedConv2d(2, 3, 3, padding=1)
    assert not list(fixed.transforms.parameters())
    x = torch.randn(1, 2, 5, 5)
    assert torch.equal(fixed(x), F.conv2d(x, fixed.weight, fixed.bias, padding=1))


def test_anew_is_the_identity() -> None:
    module = learned(layer())
    module.reset_parameters()
    assert all(torch.equal(matrix, torch.eye(len(matrix)).double()) for matrix in module.transforms.values())
