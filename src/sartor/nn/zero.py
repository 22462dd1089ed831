# SPDX-License-Identifier: Apache-2.0
"""The operation that adds nothing."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Zero"]


class Zero(torch.nn.Module):
    """The operation "none": zeros of the input's shape, or of that of every `stride`-th entry."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> zeros (N, C, ceil(H / stride), ceil(W / stride))."""
        return torch.zeros_like(x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride])
