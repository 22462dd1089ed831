# SPDX-License-Identifier: Apache-2.0
"""Importance sampling: chances in proportion to the norms of gradients, mixed with equal ones.

Of all unbiased estimates of a gradient by one draw, that which draws in proportion to the norm of each gradient has the
least variance (Zhao and Zhang, ICML 2015, arXiv:1401.2753).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Importance"]

UNKNOWN = -1.0


class Importance:
    """Norms of `count` things in running means, and the chances to draw them in the epoch under way.

    Within an epoch, the mean of a thing is that of its last value and of its mean before (a half-life of one draw), and
    begins with the first value. An epoch in which a thing is not drawn leaves its mean as it was.
    """

    def __init__(self, count: int) -> None:
        self.means = torch.full((count,), UNKNOWN, dtype=torch.float64)
        self.drawn = torch.zeros(count, dtype=torch.bool)  # in this epoch
        self.chances = torch.full((count,), 1.0 / count, dtype=torch.float64)

    def note(self, indices: Tensor, norms: Tensor) -> None:
        """Take in the norms (N,) of the things drawn, `indices` (N,); of one that is there twice, the mean of both.

        Norms that are not finite, as of a pass in float16 that overflows, are passed over.
        """
        norms = norms.detach().cpu().double()
        finite = norms.isfinite()
        which, places, times = torch.unique(indices.cpu()[finite], return_inverse=True, return_counts=True)
        new = torch.zeros(len(which), dtype=torch.float64).index_add(0, places, norms[finite]) / times
        self.means[which] = torch.where(self.drawn[which], (self.means[which] + new) / 2, new)
        self.drawn[which] = True

    def refresh(self, tau: float) -> None:
        """Begin an epoch: p = tau g / sum g + (1 - tau) / count.

        What was never drawn has the mean of all others, and a norm of 0 becomes the least of those above it, so that
        nothing that has no weights of its own is given up.
        """
        known = self.means[self.means >= 0]
        if len(known) and bool((known > 0).any()):
            norms = torch.where(self.means >= 0, self.means, known.mean()).clamp(min=float(known[known > 0].min()))
            self.chances = tau * norms / norms.sum() + (1 - tau) / len(norms)
        else:
            self.chances = torch.full_like(self.chances, 1.0 / len(self.chances))
        self.drawn = torch.zeros_like(self.drawn)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the means, what was drawn in this epoch and its chances."""
        return {"means": self.means, "drawn": self.drawn, "chances": self.chances}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.means, self.drawn, self.chances = (state[name].clone() for name in ("means", "drawn", "chances"))
