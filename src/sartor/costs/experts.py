# SPDX-License-Identifier: Apache-2.0
"""Many experts behind a router, kept in a large slow memory and brought into a small fast one when asked for.

Prabhakar et al., "SambaNova SN40L: Scaling the AI Memory Wall with Dataflow and Composition of Experts", MICRO 2024,
arXiv:2405.07518; the hit rate after Che, Tung and Wang, "Hierarchical Web Caching Systems: Modeling, Design and
Experimental Results", IEEE Journal on Selected Areas in Communications 20(7), 2002.

A request is routed to one expert. If it is not in the fast memory, it is copied there in place of the one that was
asked for least recently. The expected latency follows from the share of requests that find theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["ExpertMemory", "lru_hit_rate"]


@dataclass(frozen=True)
class ExpertMemory:
    """The fast memory of a device: its bytes, and 1e9 bytes per second from the slow one; ValueError if not above 0."""

    fast_bytes: float
    gbytes_per_s: float

    def __post_init__(self) -> None:
        """Check the fields."""
        if not (self.fast_bytes > 0 and self.gbytes_per_s > 0):
            raise ValueError(f"{self}: both must be above 0")

    def slots(self, expert_bytes: float) -> int:
        """Return how many experts the fast memory holds."""
        return int(self.fast_bytes // expert_bytes)

    def switch_ms(self, expert_bytes: float) -> float:
        """Return the milliseconds that bringing an expert in takes."""
        return expert_bytes / self.gbytes_per_s / 1e6

    def expected_ms(self, router_ms: float, expert_ms: float, expert_bytes: float, popularity: ArrayLike) -> float:
        """Return the expected milliseconds of a request, for experts asked for with probabilities `popularity` (E,)."""
        missed = 1.0 - lru_hit_rate(popularity, self.slots(expert_bytes))
        return router_ms + missed * self.switch_ms(expert_bytes) + expert_ms


def lru_hit_rate(popularity: ArrayLike, slots: int) -> float:
    """Return the share of independent requests, of probabilities (E,), that find theirs among the `slots` last used.

    Che's approximation: an item is there if it was asked for within the last T requests, where T is such that `slots`
    different ones are expected. Raises ValueError for negative slots and for what are no probabilities.
    """
    from scipy.optimize import brentq

    p = np.asarray(popularity, dtype=np.float64)
    if slots < 0 or p.ndim != 1 or not (p >= 0).all() or not math.isclose(p.sum(), 1.0, rel_tol=1e-6):
        raise ValueError(f"slots is {slots} and probabilities sum to {p.sum():g}: give 0 or more, and probabilities")
    asked = p[p > 0]
    if slots == 0:
        return 0.0
    if slots >= len(asked):
        return 1.0
    window = brentq(lambda t: -np.expm1(-asked * t).sum() - slots, 0.0, 1e3 * len(asked) / asked.min())
    return float((asked * -np.expm1(-asked * window)).sum())
