# SPDX-License-Identifier: Apache-2.0
"""Gradient-based searches as entries of a scoreboard, paid in the same coin as strategies.

A query of a strategy is the training of one network, which the table has. So a search that takes b trainings spends b
queries without an incumbent, and one more on the training of the network that it found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sartor.architecture import Architecture
from sartor.bench.contenders import check_methods
from sartor.bench.entries import Entry
from sartor.bench.problem import Problem
from sartor.objective import Objective
from sartor.own import absolute, content_digest, is_own
from sartor.space import SearchSpace
from sartor.trial import Trial, TrialLog

__all__ = ["COSTS", "STEPS", "MethodSearch", "method_entries"]

STEPS = 269  # as many as the training of a network of the micro table has
COSTS = ("search_trainings", "search_passes", "search_cpu_s")
"""What the first trial of a search's log holds besides the network found."""
SPENT = "spent by the search"
TUNED = "nothing here: published recipes, with one rule for the learning rates of all methods (see the notes)"
NOTE = (
    "Gradient-based searches train a supernet on the training split of the digits, halved for methods of two levels, "
    "for {steps} steps of 32 images. Their recipes are the published ones but for learning rates made for long "
    "trainings: weights have at least 0.1 (not RARTS), alphas at least {travel:.2f} / steps. What they spend is "
    "counted in trainings: multiply-accumulates over those of training the mean network of the space. The network "
    "found counts one more."
)


@dataclass(frozen=True)
class MethodSearch:
    """A search `(seed, queries) -> TrialLog` with a gradient-based method, looked up in a table.

    method: a name that `check_methods` returned. table: where it is searched, see `gradient.ground`.
    space, objectives: of the problem. steps: of the search.
    """

    method: str
    table: str
    space: SearchSpace
    objectives: tuple[Objective, ...]
    steps: int = STEPS

    def __call__(self, seed: int, queries: int) -> TrialLog:
        """Return as many trials as the search takes trainings, without values, and then the network found.

        The costs are with the first trial. An error of the search is its note, and there is no network then.
        """
        from sartor.bench.gradient import ground, mean_training, search_network

        try:
            place = ground(self.table)
            found = search_network(place, self.method, steps=self.steps, seed=seed)
            trainings = found.macs / mean_training(place)
            values = self._values(found.arch)
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            return _log([Trial(0, self.space.largest(), state="failed", note=told)], queries)
        costs = dict(zip(COSTS, (trainings, float(found.passes), found.cpu_s), strict=True))
        spent = [Trial(i, found.arch, state="failed", note=SPENT) for i in range(math.ceil(trainings))]
        first = Trial(0, found.arch, costs, state="failed", note=SPENT)
        return _log([first, *spent[1:], Trial(len(spent), found.arch, values, state="done")], queries)

    def described(self) -> dict[str, Any]:
        """Return what the record says of it, from which it can be made again."""
        own = is_own(self.method)
        return {
            "source": Path(self.method).name if own else f"sartor {self.method}",
            "given": absolute(self.method),
            **({"digest": content_digest(self.method)} if own else {}),
            "method": True,
            "settings": {"steps": self.steps},
        }

    def _values(self, arch: Architecture) -> dict[str, float]:
        return {one.name: float(one.measure(arch)) for one in self.objectives}


def method_entries(problem: Problem, methods: Iterable[str], *, steps: int = STEPS) -> list[Entry]:
    """Return the entries of gradient-based methods on a problem of `table_problem`; "all" is every one.

    Raises ValueError for a name that takes no part, and for a table that cannot be searched by gradients.
    """
    from sartor.bench.gradient import ground

    table = str(problem.arguments.get("space", problem.name))
    ground(table)
    return [
        Entry(
            name.rpartition(":")[2] if is_own(name) else name,
            search=MethodSearch(absolute(name), table, problem.space, problem.objectives, steps),
            tuned=TUNED,
        )
        for name in check_methods(methods)
    ]


def note(steps: Iterable[int]) -> str:
    """Return what a reader must know of searches of so many steps."""
    from sartor.differentiable.descent import TRAVEL

    return NOTE.format(steps=" or ".join(map(str, sorted(steps))), travel=TRAVEL)


def _log(trials: list[Trial], queries: int) -> TrialLog:
    """A log of at least so many trials: the last one again and again."""
    log = TrialLog()
    last = trials[-1]
    more = (Trial(i, last.arch, last.values, state=last.state, note=last.note) for i in range(len(trials), queries))
    for trial in (*trials, *more):
        log.append(trial)
    return log
