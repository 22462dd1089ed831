# SPDX-License-Identifier: Apache-2.0
"""Convolutions whose soft weight is the paper's combi-superposition: what they produce is weighted too.

Sukthanker, Krishnakumar, Safari and Hutter, "Weight-Entanglement Meets Gradient-Based Neural Architecture Search",
AutoML 2024, arXiv:2312.10440.

    W_mix = sum over kernels k, inputs i and outputs o of w_k w_i w_o pad(slice_kio(W)),    y = conv(x, W_mix)

that is the largest weight times one chance for each dimension, and one convolution. By linearity y is the sum of the
outputs of all the slices.

How this differs from the other layers. An elastic layer weights what it reads and not what it produces, since its
reader does so again: two layers of combi-superposition weight the channels between them twice, with w_o and then with
w_i, and a batch norm between them divides the first of the two away, but for its epsilon. Elastic layers therefore give
the expectation over networks, this one what the paper trains. Hard, or one-hot, the two agree once a layer has read
the output.
"""

from __future__ import annotations

from torch import Tensor

from sartor.choice import Size
from sartor.nn.conv import Conv2d

__all__ = ["SuperposedConv2d"]


class SuperposedConv2d(Conv2d):
    """`sartor.nn.Conv2d` that, under a soft `out_channels`, also weights its outputs (and bias) by their chance."""

    def active(self) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
        """The superposed weight, bias and padding in force."""
        weight, bias, padding = super().active()
        size = self.out_channels
        if not (isinstance(size, Size) and size.is_soft) or size.rows is not None:
            return weight, bias, padding
        chance = size.mask(weight)
        return weight * chance.view(-1, 1, 1, 1), None if bias is None else bias * chance, padding
