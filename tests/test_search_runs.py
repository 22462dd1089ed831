# SPDX-License-Identifier: Apache-2.0
"""The loop: how it resumes, and who runs the candidates: threads, pools, and processes that can be killed."""

from __future__ import annotations

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

from candidates import Unloadable, add, deadly, greedy, moody, stuck, suicidal, total, unread
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.processes import LimitExceeded, ProcessExecutor, WorkerError
from sartor.protocols import NotReady
from sartor.search import ResumeError, StrategyError, search
from sartor.strategies import RandomSearch
from sartor.trial import Trial, TrialLog
from scripted import SPACE, Scripted, one

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
        with pytest.raises(RuntimeError, match=r"FileNotFoundError: .*no such disk"):
            executor.submit(unread, 2).result()
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
