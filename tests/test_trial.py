# SPDX-License-Identifier: Apache-2.0
"""The log: exact, one writer, readable meanwhile, and nothing told is lost by a kill."""

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.strategy_contract import OBJECTIVES, TOY
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.search import search
from sartor.strategies import NSGA2, RandomSearch, RegularizedEvolution
from sartor.trial import Trial, TrialLog

ARCH = Architecture({"a": 1, "exits": (1, 2), "se": True})
TRIAL = Trial(0, ARCH, {"error": 0.1 + 0.2}, 1.0, "done", "", 0.5)
SCRIPT = Path(__file__).with_name("killed_search.py")


def as_text(trial: Trial) -> str:
    """Every bit of a trial, NaN included."""
    return f"{trial!r} {trial.seconds!r}"


@settings(max_examples=30)
@given(st.lists(st.builds(
    Trial,
    st.integers(0, 2**40),
    st.dictionaries(st.text(), st.one_of(st.integers(), st.booleans(), st.text())).map(Architecture),
    st.dictionaries(st.text(), st.floats()),
    st.floats(1e-3, 1e9),
    st.sampled_from(["done", "infeasible", "failed"]),
    st.text(),
    st.floats(0, 1e9),
), max_size=5))  # fmt: skip
def test_everything_returns_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, trials: list[Trial]) -> None:
    path = tmp_path_factory.mktemp("log") / "run.sqlite"
    with TrialLog(path) as log:
        for trial in trials:
            log.append(trial)
        assert list(map(as_text, log)) == list(map(as_text, trials))
    with TrialLog(path) as log:
        assert list(map(as_text, log)) == list(map(as_text, trials))


@pytest.mark.parametrize("where", [None, "run.sqlite"])
def test_is_a_sequence(tmp_path: Path, where: str | None) -> None:
    with TrialLog(where and tmp_path / where) as log:
        for number in range(3):
            log.append(Trial(number, ARCH, {}, 1.0, "done"))
        assert len(log) == 3 and log[-1].number == 2 and [t.number for t in log[:2]] == [0, 1]
        assert log[0] in log and "3 trials" in repr(log)


def test_only_ended_trials_are_logged() -> None:
    with pytest.raises(ValueError, match="trial 0 is 'asked'"):
        TrialLog().append(Trial(0, ARCH))


def test_pareto_takes_done_and_feasible_trials_once_each() -> None:
    objectives = (Objective("error", float), Objective("ms", float, at_most=3.0))
    log = TrialLog()

    def add(state: str, name: int, **values: float) -> None:
        log.append(Trial(len(log), Architecture({"a": name}), values, 1.0, state))  # type: ignore[arg-type]

    add("done", 0, error=0.5, ms=1.0)
    add("done", 1, error=0.1, ms=2.0)
    add("done", 2, error=0.6, ms=2.0)  # dominated
    add("infeasible", 3, error=0.0, ms=9.0)
    add("done", 4, error=0.0, ms=9.0)  # beyond the bound of this question
    add("failed", 5, error=0.0, ms=0.0)
    add("done", 6, error=0.0)  # not measured
    add("done", 1, error=0.1, ms=2.0)  # again
    assert [trial.number for trial in log.pareto(objectives)] == [1, 0]
    assert TrialLog().pareto(objectives) == []


def test_the_file_is_plain_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    with TrialLog(path) as log:
        log.append(TRIAL)
        reader = sqlite3.connect(path)  # while it is being written
        rows = list(reader.execute('SELECT number, arch, "values", budget, state, seconds, note FROM trials'))
        assert rows == [(0, ARCH.to_json(), json.dumps({"error": 0.1 + 0.2}), 1.0, "done", 0.5, "")]
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        reader.close()


# ---- one writer -----------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    with TrialLog(path) as log:
        log.append(TRIAL)
        with pytest.raises(BlockingIOError, match=r"run\.sqlite is in use by another search"):
            TrialLog(path)
        with TrialLog(path, readonly=True) as reader:
            assert list(reader) == [TRIAL]
            with pytest.raises(ValueError, match="is read only"):
                reader.append(TRIAL)
    with TrialLog(path) as log:
        assert list(log) == [TRIAL]
    with pytest.raises(ValueError, match="is closed"):
        log.append(TRIAL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_that_lives_on_holds_no_lock(tmp_path: Path) -> None:
    script = """if True:
        import os, sys
        from sartor.trial import TrialLog
        log = TrialLog(sys.argv[1])
        if os.fork() == 0:
            sys.stdin.read()  # lives until the test closes our input
            os._exit(0)
        print("open", flush=True)
        os.kill(os.getpid(), 9)
    """
    path = tmp_path / "run.sqlite"
    arguments = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        assert process.wait() == -signal.SIGKILL
        TrialLog(path).close()


# ---- kills ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [1, 23, 57])
@pytest.mark.parametrize("make", [RandomSearch, RegularizedEvolution, NSGA2])
def test_a_killed_search_loses_nothing_told_and_ends_the_same(tmp_path: Path, lines: int, make: type) -> None:
    path = tmp_path / "run.sqlite"
    arguments = [sys.executable, str(SCRIPT), str(path), "100000000", make.__name__]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        told += [line for line in process.stdout if line.endswith("\n")]
    with TrialLog(path) as log:
        assert [f"{trial.number} {trial.arch.to_json()}\n" for trial in log][: len(told)] == told
        assert len(told) >= lines and len(log) - len(told) <= 2
        sizes = {} if make is RandomSearch else {"population": 20}
        whole = search(TOY, make(TOY, OBJECTIVES, **sizes), OBJECTIVES, trials=len(log) + 40, seed=5)
        search(TOY, make(TOY, OBJECTIVES, **sizes), OBJECTIVES, trials=len(log) + 40, seed=5, log=log)
        assert list(log) == list(whole)


# ---- files that are no log ------------------------------------------------------------------------


def damaged(path: Path, sql: str) -> None:
    with TrialLog(path) as log:
        log.append(TRIAL)
    connection = sqlite3.connect(path)
    connection.execute(sql)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE meta SET value = '2'",
        "DELETE FROM meta",
        "DROP TABLE meta",
        "DROP TABLE trials",
        "UPDATE trials SET arch = '{'",
        "UPDATE trials SET arch = NULL",
        "UPDATE trials SET \"values\" = '[]'",
        "UPDATE trials SET state = 'lost'",
    ],
)
@pytest.mark.parametrize("readonly", [False, True])
def test_damage_is_one_clear_line(tmp_path: Path, sql: str, readonly: bool) -> None:
    path = tmp_path / "run.sqlite"
    damaged(path, sql)
    with pytest.raises(ValueError, match=r"run\.sqlite cannot be read as a trial log \(.+\): restore it") as caught:
        TrialLog(path, readonly=readonly)
    assert "\n" not in str(caught.value)
    path.unlink()
    if not readonly:
        TrialLog(path).close()  # no lock was left behind


def test_foreign_and_cut_files(tmp_path: Path) -> None:
    foreign, cut, folder = tmp_path / "notes.txt", tmp_path / "cut.sqlite", tmp_path / "folder"
    foreign.write_text("not a database " * 100)
    with TrialLog(cut) as log:
        for number in range(500):
            log.append(Trial(number, ARCH, {"error": math.pi}, 1.0, "done"))
    cut.write_bytes(cut.read_bytes()[:10_000])
    folder.mkdir()
    for path in (foreign, cut, folder):
        with pytest.raises(ValueError, match="cannot be read as a trial log"):
            TrialLog(path)
    assert foreign.read_text().startswith("not a database")


def test_a_file_of_nothing_is_a_new_log_and_a_missing_one_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with TrialLog(tmp_path / "empty") as log:
        assert len(log) == 0
    with pytest.raises(FileNotFoundError, match="there is no trial log at"):
        TrialLog(tmp_path / "missing", readonly=True)
    with pytest.raises(FileNotFoundError, match="the folder does not exist"):
        TrialLog(tmp_path / "no" / "log")


def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    with TrialLog(tmp_path / "run.sqlite") as log:
        assert log._file is not None
        log._file.execute("PRAGMA max_page_count = 4")
        with pytest.raises(OSError, match=r"cannot write trial \d+ to .*full"):
            for number in range(1000):
                log.append(Trial(number, ARCH, {"error": 1.0}, 1.0, "done"))
        assert len(log) == log._file.execute("SELECT count(*) FROM trials").fetchone()[0]
