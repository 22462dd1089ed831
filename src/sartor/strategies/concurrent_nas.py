# SPDX-License-Identifier: Apache-2.0
"""ConcurrentNAS: search while the shared weights are still training.

Sarah, Cummings, Sridhar, Sundaresan, Szankin, Webb and Munoz, "A Hardware-Aware System for Accelerating Deep Neural
Network Optimization", 2022, arXiv:2202.12954.

Idea: train the shared weights for a while, search on them as they are, train on, and search again from the front of
the search before. The search does not wait for the training to end, and finds where to look while networks are cheap.

Differs from the paper: a stage of training is a budget, so that an objective with `fidelity` measures with the weights
as they are after that share of the training. Measurements of an earlier stage are kept out of the predictors, which
learn from the present weights alone; the front is measured again. Without an objective of several fidelities there is
one stage. The search inside a stage is that of our LINAS.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names, costs
from sartor.predictors.ridge_or_svr import RidgeOrSVR
from sartor.space import SearchSpace
from sartor.strategies._indicator import sampled_within
from sartor.strategies._operators import excess
from sartor.strategies._predicted_front import best, predicted_front, started
from sartor.strategies._surrogate import Belief, MakePredictor, everything, learnt, seeded
from sartor.trial import Candidate, Trial


class ConcurrentNAS:
    """Searches the Pareto front of all objectives within their bounds, at budgets that rise to 1.

    budgets: share of the training at which each stage measures, rising; the last stage goes on as long as is asked.
    trials: of each stage but the last.
    population, evaluations, warm, predictor: as those of LINAS.
    queries: the number of evaluations, if it is known: all stages are of one length, and of two populations at least.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        budgets: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
        trials: int = 100,
        population: int = 50,
        evaluations: int = 20_000,
        warm: Sequence[Architecture] = (),
        predictor: MakePredictor = RidgeOrSVR,
        queries: int | None = None,
    ) -> None:
        """Start with nothing known; ValueError for sizes or budgets out of range or strangers in `warm`."""
        check_names(objectives)
        several = any(objective.fidelity for objective in objectives)
        if queries is not None:
            trials = max(2, queries // (len(budgets) if several and budgets else 1))
            population = max(2, min(population, trials // (2 if several else 4)))
        if population < 2 or evaluations < population or trials < population:
            raise ValueError(
                f"population {population}, evaluations {evaluations}, trials {trials}: at least 2, and as many as it"
            )
        if not budgets or not all(0 < one <= 1 for one in budgets) or sorted(set(budgets)) != list(budgets):
            raise ValueError(f"budgets are {tuple(budgets)}: they must rise, above 0 and up to 1")
        self.space = space
        self.objectives = tuple(objectives)
        self.budgets = tuple(budgets) if several else (1.0,)
        self.trials, self.population, self.evaluations, self.predictor = trials, population, evaluations, predictor
        self.stage = 0
        self.proposed: list[Architecture] = started(space, warm, population)
        self._whole = everything(space)
        self._told: dict[Architecture, Trial] = {}  # in this stage
        self._count = 0  # in this stage

    def ask(self, rng: random.Random) -> Candidate:
        """Return one of the loop's architectures that is still to be measured, at the budget of the stage."""
        waiting = [arch for arch in self.proposed if arch not in self._told]
        if waiting:
            arch = waiting[int(rng.random() * len(waiting))]
        else:
            arch = sampled_within(self.space, rng, self._told, self.objectives)
        return Candidate(arch, self.budgets[self.stage])

    def tell(self, trial: Trial) -> None:
        """Learn; propose the next population, or begin the next stage with the front of this one."""
        if trial.budget != self.budgets[self.stage]:
            return  # one of an earlier stage comes too late to be of use
        self._told.setdefault(trial.arch, trial)
        self._count += 1
        if self._count == self.trials and self.stage < len(self.budgets) - 1:
            self.proposed = self._front()
            self.stage, self._told, self._count = self.stage + 1, {}, 0
        elif self._count % self.population == 0:
            self._propose()

    def _front(self) -> list[Architecture]:
        """Return the best half population of this stage, by front and crowding: the other half explores anew."""
        trials = [trial for trial in self._told.values() if trial.state == "done"]
        points = np.array([costs(trial, self.objectives) for trial in trials]).reshape(-1, len(self.objectives))
        excesses = np.array([excess(trial, self.objectives) for trial in trials])
        return [trials[place].arch for place in best(Belief(points, excesses), self.population // 2)]

    def _propose(self) -> None:
        trials = list(self._told.values())
        self.proposed = predicted_front(
            self.space,
            learnt(self.predictor, self.space, self.objectives, trials),
            self.objectives,
            count=self.population,
            evaluations=self.evaluations,
            seen=self._told,
            whole=self._whole,
            rng=seeded(trials),
        )
