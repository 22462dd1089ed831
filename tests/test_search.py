# SPDX-License-Identifier: Apache-2.0
"""The loop: what is evaluated and in which order, at which budget, and what goes wrong."""

from __future__ import annotations

import math
import random
import sys
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from candidates import moody, number, scaled, total
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.protocols import NotReady
from sartor.search import ResumeError, StrategyError, search
from sartor.space import NothingFound
from sartor.strategies import RandomSearch
from sartor.trial import Candidate, Trial, TrialLog
from scripted import SPACE, Scripted, one

# ---- evaluation -----------------------------------------------------------------------------------


def test_cheap_then_bounded_then_the_rest_and_infeasible_ones_are_not_run() -> None:
    seen: list[str] = []

    def noted(name: str, arch: Architecture) -> float:
        seen.append(name)
        return total(arch)

    objectives = [
        Objective("error", partial(noted, "error")),
        Objective("latency", partial(noted, "latency"), at_most=4.0),
        Objective("params", partial(noted, "params"), cheap=True),
        Objective("macs", partial(noted, "macs"), cheap=True, at_most=5.0),
    ]
    log = search(SPACE, Scripted((0, 1), (3, 3), (2, 3)), objectives, trials=3)
    assert seen == ["macs", "params", "latency", "error", "macs", "macs", "params", "latency"]
    assert [trial.state for trial in log] == ["done", "infeasible", "infeasible"]
    assert dict(log[1].values) == {"macs": 6.0}
    assert log[1].note == "macs 6 is above at_most 5 by 20.0%"
    assert dict(log[2].values) == {"macs": 5.0, "params": 5.0, "latency": 5.0}
    assert set(log[0].values) == {"macs", "params", "latency", "error"} and log[0].note == ""


def test_a_lower_bound_and_a_bound_of_zero() -> None:
    log = search(SPACE, Scripted((0, 1)), one(total, at_least=4.0), trials=1)
    assert log[0].note == "x 1 is below at_least 4 by 75.0%"
    log = search(SPACE, Scripted((0, 1)), one(total, at_most=0.0), trials=1)
    assert log[0].note == "x 1 is above at_most 0 by 1"


def test_cheap_objectives_alone() -> None:
    log = search(SPACE, Scripted((0, 1), (3, 3)), one(total, cheap=True, at_most=3.0), trials=2)
    assert [trial.state for trial in log] == ["done", "infeasible"]


def test_failures_have_a_reason_in_one_line_and_the_search_goes_on() -> None:
    strategy = Scripted((0, 0), (1, 0), (2, 0), (3, 0), (0, 1))
    log = search(SPACE, strategy, one(moody), trials=5)
    assert [trial.state for trial in log] == ["done", "failed", "failed", "failed", "done"]
    assert [trial.note for trial in log] == [
        "",
        "x: RuntimeError: two lines",
        "x is nan",
        "x: MemoryError:",
        "",
    ]
    assert strategy.told == list(log)


@pytest.mark.parametrize("result", [math.inf, None, "text", [1.0]])
def test_what_is_no_finite_number_is_a_failure(result: Any) -> None:
    log = search(SPACE, Scripted((0, 0)), one(lambda arch: result), trials=1)
    assert log[0].state == "failed" and log[0].note.startswith("x")


def test_a_candidate_that_exits_is_a_failure_and_ctrl_c_is_not() -> None:
    assert search(SPACE, Scripted((0, 0)), one(lambda arch: sys.exit(3)), trials=1)[0].note == "x: SystemExit: 3"
    log = TrialLog()

    def interrupt(arch: Architecture) -> float:
        if number(arch) == 1:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        search(SPACE, Scripted((0, 0), (1, 0)), one(interrupt), trials=2, log=log)
    assert len(log) == 1


def test_a_repeated_architecture_is_not_evaluated_again() -> None:
    seen: list[Architecture] = []

    def count(arch: Architecture) -> float:
        seen.append(arch)
        return moody(arch)

    log = search(SPACE, Scripted((0, 1), (1, 0), (0, 1), (1, 0)), one(count), trials=4)
    assert len(seen) == 2
    assert [trial.note for trial in log[2:]] == [
        "repeats trial 0",
        "repeats trial 1: x: RuntimeError: two lines",
    ]
    assert log[2].values == log[0].values and log[3].state == "failed" and log[2].seconds == 0


def test_progress_sees_every_trial_after_it_was_told() -> None:
    strategy, seen = Scripted((0, 1), (0, 2)), []
    search(SPACE, strategy, one(total), trials=2, progress=lambda trial: seen.append((trial, len(strategy.told))))
    assert [(trial.number, told) for trial, told in seen] == [(0, 1), (1, 2)]


# ---- budgets --------------------------------------------------------------------------------------


class Budgeted:
    """Asks for the candidates that it is given."""

    def __init__(self, *asked: tuple[int, float]) -> None:
        self.asked = [Candidate(Architecture({"a": a, "b": 0}), budget) for a, budget in asked]
        self.told: list[Trial] = []
        self.next = 0

    def ask(self, rng: random.Random) -> Candidate:
        self.next += 1
        return self.asked[self.next - 1]

    def tell(self, trial: Trial) -> None:
        self.told.append(trial)


BUDGETS = (0, 0.5), (1, 0.5), (0, 1.0), (0, 0.5), (0, 1.0)


def with_fidelity(seen: list[int]) -> list[Objective]:
    def latency(arch: Architecture) -> float:
        seen.append(number(arch))
        return 7.0

    return [Objective("error", scaled, fidelity=True), Objective("ms", latency)]


@pytest.mark.parametrize("threads", [False, True])
def test_what_is_known_is_known_by_architecture_and_budget(tmp_path: Path, threads: bool) -> None:
    seen: list[int] = []
    with ThreadPoolExecutor(1) as pool, TrialLog(tmp_path / "run.sqlite") as log:
        executor = pool if threads else None
        search(SPACE, Budgeted(*BUDGETS), with_fidelity(seen), trials=5, log=log, executor=executor)
    assert seen == [0, 1], "what has no fidelity is measured once for all budgets"
    with TrialLog(tmp_path / "run.sqlite", readonly=True) as log:
        assert [(trial.arch["a"], trial.budget) for trial in log] == [*BUDGETS]
        assert [trial.values["error"] for trial in log] == [2.0, 3.0, 1.0, 2.0, 1.0]
        assert [trial.note for trial in log] == ["", "", "", "repeats trial 0", "repeats trial 2"]
        assert {trial.values["ms"] for trial in log} == {7.0}
        assert [trial.number for trial in log.pareto([Objective("error", scaled)])] == [2]


def test_budgets_are_replayed_and_reach_processes() -> None:
    objectives = [Objective("error", scaled, fidelity=True)]
    log = search(SPACE, Budgeted(*BUDGETS), objectives, trials=3, time_limit_s=60.0)
    assert [trial.values["error"] for trial in log] == [2.0, 3.0, 1.0]
    search(SPACE, Budgeted(*BUDGETS), objectives, trials=5, log=log)
    assert log[4].note == "repeats trial 2"
    other = Budgeted((0, 0.25), *BUDGETS[1:])
    with pytest.raises(ResumeError, match=r"is \w{12} with the budget 0.5, but .* for \w{12} with the budget 0.25"):
        search(SPACE, other, objectives, trials=9, log=log)


def test_without_fidelity_every_evaluation_is_a_full_one() -> None:
    strategy = Budgeted(*BUDGETS)
    log = search(SPACE, strategy, one(total), trials=5)
    assert {trial.budget for trial in log} == {1.0} and strategy.told == list(log)
    assert [trial.note for trial in log] == ["", "", "repeats trial 0", "repeats trial 0", "repeats trial 0"]


def test_a_value_that_all_budgets_share_is_held_against_its_bound_again() -> None:
    objectives = [Objective("error", scaled, fidelity=True), Objective("ms", total, at_most=0.0)]
    log = search(SPACE, Budgeted((1, 0.5), (1, 1.0)), objectives, trials=2)
    assert [trial.state for trial in log] == ["infeasible", "infeasible"]


# ---- strategies that go wrong ---------------------------------------------------------------------


class Wrong(Scripted):
    """Fails at its third ask or tell, or asks for something else."""

    def __init__(self, how: str) -> None:
        super().__init__((0, 0), (0, 1), (0, 2))
        self.how = how

    def ask(self, rng: random.Random) -> Architecture:
        arch = super().ask(rng)
        if self.asked < 3 or self.how == "tell":
            return arch
        if self.how == "outside":
            return Architecture({"a": 9, "b": 0})
        raise {"ask": RuntimeError("oh"), "wait": NotReady(), "nothing": NothingFound("too tight")}[self.how]

    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        if self.how == "tell" and len(self.told) == 3:
            raise RuntimeError("oh")


@pytest.mark.parametrize(
    ("how", "message", "kept"),
    [
        ("ask", r"Wrong failed at ask 2: RuntimeError\('oh'\)", 2),
        ("tell", r"Wrong failed at the tell of trial 2: RuntimeError\('oh'\)", 3),
        ("outside", r"Wrong asked, as trial 2, for Architecture\(.*\), which is not in the space", 2),
        ("wait", r"Wrong is not ready for ask 2, and no trial is awaited", 2),
        ("nothing", "too tight", 2),
    ],
)
@pytest.mark.parametrize("threads", [False, True])
def test_a_wrong_strategy_is_one_clear_error_and_nothing_told_is_lost(
    how: str, message: str, kept: int, threads: bool
) -> None:
    log = TrialLog()
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match=message) as caught:
        search(SPACE, Wrong(how), one(total), trials=3, log=log, executor=pool if threads else None)
    assert len(log) == kept and isinstance(caught.value, (StrategyError, NothingFound))


ARCH = Architecture({"a": 0, "b": 0})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (None, "for None of type NoneType: return an Architecture, or a Candidate of one"),
        ({"a": 0, "b": 0}, "of type dict: return an Architecture"),
        ([ARCH], "of type list"),
        ((ARCH, 0.5), "of type tuple"),
        (Candidate({"a": 0, "b": 0}), "of type Candidate"),  # type: ignore[arg-type]
        (Candidate(ARCH, 0.0), "for the budget 0.0: give a number above 0 and up to 1"),
        (Candidate(ARCH, 1.5), "the budget 1.5"),
        (Candidate(ARCH, math.nan), "the budget nan"),
        (Candidate(ARCH, True), "the budget True"),
        (Candidate(ARCH, "full"), "the budget 'full'"),  # type: ignore[arg-type]
        (Candidate(Architecture({"a": 9, "b": 0}), 0.5), "which is not in the space"),
        (Architecture({"a": 0}), "which is not in the space"),
        (Architecture({"a": 0, "b": 0, "c": 0}), "which is not in the space"),
        (Architecture({"a": 0, "c": 0}), "which is not in the space"),
        (Architecture({"a": 0, "b": False}), "which is not in the space"),
        (Architecture({"a": 0, "b": "x" * 9999}), "which is not in the space"),
    ],
)
def test_whatever_is_no_candidate_of_the_space_is_one_line(asked: Any, message: str) -> None:
    class Odd(Scripted):
        def ask(self, rng: random.Random) -> Any:
            return asked if self.told else ARCH

    log = TrialLog()
    with pytest.raises(StrategyError, match=message) as caught:
        search(SPACE, Odd(), one(total), trials=3, log=log)
    assert len(log) == 1 and len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trials": -1}, "trials is -1"),
        ({"workers": 0}, "workers 0"),
        ({"strategy": RandomSearch}, "give an object with the methods ask and tell"),
        ({"strategy": 3}, "give an object"),
        ({"objectives": []}, "there is no objective"),
        ({"objectives": one(total) * 2}, "two objectives are named 'x'"),
        ({"time_limit_s": 0.0}, "time_limit_s is 0.0"),
        ({"memory_limit_mb": math.nan}, "memory_limit_mb is nan"),
        ({"time_limit_s": 1.0, "executor": Executor()}, "leave the executor out"),
        ({"time_limit_s": 1.0}, "objective 'x' cannot be sent to a process"),
        ({"workers": 2}, "objective 'x' cannot be sent to a process"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    given = {"strategy": Scripted((0, 0)), "objectives": one(lambda arch: 0.0), "trials": 1, **arguments}
    with pytest.raises(ValueError, match=message):
        search(SPACE, **given)
