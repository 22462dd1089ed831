# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sartor.run import Run

HOLDER = """
import sys
from sartor.run import Run
run = Run.create(sys.argv[1], {"seed": 3})
print("held", flush=True)
sys.stdin.read()
"""

FORKER = """
import os, sys
from sartor.run import Run
run = Run.create(sys.argv[1], {})
if not os.fork():
    print("forked", flush=True)
sys.stdin.read()
"""


def record(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((path / "run.json").read_text())
    return value


def test_create_writes_the_record_once_and_open_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with Run.create(path, {"seed": 3, "plan": {"steps": 10}}) as run:
        assert run.record == record(path)
    with Run.open(path) as run:
        assert run.record["format"] == 1 and run.record["seed"] == 3 and run.stages == {}
        assert run.record["created"].endswith("+00:00")


def test_update_changes_disk_and_record(tmp_path: Path) -> None:
    with Run.create(tmp_path, {"seed": 3}) as run:
        run.update({"plan": {"steps": 5}})
        assert run.record == record(tmp_path) and run.record["seed"] == 3


def test_a_full_disk_leaves_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Run.create(tmp_path, {"seed": 3}) as run:
        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(OSError, match=r"run\.json.*No space left"):
            run.update({"seed": 4})
        assert run.record["seed"] == record(tmp_path)["seed"] == 3


def test_a_record_that_is_not_json_frees_the_folder_again(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Run.create(tmp_path, {"path": tmp_path})
    Run.create(tmp_path, {}).close()


def test_an_existing_run_is_neither_overwritten_nor_mixed(tmp_path: Path) -> None:
    Run.create(tmp_path / "a", {"seed": 1}).close()
    with pytest.raises(FileExistsError, match="--resume or replace it with --force"):
        Run.create(tmp_path / "a", {"seed": 2})
    with pytest.raises(ValueError, match="choose one"):
        Run.create(tmp_path / "a", {}, force=True, resume=True)
    with Run.create(tmp_path / "a", {"seed": 2}, resume=True) as run:
        assert run.record["seed"] == 1
    with Run.create(tmp_path / "b", {"seed": 2}, resume=True) as run:
        assert run.record["seed"] == 2


def test_force_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    Run.create(tmp_path / "a", {"seed": 1}).close()
    (tmp_path / "a" / "pareto").mkdir()
    with Run.create(tmp_path / "a", {"seed": 2}, force=True) as run:
        assert run.record["seed"] == 2
    assert sorted(os.listdir(tmp_path)) == ["a"]
    assert sorted(os.listdir(tmp_path / "a")) == ["run.json", "run.lock"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(FileExistsError, match="files that are no run's"):
        Run.create(tmp_path / "thesis", {}, force=True)


def test_force_does_not_take_a_run_away_from_a_process(tmp_path: Path) -> None:
    with Run.create(tmp_path / "a", {"seed": 1}):
        with pytest.raises(BlockingIOError):
            Run.create(tmp_path / "a", {"seed": 2}, force=True)
    assert record(tmp_path / "a")["seed"] == 1


def test_a_start_that_was_killed_before_its_record_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text("1234\n")
    (tmp_path / "run.json.tmp").write_text('{"for')
    Run.create(tmp_path, {}).close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1,', r"run\.json is broken \(.*\): start the run again with --force"),
        ("\udcff", "is broken"),
        ("[]", "names no format"),
        ('{"seed": 1}', "names no format"),
        ('{"format": 2}', "has format 2, and this version reads 1: upgrade sartor"),
        ('{"format": 1}', "lists no stages"),
    ],
)
def test_broken_records_get_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    for _ in range(2):  # the lock is free again after the error
        with pytest.raises(ValueError, match=message) as caught:
            Run.open(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_missing_run_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run in .*none: it has no run\.json"):
        Run.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_one_process_at_a_time_and_a_kill_frees_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match=rf"in use by process {holder.pid}: wait for it or stop it"):
            Run.open(tmp_path)
        assert Run.open(tmp_path, lock=False).record["seed"] == 3
        holder.send_signal(signal.SIGKILL)
    Run.open(tmp_path).close()


def test_a_forked_worker_that_outlives_a_killed_driver_does_not_keep_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        assert driver.stdout and driver.stdout.readline() == b"forked\n"  # written by the worker
        with pytest.raises(BlockingIOError):
            Run.open(tmp_path)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        Run.open(tmp_path).close()


def test_a_reader_and_a_closed_run_write_nothing(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {"seed": 1})
    run.close()
    for idle in (run, Run.open(tmp_path, lock=False)):
        with pytest.raises(ValueError, match="closed or open only to read"):
            idle.update({"seed": 2})
        with pytest.raises(ValueError, match="closed or open only to read"):
            idle.save_checkpoint(1, {})
        idle.close()


def test_a_finished_stage_is_recorded_with_the_time_of_all_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 2.0, 10.0, 13.0, 20.0, 20.5, 30.0, 31.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    with Run.create(tmp_path, {}) as run, pytest.raises(KeyboardInterrupt), run.stage("train"):
        raise KeyboardInterrupt
    assert not run.stages
    with Run.open(tmp_path) as run:
        with run.stage("train"):
            assert "train" not in run.stages
        assert run.stages == {"train": 5.0} == record(tmp_path)["stages"]
        assert record(tmp_path)["unfinished"] == {}
        with pytest.raises(KeyboardInterrupt), run.stage("train"):  # entered again by a resume
            raise KeyboardInterrupt
        assert run.stages == {"train": 5.0}
        with run.stage("train"):
            pass
        assert run.stages == {"train": 6.5} and record(tmp_path)["unfinished"] == {}


def test_the_log_forgets_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    with Run.create(tmp_path, {}) as run:
        with run.log() as write:
            for step in (1, 2, 3):
                write({"step": step, "loss": 1 / step})
        path = tmp_path / "train.jsonl"
        path.write_bytes(b'[]\n{"epoch": 1}\nnoise\n' + path.read_bytes() + b'{"step": 1, "lo')
        with run.log(after=2) as write:
            write({"step": 3, "loss": 0.5})
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 0.5)]


@pytest.mark.parametrize("short", [True, False])
def test_a_full_disk_under_the_log_is_told_with_the_path(tmp_path: Path, short: bool) -> None:
    from sartor.run import _append

    class Full:
        name = "train.jsonl"

        def write(self, data: bytes) -> int:
            if short:
                return len(data) - 1
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"cannot write train\.jsonl: [Nn]o space left") as caught:
        _append(Full(), b"{}\n")  # type: ignore[arg-type]
    assert caught.value.errno == errno.ENOSPC


def test_checkpoints_of_stages_lie_apart(tmp_path: Path) -> None:
    with Run.create(tmp_path, {}) as run:
        assert run.load_checkpoint() is None
        run.save_checkpoint(5, {"w": torch.ones(1)})
        run.save_checkpoint(7, {"w": torch.zeros(1)}, "baseline-largest")
        found = run.load_checkpoint(), run.load_checkpoint("baseline-largest")
        assert [pair and pair[0] for pair in found] == [5, 7]
        assert (tmp_path / "checkpoint" / "step-5.json").exists()
        with pytest.raises(ValueError, match=r"stage '\.\./x' names files"):
            run.save_checkpoint(1, {}, "../x")
