"""Two devices with opposite operator costs: the network that a search finds for each, measured on both.

FBNet, ProxylessNAS, Single-Path NAS and LA-DARTS, each with its own latency term, search for a matrix unit and for a
vector unit (see two_devices.py): 150 steps of 32 digits, 5 seeds; recipes as published, but for learning rates made
for long searches (`sartor.bench.contenders.rule`). Strengths: FBNet's power 0.6 as in the paper; 0.3 times the latency
over its mean for ProxylessNAS and LA-DARTS; 0.3 times its logarithm for Single-Path (0.02 in the paper, whose searches
are far longer). Latencies are in microseconds, means and standard deviations over seeds. `faster on its own`: seeds in
which each of the two networks is faster than the other one on the device that it was found for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from two_devices import MATRIX, METHODS, VECTOR, latency, search

Row = Mapping[str, str | float | int | None]

STRENGTHS = {"FBNet": 0.6, "ProxylessNAS": 0.3, "Single-Path": 0.3, "LA-DARTS": 0.3}


def rows(quick: bool) -> Iterator[Row]:
    """A row per method."""
    for method in METHODS:
        found = [swapped(method, seed) for seed in range(1 if quick else 5)]
        times = np.array([one for one, _ in found])  # (seeds, devices, networks)
        own = (times[:, 0, 0] < times[:, 0, 1]) & (times[:, 1, 1] < times[:, 1, 0])
        yield {
            "method": method,
            "strength": STRENGTHS[method],
            "seeds": len(found),
            "different networks": sum(different for _, different in found),
            "faster on its own": int(own.sum()),
            "matrix: its own us": _spread(times[:, 0, 0]),
            "matrix: vector's us": _spread(times[:, 0, 1]),
            "vector: its own us": _spread(times[:, 1, 1]),
            "vector: matrix's us": _spread(times[:, 1, 0]),
        }


def swapped(method: str, seed: int) -> tuple[list[list[float]], bool]:
    """Return the latencies of both networks, [device][network], and whether the networks differ."""
    devices = MATRIX, VECTOR
    archs = [search(method, device, STRENGTHS[method], seed).arch for device in devices]
    return [[latency(method, device, arch) for arch in archs] for device in devices], archs[0] != archs[1]


def _spread(values: np.ndarray) -> str:
    deviation = f" +- {values.std(ddof=1):.0f}" if len(values) > 1 else ""
    return f"{values.mean():.0f}{deviation}"
