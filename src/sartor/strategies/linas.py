# SPDX-License-Identifier: Apache-2.0
"""LINAS, lightweight iterative neural architecture search.

Cummings, Sarah, Sridhar, Szankin, Munoz and Sundaresan, "A Hardware-Aware Framework for Accelerating Neural
Architecture Search Across Modalities", 2022, arXiv:2205.10358; Sarah et al., "A Hardware-Aware System for
Accelerating Deep Neural Network Optimization", 2022, arXiv:2202.12954.

Idea: measure a population, fit a cheap predictor for each objective to all that was measured, search the Pareto front
of the predictors by an evolution of thousands of predictions, and measure the population it ends with. A front found
for another device or measure may start the search.

Differs from the paper: only architectures that were not measured yet are proposed, so that no measurement is wasted,
and the best of all that the evolution met, not of its last generation; a space that can be listed is predicted whole,
which is what the evolution approximates; choices are recombined as in our NSGA-II, with a mutation of at least one
choice (the authors' .02 per choice hardly ever mutates short genomes); a warm start fills half
of the first population; bounds of cheap objectives are measured before anything is proposed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names
from sartor.predictors.ridge_or_svr import RidgeOrSVR
from sartor.space import SearchSpace
from sartor.strategies._indicator import sampled_within
from sartor.strategies._predicted_front import predicted_front, started
from sartor.strategies._surrogate import MakePredictor, everything, learnt, seeded
from sartor.trial import Trial


class LINAS:
    """Searches the Pareto front of all objectives within their bounds.

    population: architectures measured in a loop (50: the authors' code).
    evaluations: predictions of the inner evolution, where the space is too large to predict whole (20,000).
    warm: architectures to start from, such as a front found for another device, in its order: half a population of
        them, evenly spaced, takes part.
    predictor: from a space to a predictor, one for each objective.
    queries: the number of evaluations, if it is known: a population is a quarter of them at most, as a search that
        ends with its first one has predicted nothing.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        population: int = 50,
        evaluations: int = 20_000,
        warm: Sequence[Architecture] = (),
        predictor: MakePredictor = RidgeOrSVR,
        queries: int | None = None,
    ) -> None:
        """Start with nothing known; ValueError for sizes out of range or strangers in `warm`."""
        check_names(objectives)
        population = population if queries is None else max(2, min(population, queries // 4))
        if population < 2 or evaluations < population:
            raise ValueError(f"population {population}, evaluations {evaluations}: at least 2, and as many as it")
        self.space = space
        self.objectives = tuple(objectives)
        self.population, self.evaluations, self.predictor = population, evaluations, predictor
        self.proposed: list[Architecture] = started(space, warm, population)
        """What the loop measures; the rest of the first population is random."""
        self._whole = everything(space)
        self._told: dict[Architecture, Trial] = {}
        self._count = 0

    def ask(self, rng: random.Random) -> Architecture:
        """Return one of the loop's architectures that is still to be measured, in random order."""
        waiting = [arch for arch in self.proposed if arch not in self._told]
        if waiting:
            return waiting[int(rng.random() * len(waiting))]
        return sampled_within(self.space, rng, self._told, self.objectives)

    def tell(self, trial: Trial) -> None:
        """Learn; when the loop is complete, predict the next one's population."""
        self._told.setdefault(trial.arch, trial)
        self._count += 1
        if self._count % self.population == 0:
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
