"""Memory layout: channels last, in which depthwise convolutions are fast on processors, and all on GPUs."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["channels_last"]

T = TypeVar("T", Tensor, nn.Module)


def channels_last(thing: T) -> T:
    """Images (N, C, H, W), or a network's convolutions (in place), in channels-last layout; others as they are.

    Values do not change, but convolutions may round differently.
    """
    if isinstance(thing, nn.Module):
        return thing.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]
    return thing.contiguous(memory_format=torch.channels_last) if thing.dim() == 4 else thing
