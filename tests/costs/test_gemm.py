# SPDX-License-Identifier: Apache-2.0
"""Lowering of operators to matrix products, against what torch computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sartor.costs.gemm import Gemm, bytes_per_element, elements, gemms, macs, moved_bytes
from sartor.workload import Op, trace
from sartor.workload import macs as counted


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x[..., :5, :], x[..., :5, :])


CASES = {
    "conv": (nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 9, 7), [Gemm(40, 8, 54, 1, 756, 320)]),
    "pointwise": (nn.Conv2d(6, 8, 1), (1, 6, 4, 4), [Gemm(16, 8, 6, 1, 96, 128)]),
    "depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6), (1, 6, 4, 4), [Gemm(16, 1, 9, 6, 16, 16)]),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), (1, 6, 5, 5), [Gemm(9, 4, 27, 2, 75, 36)]),
    "transposed": (nn.ConvTranspose2d(6, 8, 2, stride=2), (1, 6, 4, 4), [Gemm(16, 32, 6, 1, 96, 512)]),
    "one-dimensional": (nn.Conv1d(3, 4, 3), (2, 3, 10), [Gemm(16, 4, 9, 1, 60, 64)]),
    "linear": (nn.Linear(5, 7), (3, 5), [Gemm.plain(3, 7, 5)]),
    "without bias": (nn.Linear(5, 7, bias=False), (3, 5), [Gemm.plain(3, 7, 5)]),
    "attention": (Attention(), (2, 3, 6, 4), [Gemm.plain(6, 5, 4, 6), Gemm.plain(6, 4, 5, 6)]),
}


@pytest.mark.parametrize("name", CASES)
def test_products_of_an_operator(name: str) -> None:
    module, shape, wanted = CASES[name]
    workload = trace(module, torch.zeros(shape))
    assert [gemm for op in workload for gemm in gemms(op)] == wanted
    assert sum(map(macs, workload)) == counted(workload)


@pytest.mark.parametrize(
    ("inputs", "output", "wanted"),
    [
        (((4, 2, 3), (4, 3, 5)), (4, 2, 5), Gemm.plain(2, 5, 3, 4)),
        (((2, 3), (3,)), (2,), Gemm.plain(2, 1, 3)),
        (((3,), (3,)), (), Gemm.plain(1, 1, 3)),
    ],
)
def test_products_of_matrices_and_vectors(
    inputs: tuple[tuple[int, ...], ...], output: tuple[int, ...], wanted: Gemm
) -> None:
    op = Op("matmul", inputs, output, (), "float32")
    assert gemms(op) == (wanted,)
    assert macs(op) == counted((op,))


def test_what_is_moved() -> None:
    relu = Op("relu", ((1, 8, 4, 4),), (1, 8, 4, 4), (), "float32")
    assert (gemms(relu), macs(relu), elements(relu), moved_bytes(relu)) == ((), 0, 256, 1024)
    table = Op("embedding", ((10_000, 16), (2, 5)), (2, 5, 16), (), "float16")
    assert moved_bytes(table) == 2 * (160 + 160 + 10)  # the rows that are read, not the table


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("int8", 1), ("bool", 1), ("float8_e4m3fn", 1), ("int4", 1)]
)
def test_bytes_of_a_dtype(dtype: str, size: int) -> None:
    assert bytes_per_element(dtype) == size


def test_a_dtype_without_bits() -> None:
    with pytest.raises(ValueError, match="does not name its bits"):
        bytes_per_element("double")
