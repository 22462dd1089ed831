# SPDX-License-Identifier: Apache-2.0
"""The profile of one device as the prior of another: ten measurements of the new one decide the rest.

Devices differ first of all by a factor, then by the kinds of operators that each is good at, and only then by single
options. So the models go from few numbers to more, each a correction of the old device's prediction, and leaving out
one of the measured networks at a time tells which of them the samples can bear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.costs.additive import Line, counted
from sartor.costs.fitting import BASELINES, Make, Residual
from sartor.predictors import HELP, Ridge, WorkloadLatency
from sartor.predictors.workload_latency import features
from sartor.protocols import Predictor
from sartor.space import SearchSpace
from sartor.workload import Workload

__all__ = ["TRANSFERS", "transfers", "well_spread"]

Floats = NDArray[np.float64]

TRANSFERS: Mapping[str, str] = {
    "old": "the old device's prediction, times a factor and with a base",
    "old+kinds": "the same, and what kinds of operators take beside it",
    "old+options": "the same, and a factor for each option",
    "workload": "calls, arithmetic and traffic for each kind of operator, without the old device",
    "help": "HELP, which has learnt from 27 other devices; for NAS-Bench-201 alone",
}
"""The models that adapting tries, by name."""


def transfers(
    space: SearchSpace, workload: Callable[[Architecture], Workload], source: Predictor, *, seed: int = 0
) -> dict[str, Make]:
    """Return what makes each model of a new device from the predictor of an old one, and the baselines, by name."""

    @lru_cache(1 << 16)
    def old(arch: Architecture) -> Floats:
        return source.predict([arch])[0]

    @lru_cache(1 << 16)
    def kinds(arch: Architecture) -> Floats:
        return np.concatenate([old(arch), features(workload(arch))[1:]])

    def scaled() -> Predictor:
        return Line(old, free=1)

    return {
        "old": scaled,
        "old+kinds": partial(Line, kinds, free=1, strength=0.1),
        "old+options": lambda: Residual(scaled(), Ridge(space, alpha=10.0)),
        "workload": partial(WorkloadLatency, workload, 1e-2),
        **_ready_made(space),
        **{
            name: partial(Line, lru_cache(1 << 16)(counted(count, workload)), free=1)
            for name, count in BASELINES.items()
        },
    }


def _ready_made(space: SearchSpace) -> dict[str, Make]:
    """Return what was learnt beforehand, for the space that it was learnt for."""
    known = HELP.shipped("nasbench201")
    return {"help": known.predictor} if dict(known.space.choices) == dict(space.choices) else {}


def well_spread(
    archs: Sequence[Architecture], values: Floats, workload: Callable[[Architecture], Workload], count: int
) -> list[Architecture]:
    """Choose `count` of N architectures to measure, given their (N,) predicted milliseconds.

    One of each part of the range, from fast to slow, and each as unlike those chosen as can be in what kinds of
    operators its time is spent on. ValueError for more than there are.
    """
    if not 1 <= count <= len(archs):
        raise ValueError(f"{count} of {len(archs)} architectures cannot be chosen: ask for 1 to {len(archs)}")
    mixes = np.stack([features(workload(arch)) for arch in archs]) / values[:, None]
    spread = mixes.std(axis=0)
    mixes = (mixes - mixes.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    chosen: list[int] = []
    for part in np.array_split(np.argsort(values, kind="stable"), count):
        gaps = [min((float(np.square(mixes[i] - mixes[j]).sum()) for j in chosen), default=0.0) for i in part]
        # At the ends the range itself matters: the fastest and the slowest.
        place = 0 if not chosen else len(part) - 1 if len(chosen) == count - 1 else int(np.argmax(gaps))
        chosen.append(int(part[place]))
    return [archs[i] for i in chosen]
