# SPDX-License-Identifier: Apache-2.0
"""The loop of every black-box search: ask, evaluate, log, tell."""

from __future__ import annotations

import json
import math
import pickle
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names
from sartor.processes import LimitExceeded, ProcessExecutor, WorkerError
from sartor.protocols import NotReady, Stateful, Strategy
from sartor.space import NothingFound, SearchSpace
from sartor.trial import State, Trial, TrialLog

_LINE = 200


class StrategyError(ValueError):
    """The strategy failed, or asked for what is not in the space; all that was told before is in the log."""


class ResumeError(ValueError):
    """The log does not continue as this search would: another seed, space, strategy or set of objectives."""


def search(
    space: SearchSpace,
    strategy: Strategy,
    objectives: Sequence[Objective],
    *,
    trials: int,
    seed: int = 0,
    log: TrialLog | None = None,
    executor: Executor | None = None,
    workers: int = 1,
    time_limit_s: float | None = None,
    memory_limit_mb: float | None = None,
    progress: Callable[[Trial], None] | None = None,
) -> TrialLog:
    """Evaluate architectures that `strategy` asks for until `log` holds `trials` trials, and return the log.

    A candidate's objectives are measured in this order: cheap ones (here, in this process), then bounded
    ones, then the others. The first bound that is exceeded ends it as "infeasible". One that raises, gives
    NaN or infinity, runs out of memory or exceeds a limit ends as "failed" with its reason, and the search
    goes on. An architecture that is in the log already is not evaluated again.

    strategy: a new one. Where the log has trials, it is brought to their state by asking and telling them
        again (those with `state_dict`, by loading the state in the log). With one worker the search then ends
        with the same trials, bit for bit but for `seconds`, as if it had never stopped; with several, the
        state is that of the tells in the order of the log.
    seed: ask number n draws from `random.Random(f"{seed}/{n}")`.
    executor: runs up to `workers` candidates at once: threads, processes, or the user's own. Without one, a
        single worker runs in this process; several, or limits, run in spawned processes of their own.
    time_limit_s, memory_limit_mb: per candidate, not for its cheap objectives; memory is that of its process,
        imports included, in 10^6 bytes.
    progress: called with each trial once it is logged and told.

    Raises ValueError for wrong arguments, StrategyError and ResumeError (both ValueErrors), WorkerError if a
    process cannot start. KeyboardInterrupt passes through; the log then resumes.
    """
    _check(strategy, objectives, trials, workers, executor, time_limit_s, memory_limit_mb)
    log = TrialLog() if log is None else log
    run = _Run(space, strategy, objectives, seed, log, progress)
    run.replay(workers)
    if len(log) >= trials:
        return log
    limited = time_limit_s is not None or memory_limit_mb is not None
    if executor is None and workers == 1 and not limited:
        run.serial(trials)
        return log
    if executor is not None:
        submit = executor.submit
        run.parallel(trials, workers, lambda arch: submit(measured, run.costly, arch))
        return log
    _check_picklable(run.costly)
    processes = ProcessExecutor(run.costly, workers, time_limit_s=time_limit_s, memory_limit_mb=memory_limit_mb)
    try:
        run.parallel(trials, workers, lambda arch: processes.submit(measured, arch))
    finally:
        processes.shutdown(cancel_futures=True)
    return log


@dataclass(frozen=True)
class Outcome:
    """What measuring gave: all values until the end, how it ended, and why."""

    values: dict[str, float]
    state: State = "done"
    note: str = ""
    seconds: float = 0.0


def measured(objectives: Sequence[Objective], arch: Architecture) -> Outcome:
    """Measure the objectives in order; stop at the first that fails or exceeds a bound."""
    start = time.perf_counter()
    values: dict[str, float] = {}
    state: State = "done"
    note = ""
    for objective in objectives:
        try:
            value = float(objective.measure(arch))
        except (Exception, SystemExit) as error:
            state, note = "failed", _line(f"{objective.name}: {type(error).__name__}: {error}")
            break
        if not math.isfinite(value):
            state, note = "failed", f"{objective.name} is {value}"
            break
        values[objective.name] = value
        if objective.bounded and objective.excess(value) > 0:
            state, note = "infeasible", _exceeded(objective, value)
            break
    return Outcome(values, state, note, time.perf_counter() - start)


class _Run:
    """One search: what was told, what is known, and the loop in its two forms."""

    def __init__(
        self,
        space: SearchSpace,
        strategy: Strategy,
        objectives: Sequence[Objective],
        seed: int,
        log: TrialLog,
        progress: Callable[[Trial], None] | None,
    ) -> None:
        self.space = space
        self.strategy = strategy
        self.stateful = strategy if isinstance(strategy, Stateful) else None
        self.seed = seed
        self.log = log
        self.progress = progress
        ordered = sorted(objectives, key=lambda objective: (not objective.cheap, not objective.bounded))
        self.cheap = [objective for objective in ordered if objective.cheap]
        self.costly = [objective for objective in ordered if not objective.cheap]
        self.logged = {trial.number for trial in log}
        self.number = 0
        self.known: dict[Architecture, Trial] = {}
        for trial in log:
            self.known.setdefault(trial.arch, trial)
            if trial.state == "done" and (missing := {one.name for one in objectives} - trial.values.keys()):
                raise ResumeError(f"trial {trial.number} in the log has no {', '.join(sorted(missing))}: use a new log")

    # ---- asking and telling -----------------------------------------------------------------------

    def ask(self, number: int) -> Architecture:
        try:
            arch = self.strategy.ask(random.Random(f"{self.seed}/{number}"))
        except (NotReady, NothingFound):
            raise
        except Exception as error:
            raise StrategyError(_line(f"{self._name} failed at ask {number}: {error!r}")) from error
        if arch not in self.known and arch not in self.space:
            raise StrategyError(f"{self._name} asked, as trial {number}, for {arch!r}, which is not in the space")
        return arch

    def tell(self, trial: Trial) -> None:
        """Log, then tell; a snapshot is of the state after the tell and is logged with the trial."""
        if self.stateful is None:
            self.log.append(trial)
            self._tell(trial)
        else:
            try:
                self._tell(trial)
            except StrategyError:
                self.log.append(trial)
                raise
            try:
                snapshot = _packed(len(self.log) + 1, self.stateful)
            except TypeError as error:
                self.log.append(trial)
                raise StrategyError(_line(f"the state of {self._name} cannot be kept: {error}")) from error
            self.log.append(trial, snapshot)
        self.known.setdefault(trial.arch, trial)
        if self.progress is not None:
            self.progress(trial)

    def _tell(self, trial: Trial) -> None:
        try:
            self.strategy.tell(trial)
        except Exception as error:
            raise StrategyError(_line(f"{self._name} failed at the tell of trial {trial.number}: {error!r}")) from error

    @property
    def _name(self) -> str:
        return type(self.strategy).__name__

    def replay(self, workers: int) -> None:
        """Bring the strategy to the state of the log."""
        if workers > 1:
            self.log.mark_parallel()
        told = 0
        if self.stateful is not None and self.log.snapshot is not None:
            told = _unpacked(self.log.snapshot, self.stateful)
        for trial in self.log[told:]:
            if not self.log.parallel:
                asked = self.ask(trial.number)
                if asked != trial.arch:
                    raise ResumeError(
                        f"trial {trial.number} in the log is {trial.arch.id}, but this search asks for "
                        f"{asked.id}: resume with the seed, space, strategy and objectives of the log, "
                        "or use a new log"
                    )
            self._tell(trial)

    def upcoming(self) -> int:
        """Return the number to ask next: the lowest that was not asked, so that lost ones come first."""
        while self.number in self.logged:
            self.number += 1
        return self.number

    # ---- evaluating -------------------------------------------------------------------------------

    def begun(self, number: int, arch: Architecture) -> Trial:
        """Return the trial after all that is cheap: "asked" if it is still to be run."""
        if (before := self.known.get(arch)) is not None:
            return _repeated(number, before)
        if not self.cheap:
            return Trial(number, arch)
        outcome = measured(self.cheap, arch)
        state: State = "asked" if outcome.state == "done" and self.costly else outcome.state
        return Trial(number, arch, outcome.values, 1.0, state, outcome.note, outcome.seconds)

    def serial(self, trials: int) -> None:
        """Evaluate here, one after the other."""
        while len(self.log) < trials:
            number = self.upcoming()
            try:
                arch = self.ask(number)
            except NotReady:
                raise StrategyError(self._stuck(number)) from None
            self.number += 1
            trial = self.begun(number, arch)
            self.tell(_ended(trial, measured(self.costly, arch)) if trial.state == "asked" else trial)

    def parallel(self, trials: int, workers: int, submit: Callable[[Architecture], Future[Outcome]]) -> None:
        """Keep up to `workers` candidates running; tell in the order of completion."""
        pending: dict[Future[Outcome], list[Trial]] = {}  # the trial that runs, then those that wait for its values
        try:
            while True:
                self._fill(pending, trials, workers, submit)
                if not pending:
                    return
                ended = wait(pending, return_when=FIRST_COMPLETED).done
                for future in sorted(ended, key=lambda one: pending[one][0].number):
                    first, *repeats = pending.pop(future)
                    first = _ended(first, _result(future, first))
                    self.tell(first)
                    for trial in repeats:
                        self.tell(_repeated(trial.number, first))
        finally:
            for future in pending:
                future.cancel()

    def _fill(
        self,
        pending: dict[Future[Outcome], list[Trial]],
        trials: int,
        workers: int,
        submit: Callable[[Architecture], Future[Outcome]],
    ) -> None:
        """Ask and start until all workers are busy, the strategy waits, or all trials are asked."""
        running = {group[0].arch: group for group in pending.values()}
        while (asked := sum(map(len, pending.values()))) < min(workers, trials - len(self.log)):
            number = self.upcoming()
            try:
                arch = self.ask(number)
            except NotReady:
                if not asked:
                    raise StrategyError(self._stuck(number)) from None
                return
            self.number += 1
            trial = self.begun(number, arch)
            if trial.state != "asked":
                self.tell(trial)
            elif arch in running:
                running[arch].append(trial)
            else:
                running[arch] = pending[submit(arch)] = [trial]

    def _stuck(self, number: int) -> str:
        return f"{self._name} is not ready for ask {number}, and no trial is awaited"


def _repeated(number: int, before: Trial) -> Trial:
    note = f"repeats trial {before.number}" + (f": {before.note}" if before.note else "")
    return Trial(number, before.arch, before.values, before.budget, before.state, note)


def _ended(trial: Trial, outcome: Outcome) -> Trial:
    """Return the trial with the outcome of what was run after its cheap part."""
    values = {**trial.values, **outcome.values}
    seconds = trial.seconds + outcome.seconds
    return Trial(trial.number, trial.arch, values, trial.budget, outcome.state, outcome.note, seconds)


def _result(future: Future[Outcome], trial: Trial) -> Outcome:
    """Return the outcome; an error that is not the candidate's is raised."""
    try:
        return future.result()
    except LimitExceeded as error:
        return Outcome({}, "failed", _line(str(error)))
    except WorkerError:
        raise
    except BrokenExecutor as error:
        raise RuntimeError(
            f"the executor broke at trial {trial.number} ({error}): resume with a new one; with "
            "memory_limit_mb and no executor, a candidate that kills its process is a failed trial"
        ) from error
    except Exception as error:
        raise ValueError(
            _line(f"the executor could not run trial {trial.number}: {error!r}: can the objectives be pickled?")
        ) from error


def _exceeded(objective: Objective, value: float) -> str:
    above = objective.at_most is not None and value > objective.at_most
    side, bound = ("above at_most", objective.at_most) if above else ("below at_least", objective.at_least)
    by = f"{objective.excess(value):.1%}" if bound else f"{abs(value):.6g}"
    return f"{objective.name} {value:.6g} is {side} {bound:.6g} by {by}"


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LINE else text[: _LINE - 3] + "..."


def _packed(told: int, strategy: Stateful) -> bytes:
    """Return the strategy's state as JSON, preceded by its length in 8 bytes, and then safetensors."""
    import safetensors.torch

    from sartor.checkpoint import flatten

    tensors, tree = flatten({"told": told, "state": strategy.state_dict()})
    text = json.dumps(tree, allow_nan=False).encode()
    return len(text).to_bytes(8, "little") + text + safetensors.torch.save(tensors)


def _unpacked(snapshot: bytes, strategy: Stateful) -> int:
    """Restore the strategy and return how many trials it was told; only tensors and plain values are read."""
    import safetensors.torch

    from sartor.checkpoint import unflatten

    try:
        end = 8 + int.from_bytes(snapshot[:8], "little")
        read = unflatten(safetensors.torch.load(snapshot[end:]), json.loads(snapshot[8:end]))
        told, state = int(read["told"]), read["state"]
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ResumeError(_line(f"the state of the strategy in the log cannot be read: {error}")) from None
    strategy.load_state_dict(state)
    return told


def _check(
    strategy: Strategy,
    objectives: Sequence[Objective],
    trials: int,
    workers: int,
    executor: Executor | None,
    time_limit_s: float | None,
    memory_limit_mb: float | None,
) -> None:
    check_names(objectives)
    if isinstance(strategy, type) or not isinstance(strategy, Strategy):
        raise ValueError(f"the strategy is {strategy!r}: give an object with the methods ask and tell")
    if trials < 0 or workers < 1:
        raise ValueError(f"trials is {trials} and workers {workers}: give at least 0 and 1")
    for name, limit in (("time_limit_s", time_limit_s), ("memory_limit_mb", memory_limit_mb)):
        if limit is not None and not limit > 0:
            raise ValueError(f"{name} is {limit}: give a number above 0, or None for no limit")
        if limit is not None and executor is not None:
            raise ValueError(f"{name} needs processes that can be killed: leave the executor out, or the limit")


def _check_picklable(objectives: Sequence[Objective]) -> None:
    for objective in objectives:
        try:
            pickle.dumps(objective)
        except Exception as error:
            raise ValueError(
                _line(f"objective {objective.name!r} cannot be sent to a process ({error}): use a function")
                + " of a module or a functools.partial of one, no lambda"
            ) from None
