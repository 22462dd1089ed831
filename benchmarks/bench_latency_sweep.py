"""How the weight of the latency moves it, for FBNet, ProxylessNAS, Single-Path NAS and LA-DARTS.

Searches for the matrix unit of two_devices.py, 150 steps of 32 digits, 8 seeds. The weight is that of each method's own
latency term: FBNet's power (0.6 in the paper), ProxylessNAS's and LA-DARTS's factor of the latency over its mean,
Single-Path's factor of its logarithm (0.02 in the paper, whose searches are far longer). Expected is the latency of the
distribution that a search ends with, derived that of the network read out; Single-Path has indicators of 0 and 1, and
one latency. In microseconds, means over seeds. Spearman's correlation is that of the weight with the mean latency.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from scipy.stats import spearmanr

from two_devices import MATRIX, METHODS, latency, search

Row = Mapping[str, str | float | int | None]

FACTORS = (0.0, 0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.3)
WEIGHTS = {
    "FBNet": (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
    "ProxylessNAS": FACTORS,
    "Single-Path": (0.0, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5),
    "LA-DARTS": FACTORS,
}


def rows(quick: bool) -> Iterator[Row]:
    """A row per method and weight, and one with the correlations."""
    for method in METHODS:
        weights, seeds = (WEIGHTS[method][::3], 1) if quick else (WEIGHTS[method], 8)
        several = [[search(method, MATRIX, weight, seed) for seed in range(seeds)] for weight in weights]
        expected = np.array([[one.expected for one in found] for found in several])
        derived = np.array([[latency(method, MATRIX, one.arch) for one in found] for found in several])
        for weight, soft, hard in zip(weights, expected, derived, strict=True):
            yield {
                "method": method,
                "weight": weight,
                "expected us": float(soft.mean()),
                "its deviation": float(soft.std(ddof=1)) if seeds > 1 else None,
                "derived us": float(hard.mean()),
                "Spearman expected": None,
                "Spearman derived": None,
            }
        nothing = dict.fromkeys(("weight", "expected us", "its deviation", "derived us"))
        found = {name: _spearman(weights, values) for name, values in (("expected", expected), ("derived", derived))}
        yield {"method": method, **nothing, **{f"Spearman {name}": value for name, value in found.items()}}


def _spearman(weights: tuple[float, ...], values: np.ndarray) -> float | None:
    means = values.mean(axis=1)
    return float(spearmanr(weights, means).statistic) if np.ptp(means) > 0.0 else None
