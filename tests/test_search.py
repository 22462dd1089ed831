# SPDX-License-Identifier: Apache-2.0
"""The loop: what is evaluated and in which order, what fails, who runs it, and how it resumes."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from candidates import Unloadable, add, deadly, greedy, moody, number, stuck, suicidal, total
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.processes import LimitExceeded, ProcessExecutor, WorkerError
from sartor.protocols import NotReady
from sartor.search import ResumeError, StrategyError, search
from sartor.space import NothingFound, SearchSpace
from sartor.strategies import RandomSearch
from sartor.trial import Candidate, Trial, TrialLog

SPACE = SearchSpace({"a": (0, 1, 2, 3), "b": (0, 1, 2, 3)})


class Scripted:
    """Asks for what it is told to."""

    def __init__(self, *values: tuple[int, int]) -> None:
        self.archs = [Architecture({"a": a, "b": b}) for a, b in values]
        self.told: list[Trial] = []
        self.asked = 0

    def ask(self, rng: random.Random) -> Architecture:
        self.asked += 1
        return self.archs[self.asked - 1]

    def tell(self, trial: Trial) -> None:
        self.told.append(trial)


def one(measure: Callable[[Architecture], float], **fields: Any) -> list[Objective]:
    return [Objective("x", measure, **fields)]


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


def scaled(arch: Architecture, budget: float) -> float:
    """The larger, the smaller the budget."""
    return total(arch) + 1 / budget


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


# ---- resuming -------------------------------------------------------------------------------------


def test_resume_is_refused_where_it_would_not_go_on_the_same() -> None:
    log = search(SPACE, RandomSearch(SPACE), one(total), trials=5, seed=1)
    with pytest.raises(ResumeError, match=r"trial \d in the log is \w{12}, but this search asks for \w{12}: resume"):
        search(SPACE, RandomSearch(SPACE), one(total), trials=9, seed=2, log=log)
    with pytest.raises(ResumeError, match="trial 0 in the log has no y: use a new log"):
        search(SPACE, RandomSearch(SPACE), [*one(total), Objective("y", total)], trials=9, seed=1, log=log)
    assert search(SPACE, RandomSearch(SPACE), one(total), trials=3, seed=1, log=log) is log and len(log) == 5


class Counting:
    """A strategy with a state of its own: a tensor that asks and tells move."""

    def __init__(self) -> None:
        import torch

        self.state = torch.zeros(2)
        self.tells = 0

    def ask(self, rng: random.Random) -> Architecture:
        self.state[0] += 1
        return Architecture({"a": int(self.state[0]) % 4, "b": rng.randrange(4)})

    def tell(self, trial: Trial) -> None:
        self.tells += 1
        if trial.number == 7 and self.state[1] == 0:
            raise RuntimeError("oh")

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state, "tells": self.tells}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state, self.tells = state["state"], state["tells"]


def test_a_stateful_strategy_is_restored_and_not_replayed(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    with TrialLog(path) as log:
        search(SPACE, Counting(), one(total), trials=5, log=log)
    with TrialLog(path) as log:
        strategy = Counting()
        search(SPACE, strategy, one(total), trials=7, log=log)
        assert strategy.tells == 7 and strategy.state[0] == 7
        assert list(log) == list(search(SPACE, Counting(), one(total), trials=7))


def test_a_stateful_strategy_that_fails_at_a_tell_loses_no_trial() -> None:
    log = TrialLog()
    with pytest.raises(StrategyError, match="failed at the tell of trial 7"):
        search(SPACE, Counting(), one(total), trials=20, log=log)
    assert len(log) == 8
    with pytest.raises(StrategyError, match="failed at the tell of trial 7"):  # told again, after the snapshot
        search(SPACE, Counting(), one(total), trials=20, log=log)


@pytest.mark.parametrize(
    "damage", [lambda _: b"damage", lambda whole: whole[:-3], lambda whole: whole[:8], lambda _: b""]
)
def test_a_damaged_snapshot_is_said(damage: Callable[[bytes], bytes]) -> None:
    log = search(SPACE, Counting(), one(total), trials=3)
    assert log.snapshot is not None
    log.snapshot = damage(log.snapshot)
    with pytest.raises(ResumeError, match="the state of the strategy in the log cannot be read"):
        search(SPACE, Counting(), one(total), trials=5, log=log)


def test_a_state_that_cannot_be_kept_is_said_and_loses_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "state_dict", lambda self: {"random": random.Random(0)})
    log = TrialLog()
    with pytest.raises(StrategyError, match=r"state of Counting cannot be kept: a Random at 'state.random'"):
        search(SPACE, Counting(), one(total), trials=3, log=log)
    assert len(log) == 1


def test_a_state_that_cannot_be_had_loses_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def state_dict(self: Counting) -> dict[str, Any]:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(Counting, "state_dict", state_dict)
    log = TrialLog()
    with pytest.raises(StrategyError, match="state of Counting cannot be kept: two lines"):
        search(SPACE, Counting(), one(total), trials=3, log=log)
    assert len(log) == 1


def test_a_state_of_another_strategy_is_said() -> None:
    log = search(SPACE, Counting(), one(total), trials=3)

    class Other(Counting):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.other = state["other"]

    with pytest.raises(ResumeError, match="Other cannot go on from the log: KeyError"):
        search(SPACE, Other(), one(total), trials=5, log=log)


def test_a_log_of_several_workers_resumes_with_the_numbers_that_were_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    with TrialLog(path) as log:
        log.mark_parallel()
        for told in (1, 0, 4):
            log.append(Trial(told, Architecture({"a": 0, "b": told % 4}), {"x": 0.0}, 1.0, "done"))
    with TrialLog(path) as log:
        search(SPACE, RandomSearch(SPACE), one(total), trials=7, seed=9, log=log)
        assert [trial.number for trial in log] == [1, 0, 4, 2, 3, 5, 6]


# ---- executors ------------------------------------------------------------------------------------


class ByHand(Executor):
    """Runs nothing until `release`: the order of completion is the test's."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.most = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, partial(fn, *args, **kwargs)))
        self.most = max(self.most, len(self.waiting))
        if len(self.waiting) == 3:
            done, run = self.waiting.pop()
            done.set_result(run())
        return future


def test_tells_come_in_the_order_of_completion() -> None:
    class Last(ByHand):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future = super().submit(fn, *args, **kwargs)
            if len(args[0]) and args[1]["b"] == 3:  # the last one: everything ends
                for done, run in self.waiting:
                    done.set_result(run())
            return future

    strategy, executor = Scripted((0, 0), (0, 1), (0, 2), (0, 3)), Last()
    log = search(SPACE, strategy, one(total), trials=4, executor=executor, workers=3)
    assert [trial.number for trial in log] == [2, 0, 1, 3] and log.parallel
    assert strategy.told == list(log) and executor.most == 3


def test_a_repeat_of_a_candidate_that_runs_waits_for_it() -> None:
    gate = threading.Event()
    runs: list[Architecture] = []

    def wait(arch: Architecture) -> float:
        runs.append(arch)
        if arch["b"] == 2:
            gate.set()
        assert gate.wait(60)
        return total(arch)

    strategy = Scripted((0, 1), (0, 1), (0, 2))
    with ThreadPoolExecutor(3) as threads:
        log = search(SPACE, strategy, one(wait), trials=3, executor=threads, workers=3)
    assert len(runs) == 2
    assert {trial.number: trial.note for trial in log} == {0: "", 1: "repeats trial 0", 2: ""}


class Patient(Scripted):
    """Makes a new pair of asks only after the last pair was told."""

    def ask(self, rng: random.Random) -> Architecture:
        if self.asked - len(self.told) == 2 or (self.asked % 2 == 0 and len(self.told) < self.asked):
            raise NotReady
        return super().ask(rng)


def test_a_strategy_may_wait_for_a_generation() -> None:
    values = [(a, b) for a in range(4) for b in range(3)]
    with ThreadPoolExecutor(4) as threads:
        log = search(SPACE, Patient(*values), one(total), trials=12, executor=threads, workers=4)
    assert [{t.number for t in log[i : i + 2]} for i in range(0, 12, 2)] == [{i, i + 1} for i in range(0, 12, 2)]


def test_process_pools_work() -> None:
    import multiprocessing

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        log = search(SPACE, Scripted((0, 0), (1, 0), (0, 1)), one(moody), trials=3, executor=pool, workers=2)
        assert {trial.number: trial.state for trial in log} == {0: "done", 1: "failed", 2: "done"}
        with pytest.raises(ValueError, match=r"could not run trial 0: .*: can the objectives be pickled"):
            search(SPACE, RandomSearch(SPACE), one(lambda arch: 0.0), trials=1, executor=pool)
    with pytest.raises(RuntimeError, match="the executor broke at trial 0"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            search(SPACE, RandomSearch(SPACE), one(suicidal), trials=1, executor=pool)


# ---- processes that can be killed -----------------------------------------------------------------


def test_limits_and_deaths_are_failed_trials() -> None:
    values = (0, 0), (1, 0), (0, 1), (2, 0), (3, 0), (0, 2)
    log = search(SPACE, Scripted(*values), one(deadly), trials=6, time_limit_s=1.0)
    assert [trial.note for trial in log] == [
        "", "it took longer than the limit of 1 s", "", "its process died by SIGSEGV",
        "its process ended with exit code 3", "",
    ]  # fmt: skip
    assert [trial.state for trial in log] == ["done", "failed", "done", "failed", "failed", "done"]


def test_memory_limit() -> None:
    log = search(SPACE, Scripted((1, 0), (0, 0)), one(greedy), trials=2, memory_limit_mb=900.0)
    assert [trial.note for trial in log] == ["it took more memory than the limit of 900 MB", ""]


def test_several_workers_of_our_own_and_cheap_objectives_stay_here() -> None:
    here = os.getpid()
    objectives = [Objective("x", moody), Objective("pid", lambda arch: float(os.getpid()), cheap=True)]
    log = search(SPACE, RandomSearch(SPACE), objectives, trials=20, workers=2)
    assert sorted(trial.number for trial in log) == list(range(20))
    assert {trial.values["pid"] for trial in log} == {float(here)}


def test_what_cannot_be_loaded_there_is_an_error_here() -> None:
    with pytest.raises(WorkerError, match=r"cannot load the objectives .RuntimeError: no such weights"):
        search(SPACE, RandomSearch(SPACE), one(Unloadable()), trials=3, time_limit_s=60.0)


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from sartor.objective import Objective\nfrom sartor.search import search\n"
        "from sartor.space import SearchSpace\n"
        "from sartor.strategies import RandomSearch\nspace = SearchSpace({'a': (1, 2)})\n"
        "def x(arch): return 0.0\n"
        "search(space, RandomSearch(space), [Objective('x', x)], trials=2, time_limit_s=9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 1 and "needs `if __name__ == '__main__':`" in ended.stderr


def test_the_executor_alone() -> None:
    with ProcessExecutor(40) as executor:
        assert list(executor.map(add, [1, 2])) == [41, 42]
        with pytest.raises(RuntimeError, match="TypeError: unsupported operand"):
            executor.submit(add, "x").result()
        assert executor.submit(add, 2).result() == 42
    with pytest.raises(RuntimeError, match="was shut down"):
        executor.submit(add, 1)


def test_shutdown_kills_what_runs() -> None:
    executor = ProcessExecutor(0)
    assert executor.submit(add, 1).result() == 1
    running, queued = executor.submit(stuck, 1), executor.submit(add, 1)
    executor.shutdown(cancel_futures=True)
    assert running.cancelled() or isinstance(running.exception(), LimitExceeded)
    assert queued.cancelled()
