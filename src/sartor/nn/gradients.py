# SPDX-License-Identifier: Apache-2.0
"""Gradients that are changed on their way back, where the forward pass is not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["divide_gradient"]


def divide_gradient(x: Tensor, parts: int) -> Tensor:
    """Return x, whose gradient is divided by `parts`: for what several readers share, the mean instead of the sum."""
    divided: Tensor = _Divided.apply(x, parts)  # type: ignore[no-untyped-call]
    return divided


class _Divided(torch.autograd.Function):
    """Identity forward, gradient / parts backward."""

    @staticmethod
    def forward(context: Any, x: Tensor, parts: int) -> Tensor:
        context.parts = parts
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / context.parts, None
