# SPDX-License-Identifier: Apache-2.0
"""The loop of every black-box search: ask, evaluate, log, tell."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from typing import NamedTuple, cast

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names
from sartor.outcome import Outcome, measured, one_line
from sartor.processes import LimitExceeded, ProcessExecutor, WorkerError
from sartor.protocols import NotReady, Stateful, Strategy
from sartor.snapshot import packed, restore
from sartor.space import NothingFound, SearchSpace
from sartor.trial import Candidate, Trial, TrialLog


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
    goes on. An architecture that is in the log already, with the same budget, is not evaluated again; with
    another budget only its objectives with `fidelity` are.

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
        run.parallel(trials, workers, lambda *what: submit(measured, run.costly, *what))
        return log
    _check_picklable(run.costly)
    processes = ProcessExecutor(run.costly, workers, time_limit_s=time_limit_s, memory_limit_mb=memory_limit_mb)
    try:
        run.parallel(trials, workers, lambda *what: processes.submit(measured, *what))
    finally:
        processes.shutdown(cancel_futures=True)
    return log


_Submit = Callable[[Architecture, float, Mapping[str, float] | None], "Future[Outcome]"]
_TO_MEASURE = Outcome({}, "asked")


class _Pending(NamedTuple):
    number: int
    candidate: Candidate
    outcome: Outcome  # of what was cheap


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
        self.budgeted = any(objective.fidelity for objective in objectives)
        self.lasting = [one.name for one in objectives if self.budgeted and not one.fidelity]
        self.logged = {trial.number for trial in log}
        self.number = 0
        self.known: dict[Architecture | Candidate, Trial] = {}  # by _key
        self.values: dict[Architecture, dict[str, float]] = {}  # of the objectives that all budgets share
        for trial in log:
            self.learn(trial)
            if trial.state == "done" and (missing := {one.name for one in objectives} - trial.values.keys()):
                raise ResumeError(f"trial {trial.number} in the log has no {', '.join(sorted(missing))}: use a new log")

    # ---- asking and telling -----------------------------------------------------------------------

    def ask(self, number: int) -> Candidate:
        try:
            asked = self.strategy.ask(random.Random(f"{self.seed}/{number}"))
        except (NotReady, NothingFound):
            raise
        except Exception as error:
            raise StrategyError(one_line(f"{self._name} failed at ask {number}: {error!r}")) from error
        arch, budget = (asked, 1.0) if type(asked) is Architecture else self._checked(asked, number)
        if (before := self.known.get(_key(arch, budget))) is not None:
            return Candidate(before.arch, budget)  # the same object: its hash and JSON are made once
        if arch not in self.space:
            text = one_line(repr(arch))
            raise StrategyError(f"{self._name} asked, as trial {number}, for {text}, which is not in the space")
        return Candidate(arch, budget)

    def _checked(self, asked: object, number: int) -> Candidate:
        given = asked if isinstance(asked, Candidate) else (asked, 1.0)
        arch, budget = cast("tuple[object, object]", given)
        if not isinstance(arch, Architecture):
            raise StrategyError(
                one_line(f"{self._name} asked, as trial {number}, for {asked!r}")
                + f" of type {type(asked).__name__}: return an Architecture, or a Candidate of one"
            )
        if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1:
            raise StrategyError(
                f"{self._name} asked, as trial {number}, for the budget {budget!r}: give a number above 0 and up to 1"
            )
        return Candidate(arch, float(budget) if self.budgeted else 1.0)

    def tell(self, trial: Trial) -> None:
        """Log, then tell; a snapshot is of the state after the tell and is logged with the trial."""
        if self.stateful is None:
            self.log.append(trial)
            self._tell(trial)
        else:
            try:
                self._tell(trial)
                snapshot = self._snapshot(self.stateful)
            except StrategyError:
                self.log.append(trial)
                raise
            self.log.append(trial, snapshot)
        self.learn(trial)
        if self.progress is not None:
            self.progress(trial)

    def _tell(self, trial: Trial) -> None:
        try:
            self.strategy.tell(trial)
        except Exception as error:
            raise StrategyError(
                one_line(f"{self._name} failed at the tell of trial {trial.number}: {error!r}")
            ) from error

    def _snapshot(self, strategy: Stateful) -> bytes:
        try:
            return packed(len(self.log) + 1, strategy)
        except Exception as error:
            raise StrategyError(one_line(f"the state of {self._name} cannot be kept: {error}")) from error

    def learn(self, trial: Trial) -> None:
        """Keep what need not be measured again."""
        self.known.setdefault(_key(trial.arch, trial.budget), trial)
        if self.lasting:
            found = {name: trial.values[name] for name in self.lasting if name in trial.values}
            self.values.setdefault(trial.arch, {}).update(found)

    def shared(self, arch: Architecture) -> Mapping[str, float] | None:
        """Return the values of `arch` that are the same for all budgets, if there are several."""
        return self.values.get(arch) if self.lasting else None

    @property
    def _name(self) -> str:
        return type(self.strategy).__name__

    def replay(self, workers: int) -> None:
        """Bring the strategy to the state of the log."""
        if workers > 1:
            self.log.mark_parallel()
        told = 0
        if self.stateful is not None and self.log.snapshot is not None:
            try:
                told = restore(self.log.snapshot, self.stateful)
            except Exception as error:
                raise ResumeError(one_line(f"{self._name} cannot go on from the log: {error!r}")) from error
        for trial in self.log[told:]:
            if not self.log.parallel and (asked := self.ask(trial.number)) != (trial.arch, trial.budget):
                raise ResumeError(
                    f"trial {trial.number} in the log is {_told(trial.arch, trial.budget)}, but this search asks for "
                    f"{_told(*asked)}: resume with the seed, space, strategy and objectives of the log, "
                    "or use a new log"
                )
            self._tell(trial)

    def upcoming(self) -> int:
        """Return the number to ask next: the lowest that was not asked, so that lost ones come first."""
        while self.number in self.logged:
            self.number += 1
        return self.number

    # ---- evaluating -------------------------------------------------------------------------------

    def begun(self, candidate: Candidate) -> Outcome:
        """Return what needs no running: "asked" if there is more to measure."""
        if (before := self.known.get(_key(*candidate))) is not None:
            note = f"repeats trial {before.number}" + (f": {before.note}" if before.note else "")
            return Outcome(before.values, before.state, note)
        if not self.cheap:
            return _TO_MEASURE
        outcome = measured(self.cheap, *candidate, self.shared(candidate.arch))
        return outcome._replace(state="asked") if outcome.state == "done" and self.costly else outcome

    def serial(self, trials: int) -> None:
        """Evaluate here, one after the other."""
        while len(self.log) < trials:
            number = self.upcoming()
            try:
                candidate = self.ask(number)
            except NotReady:
                raise StrategyError(self._stuck(number)) from None
            self.number += 1
            outcome = self.begun(candidate)
            if outcome.state == "asked":
                outcome = outcome.then(measured(self.costly, *candidate, self.shared(candidate.arch)))
            self.tell(_ended(number, candidate, outcome))

    def parallel(self, trials: int, workers: int, submit: _Submit) -> None:
        """Keep up to `workers` candidates running; tell in the order of completion."""
        pending: dict[Future[Outcome], list[_Pending]] = {}  # the one that runs, then those that wait for its values
        try:
            while True:
                self._fill(pending, trials, workers, submit)
                if not pending:
                    return
                ended = wait(pending, return_when=FIRST_COMPLETED).done
                for future in sorted(ended, key=lambda one: pending[one][0].number):
                    first, *repeats = pending.pop(future)
                    self.tell(_ended(first.number, first.candidate, first.outcome.then(_result(future, first.number))))
                    for one in repeats:
                        self.tell(_ended(one.number, one.candidate, self.begun(one.candidate)))
        finally:
            for future in pending:
                future.cancel()

    def _fill(self, pending: dict[Future[Outcome], list[_Pending]], trials: int, workers: int, submit: _Submit) -> None:
        """Ask and start until all workers are busy, the strategy waits, or all trials are asked."""
        running = {group[0].candidate: group for group in pending.values()}
        while (asked := sum(map(len, pending.values()))) < min(workers, trials - len(self.log)):
            number = self.upcoming()
            try:
                candidate = self.ask(number)
            except NotReady:
                if not asked:
                    raise StrategyError(self._stuck(number)) from None
                return
            self.number += 1
            outcome = self.begun(candidate)
            if outcome.state != "asked":
                self.tell(_ended(number, candidate, outcome))
            elif candidate in running:
                running[candidate].append(_Pending(number, candidate, outcome))
            else:
                future = submit(*candidate, self.shared(candidate.arch))
                running[candidate] = pending[future] = [_Pending(number, candidate, outcome)]

    def _stuck(self, number: int) -> str:
        return f"{self._name} is not ready for ask {number}, and no trial is awaited"


def _key(arch: Architecture, budget: float) -> Architecture | Candidate:
    return arch if budget == 1.0 else Candidate(arch, budget)


def _ended(number: int, candidate: Candidate, outcome: Outcome) -> Trial:
    values, state, note, seconds = outcome
    return Trial(number, candidate.arch, values, candidate.budget, state, note, seconds)


def _told(arch: Architecture, budget: float) -> str:
    return arch.id if budget == 1 else f"{arch.id} with the budget {budget:.4g}"


def _result(future: Future[Outcome], number: int) -> Outcome:
    """Return the outcome; an error that is not the candidate's is raised."""
    try:
        return future.result()
    except LimitExceeded as error:
        return Outcome({}, "failed", one_line(str(error)))
    except WorkerError:
        raise
    except BrokenExecutor as error:
        raise RuntimeError(
            f"the executor broke at trial {number} ({error}): resume with a new one; with "
            "memory_limit_mb and no executor, a candidate that kills its process is a failed trial"
        ) from error
    except Exception as error:
        raise ValueError(
            one_line(f"the executor could not run trial {number}: {error!r}: can the objectives be pickled?")
        ) from error


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
                one_line(f"objective {objective.name!r} cannot be sent to a process ({error}): use a function")
                + " of a module or a functools.partial of one, no lambda"
            ) from None
