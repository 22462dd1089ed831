"""The main job: from data to a verified Pareto set, limits, budgets, resume after kills."""

from __future__ import annotations

import itertools
import json
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sartor import recipes
from sartor.protocols import Measurement
from sartor.recipes.job import Job
from sartor.recipes.planning import plan
from sartor.recipes.profiling import LimitError, spread_samples
from sartor.run import Run
from sartor.targets import load_target
from sartor.task import Task, load_task

HERE = Path(__file__).parent
SPACE, TARGET = f"{HERE / 'own_parts.py'}:TinyNetwork", f"{HERE / 'own_parts.py'}:CountingTarget"
SMALL: dict[str, Any] = {"target": TARGET, "space": SPACE, "steps": 12, "trials": 8, "budget_s": None}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run that several tests read."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    recipes.search_for_device("digits", out=out, limits={"latency_ms": 0.02}, **SMALL).close()
    return out


def entry(folder: Path) -> dict[str, Any]:
    """What the run measured of one network."""
    found: dict[str, Any] = json.loads((folder / "measurement.json").read_text())["targets"]["counting"]
    return found


def told(run: Path) -> list[tuple[Any, ...]]:
    """All trials of a run but for their timings."""
    with sqlite3.connect(run / "run.sqlite") as database:
        found = database.execute(
            'SELECT number, arch, "values", budget, state, note FROM trials ORDER BY rowid'
        ).fetchall()
    database.close()
    return found


def test_front_is_verified_within_the_limit_and_not_dominated(finished: Path) -> None:
    entries = [entry(folder) for folder in (finished / "pareto").iterdir()]
    assert entries and all(e["within_limit"] and e["measurement"]["latency_ms"] <= 0.02 for e in entries)
    points = sorted((e["measurement"]["latency_ms"], e["accuracy"]["validation"]) for e in entries)
    assert all(slow[1] > fast[1] for fast, slow in itertools.pairwise(points))


def test_every_reported_network_is_measured_and_the_front_is_exported_whole(finished: Path) -> None:
    whole = {"architecture.json", "weights.safetensors", "model.pt2", "model.onnx", "measurement.json",
             "preprocessing.json", "use.py"}  # fmt: skip
    for folder in [*(finished / "pareto").iterdir(), finished / "best"]:
        assert whole <= {file.name for file in folder.iterdir()}
    for folder in [*(finished / "pareto").iterdir(), *(finished / "baselines").iterdir()]:
        Measurement.from_dict(entry(folder)["measurement"])
        assert 0 <= entry(folder)["accuracy"]["test"] <= 1
    assert {folder.name for folder in (finished / "baselines").iterdir()} == {"largest", "middle", "smallest"}


def test_best_is_the_most_accurate_of_the_front_on_validation(finished: Path) -> None:
    top = max(entry(folder)["accuracy"]["validation"] for folder in (finished / "pareto").iterdir())
    assert entry(finished / "best")["accuracy"]["validation"] == top
    assert "recommended" in (finished / "best" / "why.txt").read_text()


def test_infeasible_candidates_are_never_evaluated(finished: Path) -> None:
    infeasible = [row for row in told(finished) if row[4] == "infeasible"]
    assert infeasible and all("error" not in json.loads(row[2]) for row in infeasible)


def test_counted_limits_hold_too(tmp_path: Path) -> None:
    with recipes.search_for_device("digits", out=tmp_path / "run", limits={"params": 700}, **SMALL) as run:
        entries = [entry(folder) for folder in (run.path / "pareto").iterdir()]
    assert entries and all(e["limits"]["params"]["value"] <= 700 for e in entries)


def test_a_limit_out_of_reach_is_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        LimitError, match=r"median latency in milliseconds of 1e-06 or less on counting: the smallest has 0\.00"
    ):
        recipes.search_for_device("digits", out=tmp_path / "run", limits={"latency_ms": 1e-6}, **SMALL)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_same_seed_same_trials_and_resuming_a_finished_run_changes_nothing(finished: Path, tmp_path: Path) -> None:
    again = recipes.search_for_device("digits", out=tmp_path / "run", limits={"latency_ms": 0.02}, **SMALL)
    again.close()
    assert told(again.path) == told(finished)
    recipes.resume(again.path).close()
    assert told(again.path) == told(finished)


def test_more_budget_means_more_trials_and_the_front_is_verified_again(tmp_path: Path) -> None:
    arguments = {**SMALL, "trials": 2}
    recipes.search_for_device("digits", out=tmp_path / "run", **arguments).close()
    before = told(tmp_path / "run")
    with recipes.resume(tmp_path / "run", budget_s=30.0) as run:
        assert told(run.path)[:2] == before
        assert len(told(run.path)) == run.record["plan"]["trials"] > 2
        assert (run.path / "report.html").is_file()


def test_a_task_object_is_searched_and_must_be_given_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 60)
    images = (rng.random((180, 8, 8)) * 100 + labels[:, None, None] * 70).astype(np.uint8)
    task = Task.from_arrays(images, labels)
    recipes.search_for_device(task, out=tmp_path / "run", **SMALL).close()
    with pytest.raises(ValueError, match=r"give it again as data="):
        recipes.resume(tmp_path / "run")
    recipes.resume(tmp_path / "run", data=task).close()


def test_a_run_does_not_go_on_with_other_data(finished: Path, tmp_path: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    (tmp_path / "run").mkdir()
    record["task"]["splits"]["train"]["sha256"] = "other"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"the data of .* changed"):
        recipes.resume(tmp_path / "run")


def test_a_budget_becomes_counts(tmp_path: Path) -> None:
    arguments = {"data": "digits", "space": SPACE, "limits": {}, "seed": 0, "threads": 1}
    with Run.create(tmp_path / "run", {"arguments": arguments}) as run:
        threads = torch.get_num_threads()
        job = Job(run, load_task("digits"), load_target(TARGET), lambda line: None)
        short, long = (plan(job, budget_s=s, spent_s=0.0, steps=None, trials=None) for s in (120.0, 1200.0))
        torch.set_num_threads(threads)
    assert long["steps"] > 3 * short["steps"] >= 90
    assert json.loads(json.dumps(short)) == short


def test_samples_spread_from_the_smallest_to_the_largest() -> None:
    from sartor.spaces.mobilenet import MobileNet
    from sartor.supernet import search_space

    with torch.device("meta"):
        space = search_space(MobileNet(10, 1, (28, 28)))
    given = [space.largest(), space.smallest()]
    found = spread_samples(space, 24, given, random.Random(0))
    assert found[:2] == given and len(set(found)) == 24 and all(arch in space for arch in found)
    widths = [arch["stages.2.width"] for arch in found]
    assert min(widths.count(option) for option in space.choices["stages.2.width"]) >= 4


def survive(out: Path, kills: int, rng: random.Random) -> list[int]:
    """Start the search, SIGKILL it at random instants, resume, until it ends; the trials told at each kill."""
    seen: list[int] = []
    seconds = 25.0
    while True:
        started = (out / "run.json").is_file()
        command = ["resume", str(out)] if started else [
            "search", "digits", "--target", TARGET, "--space", SPACE, "--steps", "12", "--trials", "8", "--latency",
            "20us", "--out", str(out)]  # fmt: skip
        process = subprocess.Popen([sys.executable, "-m", "sartor", *command], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True)  # fmt: skip
        try:
            _, complaint = process.communicate(timeout=rng.uniform(0.5, seconds) if len(seen) < kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            seen.append(len(told(out)) if (out / "run.sqlite").is_file() else 0)
            continue
        assert process.returncode == 0, complaint
        if len(seen) >= kills:
            return seen
        seconds *= 0.7  # it ended before the kill: aim earlier, at a fresh run
        for file in sorted(out.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        seen.append(0)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_instants_it_resumes_and_loses_nothing(finished: Path, tmp_path: Path, kills: int) -> None:
    seen = survive(tmp_path / "run", kills, random.Random(kills))
    assert len(seen) >= kills
    assert told(tmp_path / "run") == told(finished)
    names = [{folder.name for folder in (run / "pareto").iterdir()} for run in (tmp_path / "run", finished)]
    assert names[0] == names[1]
    left = [path.name for path in (tmp_path / "run").rglob(".*partial*")]
    assert not left
