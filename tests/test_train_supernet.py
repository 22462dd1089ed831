# SPDX-License-Identifier: Apache-2.0
"""A training of shared weights that is refused, stopped or continued: what it leaves, and what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from sartor import recipes
from sartor.cli import main, supernets
from sartor.recipes import supernet as recipe
from sartor.recipes.job import Job
from sartor.recipes.training import PortableError, train
from sartor.run import Run
from sartor.supernet import recalibrate_batchnorm
from sartor.task import load_task

HERE = Path(__file__).parent
SPACE, FIXED, COUNTING = (f"{HERE / 'own_parts.py'}:{name}" for name in ("TinyNetwork", "FixedWidth", "CountingTarget"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with shared weights, of a seed that is not the usual one."""
    out = tmp_path_factory.mktemp("runs") / "net"
    recipes.train_supernet("digits", space=SPACE, out=out, steps=4, seed=3).close()
    return out


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of a mistake."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("space", "given", "message"),
    [
        (SPACE, ["--steps", "3", "--batch-size", "10", "--accumulate", "4"], "give a multiple of 4"),
        (FIXED, ["--steps", "3", "--method", "netadaptv2"], "no searched width"),
        (FIXED, ["--budget", "1min", "--method", "netadaptv2"], "no searched width"),
        (SPACE, ["--steps", "3", "--shard"], "several processes"),
    ],
)
def test_what_cannot_be_trained_is_told_at_once_and_leaves_the_folder_free(
    space: str, given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net"
    assert message in told(["train", space, "digits", *given, "--out", str(out)], capsys)
    assert not out.exists()


def test_a_training_that_needs_more_memory_than_there_is_leaves_the_folder_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sartor.oneshot._memory.free_memory", lambda device: 1000.0)
    with pytest.raises(ValueError, match=r"training needs .* give a smaller batch"):
        recipes.train_supernet("digits", space=SPACE, out=tmp_path / "net", steps=3)
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--method", "spos"], "was started with --method bignas"),
        (["--steps", "9"], "was started with --steps 4"),
        (["--precision", "bfloat16"], "was started with --precision float32"),
        (["--seed", "0"], "was started with --seed 3"),
    ],
)
def test_a_run_is_not_continued_as_another_training(
    given: list[str], message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in told(["train", SPACE, "digits", *given, "--out", str(trained), "--resume"], capsys)


def test_what_is_not_said_again_is_as_it_was(trained: Path) -> None:
    assert main(["train", SPACE, "digits", "--out", str(trained), "--resume"]) == 0
    record = json.loads((trained / "run.json").read_text())
    assert record["seed"] == 3 and record["effort"]["updates"] == 4


def test_all_processes_say_why_there_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken() -> Run:
        raise FileExistsError("x holds a run")

    sent: list[bytes] = []

    def from_first(data: bytes) -> bytes:
        sent.append(data)
        return data

    monkeypatch.setattr("sartor.distributed.from_first", from_first)
    with pytest.raises(FileExistsError, match="x holds a run"):
        recipe._of_all(taken)
    monkeypatch.setattr("sartor.distributed.is_first", lambda: False)
    monkeypatch.setattr("sartor.distributed.from_first", lambda data: sent[0])
    with pytest.raises(ValueError, match="the first process has no run: x holds a run"):
        recipe._of_all(taken)


@pytest.mark.slow  # two processes that import torch
def test_two_processes_that_find_a_run_end_and_say_so(trained: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sartor"]
    command += ["train", SPACE, "digits", "--steps", "4", "--out", str(trained)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True)
    assert done.returncode and f"sartor: {trained} holds a run: continue it with --resume" in done.stderr


def test_a_search_is_not_continued_as_a_training(tmp_path: Path) -> None:
    given: dict[str, Any] = {"target": COUNTING, "space": SPACE, "steps": 2, "trials": 3, "baselines": False}
    recipes.search_for_device("digits", out=tmp_path / "run", budget_s=None, **given).close()
    with pytest.raises(ValueError, match="is no training of shared weights"):
        recipes.train_supernet("digits", space=SPACE, out=tmp_path / "run", steps=4, resume=True)


def test_other_data_are_refused(trained: Path) -> None:
    with pytest.raises(ValueError, match="changed since it started"):
        recipes.train_supernet(load_task("digits", seed=1), space=SPACE, out=trained, steps=4, seed=3, resume=True)
    Run.open(trained).close()  # nobody holds it


def test_a_training_that_was_killed_before_its_evaluation_is_evaluated(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "net"

    def killed(job: object, serving: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "_reached", killed)
        with pytest.raises(OSError, match="killed"):
            recipes.train_supernet("digits", space=SPACE, out=out, steps=4, seed=3)
    before = Run.open(out, lock=False)
    assert "train" in before.stages and "reached" not in before.record
    with recipes.resume(out) as run:
        assert run.record["reached"] == Run.open(trained, lock=False).record["reached"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (lambda known: {**known, "arguments": {}}, "does not say"),
        (lambda known: {**known, "stages": {}}, "no trained weights yet"),
        (lambda known: {**known, "arguments": {**known["arguments"], "method": "darts"}}, "shared weights"),
    ],
)
def test_what_holds_no_shared_weights_is_not_specialised(
    record: Callable[[Any], Any],
    message: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record(json.loads((trained / "run.json").read_text()))))
    assert message in told(["specialise", str(folder), "--target", COUNTING, "--latency", "1ms"], capsys)
    assert not (tmp_path / "other-specialised").exists()


def test_statistics_never_see_evaluation_data(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = load_task("digits", seed=3), set[bytes]()

    def recalibrate(network: nn.Module, inputs: Iterable[Tensor]) -> None:
        batches = list(inputs)
        seen.update(image.contiguous().numpy().tobytes() for batch in batches for image in batch)
        recalibrate_batchnorm(network, batches)

    monkeypatch.setattr("sartor.evaluation.recalibrate_batchnorm", recalibrate)
    with Run.open(trained) as run:
        job = Job(run, task, (), print)
        shared = train(job)
        recipe._reached(job, shared.serving)
        PortableError(job, shared)(job.smallest())
    assert seen and seen <= {image.numpy().tobytes() for batch, _ in task.train.batches(256) for image in batch}


def test_single_networks_of_trained_ensembles_are_specialised(tmp_path: Path) -> None:
    recipes.train_supernet("digits", space=SPACE, method="neas", out=tmp_path / "net", steps=4).close()
    with recipes.specialise(tmp_path / "net", target=COUNTING, latencies_ms=[1.0], trials=4) as run:
        (verdict,) = json.loads((run.path / "specialised.json").read_text())["verdicts"]
        assert verdict["met"] and (run.path / "pareto" / verdict["id"]).is_dir()


def test_a_specialisation_does_not_replace_its_supernet(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["specialise", str(trained), "--target", COUNTING, "--latency", "1ms", "--out", str(trained)]
    assert "name another folder" in told([*arguments, "--force"], capsys)
    assert Run.open(trained, lock=False).load_checkpoint() is not None


def test_limits_that_nobody_meets_are_told_before_the_search(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["specialise", str(trained), "--target", COUNTING, "--out", str(tmp_path / "few")]
    error = told([*arguments, "--latency", "0.000002ms", "--latency", "0.000001ms"], capsys)
    assert "no network of this space has a median latency in milliseconds of 2e-06 or less" in error
    assert not (tmp_path / "few").exists()


def test_a_target_that_ran_nothing_has_no_least_latency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    one = {"target": "board", "limit_ms": 1.0, "met": False, "least_ms": None}
    (tmp_path / "specialised.json").write_text(json.dumps({"verdicts": [one]}))
    supernets.print_verdicts(Console(width=200), tmp_path)
    assert "none ran" in capsys.readouterr().out
