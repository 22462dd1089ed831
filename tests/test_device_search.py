"""The main job: from data to a verified Pareto set, limits, budgets, resume after kills."""

from __future__ import annotations

import itertools
import json
import math
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
from sartor.deploy.parity import ExportError
from sartor.oneshot import Supervised
from sartor.protocols import Measurement
from sartor.recipes import fronts, planning, training
from sartor.recipes.job import Job
from sartor.recipes.planning import MIN_STEPS, plan, plan_alone
from sartor.recipes.profiling import LimitError, profile, spread_samples
from sartor.recipes.training import steps_alone
from sartor.recipes.verification import Member, complete_member, measure_members
from sartor.run import Run
from sartor.targets import load_target
from sartor.targets.artefacts import TargetError
from sartor.task import Task, load_task
from sartor.workload import macs

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
    assert not (tmp_path / "run").exists()  # so that the right command can follow


@pytest.mark.parametrize("space", ["fbnet", "nasbench201", "mobilenet"])
def test_hand_made_networks_are_from_large_to_small(tmp_path: Path, space: str) -> None:
    """Operations have no order of their own: a skip is small wherever the space names it."""
    job = prepared(tmp_path / "run")
    job.run.update({"arguments": {**job.arguments, "space": space}})
    counted = [macs(job.workload(arch)) for arch in job.hand_made().values()]
    assert counted == sorted(counted, reverse=True) and counted[0] > counted[-1]
    drawn = [job.space.sample(random.Random(seed)) for seed in range(10)]
    assert all(counted[-1] <= macs(job.workload(arch)) <= counted[0] for arch in drawn)


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
    with recipes.resume(tmp_path / "run", budget_s=12.0) as run:
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


def test_a_run_does_not_go_on_with_another_device(finished: Path, tmp_path: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    (tmp_path / "run").mkdir()
    record["targets"][0]["fingerprint"]["processor"] = "abacus"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"another target \(processor was abacus, is counting\)"):
        recipes.resume(tmp_path / "run")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A machine that takes so many seconds for a step of each hand-made network, and for all other work 0.01."""
    seconds = {"smallest": 0.001, "middle": 0.003, "largest": 0.009}
    monkeypatch.setattr(planning, "_plain_seconds", lambda job, batch_size: seconds)
    monkeypatch.setattr(planning, "_timed", lambda work, repeats=3: 0.01)
    monkeypatch.setattr(planning, "_verification_seconds", lambda job: (0.01, 0.01))
    return seconds


def test_a_budget_becomes_counts(tmp_path: Path, timed: dict[str, float]) -> None:
    job, threads = prepared(tmp_path / "run"), torch.get_num_threads()
    short, long = (plan(job, budget_s=s, spent_s=0.0, steps=None, trials=None) for s in (120.0, 1200.0))
    torch.set_num_threads(threads)
    assert long["steps"] > 3 * short["steps"] >= 3 * MIN_STEPS
    assert short["verified"] == job.space.size == 6 and short["population"] == 60  # a fifth of 300 trials
    assert json.loads(json.dumps(short)) == short


def test_networks_train_by_themselves_in_the_time_that_is_left(tmp_path: Path, timed: dict[str, float]) -> None:
    job, threads = prepared(tmp_path / "run"), torch.get_num_threads()
    messages: list[str] = []
    job.say = messages.append
    counts = {**plan(job, budget_s=60.0, spent_s=0.0, steps=None, trials=None), "steps": 240, "verified": 24}
    job.run.update({"plan": counts, "arguments": {**job.arguments, "budget_s": 60.0}})
    archs = [job.space.smallest(), job.middle(), job.space.largest()]
    much = plan_alone(job, archs, spent_s=5.0)
    assert not any("nearly spent" in message for message in messages)
    nothing = plan_alone(job, archs, spent_s=100.0)
    assert any("nearly spent" in message for message in messages)
    job.run.update({"arguments": {**job.arguments, "baselines": False}})
    alone = plan_alone(job, archs, spent_s=5.0)
    torch.set_num_threads(threads)
    assert nothing["finetune_steps"] == MIN_STEPS < much["finetune_steps"] < alone["finetune_steps"]
    # A baseline's part of the shared steps is that of one of the 24 they were planned for, though three were found.
    assert much["baseline_steps"] == much["finetune_steps"] + 4 * 240 // 24
    # What is left but 6 s for the report, over three and three of 3, 3 and 9 ms a step.
    assert much["finetune_steps"] == pytest.approx((60 - 5 - 6) / 0.030, rel=0.05)
    job.run.update({"plan": {**much, "finetune_steps": 100}})
    assert [steps_alone(job, arch, "finetune_steps") for arch in archs] == [300, 100, 100]


def test_a_search_that_is_extended_keeps_its_population(tmp_path: Path) -> None:
    arguments = {**SMALL, "trials": 130, "strategy": "nsga2", "baselines": False}
    recipes.search_for_device("digits", out=tmp_path / "run", **arguments).close()
    before = told(tmp_path / "run")
    with Run.open(tmp_path / "run") as run:
        stages = {name: run.stages[name] for name in ("profile", "train")}
        run.update({"plan": {**run.record["plan"], "trials": 200}, "stages": stages})
    with recipes.resume(tmp_path / "run") as run:
        assert told(run.path)[:130] == before and len(told(run.path)) == 200


def test_a_network_that_cannot_be_exported_is_left_out_and_the_rest_is_recommended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    def complete(job: Job, member: Member) -> None:
        if not refused:
            refused.append(member.folder.name)
            raise ExportError("the second exporter refuses it")
        complete_member(job, member)

    monkeypatch.setattr(fronts, "complete_member", complete)
    messages: list[str] = []
    arguments = {**SMALL, "baselines": False, "on_progress": messages.append}
    with recipes.search_for_device("digits", out=tmp_path / "run", **arguments) as run:
        assert refused and not (run.path / "pareto" / refused[0]).exists()
        assert (run.path / "best" / "use.py").is_file() and (run.path / "report.html").is_file()
    assert any("is left out: the second exporter refuses it" in message for message in messages)


def test_networks_for_torch_are_the_files_that_were_measured(tmp_path: Path) -> None:
    """Training leaves layouts of its own in the weights, and a program for torch holds them."""
    arguments = {**SMALL, "target": ["torch", "onnxruntime"], "baselines": False}
    with recipes.search_for_device("digits", out=tmp_path / "run", **arguments) as run:
        fronts = json.loads((run.path / "fronts.json").read_text())
        assert fronts["torch"] and fronts["onnxruntime"]
        assert all((path / "model.pt2").is_file() for path in (run.path / "pareto").iterdir())


def test_a_network_that_diverges_is_shown_as_it_was_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(learner: Supervised, *arguments: object, **keywords: object) -> None:
        torch.nn.init.constant_(next(learner.net.parameters()), math.nan)

    job = prepared(tmp_path / "run")
    job.run.update({"plan": {"batch_size": 8, "steps": 7, "finetune_steps": 5, "training_threads": 1}})
    monkeypatch.setattr(training, "fit", spoil)
    net, how = training.finetuned(job, job.network(), job.middle())
    assert how == {"trained": "shared weights", "steps": 7, "finetune_steps": 0}
    assert all(bool(value.isfinite().all()) for value in net.state_dict().values())


def test_a_search_without_baselines_has_none_and_misses_none(tmp_path: Path) -> None:
    arguments = {**SMALL, "steps": None, "trials": None, "budget_s": 0.5, "baselines": False}
    with recipes.search_for_device("digits", out=tmp_path / "run", **arguments) as run:
        assert run.record["plan"]["finetune_steps"] == MIN_STEPS
        assert list((run.path / "pareto").iterdir()) and not (run.path / "baselines").exists()
        assert "no measured baseline" not in (run.path / "report.html").read_text()


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


COMMAND = ["search", "digits", "--target", TARGET, "--space", SPACE, "--steps", "12", "--trials", "8",
           "--latency", "20us", "--out"]  # fmt: skip


def attempt(out: Path, kill_after: float | None) -> bool:
    """Start or resume the search in a process of its own; SIGKILL it after so many seconds. Say whether it ended."""
    command = ["resume", str(out)] if (out / "run.json").is_file() else [*COMMAND, str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sartor", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, complaint = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, complaint
    return True


def check_equal(run: Path, finished: Path) -> None:
    """A run that was killed and resumed ended as one that was not."""
    assert told(run) == told(finished)
    fronts = [sorted(folder.name for folder in (one / "pareto").iterdir()) for one in (run, finished)]
    assert fronts[0] == fronts[1]
    for name in fronts[0]:
        weights = [(one / "pareto" / name / "weights.safetensors").read_bytes() for one in (run, finished)]
        assert weights[0] == weights[1]
    left = [str(path) for path in run.rglob("*") if ".partial" in path.name or path.name in (".plan", ".samples")]
    assert not left


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_instants_it_resumes_and_loses_nothing(finished: Path, tmp_path: Path, kills: int) -> None:
    rng, seconds, killed, number = random.Random(kills), 14.0, 0, 0
    while killed < kills:
        out = tmp_path / f"run-{number}"
        before: list[tuple[Any, ...]] = []
        while not attempt(out, rng.uniform(0.3, 1.0) * seconds if killed < kills else None):
            killed += 1
            now = told(out) if (out / "run.sqlite").is_file() else []
            assert now[: len(before)] == before  # nothing told is lost
            before, seconds = now, 0.8 * seconds if killed % 2 else seconds
        check_equal(out, finished)
        number, seconds = number + 1, max(3.0, 0.5 * seconds)  # it ended: aim earlier in the next one


@pytest.mark.parametrize("at", ["checkpoint/step-12.json", "run.sqlite", "candidates", "pareto", "best"])
@pytest.mark.slow
def test_killed_as_a_stage_leaves_its_first_file(finished: Path, tmp_path: Path, at: str) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "sartor", *COMMAND, str(out)], stdout=subprocess.DEVNULL)
    while process.poll() is None and not (out / at).exists():
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert attempt(out, None)
    check_equal(out, finished)


def test_a_trial_may_have_a_time_limit_with_a_space_of_ones_own(finished: Path, tmp_path: Path) -> None:
    limited = recipes.search_for_device(
        "digits", out=tmp_path / "run", limits={"latency_ms": 0.02}, trial_timeout_s=60.0, **SMALL
    )
    limited.close()
    assert told(limited.path) == told(finished)


def test_refused_networks_are_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    messages: list[str] = []
    arguments = {**SMALL, "target": f"{HERE / 'own_parts.py'}:PickyTarget"}
    with recipes.search_for_device("digits", out=tmp_path / "run", on_progress=messages.append, **arguments) as run:
        fronts = [json.loads((f / "architecture.json").read_text()) for f in (run.path / "pareto").iterdir()]
    assert fronts and all(arch["width"] != 12 for arch in fronts)
    assert any("refuses" in message for message in messages)


def test_a_device_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(artefacts: object) -> None:
        raise TargetError("board offline")

    job = prepared(tmp_path / "run")
    monkeypatch.setattr(job.target, "measure", offline)
    with pytest.raises(TargetError, match="board offline"):
        profile(job)
    with pytest.raises(TargetError, match="board offline"):
        measure_members(job, [], {})


def test_a_limit_that_only_the_smallest_meets_is_met(tmp_path: Path) -> None:
    job = prepared(tmp_path / "probe")
    smallest = macs(job.workload(job.space.smallest())) * 1e-6
    with recipes.search_for_device(
        "digits", out=tmp_path / "run", limits={"latency_ms": 1.001 * smallest}, **SMALL
    ) as run:
        assert [folder.name for folder in (run.path / "pareto").iterdir()] == [job.space.smallest().id]


def test_without_a_limit_the_fastest_within_one_standard_error_is_recommended(tmp_path: Path) -> None:
    with recipes.search_for_device("digits", out=tmp_path / "run", **SMALL) as run:
        front = sorted(map(entry, (run.path / "pareto").iterdir()), key=lambda e: e["measurement"]["latency_ms"])
        highest = max(e["accuracy"]["validation"] for e in front)
        error = (highest * (1 - highest) / len(load_task("digits").validation)) ** 0.5
        first = next(e for e in front if e["accuracy"]["validation"] >= highest - error)
        assert entry(run.path / "best")["measurement"] == first["measurement"]
        assert "one standard error" in (run.path / "best" / "why.txt").read_text()


def prepared(out: Path) -> Job:
    """A job without limits whose run was only begun."""
    arguments = {"data": "digits", "space": SPACE, "limits": {}, "seed": 0, "threads": 1}
    return Job(
        Run.create(out, {"arguments": arguments}), load_task("digits"), (load_target(TARGET),), lambda line: None
    )
