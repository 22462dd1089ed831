# SPDX-License-Identifier: Apache-2.0
"""Steps shared by strategies that ask a predictor: candidates to score, and what is believed of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.encodings import architectures, enumerated
from sartor.objective import Objective, costs
from sartor.protocols import Predictor
from sartor.space import SearchSpace
from sartor.strategies._indicator import cheap_excess
from sartor.trial import Trial

Floats = NDArray[np.float64]
MakePredictor = Callable[[SearchSpace], Predictor]

ENUMERABLE = 50_000
"""A space of at most so many architectures is scored whole."""


def everything(space: SearchSpace) -> list[Architecture] | None:
    """Return all architectures that the constraint allows, or None if the space is too large to list them."""
    if space.size > ENUMERABLE:
        return None
    archs = architectures(space, enumerated(space))
    return archs if space.constraint is None else [arch for arch in archs if space.constraint(arch)]


def sampled(
    space: SearchSpace, count: int, rng: random.Random, seen: Collection[Architecture] = ()
) -> list[Architecture]:
    """Draw up to `count` different architectures that are not in `seen`, by twice as many draws."""
    found: dict[Architecture, None] = {}
    for _ in range(2 * count):
        if len(found) == count:
            break
        if (arch := space.sample(rng)) not in seen:
            found[arch] = None
    return list(found)


class Belief(NamedTuple):
    """What predictors expect of N architectures: `costs` (N, M), to be minimised, and `excess` (N,) over bounds."""

    costs: Floats
    excess: Floats

    def order(self) -> NDArray[np.intp]:
        """Rank by Deb's rules: the least excess first, then the least first cost; equals in the order given."""
        return np.lexsort((self.costs[:, 0], self.excess))


def believed(
    predictors: Sequence[Predictor | None], objectives: Sequence[Objective], archs: Sequence[Architecture]
) -> Belief:
    """Predict each objective; one without a predictor is believed to cost 0 and to be within its bounds."""
    means = np.zeros((len(archs), len(objectives)))
    excess = np.zeros(len(archs))
    for column, (predictor, objective) in enumerate(zip(predictors, objectives, strict=True)):
        if predictor is None:
            continue
        values = predictor.predict(archs)[0]
        means[:, column] = values if objective.goal == "min" else -values
        for bound, sign in ((objective.at_most, 1.0), (objective.at_least, -1.0)):
            if bound is not None:
                excess += np.maximum(sign * (values - bound), 0.0) / (abs(bound) or 1.0)
    return Belief(means, excess)


def learnt(
    make: MakePredictor, space: SearchSpace, objectives: Sequence[Objective], trials: Iterable[Trial]
) -> list[Predictor | None]:
    """Fit a predictor for each objective to what was measured of it; None where that is less than two values.

    What a bound kept from being measured is unknown and left out. A failure is worth the worst that was measured:
    else a search would return to where networks do not run.
    """
    trials = list(trials)
    predictors: list[Predictor | None] = []
    for objective in objectives:
        known = np.array([costs(trial, (objective,))[0] for trial in trials])
        measured = np.isfinite(known)
        if measured.sum() < 2:
            predictors.append(None)
            continue
        failed = np.array([trial.state == "failed" for trial in trials]) & ~measured
        values = np.where(failed, known[measured].max(), known) * (1.0 if objective.goal == "min" else -1.0)
        kept = np.flatnonzero(measured | failed)
        predictors.append(make(space).fit([trials[i].arch for i in kept], values[kept]))
    return predictors


def distinct(trials: Iterable[Trial]) -> list[Trial]:
    """Return the first trial of each architecture, in order: a repeat is no second measurement."""
    first: dict[Architecture, Trial] = {}
    for trial in trials:
        first.setdefault(trial.arch, trial)
    return list(first.values())


def judged(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    """Return what counts for a search of one objective: the first, and those with bounds."""
    return (objectives[0], *(one for one in objectives[1:] if one.bounded))


def seeded(trials: Sequence[Trial]) -> random.Random:
    """Return a generator that depends on what was told, and so differs between searches but not on resuming."""
    last = trials[-1].arch.id if trials else ""
    return random.Random(f"{len(trials)}/{trials[0].arch.id if trials else ''}/{last}")


def allowed(archs: Iterable[Architecture], objectives: Sequence[Objective], count: int) -> list[Architecture]:
    """Return the first `count` that are within the bounds of the cheap objectives, which are measured."""
    return list(itertools.islice((arch for arch in archs if cheap_excess(arch, objectives) == 0), count))
