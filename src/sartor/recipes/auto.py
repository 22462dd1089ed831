# SPDX-License-Identifier: Apache-2.0
"""Auto: the strategy for those who name none.

Composed of known parts: Bayesian optimisation by Gaussian processes (Jones, Schonlau and Welch, "Efficient Global
Optimization of Expensive Black-Box Functions", 1998), chances of keeping the bounds (Gardner et al., ICML 2014),
hypervolume by directions (Zhang and Golovin, ICML 2020), and the neighbourhoods of local search (White et al., UAI
2021).

Idea: a few random architectures, then those that a surrogate of each objective expects to gain most by: improvement
for one objective, hypervolume for several, times the chance of keeping the bounds. For several, candidates are the
neighbours of the front, of which surrogates know something; for one, a space that can be listed is judged whole, and of
a larger one draws, the neighbours of the best and their offspring. Surrogates learn again after ever longer rounds, and
from ever the same number of trials, so that an ask costs milliseconds after thousands as well.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice

import numpy as np

from sartor.architecture import Architecture
from sartor.encodings import Indices, indices
from sartor.objective import Objective, check_names, costs
from sartor.pareto import front_numbers
from sartor.recipes._auto_belief import Belief
from sartor.recipes._auto_gain import Feasibility, Improvement, Volume
from sartor.recipes._auto_pool import Listed, Pool, around, drawn, listed
from sartor.recipes._auto_process import Features
from sartor.space import SearchSpace
from sartor.strategies._indicator import cheap_excess
from sartor.strategies._operators import excess, sampled_new
from sartor.trial import Trial

__all__ = ["Auto"]

_SHORTLIST = 1500  # candidates of which the uncertainty is worked out
_BEST = 5  # architectures whose neighbours and offspring are candidates in a space that is not listed
_DRAWN = 500  # candidates of each kind there
_SHARE = 50  # a round has at least so many times fewer candidates than there are trials
_NEAR = 2000  # neighbours of the front after which no more are listed
_EARLY_EXITS = 50  # draws that a start within the bounds may take


class Auto:
    """Searches the best architecture for one objective, the Pareto front for several, within all bounds.

    initial: random architectures at the start; those beyond a cheap bound are drawn again before they cost a trial.
    batch: candidates of a round after which the surrogates learn again; with n trials told, at least n / 50.
    capacity: trials that the surrogates learn from: the better half of these, and an even choice of the others.

    Bounds of cheap objectives are measured before a candidate is asked for; the first objective, and objectives
    without a bound, are only known from what was told. What was asked for and not told counts as if its values were
    those believed, so that parallel workers spread out. Resumes by replay, which takes the time of the search itself.

    An ask takes 5 to 40 ms of CPU time in the mean, and one that plans a round a few tenths of a second at most: it
    loses to local search and evolution where an evaluation is cheaper than that, and where there is budget for many
    thousands, as it learns from `capacity` of them. It is no better than random search in the first `initial` trials,
    nor where values are mostly noise. With several objectives, and in a space that cannot be listed, it knows what is
    near the best, and can miss what is elsewhere.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        initial: int = 10,
        batch: int = 2,
        capacity: int = 400,
    ) -> None:
        """Start with nothing known; ValueError for numbers out of range."""
        check_names(objectives)
        if initial < 2 or batch < 1 or capacity < 10:
            raise ValueError(f"initial {initial}, batch {batch}, capacity {capacity}: at least 2, 1 and 10 are needed")
        self.space = space
        self.objectives = tuple(objectives)
        self.initial, self.batch, self.capacity = initial, batch, capacity
        self._trials: dict[Architecture, Trial] = {}
        self._pending: dict[Architecture, None] = {}
        self._round: list[Architecture] = []
        self._features = Features(space)
        self._beliefs = [Belief(self._features, objective) for objective in objectives]
        self._listed: Listed | None = None

    def ask(self, rng: random.Random) -> Architecture:
        """Sample at the start, then take the next of the round."""
        if len(self._trials) + len(self._pending) < self.initial:
            arch = self._start(rng)
        else:
            self._round = [arch for arch in self._round if not self._taken(arch)] or self._on_one_thread()
            arch = self._round[0] if self._round else self._start(rng)
        self._pending[arch] = None
        return arch

    def tell(self, trial: Trial) -> None:
        """Remember the first trial of each architecture."""
        self._pending.pop(trial.arch, None)
        self._trials.setdefault(trial.arch, trial)

    def _taken(self, arch: Architecture) -> bool:
        return arch in self._trials or arch in self._pending

    def _start(self, rng: random.Random) -> Architecture:
        """Sample what is new and, if a few draws find it, within the bounds that cost nothing to look at."""
        for _ in range(_EARLY_EXITS):
            arch = sampled_new(self.space, rng, self._trials.keys() | self._pending.keys())
            if cheap_excess(arch, self.objectives) == 0:
                break
        return arch

    # ---- a round ----------------------------------------------------------------------------------------

    def _on_one_thread(self) -> list[Architecture]:
        """Plan with linear algebra of the same bits on any number of cores: a search may be resumed on others."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(limits=1, user_api="blas"):
            return self._planned()

    def _planned(self) -> list[Architecture]:
        """Learn, and return the candidates of the greatest expected gain, best first; none if none is left."""
        trials = list(self._trials.values())
        if not trials:
            return []
        ranks = self._ranks(trials)
        samples = [trials[place] for place in _learnt_from(ranks, self.capacity)]
        # Seeded by what was told, not by an ask: asks whose trials are lost leave nothing behind.
        rng = random.Random(f"{len(trials)}/{trials[-1].arch.id}")
        pool = self._pool(trials, ranks, rng)
        open_ = np.flatnonzero(pool.without([*self._trials, *self._pending]))
        if not len(open_):
            return []
        open_ = np.random.default_rng(rng.getrandbits(64)).permutation(open_)  # equals come in random order
        encoded = self._features(indices(self.space, [trial.arch for trial in samples]))
        waiting = self._features(indices(self.space, list(self._pending))) if self._pending else None
        for belief in self._beliefs:
            belief.learn(samples, encoded, waiting, pool)
        return self._chosen(samples, pool, open_, max(self.batch, len(trials) // _SHARE))

    def _ranks(self, trials: Sequence[Trial]) -> Indices:
        """Return the (N,) ranks of trials: fronts of those within bounds, then the others by how far they are off."""
        points = np.array([costs(trial, self.objectives) for trial in trials])
        beyond = np.array([excess(trial, self.objectives) for trial in trials])
        ranks = np.unique(beyond, return_inverse=True)[1] + len(trials)
        ranks[beyond == 0] = front_numbers(points[beyond == 0])
        return ranks

    def _pool(self, trials: Sequence[Trial], ranks: Indices, rng: random.Random) -> Listed | Pool:
        """Return the neighbours of the front for several objectives, while any is unknown; else the space, or draws.

        Trials spread along a front, so that a surrogate of each objective that fits them all says little of what is far
        from them, and says it with confidence: of the whole space, it would choose its own errors.
        """
        taken = self._trials.keys() | self._pending.keys()
        if len(self.objectives) > 1:
            front = [trial.arch for trial, rank in zip(trials, ranks, strict=True) if rank == ranks.min()]
            near = around(self.space, self._features, front, taken, _NEAR, rng)
            if len(near):
                return near
        if self._listed is None:
            self._listed = listed(self.space, self._features)
        if self._listed is not None:
            return self._listed
        first = sorted(range(len(trials)), key=lambda place: (ranks[place], rng.random()))[:_BEST]
        return drawn(self.space, self._features, [trials[place].arch for place in first], taken, _DRAWN, rng)

    def _chosen(self, samples: Sequence[Trial], pool: Listed | Pool, places: Indices, count: int) -> list[Architecture]:
        """Return the `count` of these candidates that are expected to gain most, and keep all cheap bounds."""
        means = np.stack([belief.means[places] for belief in self._beliefs], axis=1)
        short = np.sum([one.shortfall(mean) for one, mean in zip(self._beliefs, means.T, strict=True)], axis=0)
        gain = self._gain(samples)
        kept = gain.shortlist(means, short, _SHORTLIST)
        places, means = places[kept], means[kept]
        deviations = np.stack([belief.deviations(places) for belief in self._beliefs], axis=1)
        expected = gain.of(means, deviations)
        for belief, mean, deviation in zip(self._beliefs, means.T, deviations.T, strict=True):
            expected = expected * belief.chance(mean, deviation)
        best = pool.architectures(places[np.argsort(-expected, kind="stable")])
        return list(islice((arch for arch in best if cheap_excess(arch, self.objectives) == 0), count))

    def _gain(self, samples: Sequence[Trial]) -> Feasibility | Improvement | Volume:
        """Return what is to be gained: bounds that are kept, then the first objective or the front of all."""
        told = -np.array([costs(trial, self.objectives) for trial in samples])
        within = np.array([excess(trial, self.objectives) == 0 for trial in samples])
        feasible = np.isfinite(told).all(axis=1) & within
        if not feasible.any():
            return Feasibility()
        if len(self.objectives) == 1:
            return Improvement(float(self._beliefs[0].fitted[feasible].max()))
        fitted = np.stack([belief.fitted[feasible] for belief in self._beliefs], axis=1)
        return Volume(fitted, np.random.default_rng(len(self._trials)))


def _learnt_from(ranks: Indices, capacity: int) -> Indices:
    """Return ascending places: all, or the better half of what there is room for and an even choice of the others."""
    if len(ranks) <= capacity:
        return np.arange(len(ranks))
    order = np.argsort(ranks, kind="stable")
    best, others = order[: capacity // 2], np.sort(order[capacity // 2 :])
    even = np.linspace(0, len(others) - 1, capacity - len(best)).astype(np.intp)
    return np.sort(np.concatenate([best, others[even]]))
