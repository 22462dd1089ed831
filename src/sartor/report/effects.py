# SPDX-License-Identifier: Apache-2.0
"""What each choice does: the mean effect of every option over a run's trials, by an additive regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture, Option
from sartor.space import SearchSpace

Floats = NDArray[np.float64]

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # of the ridge: noise over effect variance


@dataclass(frozen=True)
class Effect:
    """How far one option moves the mean, in the unit of the values; `distinct` if beyond two errors."""

    choice: str
    option: Option
    value: float
    error: float
    trials: int

    @property
    def distinct(self) -> bool:
        """Whether the effect is distinguishable from none."""
        return abs(self.value) > 2 * self.error


@dataclass(frozen=True)
class Effects:
    """The fitted effects, and the share of the values' variance that they explain."""

    effects: tuple[Effect, ...]
    explained: float


def additive_effects(space: SearchSpace, archs: Sequence[Architecture], values: Sequence[float]) -> Effects | None:
    """Fit value = mean + the sum of the effects of the active options, by ridge regression.

    An effect is relative to the choice's average over the trials in which it was active, so that the effects
    of one choice average to zero. The ridge is read as a Gaussian prior: its penalty maximises the marginal
    likelihood (MacKay, Neural Computation 4(3), 1992), and the errors are the posterior's, so that few trials
    claim little. Returns None where there are too few trials (under 8) or nothing varies.
    """
    columns = [(name, option) for name, options in space.choices.items() for option in options]
    observed = np.asarray(values, dtype=np.float64)
    if len(archs) < 8 or float(np.ptp(observed)) <= 1e-12:
        return None
    chosen = _chosen(space, columns, archs)
    counts = chosen.sum(axis=0)
    centring = _centring([name for name, _ in columns], counts)
    design = chosen @ centring  # the means of active choices drop out, those of inactive ones stay zero
    design -= design.mean(axis=0)
    observed = observed - observed.mean()
    inverse, noise = _posterior(design, observed)
    fitted = inverse @ design.T @ observed
    residual = observed - design @ fitted
    value, spread = centring @ fitted, np.sqrt(noise * np.diag(centring @ inverse @ centring.T))
    effects = tuple(
        Effect(name, option, float(value[index]), float(spread[index]), int(counts[index]))
        for index, (name, option) in enumerate(columns)
        if counts[index]
    )
    return Effects(effects, 1 - float(residual @ residual) / float(observed @ observed))


def _posterior(design: Floats, observed: Floats) -> tuple[Floats, float]:
    """Return the posterior covariance over the noise variance, and that variance, at the best penalty."""
    gram, moment, (trials, options) = design.T @ design, design.T @ observed, design.shape
    best: tuple[float, Floats, float] | None = None
    for penalty in PENALTIES:
        precision = gram + penalty * np.eye(options)
        inverse: Floats = np.linalg.inv(precision).astype(np.float64)
        noise = max(float(observed @ observed - moment @ inverse @ moment) / trials, 1e-300)
        volume = float(np.linalg.slogdet(precision)[1]) - options * float(np.log(penalty))
        likelihood = -0.5 * (trials * float(np.log(noise)) + volume)
        if best is None or likelihood > best[0]:
            best = likelihood, inverse, noise
    assert best is not None
    return best[1], best[2]


def spans(effects: Sequence[Effect]) -> Mapping[str, float]:
    """Return, by choice, the distance between its best and its worst option."""
    found: dict[str, list[float]] = {}
    for effect in effects:
        found.setdefault(effect.choice, []).append(effect.value)
    return {choice: max(values) - min(values) for choice, values in found.items()}


def _chosen(space: SearchSpace, columns: Sequence[tuple[str, Option]], archs: Sequence[Architecture]) -> Floats:
    """Return (trials, options): one where the architecture holds the option and the choice matters."""
    place = {(name, repr(option)): index for index, (name, option) in enumerate(columns)}
    chosen = np.zeros((len(archs), len(columns)))
    for row, arch in enumerate(archs):
        for name, option in arch.items():
            index = place.get((name, repr(option)))
            if index is not None and space.is_active(name, arch):
                chosen[row, index] = 1.0
    return chosen


def _centring(owners: Sequence[str], counts: Floats) -> Floats:
    """Return the (options, options) projection that takes its choice's mean from each effect."""
    centring = np.eye(len(owners))
    for name in dict.fromkeys(owners):
        block = np.flatnonzero([owner == name for owner in owners])
        if counts[block].any():
            centring[np.ix_(block, block)] -= counts[block] / counts[block].sum()
    return centring
