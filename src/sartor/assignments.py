# SPDX-License-Identifier: Apache-2.0
"""What a choice is set to: an option, a weight for each option or each index, or an option for each sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sartor.architecture import Option

__all__ = ["Assignment", "Kept", "Mixed", "PerSample", "Soft"]


@dataclass(frozen=True, eq=False)
class Kept:
    """A weight for each index that a choice of index lists selects from, tied to none of its options.

    weights: (extent,). DARTS sums all inputs of a node while it searches, which is `Kept(ones)`: the options are pairs
    of inputs, and no weights over pairs say that.
    """

    weights: Tensor


@dataclass(frozen=True, eq=False)
class Mixed:
    """Weights over the options of a mixed operation, and another way to mix than the weighted sum.

    weights: (num_options,). mix: (weights, operations, input) -> output; it decides what runs, forward and backward.
    """

    weights: Tensor
    mix: Callable[[Tensor, Sequence[Callable[[Tensor], Tensor]], Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class PerSample:
    """An option for each sample of a batch, of a choice that is a width.

    positions: (N,) int64, of each sample's option among the choice's options. Layers compute all channels and mask, for
    each sample, those that they read; nothing is rescaled. So one pass is that of N sub-networks.
    """

    positions: Tensor


Soft = Tensor | Kept | Mixed | PerSample
"""What is in force of a soft choice; a tensor is (num_options,) weights."""

Assignment = Option | Soft
"""What a choice is set to: hard, an option; or soft."""
