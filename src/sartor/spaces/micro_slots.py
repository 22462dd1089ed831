# SPDX-License-Identifier: Apache-2.0
"""The choices of the micro space: three slots of four operations, 64 networks; needs no torch."""

from __future__ import annotations

from sartor.space import SearchSpace

__all__ = ["NAMES", "OPERATIONS", "space"]

OPERATIONS = ("skip", "avg_pool_3x3", "conv_1x1", "conv_3x3")
NAMES = ("slot_0", "slot_1", "slot_2")


def space() -> SearchSpace:
    """Return the space of all 64 networks."""
    return SearchSpace(dict.fromkeys(NAMES, OPERATIONS))
