# SPDX-License-Identifier: Apache-2.0
"""What every strategy keeps. A strategy joins with one line in `tests/test_strategies.py`."""

from __future__ import annotations

import math
import multiprocessing
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.protocols import NotReady, Stateful, Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.trial import Candidate, Trial, TrialLog

Make = Callable[[SearchSpace, Sequence[Objective]], Strategy]

TOY = SearchSpace({f"c{i}": tuple(range(5)) for i in range(6)})
GATED = SearchSpace(
    {
        "depth": (1, 2, 3),
        "kernel1": (3, 5),
        "kernel2": (3, 5, 7),
        "op": ("conv", "pool"),
        "se": (False, True),
    },
    {"kernel1": ((("depth", (2, 3)),),), "kernel2": ((("depth", (3,)), ("op", ("conv",))),)},
)


def even(arch: Architecture) -> bool:
    """A constraint that refuses half of TOY."""
    return sum(arch.values()) % 2 == 0  # type: ignore[arg-type]


def weighed(arch: Architecture, weights: Sequence[int]) -> float:
    """Sum of weight times option, on any space: what is no number counts by its length."""
    options = [str(option) for option in arch.values()]
    return float(sum(w * (int(o) if o.isdigit() else len(o)) for w, o in zip(weights, options, strict=False)))


def error(arch: Architecture) -> float:
    """Falls with every option, by unequal steps, and with an interaction."""
    return 84 - weighed(arch, (1, 2, 3, 4, 5, 6)) + 3 * (weighed(arch, (1, 0, 0, 0, 0, 1)) == 8)


def cost(arch: Architecture) -> float:
    """Rises with every option: cheapest where it lowers the error most."""
    return weighed(arch, (9, 7, 5, 4, 2, 1))


def broken(arch: Architecture) -> float:
    """Fails in every way on a part of the space."""
    kind = len(arch.to_json()) + hash(str(arch["c0"]) == "1") + int(str(arch["c1"]))
    if kind % 4 == 0:
        raise RuntimeError("no memory left")
    return math.nan if kind % 4 == 1 else error(arch)


OBJECTIVES = (Objective("error", error), Objective("cost", cost))
ERROR = OBJECTIVES[:1]


def done(number: int, candidate: Candidate) -> Trial:
    """What a search tells of a candidate that was evaluated."""
    arch, budget = candidate
    return Trial(number, arch, {"error": error(arch), "cost": cost(arch)}, budget, "done")


def history(make: Make, seed: int, trials: int = 60) -> list[Trial]:
    """One search from scratch."""
    return list(search(TOY, make(TOY, OBJECTIVES), OBJECTIVES, trials=trials, seed=seed))


class StrategyContract:
    """The suite; a subclass sets `make`, which must be importable, and `beats_random`."""

    make: Make
    beats_random = True
    notes_what_runs = False
    """Whether asks are remembered until they are told, so that no two workers are given the same."""
    keeps_cheap_bounds = False
    """Whether nothing beyond the bound of a cheap objective is asked for, so that no such trial is infeasible."""

    def test_is_a_strategy(self) -> None:
        assert isinstance(self.make(TOY, OBJECTIVES), Strategy)

    def test_reproducible_in_another_process(self) -> None:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(history, (self.make, 3)) == history(self.make, 3)
        assert history(self.make, 4) != history(self.make, 3)

    @pytest.mark.parametrize("stop", [1, 17, 40, 59])
    def test_resume_is_exact(self, stop: int) -> None:
        log = TrialLog()
        search(TOY, self.make(TOY, OBJECTIVES), OBJECTIVES, trials=stop, seed=3, log=log)
        search(TOY, self.make(TOY, OBJECTIVES), OBJECTIVES, trials=60, seed=3, log=log)
        assert list(log) == history(self.make, 3)

    def test_state_comes_from_tell_alone(self) -> None:
        """Asks whose trials are lost leave nothing behind; a strategy with snapshots may count its asks."""
        once, often = self.make(TOY, OBJECTIVES), self.make(TOY, OBJECTIVES)
        if isinstance(once, Stateful) or self.notes_what_runs:
            return
        for number in range(40):
            for lost in range(3):
                often.ask(random.Random(f"lost {number} {lost}"))
            asked = Candidate.of(once.ask(random.Random(number)))
            assert Candidate.of(often.ask(random.Random(number))) == asked
            trial = done(number, asked)
            once.tell(trial)
            often.tell(trial)

    def test_parallel_asks_before_tells(self) -> None:
        strategy = self.make(TOY, OBJECTIVES)
        waiting: list[tuple[int, Candidate]] = []
        for number in range(120):
            try:
                waiting.append((number, Candidate.of(strategy.ask(random.Random(number)))))
            except NotReady:
                assert waiting, "not ready, and nothing to wait for"
            while len(waiting) > 7 or (number == 119 and waiting):
                strategy.tell(done(*waiting.pop(len(waiting) // 2)))

    def test_several_workers(self) -> None:
        with ThreadPoolExecutor(4) as threads:
            log = search(TOY, self.make(TOY, OBJECTIVES), OBJECTIVES, trials=50, executor=threads, workers=4)
            assert sorted(trial.number for trial in log) == list(range(50))
            search(TOY, self.make(TOY, OBJECTIVES), OBJECTIVES, trials=80, log=log, executor=threads, workers=4)
        assert sorted(trial.number for trial in log) == list(range(80))

    def test_failed_and_infeasible_trials(self) -> None:
        objectives = (Objective("error", broken), Objective("cost", cost, at_most=60.0, cheap=True))
        log = search(TOY, self.make(TOY, objectives), objectives, trials=150)
        states = {"done", "failed", "infeasible"}
        assert {trial.state for trial in log} == states - {"infeasible" if self.keeps_cheap_bounds else ""}
        if self.keeps_cheap_bounds:
            costly = (objectives[0], Objective("cost", cost, at_most=60.0))
            assert {trial.state for trial in search(TOY, self.make(TOY, costly), costly, trials=150)} == states
        assert all(trial.note for trial in log if trial.state != "done")

    def test_nothing_but_failures(self) -> None:
        objectives = (Objective("error", lambda arch: math.nan), Objective("cost", cost))
        log = search(TOY, self.make(TOY, objectives), objectives, trials=60)
        assert [trial.state for trial in log] == ["failed"] * 60 and log.pareto(objectives) == []

    @pytest.mark.parametrize("space", [GATED, SearchSpace(TOY.choices, {}, even), SearchSpace({"op": ("only",)})])
    def test_stays_in_the_space_and_under_its_constraint(self, space: SearchSpace) -> None:
        strategy = self.make(space, OBJECTIVES)
        for number in range(150):
            asked = Candidate.of(strategy.ask(random.Random(number)))
            assert asked.arch in space and 0 < asked.budget <= 1
            strategy.tell(done(number, asked))

    def test_beats_random_on_a_toy(self) -> None:
        if not self.beats_random:
            return
        ours = [min(t.values["error"] for t in self._toy(seed)) for seed in range(5)]
        rng = random.Random(0)
        theirs = [min(error(TOY.sample(rng)) for _ in range(300)) for _ in range(5)]
        assert sum(ours) < sum(theirs)

    def _toy(self, seed: int) -> TrialLog:
        return search(TOY, self.make(TOY, ERROR), ERROR, trials=300, seed=seed)
