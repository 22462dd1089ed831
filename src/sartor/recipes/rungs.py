# SPDX-License-Identifier: Apache-2.0
"""The trials of a search for many limits at once: first the front, by any strategy, then what is best within each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.predictors.ridge_or_svr import RidgeOrSVR
from sartor.protocols import Predictor, Strategy
from sartor.space import SearchSpace
from sartor.strategies._surrogate import MakePredictor, allowed, believed, everything, learnt, sampled, seeded
from sartor.trial import Candidate, Trial

__all__ = ["Rung", "Rungs"]

FRONT_SHARE = 0.4  # of the trials are the strategy's
EACH = 2  # trials for a limit in a round, after which the predictors learn from all
PARENTS, CHILDREN, GENERATIONS = 8, 60, 6  # for a limit, in a space that is too large to predict whole

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rung:
    """One limit: of the objective of this name, at most so much."""

    objective: str
    at_most: float


class Rungs:
    """A `Strategy` that spends its trials on several limits, with predictors in the loop.

    The first trials are those of another strategy, which searches the front without limits. Then, in rounds, the error
    and the costs are predicted from all trials, and each limit gets the untold architectures that are predicted best
    within it; that they are within it is checked by their cheap cost. Every trial serves all limits.

    Args:
        space, objectives: of the search, the error first; no bounds but those that hold for all.
        rungs: the limits, each of one of the objectives.
        front: the strategy of the first trials.
        trials: of the whole search.
        predictor: from a space to a predictor, one for each objective.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        rungs: Sequence[Rung],
        front: Strategy,
        trials: int,
        predictor: MakePredictor = RidgeOrSVR,
    ) -> None:
        self.space, self.objectives, self.rungs, self.front = space, tuple(objectives), tuple(rungs), front
        self.predictor = predictor
        self.first = max(1, round(FRONT_SHARE * trials))
        self.told: dict[Architecture, Trial] = {}
        self.proposed: list[Architecture] = []
        self._whole = everything(space)

    def ask(self, rng: random.Random) -> Architecture | Candidate:
        """Return the next architecture of the front, or of a limit; a random one where nothing new is within any."""
        if len(self.told) < self.first:
            return self.front.ask(rng)
        waiting = [arch for arch in self.proposed if arch not in self.told]
        if not waiting:
            waiting = self.proposed = self._round()
        return waiting[0] if waiting else self.space.sample(rng)

    def tell(self, trial: Trial) -> None:
        """Take in a trial that ended."""
        self.told.setdefault(trial.arch, trial)
        self.front.tell(trial)

    def _round(self) -> list[Architecture]:
        """For each limit the architectures that are predicted best within it."""
        trials = list(self.told.values())
        predictors = learnt(self.predictor, self.space, self.objectives, trials)
        archs = self._whole or self._evolved(predictors, seeded(trials))
        archs = [arch for arch in archs if arch not in self.told]
        costs = believed(predictors, self.objectives, archs).costs
        found: dict[Architecture, None] = {}
        for rung in self.rungs:
            goal = next(one for one in self.objectives if one.name == rung.objective)
            bounded = replace(goal, at_most=rung.at_most, cheap=True)
            ordered = (archs[place] for place in self._best(costs, rung) if archs[place] not in found)
            found |= dict.fromkeys(allowed(ordered, [self.objectives[0], bounded], EACH))
        return list(found)

    def _best(self, costs: Floats, rung: Rung) -> NDArray[np.intp]:
        """Places by Deb's rules: the least predicted excess over the limit first, then the least error."""
        column = [one.name for one in self.objectives].index(rung.objective)
        excess = np.maximum(costs[:, column] / rung.at_most - 1.0, 0.0)
        return np.lexsort((costs[:, 0], excess))

    def _evolved(self, predictors: Sequence[Predictor | None], rng: random.Random) -> list[Architecture]:
        """All that an evolution on the predictors met: children of what is predicted best within each limit."""
        archs = list(dict.fromkeys([*self.told, *sampled(self.space, CHILDREN, rng)]))
        costs = believed(predictors, self.objectives, archs).costs
        for _ in range(GENERATIONS):
            children: dict[Architecture, None] = {}
            known = set(archs)
            for rung in self.rungs:
                parents = [archs[place] for place in self._best(costs, rung)[:PARENTS]]
                for _ in range(CHILDREN):
                    child = self.space.crossover(rng.choice(parents), rng.choice(parents), rng)
                    child = self.space.mutate(child, rng)
                    if child not in known:
                        children[child] = None
            if not children:
                break
            more = believed(predictors, self.objectives, list(children)).costs
            archs, costs = [*archs, *children], np.concatenate([costs, more])
        return archs
