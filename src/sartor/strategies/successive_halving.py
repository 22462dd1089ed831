# SPDX-License-Identifier: Apache-2.0
"""Asynchronous successive halving (ASHA), and Hyperband's brackets of it.

Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht and Talwalkar, "A System for Massively Parallel
Hyperparameter Tuning", MLSys 2020, arXiv:1810.05934, Algorithm 2. Brackets: Li, Jamieson, DeSalvo,
Rostamizadeh and Talwalkar, "Hyperband", JMLR 18 (2018), arXiv:1603.06560, Algorithm 1.

Idea: evaluate many architectures with little, the best 1/eta of them with eta times as much, and so on up to
the full budget. An architecture is promoted as soon as it is among the best of those that have come as far,
and where none is, a new one starts; nobody waits.

Differs from the papers: budgets are shares of the full one; failed and infeasible architectures are not
promoted; the brackets of Hyperband take turns in proportion to their sizes instead of one after the other.
Where no objective has `fidelity`, every evaluation is a full one, and this is random search.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names, costs
from sartor.space import SearchSpace
from sartor.strategies._operators import excess, sampled_new
from sartor.trial import Candidate, Trial

_Key = tuple[float, float]


class SuccessiveHalving:
    """Minimises (or maximises) the first objective; the others count through their bounds only.

    smallest: the budget of the lowest rung, as a share of the full one (1/27).
    eta: the reduction factor: by how much the budget rises from rung to rung, and the number falls (3).
    budgets: the rungs themselves, ascending to 1.0, where an objective has but a few fidelities.
    brackets: how many there are; bracket b leaves out the b lowest rungs. 1 is successive halving, and as
        many as rungs are Hyperband.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        smallest: float = 1 / 27,
        eta: float = 3,
        budgets: Sequence[float] | None = None,
        brackets: int = 1,
    ) -> None:
        """Start with empty rungs; ValueError for numbers out of range."""
        check_names(objectives)
        if not (eta > 1 and 0 < smallest <= 1):
            raise ValueError(f"eta is {eta} and smallest {smallest}: eta is above 1, and smallest a share, up to 1")
        self.budgets = _rungs(smallest, eta) if budgets is None else tuple(map(float, budgets))
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)) or self.budgets[-1] != 1:
            raise ValueError(f"the budgets {self.budgets} do not ascend from above 0 to 1.0")
        if self.budgets[0] <= 0 or not 1 <= brackets <= len(self.budgets):
            raise ValueError(f"brackets is {brackets}, and the budgets {self.budgets}: give 1 to one for each budget")
        self.space = space
        self.objectives = tuple(objectives)
        self.eta = eta
        self.sizes = _sizes(len(self.budgets), brackets, eta)
        self._rungs: list[list[dict[Architecture, _Key]]] = [[{} for _ in self.budgets] for _ in self.sizes]
        self._bracket: dict[Architecture, int] = {}  # by the budget it started with
        self._running: set[Candidate] = set()

    def ask(self, rng: random.Random) -> Candidate:
        """Promote from the highest rung from which that is possible, or start a new architecture (get_job)."""
        for rung in reversed(range(len(self.budgets) - 1)):
            for bracket in self._rungs:
                for arch in self._promotable(bracket, rung):
                    return self._started(arch, rung + 1)
        running = {candidate.arch for candidate in self._running}
        arch = sampled_new(self.space, rng, self._bracket.keys() | running)
        return self._started(arch, self._next_bracket())

    def tell(self, trial: Trial) -> None:
        """Enter the architecture in the rung of its budget, and strike it off the running ones."""
        self._running = {candidate for candidate in self._running if candidate.arch != trial.arch}
        rung = max((i for i, budget in enumerate(self.budgets) if budget <= trial.budget), default=0)
        bracket = self._bracket.setdefault(trial.arch, min(rung, len(self.sizes) - 1))
        key = (excess(trial, self.objectives), costs(trial, self.objectives[:1])[0])
        self._rungs[bracket][rung][trial.arch] = key if trial.state == "done" else (math.inf, math.inf)

    def _promotable(self, rungs: list[dict[Architecture, _Key]], rung: int) -> list[Architecture]:
        """Return those of the best 1/eta of a rung that were not promoted and do not run."""
        here, above = rungs[rung], rungs[rung + 1]
        best = sorted(here, key=here.__getitem__)[: int(len(here) / self.eta)]
        budget = self.budgets[rung + 1]
        return [
            arch
            for arch in best
            if arch not in above and math.isfinite(here[arch][0]) and Candidate(arch, budget) not in self._running
        ]

    def _next_bracket(self) -> int:
        """Return the bracket that is furthest behind its share of the architectures."""
        started = [0] * len(self.sizes)
        for bracket in self._bracket.values():
            started[bracket] += 1
        for candidate in self._running:
            if candidate.arch not in self._bracket:
                started[self.budgets.index(candidate.budget)] += 1
        return min(range(len(self.sizes)), key=lambda bracket: started[bracket] / self.sizes[bracket])

    def _started(self, arch: Architecture, rung: int) -> Candidate:
        """Note that it runs, so that no other worker is given the same; with one worker nothing runs at an ask."""
        candidate = Candidate(arch, self.budgets[rung])
        self._running.add(candidate)
        return candidate


def _rungs(smallest: float, eta: float) -> tuple[float, ...]:
    """Return the budgets from the full one down by factors of eta, as long as they are not below the smallest."""
    count = int(math.log(1 / smallest) / math.log(eta) + 1e-9)
    return tuple(float(eta) ** (i - count) for i in range(count + 1))


def _sizes(rungs: int, brackets: int, eta: float) -> list[int]:
    """Return how many architectures each bracket of Hyperband starts: n of line 3, with s = rungs - 1 - bracket."""
    return [math.ceil(rungs / (rungs - b) * eta ** (rungs - 1 - b) - 1e-9) for b in range(brackets)]
