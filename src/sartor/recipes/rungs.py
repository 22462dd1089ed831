# SPDX-License-Identifier: Apache-2.0
"""The trials of a search for many limits at once: first the front, by any strategy, then what is best within each."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.objective import Objective, costs
from sartor.predictors.gaussian_process import GaussianProcess
from sartor.predictors.ridge_or_svr import RidgeOrSVR
from sartor.protocols import Predictor, Strategy
from sartor.space import SearchSpace
from sartor.strategies._surrogate import MakePredictor, allowed, believed, everything, learnt, sampled, seeded
from sartor.trial import Candidate, Trial

__all__ = ["Rung", "Rungs"]

FRONT_SHARE = 0.4  # of the trials are the strategy's
EACH = 1  # trial for a limit in a round, after which the predictors learn from all
PARENTS, CHILDREN, GENERATIONS = 4, 100, 6  # for a limit, in a space that is too large to predict whole
CHECKED = 50  # of the predicted best within a limit; where none of them is, hardly any is, and each look takes time
LEARNT = 800  # of the last trials, as the time of a Gaussian process grows with their cube

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rung:
    """One limit: of the objective of this name, at most so much."""

    objective: str
    at_most: float


class Rungs:
    """A `Strategy` that spends its trials on several limits, with predictors in the loop.

    The first trials are networks at hand, such as the largest and the smallest, which drawing hardly gives, and then
    those of another strategy, which searches the front without limits. After that, in rounds, the error and the costs
    are predicted from all trials, and each limit gets the untold architecture that is predicted best within it; that it
    is within it is checked by its cheap cost. Every trial serves all limits.

    Where a space is too large to predict whole, predicted are children of the trials that did best within a limit, and
    of what is predicted best: predictors err the more the further they are from any trial.

    Args:
        space, objectives: of the search, the error first; no bounds but those that hold for all.
        rungs: the limits, each of one of the objectives.
        front: the strategy of the first trials.
        trials: of the whole search.
        at_hand: architectures to begin with; those that the space's constraint excludes are passed over.
        predictor: from a space to a predictor of the error. Of those at hand a Gaussian process errs least on networks
            that it has not seen, where a hundred or two are known. The costs are nearly linear in the options, and
            thousands of networks are predicted in each round: theirs is `RidgeOrSVR`.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        rungs: Sequence[Rung],
        front: Strategy,
        trials: int,
        at_hand: Iterable[Architecture] = (),
        predictor: MakePredictor = GaussianProcess,
    ) -> None:
        self.space, self.objectives, self.rungs, self.front = space, tuple(objectives), tuple(rungs), front
        self.predictor = predictor
        self.first = max(1, round(FRONT_SHARE * trials))
        self.told: dict[Architecture, Trial] = {}
        self.proposed = [arch for arch in at_hand if space.constraint is None or space.constraint(arch)]
        self._whole = everything(space)

    def ask(self, rng: random.Random) -> Architecture | Candidate:
        """Return the next architecture of the front, or of a limit; a random one where nothing new is within any."""
        waiting = [arch for arch in self.proposed if arch not in self.told]
        if not waiting and len(self.told) < self.first:
            return self.front.ask(rng)
        if not waiting:
            waiting = self.proposed = self._round()
        return waiting[0] if waiting else self.space.sample(rng)

    def tell(self, trial: Trial) -> None:
        """Take in a trial that ended."""
        self.told.setdefault(trial.arch, trial)
        self.front.tell(trial)

    def _round(self) -> list[Architecture]:
        """For each limit the architectures that are predicted best within it."""
        trials = list(self.told.values())[-LEARNT:]
        predictors = learnt(self.predictor, self.space, self.objectives[:1], trials)
        predictors += learnt(RidgeOrSVR, self.space, self.objectives[1:], trials)
        archs = self._whole or self._evolved(predictors, seeded(trials))
        archs = [arch for arch in archs if arch not in self.told]
        predicted = believed(predictors, self.objectives, archs).costs
        found: dict[Architecture, None] = {}
        for rung in self.rungs:
            goal = next(one for one in self.objectives if one.name == rung.objective)
            bounded = replace(goal, at_most=rung.at_most, cheap=True)
            ordered = (archs[place] for place in self._best(predicted, rung) if archs[place] not in found)
            found |= dict.fromkeys(allowed(islice(ordered, CHECKED), [self.objectives[0], bounded], EACH))
        return list(found)

    def _best(self, values: Floats, rung: Rung) -> NDArray[np.intp]:
        """Places of rows of costs by Deb's rules: the least excess over the limit first, then the least error."""
        column = [one.name for one in self.objectives].index(rung.objective)
        excess = np.maximum(values[:, column] / rung.at_most - 1.0, 0.0)
        return np.lexsort((values[:, 0], excess))

    def _evolved(self, predictors: Sequence[Predictor | None], rng: random.Random) -> list[Architecture]:
        """All that an evolution met: children of what was measured best within each limit, and predicted best."""
        told = list(self.told)
        measured = np.array([costs(trial, self.objectives) for trial in self.told.values()])
        best = {rung: [told[place] for place in self._best(measured, rung)[:PARENTS]] for rung in self.rungs}
        archs = list(dict.fromkeys([*told, *sampled(self.space, CHILDREN, rng)]))
        predicted = believed(predictors, self.objectives, archs).costs
        for _ in range(GENERATIONS):
            known, children = set(archs), dict[Architecture, None]()
            for rung in self.rungs:
                parents = [*best[rung], *(archs[place] for place in self._best(predicted, rung)[:PARENTS])]
                for _ in range(CHILDREN):
                    child = self.space.crossover(rng.choice(parents), rng.choice(parents), rng)
                    children[self.space.mutate(child, rng)] = None
            new = [child for child in children if child not in known]
            if not new:
                break
            more = believed(predictors, self.objectives, new).costs
            archs, predicted = [*archs, *new], np.concatenate([predicted, more])
        return archs
