# SPDX-License-Identifier: Apache-2.0
"""The devices that HELP learns from, and the samples that it asks of one.

Letters of shapes: D devices, T tasks, N architectures, K columns of `summary`, S samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

_BLENDED = 3  # devices in a synthetic one, at most
_COST_SPREAD = 1.5  # standard deviation of the logarithm of a synthetic operator's cost
_COSTED = 0.7  # chance that a synthetic device has operators of its own
_CANDIDATES = 300


def checked_devices(devices: Mapping[str, ArrayLike], count: int) -> Floats:
    """Return (D, N) latencies with mean 1 on each device; ValueError names a device that has not N positive ones."""
    tables = []
    for name, values in devices.items():
        table = np.asarray(values, dtype=np.float64)
        if table.shape != (count,) or not (np.isfinite(table) & (table > 0)).all():
            raise ValueError(f"device {name!r} has latencies of shape {table.shape}: give {count} positive ones")
        tables.append(table / table.mean())
    return np.stack(tables) if tables else np.empty((0, count))


def devices_of_episode(
    tables: Floats, columns: Floats, count: int, *, synthetic: float, noise: float, rng: np.random.Generator
) -> Floats:
    """Return (T, N) latencies of `count` devices, each a source or, with chance `synthetic`, made from sources.

    A synthetic device is a blend of up to three sources. Most are blended once more, with a device whose operators
    have costs of their own, the same wherever they stand: few sources would otherwise leave out whole kinds of devices.
    Each latency is off by up to `noise`, a standard deviation that is drawn for each device.
    """
    drawn = np.empty((count, tables.shape[1]))
    for row in range(count):
        if rng.random() >= synthetic:
            drawn[row] = tables[rng.integers(len(tables))]
            continue
        few = rng.choice(len(tables), min(len(tables), int(rng.integers(1, _BLENDED + 1))), replace=False)
        drawn[row] = rng.dirichlet(np.ones(len(few))) @ tables[few]
        if rng.random() < _COSTED:
            share, costs = rng.random(), np.exp(rng.normal(0.0, _COST_SPREAD, columns.shape[1]))
            own = columns @ costs
            if own.any():
                drawn[row] = (1 - share) * drawn[row] + share * own / own.mean()
    return drawn * (1 + noise * rng.random((count, 1)) * rng.normal(size=drawn.shape))


def drawn_samples(columns: Floats, count: int, rng: np.random.Generator) -> Rows:
    """Return S rows to measure: in half of the cases any, in the other half those that `spread_out` takes."""
    if rng.random() < 0.5:
        return rng.choice(len(columns), count, replace=False)
    few = rng.choice(len(columns), min(_CANDIDATES, len(columns)), replace=False)
    return few[spread_out(columns[few], count)]


def spread_out(columns: Floats, count: int) -> Rows:
    """Return the S rows whose columns say most: each adds the most to the determinant of the information matrix.

    A greedy D-optimal design (Fedorov, "Theory of Optimal Experiments", 1972) for a line with a wide prior.
    """
    inputs = np.concatenate([columns - columns.mean(axis=0), np.ones((len(columns), 1))], axis=1)
    covariance = 10.0 * np.eye(inputs.shape[1])
    taken: list[int] = []
    for _ in range(count):
        away = inputs @ covariance
        variance = np.einsum("nk,nk->n", away, inputs)
        variance[taken] = -1.0
        best = int(np.argmax(variance))
        taken.append(best)
        covariance -= np.outer(away[best], away[best]) / (1 + variance[best])
    return np.array(taken, dtype=np.intp)
