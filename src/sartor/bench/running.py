# SPDX-License-Identifier: Apache-2.0
"""Running strategies times seeds, each seed in a log of its own, so that a kill at any instant loses nothing."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sartor
from sartor.atomic import write_json
from sartor.bench.entries import Entry, check_entries, folder_name
from sartor.bench.problem import Problem
from sartor.limits import check_form
from sartor.objective import Objective
from sartor.processes import ProcessExecutor
from sartor.run import Run
from sartor.search import search
from sartor.space import SearchSpace
from sartor.trial import TrialLog

KIND = "bench"
TRIALS = "trials"  # the folder with a folder for each entry, and in it a log for each seed
_LINE = 300
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Task = tuple[SearchSpace, tuple[Objective, ...]]


@dataclass(frozen=True)
class Outcome:
    """How one seed of one entry ended. `whole`: in one go, so that its CPU time is that of all its queries."""

    entry: str
    seed: int
    queries: int
    cpu_s: float = 0.0
    whole: bool = True
    error: str = ""


def bench(
    problem: Problem,
    entries: Sequence[Entry],
    *,
    queries: int,
    seeds: int,
    out: Path | str,
    workers: int = 1,
    resume: bool = False,
    force: bool = False,
    progress: Callable[[Outcome], None] | None = None,
) -> Path:
    """Run every entry with seeds 0 ... `seeds` - 1 for `queries` queries each, and write the scoreboard to `out`.

    A query is one trial of the log: repeats of an architecture, infeasible and failed trials count. `out` then
    holds `queries.parquet` with a row per query, `report.html`, `report.json`, and the logs themselves.

    workers: processes at once; 1 runs here, without a process, and then needs nothing that can be pickled.
    resume: continue what is in `out`. Finished seeds are not run again, half ones go on where they stopped; there
        may be more entries, seeds or queries than before, but no other problem, and no entry that is another one.
    force: replace what is in `out`.
    progress: called with each seed that ended.

    Returns the path of the page. Raises ValueError for wrong arguments and, once everything else is run and
    written, if an entry failed; FileExistsError if `out` is taken; ImportError without pyarrow.
    KeyboardInterrupt passes through, and the next call with `resume` goes on.
    """
    from sartor.bench.finds import write_finds
    from sartor.bench.page import write_scoreboard
    from sartor.bench.queries import check_parquet, write_queries

    check_entries(entries)
    for entry in entries:
        check_form(problem.objectives, entry.limit_as)
    if queries < 1 or seeds < 1 or workers < 1:
        raise ValueError(f"queries is {queries}, seeds {seeds} and workers {workers}: each must be at least 1")
    check_parquet()
    run = Run.create(out, _record(problem, entries, queries, seeds), force=force, resume=resume)
    with run:
        if resume:
            _continue(run, problem, entries, queries, seeds)
        with run.stage("searches"):
            outcomes = _run_all(run.path, problem, entries, queries, seeds, workers, progress)
        failed = {one.entry: one.error for one in outcomes if one.error}
        run.update({"failed": failed})
        if complete := [entry for entry in entries if entry.name not in failed]:
            write_queries(run.path, problem, complete, queries, seeds)
            run.update({"methods": write_finds(run.path, problem, complete, queries, seeds)})
            page = write_scoreboard(run.path)
    if failed:
        told = "; ".join(f"{name}: {error}" for name, error in failed.items())
        where = f"; the others are in {page}" if complete else ""
        raise ValueError(f"{len(failed)} of {len(entries)} entries failed ({told}){where}")
    return page


def log_path(out: Path, folder: str, seed: int) -> Path:
    """Return where the trials of one seed are; `folder` is that of its entry."""
    return out / TRIALS / folder / f"{seed}.sqlite"


def finished(out: Path, folder: str, seed: int) -> Outcome | None:
    """Return what is recorded of a seed that ended without an error; None of any other."""
    try:
        read = json.loads(log_path(out, folder, seed).with_suffix(".json").read_bytes())
        return Outcome(**read)
    except (OSError, ValueError, TypeError):
        return None


def _record(problem: Problem, entries: Sequence[Entry], queries: int, seeds: int) -> dict[str, Any]:
    return {
        "kind": KIND,
        "command": sys.argv,
        "arguments": dict(problem.arguments),
        "queries": queries,
        "seeds": seeds,
        "problem": described(problem),
        "known": problem.known(queries),
        "entries": [entry.described(queries) for entry in entries],
        "environment": environment(),
    }


def described(problem: Problem) -> dict[str, Any]:
    """Return a problem as its record tells it: what is read, what is reported, in which space."""
    return {
        "name": problem.name,
        "objectives": [
            {
                "name": one.name,
                "goal": one.goal,
                **{key: bound for key in ("at_most", "at_least") if (bound := getattr(one, key)) is not None},
            }
            for one in problem.objectives
        ],
        "reported": problem.reported_name or problem.objectives[0].name,
        "space_size": str(problem.space.size),
        "choices": {name: len(options) for name, options in problem.space.choices.items()},
        "constrained": problem.space.constraint is not None,
        "notes": list(problem.notes),
        **({"fidelities": dict(cheaper)} if (cheaper := problem.arguments.get("fidelities")) else {}),
    }


def environment() -> dict[str, str]:
    """Return what CPU times depend on; no path and no name of a host."""
    from importlib import metadata

    from sartor.targets.machine import processor

    machine = processor()
    return {
        "sartor": sartor.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("numpy", "scipy", "torch")},
        **{key: machine[key] for key in ("processor", "cores_usable", "system")},
        "threads of each search": "1",
    }


def _continue(run: Run, problem: Problem, entries: Sequence[Entry], queries: int, seeds: int) -> None:
    """Check that the run is of this problem, and record what is asked of it now."""
    before = run.record.get("problem")
    if run.record.get("kind") != KIND or before is None:
        raise ValueError(f"{run.path} holds a run that is no scoreboard: name another folder")
    now = json.loads(json.dumps(described(problem)))
    for key in dict.fromkeys([*now, *before]):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"{run.path} was started with {key} {before.get(key)!r}, and {now.get(key)!r} is asked for now: "
                "continue it as it was, or replace it with force"
            )
    record = _record(problem, entries, queries, seeds)
    record["left_out"] = _left_out(run, json.loads(json.dumps(record["entries"])))
    run.update({key: record[key] for key in ("queries", "seeds", "known", "entries", "left_out", "environment")})


def _left_out(run: Run, entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Check that entries with trials are those that made them; return the others that have trials.

    Raises ValueError for an entry that is another one now: its seeds would be of two kinds.
    """
    asked = {_place(one): one for one in entries}
    known = {_place(one): one for one in [*run.record.get("left_out", []), *run.record["entries"]]}
    for place in asked.keys() & known.keys():
        before, now = _decisive(known[place]), _decisive(asked[place])
        for key in dict.fromkeys([*now, *before]):
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"entry {now['name']!r} of {run.path} was started with {key} {before.get(key)!r}, and "
                    f"{now.get(key)!r} is asked for now: give it another name, or replace the run with force"
                )
    return [one for place, one in known.items() if place not in asked]


def _place(entry: Mapping[str, Any]) -> str:
    """Return what tells the folder of an entry's trials from others, whatever its budget."""
    return folder_name(entry["name"]).lower()


def _decisive(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides an entry's trials; not the budget that it is told, for each has a folder of its own."""
    told = {} if "queries" in entry["changed"] else {"queries"}
    settings = {f"setting {name}": value for name, value in entry["settings"].items() if name not in told}
    return {**{key: entry.get(key) for key in ("name", "source", "given", "digest")}, **settings}


# ---- one seed ---------------------------------------------------------------------------------------


def run_seed(task: Task, entry: Entry, seed: int, queries: int, path: Path) -> Outcome:
    """Run one seed of one entry until its log at `path` holds `queries` trials; an error is part of the outcome."""
    begun = time.process_time()
    whole = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.search is None:
            _search(task, entry, seed, queries, path)
        else:
            _keep(task, entry.search(seed, queries), queries, path)
    except (Exception, SystemExit) as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(entry.name, seed, queries, error=f"seed {seed}: {told[:_LINE]}")
    outcome = Outcome(entry.name, seed, queries, time.process_time() - begun, whole)
    write_json(path.with_suffix(".json"), asdict(outcome))
    return outcome


def _search(task: Task, entry: Entry, seed: int, queries: int, path: Path) -> None:
    space, objectives = task
    strategy, searched = entry.under_limits(space, objectives, queries)
    with TrialLog(path) as log:
        search(space, strategy, searched, trials=queries, seed=seed, log=log)


def _keep(task: Task, log: TrialLog, queries: int, path: Path) -> None:
    """Write what a search of another kind returned, all of it or nothing."""
    needed = {one.name for one in task[1]}
    if len(log) < queries:
        raise ValueError(f"it returned {len(log)} trials, and {queries} queries were asked for")
    half = path.with_name(f"{path.name}.half")
    half.unlink(missing_ok=True)
    with TrialLog(half) as kept:
        for trial in log[:queries]:
            if trial.state == "done" and (missing := needed - trial.values.keys()):
                raise ValueError(f"its trial {trial.number} has no value of {', '.join(sorted(missing))}")
            kept.append(trial)
    os.replace(half, path)


# ---- all of them ------------------------------------------------------------------------------------


def _run_all(
    out: Path,
    problem: Problem,
    entries: Sequence[Entry],
    queries: int,
    seeds: int,
    workers: int,
    progress: Callable[[Outcome], None] | None,
) -> list[Outcome]:
    """Run what is not finished; after the first error of an entry, no further seed of it."""
    task: Task = (problem.space, problem.objectives)
    outcomes: list[Outcome] = []

    def jobs() -> Iterator[tuple[Entry, int, int, Path]]:
        for entry in entries:
            for seed in range(seeds):
                done = finished(out, entry.folder(queries), seed)
                if done is not None and done.queries >= queries:
                    outcomes.append(done)
                elif not any(one.error for one in outcomes if one.entry == entry.name):
                    yield entry, seed, queries, log_path(out, entry.folder(queries), seed)

    def take(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if progress is not None:
            progress(outcome)

    if workers == 1:
        for job in jobs():
            take(run_seed(task, *job))
    else:
        with _one_thread_each():
            _in_processes(task, jobs(), workers, take)
    return outcomes


def _in_processes(
    task: Task, jobs: Iterator[tuple[Entry, int, int, Path]], workers: int, take: Callable[[Outcome], None]
) -> None:
    """Keep `workers` processes busy; a process that dies fails its seed, and the others go on."""
    processes = ProcessExecutor(task, workers)
    pending: dict[Future[Outcome], tuple[Entry, int, int, Path]] = {}
    try:
        while True:
            while len(pending) < workers and (job := next(jobs, None)) is not None:
                pending[processes.submit(run_seed, *job)] = job
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                entry, seed, queries, _ = pending.pop(future)
                error = future.exception()
                take(Outcome(entry.name, seed, queries, error=f"seed {seed}: {error}") if error else future.result())
    finally:
        processes.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that start here compute with one thread each, unless the user said otherwise."""
    added = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            with suppress(KeyError):
                del os.environ[name]


def read_record(out: Path) -> Mapping[str, Any]:
    """Return the record of a scoreboard's folder; ValueError if it is another kind of run."""
    record: dict[str, Any] = Run.open(out, lock=False).record
    if record.get("kind") != KIND:
        raise ValueError(f"{out} holds a run that is no scoreboard")
    return record
