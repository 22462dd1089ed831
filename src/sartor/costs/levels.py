# SPDX-License-Identifier: Apache-2.0
"""One level for measurements of several sessions.

A machine is faster in one session than in the next, by more than networks differ. Within a session this falls on all
networks alike, so every session measures a few networks again, the anchors, and their ratio to the first session is
taken out of all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.costs.ledger import Session
from sartor.protocols import Measurement

__all__ = ["levelled", "typical"]

Floats = NDArray[np.float64]


def typical(measurements: Sequence[Measurement]) -> Floats:
    """(N,) milliseconds that other work on the machine disturbs least: each p10, at the level of the medians."""
    p10, p50 = (np.array([getattr(m, name) for m in measurements]) for name in ("p10", "latency_ms"))
    timed = p10 > 0  # a device may find what a runtime leaves out to take no time
    return np.asarray(p10 * np.median(p50[timed] / p10[timed])) if timed.any() else p10


def levelled(sessions: Sequence[Session]) -> list[dict[Architecture, float]]:
    """Return the milliseconds of each session's networks, all at the level of the middle one of the sessions.

    The ratio of two sessions is the median over the networks that both measured. A session that shares none with an
    earlier one keeps its own level. Networks that were refused are left out.
    """
    found = [_milliseconds(session) for session in sessions]
    levels: list[float] = []
    for values in found:
        ratios = [
            ms / (earlier[arch] / level)
            for arch, ms in values.items()
            for earlier, level in zip(found, levels, strict=False)
            if arch in earlier
        ]
        levels.append(float(np.median(ratios)) if ratios else 1.0)
    middle = float(np.median(levels)) if levels else 1.0
    return [
        {arch: ms / level * middle for arch, ms in values.items()} for values, level in zip(found, levels, strict=True)
    ]


def _milliseconds(session: Session) -> dict[Architecture, float]:
    kept = [(one.arch, one.measurement) for one in session.networks if one.measurement is not None]
    values = typical([measurement for _, measurement in kept])
    return {arch: float(ms) for (arch, _), ms in zip(kept, values, strict=True)}
