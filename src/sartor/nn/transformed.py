# SPDX-License-Identifier: Apache-2.0
"""Convolutions whose smaller kernels are learned transforms of the larger one's centre.

Cai, Gan, Wang, Zhang and Han, "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR 2020,
arXiv:1908.09791.

Sizes form a chain, such as 7, 5, 3: the 5x5 kernel is the centre of the 7x7 one times a 25x25 matrix, and the 3x3
kernel the centre of that *transformed* 5x5 one times a 9x9 matrix. The matrices belong to the layer, are shared by all
channels and start as the identity, which is the plain centre. Kernels are computed at each pass: one that was kept
would be stale as soon as a larger one has learned.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.choice import Size
from sartor.nn.conv import Conv2d, centre
from sartor.nn.elastic import kept

__all__ = ["TransformedConv2d"]


class TransformedConv2d(Conv2d):
    """`sartor.nn.Conv2d` whose smaller kernels are the centres of the next larger ones times a learned matrix.

    The matrix (k * k, k * k) of kernel k is `transforms.to<k>`. Beside a fixed kernel there is none.
    Raises ValueError as `Conv2d`.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        searched = self.kernel_size.options if isinstance(self.kernel_size, Size) else ()
        sizes = sorted(k for k in searched if isinstance(k, int))  # all are, or the layer would not have been made
        self.transforms = nn.ParameterDict({f"to{k}": torch.eye(k * k) for k in sizes[:-1]})
        self._elastic_steps = [(large, small, f"to{small}") for small, large in itertools.pairwise(sizes)][::-1]

    def reset_parameters(self) -> None:
        """Initialise anew, as torch does, the transforms as the identity."""
        super().reset_parameters()
        for matrix in getattr(self, "transforms", {}).values():  # torch calls this before they are made
            nn.init.eye_(matrix)

    def active(self) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
        """The weight, bias and padding in force."""
        kernel = self.kernel_size
        if not isinstance(kernel, Size):
            return super().active()
        weight, (bias,) = self.channels(), kept(self.out_channels, self.bias)
        if kernel.is_soft:
            return self._expectation(weight, kernel), bias, self.padding
        size, cut = int(kernel), (kernel.extent - int(kernel)) // 2
        for large, small, name in self._elastic_steps:
            if small >= size:
                weight = self._smaller(weight, large, small, name)
        return weight, bias, tuple([p - d * cut for p, d in zip(self.padding, self.dilation, strict=True)])

    def _smaller(self, weight: Tensor, large: int, small: int, name: str) -> Tensor:
        """(O, I, large, large) -> (O, I, small, small): the centres, flattened, times the matrix."""
        middle = centre(weight, (large - small) // 2).flatten(2)
        return F.linear(middle, self.transforms[name]).view(*weight.shape[:2], small, small)

    def _expectation(self, weight: Tensor, kernel: Size) -> Tensor:
        """The expected kernel: each size's, with zeros around it, times its chance."""
        chances = dict(zip(kernel.options, kernel.probabilities(weight).unbind(), strict=True))
        total = weight * chances[kernel.extent]
        for large, small, name in self._elastic_steps:
            weight = self._smaller(weight, large, small, name)
            total = total + F.pad(weight * chances[small], [(kernel.extent - small) // 2] * 4)
        return total
