# SPDX-License-Identifier: Apache-2.0
"""GOBI, gradient-based optimisation of a surrogate's input by second-order steps, and the way back to designs.

Tuli, Dedhia, Tuli and Jha, JAIR 2023, arXiv:2205.11656. The steps: Yao et al., "AdaHessian", AAAI 2021,
arXiv:2006.00719.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from sartor import encodings
from sartor.architecture import Architecture
from sartor.space import SearchSpace

Floats = NDArray[np.float64]
Bound = Callable[[Floats], tuple[Floats, Floats]]  # from (B, F) points to (B,) values and (B, F) gradients

_MOMENTUM, _CURVATURE, _EPSILON = 0.9, 0.999, 1e-4
_PATIENCE, _STILL = 5, 1e-5  # the end: so many steps in a row that change no value by more
_NEAR = 1e-4  # between the points whose gradients differ by the product with the Hessian


def gobi(bound: Bound, starts: Floats, *, steps: int, rate: float, trust: float, seed: int) -> Floats:
    """Minimise `bound` over (B, F) points within [0, 1], each from its own start.

    trust: the most that a coordinate moves in one step. The rate goes up and down along a cosine of half period 2.
    """
    rng = np.random.default_rng(seed)
    points = starts.copy()
    momentum, curvature = np.zeros_like(points), np.zeros_like(points)
    before, still = np.full(len(points), math.inf), 0
    for step in range(steps):
        values, gradient, diagonal = _derivatives(bound, points, rng)
        still = still + 1 if (np.abs(values - before) < _STILL).all() else 0
        if still == _PATIENCE:
            break
        before = values
        momentum = _MOMENTUM * momentum + (1 - _MOMENTUM) * gradient
        curvature = _CURVATURE * curvature + (1 - _CURVATURE) * diagonal**2
        scale = np.sqrt(curvature / (1 - _CURVATURE ** (step + 1))) + _EPSILON
        move = momentum / (1 - _MOMENTUM ** (step + 1)) / scale
        now = rate * (1 + math.cos(math.pi * step / 2)) / 2
        points = np.clip(points - np.clip(now * move, -trust, trust), 0.0, 1.0)
    return points


def _derivatives(bound: Bound, points: Floats, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Return values (B,), gradients (B, F), and Hutchinson's estimate of the diagonals of the Hessians (B, F).

    The product of a Hessian with random signs is the difference of two gradients, which cost one pass.
    """
    count = len(points)
    signs = rng.choice((-1.0, 1.0), points.shape)
    values, gradients = bound(np.concatenate([points, points + _NEAR * signs]))
    return values[:count], gradients[:count], (gradients[count:] - gradients[:count]) / _NEAR * signs


def nearest(space: SearchSpace, point: Floats) -> Iterator[Architecture]:
    """Yield architectures by the distance of their one-hot encodings from a point (D,), the nearest first.

    Gates are not counted in the distance, so that one architecture may come several times; the constraint of the
    space is ignored.
    """
    parts = np.split(point, np.cumsum([len(options) for options in space.choices.values()])[:-1])
    orders = [np.argsort(-part, kind="stable") for part in parts]
    steps = [part[order[0]] - part[order] for part, order in zip(parts, orders, strict=True)]
    heap: list[tuple[float, tuple[int, ...], int]] = [(0.0, (0,) * len(parts), 0)]
    while heap:
        cost, ranks, first = heapq.heappop(heap)
        row = [order[rank] for order, rank in zip(orders, ranks, strict=True)]
        yield encodings.architectures(space, np.array([row], dtype=np.intp))[0]
        for place in range(first, len(ranks)):  # never an earlier choice, so that each comes once
            if (rank := ranks[place] + 1) < len(orders[place]):
                added = float(steps[place][rank] - steps[place][rank - 1])
                heapq.heappush(heap, (cost + added, (*ranks[:place], rank, *ranks[place + 1 :]), place))
