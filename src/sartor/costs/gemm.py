# SPDX-License-Identifier: Apache-2.0
"""What an operator asks of any hardware: matrix products, multiply-accumulates, and bytes that are moved.

Letters of shapes: a product of (M, K) and (K, N) is (M, N).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from sartor.workload import Op

__all__ = ["Gemm", "bytes_per_element", "elements", "gemms", "macs", "moved_bytes"]


@dataclass(frozen=True, slots=True)
class Gemm:
    """`count` equal products of an (m, k) with a (k, n) matrix that share nothing.

    inputs, outputs: how many numbers one product reads on its left and writes. The left matrix of a convolution holds
        a pixel once for each window that covers it, and memory once.
    """

    m: int
    n: int
    k: int
    count: int
    inputs: int
    outputs: int

    @classmethod
    def plain(cls, m: int, n: int, k: int, count: int = 1) -> Self:
        """Return the product of two matrices that lie in memory as they are."""
        return cls(m, n, k, count, m * k, m * n)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all products."""
        return self.m * self.n * self.k * self.count


def gemms(op: Op) -> tuple[Gemm, ...]:
    """Return the matrix products that `op` is lowered to, none for an operator without multiply-accumulates.

    A convolution has a row for each pixel of its output and a column for each channel; one of G groups is G products,
    so that a depthwise convolution is many products of one column each. Attention is two products for each head.
    """
    if op.kind in ("conv", "conv_transpose"):
        return (_convolution(op),)
    if op.kind == "matmul":
        return (_product(op),)
    if op.kind == "attention":
        (*batch, queries, width), keys = op.inputs[0], op.inputs[1][-2]
        heads = math.prod(batch)
        return Gemm.plain(queries, keys, width, heads), Gemm.plain(queries, op.output[-1], keys, heads)
    return ()


def macs(op: Op) -> int:
    """Return the multiply-accumulates of `op`; the sum over a workload is `sartor.workload.macs` of it."""
    return sum(gemm.macs for gemm in gemms(op))


def elements(op: Op) -> int:
    """Return how many numbers `op` reads and writes, each operand once; of a table of embeddings, the rows it reads."""
    written = math.prod(op.output)
    if op.kind == "embedding":
        return 2 * written + math.prod(op.inputs[-1])
    return written + sum(map(math.prod, op.inputs))


def moved_bytes(op: Op) -> int:
    """Return the bytes of those numbers, all in the dtype of the output."""
    return elements(op) * bytes_per_element(op.dtype)


def bytes_per_element(dtype: str) -> int:
    """Return the bytes of one number of a dtype such as "float32"; ValueError for a name that does not tell."""
    if dtype == "bool":
        return 1
    bits = re.search(r"\d+", dtype)
    if bits is None:
        raise ValueError(f"the dtype {dtype!r} does not name its bits: use a name such as 'float32' or 'int8'")
    return max(1, int(bits[0]) // 8)


def _convolution(op: Op) -> Gemm:
    groups = op.attribute("groups", 1)
    read, written, window = math.prod(op.inputs[0]), math.prod(op.output), math.prod(op.inputs[1][1:])
    if op.kind == "conv":
        channels = op.output[1]
        m, n, k = written // max(1, channels), channels // groups, window
    else:  # each pixel of the input is spread over a patch of the output
        channels = op.inputs[0][1]
        m, n, k = read // max(1, channels), window, channels // groups
    return Gemm(m, n, k, groups, read // groups, written // groups)


def _product(op: Op) -> Gemm:
    left, right = op.inputs[-2:]
    n = right[-1] if len(right) > 1 else 1
    count = math.prod(right[:-2])
    return Gemm.plain(math.prod(op.output) // max(1, n * count), n, left[-1], count)
