# SPDX-License-Identifier: Apache-2.0
"""A `.costs` file: which files are one, what reading leaves alone, and what is said of a file that cannot be used."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sartor.costs import CostStore, store
from sartor.costs.ledger import Ledger
from sartor.costs.store import connected, opened


def database(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as made, made:
        for statement in statements:
            made.execute(statement)
    return path


def a_log_of_trials(path: Path) -> Path:
    return database(
        path, "CREATE TABLE meta(key, value)", "INSERT INTO meta VALUES('format', '1')", "CREATE TABLE t(a)"
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("to_read", [True, False])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, to_read: bool) -> None:
    a_log_of_trials(tmp_path / "run.sqlite")
    database(tmp_path / "cats.sqlite", "CREATE TABLE cats(name TEXT)")
    (tmp_path / "text").write_text("no database " * 100)
    before = contents(tmp_path)
    for name, said in (("run.sqlite", "something else"), ("cats.sqlite", "something else"), ("text", "not a database")):
        with pytest.raises(ValueError, match=f"is no cost store .*{said}.*name another file"):
            Ledger(tmp_path / name, to_read=to_read)
    assert contents(tmp_path) == before


def test_the_format_is_checked(tmp_path: Path) -> None:
    CostStore(tmp_path / "a.costs")
    database(tmp_path / "a.costs", "UPDATE meta SET value = '99'")
    with pytest.raises(ValueError, match="has format 99, and this version reads 1: upgrade"):
        Ledger(tmp_path / "a.costs")
    database(tmp_path / "a.costs", "DELETE FROM meta")
    with pytest.raises(ValueError, match="states no format"):
        CostStore(tmp_path / "a.costs")


def test_a_new_or_empty_file_becomes_one_and_reading_makes_none(tmp_path: Path) -> None:
    (tmp_path / "empty.costs").touch()
    with pytest.raises(ValueError, match="it is empty"):
        Ledger(tmp_path / "empty.costs", to_read=True)
    with pytest.raises(PermissionError, match="cannot be read"):
        Ledger(tmp_path / "none.costs", to_read=True)
    assert contents(tmp_path) == {"empty.costs": b""}
    for name in ("empty.costs", "none with # ? %20.costs"):
        assert Ledger(tmp_path / name).entries() == []
        assert {"meta", "samples", "profiles"} <= opened(tmp_path / name, to_read=True)


def test_a_store_of_samples_has_no_profiles_and_reading_adds_none(tmp_path: Path) -> None:
    CostStore(tmp_path / "a.costs")
    before = contents(tmp_path)
    assert Ledger(tmp_path / "a.costs", to_read=True).entries() == []
    CostStore(tmp_path / "a.costs")  # lacks nothing, so nothing is written
    assert contents(tmp_path) == before
    Ledger(tmp_path / "a.costs")
    assert "profiles" in opened(tmp_path / "a.costs", to_read=True)


def test_a_file_that_is_in_use_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "a.costs")
    monkeypatch.setattr(store, "TIMEOUT_S", 0.01)
    with closing(sqlite3.connect(ledger.path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for use in (lambda: CostStore(ledger.path), lambda: Ledger(ledger.path), ledger.entries):
            with pytest.raises(BlockingIOError, match=r"another process uses .*: let it finish, or name another file"):
                use()
    assert ledger.entries() == []


def test_what_the_machine_does_not_allow_is_no_fault_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="cannot be written"):
        CostStore(tmp_path)
    CostStore(tmp_path / "a.costs")
    insert = "INSERT INTO meta VALUES(?, ?)"
    with (
        pytest.raises(PermissionError, match="look at the permissions"),
        connected(tmp_path / "a.costs", to_read=True) as a,
    ):
        a.execute(insert, ("a", "b"))
    with pytest.raises(OSError, match=r"full.*look at its disk"), connected(tmp_path / "a.costs") as a:
        a.execute("PRAGMA max_page_count = 1")
        a.execute(insert, ("a", "b" * 10**6))
    with pytest.raises(sqlite3.IntegrityError), connected(tmp_path / "a.costs") as a:
        a.execute(insert, ("format", "2"))
    assert opened(tmp_path / "a.costs", to_read=True) >= {"meta", "samples"}


def test_a_write_that_was_cut_off_is_told_to_readers_and_mended_by_writers(tmp_path: Path) -> None:
    path, cut = tmp_path / "a.costs", tmp_path / "cut.costs"
    CostStore(path)
    database(path, *(f"INSERT INTO meta VALUES('{i}', '{'x' * 900}')" for i in range(100)))
    with closing(sqlite3.connect(path)) as half:
        half.execute("PRAGMA cache_size = 1")  # so that what is not committed reaches the disk
        half.execute("UPDATE meta SET value = 'y' || value WHERE key != 'format'")
        shutil.copy(path, cut)
        shutil.copy(f"{path}-journal", f"{cut}-journal")
    with pytest.raises(ValueError, match="was killed; start the same `sartor profile` again"):
        Ledger(cut, to_read=True)
    Ledger(cut)
    assert Ledger(cut, to_read=True).entries() == []
    with connected(cut, to_read=True) as mended:
        assert mended.execute("SELECT count(*) FROM meta WHERE value LIKE 'y%'").fetchone() == (0,)
