# SPDX-License-Identifier: Apache-2.0
"""Shared weights once, then a measured network for each target and limit."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sartor import evaluation, names, recipes
from sartor.architecture import Architecture
from sartor.checkpoint import flatten
from sartor.cli import main
from sartor.objective import Objective
from sartor.oneshot import BigNAS
from sartor.recipes.job import Job
from sartor.recipes.rungs import CHECKED, Rung, Rungs
from sartor.recipes.searching import LOOKED_AT, best_of_rungs, nearer
from sartor.recipes.training import train
from sartor.recipes.whole_split import WholeSplitError
from sartor.run import Run
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies.random_search import RandomSearch
from sartor.supernet import search_space
from sartor.targets import load_target
from sartor.task import load_task
from sartor.trial import Trial, TrialLog
from sartor.workload import macs

HERE = Path(__file__).parent
SPACE = f"{HERE / 'own_parts.py'}:TinyNetwork"
COUNTING, PARAMETERS = (f"{HERE / 'own_parts.py'}:{name}" for name in ("CountingTarget", "ParameterTarget"))
KILLED = f"{HERE / 'killed_training.py'}:Killed"


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with trained shared weights."""
    out = tmp_path_factory.mktemp("runs") / "net"
    recipes.train_supernet("digits", space=SPACE, out=out, steps=30).close()
    return out


@pytest.fixture(scope="module")
def specialised(supernet: Path) -> Path:
    """Networks of it for two targets, with two limits and three."""
    ladder = {"": [0.02, 1e-9], "parameters": [1.0]}
    with recipes.specialise(supernet, target=[COUNTING, PARAMETERS], latencies_ms=ladder, trials=24) as run:
        return run.path


def verdicts(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "specialised.json").read_text())["verdicts"]
    return found


def test_a_training_says_what_it_cost_and_what_its_networks_reach(supernet: Path) -> None:
    record = json.loads((supernet / "run.json").read_text())
    assert record["effort"] == {"passes": 120, "looks": 0, "updates": 30}
    assert set(record["reached"]) == {"largest", "middle", "smallest"}
    assert all(0 <= one["validation"] <= 1 for one in record["reached"].values())


def test_a_training_that_was_stopped_continues_to_the_same_weights(supernet: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class Stopping(BigNAS):
        def step(self, batch: Any) -> Any:
            if self.training.done == 20:
                raise Stop
            return super().step(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sartor.oneshot.bignas.BigNAS", Stopping)
        with pytest.raises(Stop):
            recipes.train_supernet("digits", space=SPACE, out=tmp_path / "net", steps=30)
    recipes.resume(tmp_path / "net").close()
    found, expected = (Run.open(run, lock=False).load_checkpoint() for run in (tmp_path / "net", supernet))
    assert found is not None and expected is not None
    nets = found[1]["learner"]["net"], expected[1]["learner"]["net"]
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[1])
    with pytest.raises(ValueError, match="length was fixed"):
        recipes.resume(supernet, budget_s=3.0)


def test_each_limit_gets_the_most_accurate_measured_network_within_it(specialised: Path) -> None:
    found = verdicts(specialised)
    assert [(one["target"], one["limit_ms"]) for one in found] == [
        ("counting", 1e-9), ("counting", 0.02), ("parameters", 1e-9), ("parameters", 0.02), ("parameters", 1.0)
    ]  # fmt: skip
    folders = [*specialised.glob("pareto/*"), *specialised.glob("candidates/*")]
    for one in found:
        entries = [json.loads((folder / "measurement.json").read_text())["targets"] for folder in folders]
        known = [entry[one["target"]] for entry in entries]
        within = [entry for entry in known if entry["measurement"]["latency_ms"] <= one["limit_ms"]]
        assert one["met"] == bool(within)
        assert one["least_ms"] == min(entry["measurement"]["latency_ms"] for entry in known)
        if within:
            assert one["latency_ms"] <= one["limit_ms"]
            best = max(entry["accuracy"]["validation"] for entry in within)
            assert one["accuracy"]["validation"] == best
    assert any(one["met"] for one in found) and not found[0]["met"]


def test_the_report_has_the_verdicts(specialised: Path) -> None:
    page = (specialised / "report.html").read_text()
    assert "The best network within each limit" in page and page.count("not met") == sum(
        not one["met"] for one in verdicts(specialised)
    )


def test_networks_take_the_shared_weights_as_they_are(specialised: Path) -> None:
    exports = [json.loads(path.read_text())["trained"] for path in specialised.glob("*/*/export.json")]
    assert all(one["finetune_steps"] == 0 and one["steps"] == 30 for one in exports)


def test_the_shared_weights_serve_a_search_too(supernet: Path, tmp_path: Path) -> None:
    with recipes.search_for_device(
        "digits", target=COUNTING, out=tmp_path / "run", space=SPACE, steps=2, trials=4, weights=supernet
    ) as run:
        assert run.record["plan"]["shared_steps"] == 30


def test_a_verified_limit_that_no_network_uses_is_looked_at_again(supernet: Path, tmp_path: Path) -> None:
    task, targets = load_task("digits"), (load_target(COUNTING),)
    given: dict[str, Any] = {
        "target": COUNTING,
        "space": SPACE,
        "steps": 2,
        "trials": 40,
        "budget_s": None,
        "weights": supernet,
    }
    with recipes.search_for_device("digits", out=tmp_path / "run", **given) as run:
        job = Job(run, task, targets, print)
        smallest, middle, largest = job.hand_made()["smallest"], job.hand_made()["middle"], job.largest()
        ms = {arch: macs(job.workload(arch)) * 1e-6 for arch in (smallest, middle, largest)}
        limit = 1.25 * ms[middle] / 0.95  # as if all were a quarter slower than predicted
        run.update({"arguments": {**job.arguments, "limits": {"latency_ms": limit}}})
        shared = train(job)
        known = {smallest: (ms[smallest], ms[smallest]), largest: (ms[largest], 1.25 * ms[largest])}
        assert set(nearer(job, shared, targets[0], known)) == {middle}
        assert nearer(job, shared, targets[0], {**known, middle: (ms[middle], 0.92 * limit)}) == {}


def test_the_trials_of_rungs_are_within_each_limit_and_better_than_chance() -> None:
    space = SearchSpace({f"c{i}": tuple(range(6)) for i in range(8)})

    def error(arch: Architecture) -> float:
        values = [float(str(arch[f"c{i}"])) for i in range(8)]
        return 1.0 - sum(v * (i % 3) for i, v in enumerate(values)) / 40

    def latency(arch: Architecture) -> float:
        return float(sum(int(str(arch[f"c{i}"])) * (1 + i % 2) for i in range(8)))

    goals = [Objective("error", error), Objective("latency_ms", latency, cheap=True)]
    rungs = [Rung("latency_ms", limit) for limit in (10.0, 20.0, 35.0)]
    ends = space.largest(), space.smallest()
    strategy = Rungs(space, goals, rungs=rungs, front=RandomSearch(space, goals), trials=60, at_hand=ends)
    done = list(search(space, strategy, goals, trials=60))
    assert tuple(trial.arch for trial in done[:2]) == ends
    random_ones = [space.sample(random.Random(i)) for i in range(180)]
    for rung in rungs:
        best = min(t.values["error"] for t in done if t.values["latency_ms"] <= rung.at_most)
        chance = min((error(a) for a in random_ones if latency(a) <= rung.at_most), default=1.0)
        assert best < chance
    assert len({trial.arch for trial in done}) == 60
    late = done[strategy.first :]
    assert sum(t.values["latency_ms"] <= 35.0 for t in late) == len(late)


def test_a_limit_that_nothing_meets_costs_few_looks() -> None:
    space = SearchSpace({f"c{i}": tuple(range(6)) for i in range(8)})
    looked: list[Architecture] = []

    def latency(arch: Architecture) -> float:
        looked.append(arch)
        return 1.0 + sum(int(str(value)) for value in arch.values())

    goals = [Objective("error", lambda arch: 1.0 / latency(arch)), Objective("latency_ms", latency, cheap=True)]
    rungs = [Rung("latency_ms", 0.5), Rung("latency_ms", 20.0)]
    strategy = Rungs(space, goals, rungs=rungs, front=RandomSearch(space, goals), trials=20)
    done = list(search(space, strategy, goals, trials=20))
    assert len(done) == 20
    rounds = 20 - strategy.first  # at least one trial each
    assert len(looked) <= 2 * 20 + rounds * 2 * CHECKED


def test_the_luckiest_trials_of_a_limit_are_compared_on_the_whole_split() -> None:
    space = SearchSpace({"c": tuple(range(12))})
    archs = [space.canonical({"c": i}) for i in range(12)]
    trials = [
        Trial(i, arch, {"error": 0.01 * i, "latency_ms": 9.5 - i / 4}, state="done") for i, arch in enumerate(archs)
    ]
    goals = [Objective("error", float), Objective("latency_ms", float, cheap=True)]
    job: Any = SimpleNamespace(smallest=lambda: archs[11], rungs=lambda target: [9.5])
    seen: list[Architecture] = []

    def closely(arch: Architecture) -> float:
        seen.append(arch)
        return -trials[archs.index(arch)].values["error"]

    found = best_of_rungs(job, job, trials, goals, closely)
    places = [archs.index(arch) for arch in found]
    near = range(LOOKED_AT)  # by the part; of these the last are best on the whole
    assert places[:3] == [11, near[-1], near[-2]] and len(places) == 4
    within = [i for i in range(12) if 9.5 - i / 4 <= 0.9 * 9.5]
    assert places[3] == within[LOOKED_AT - 1]
    assert {archs.index(arch) for arch in seen} == {*near, *within[:LOOKED_AT]}


def test_the_error_on_the_whole_split_is_evaluated_once(specialised: Path) -> None:
    task = load_task("digits")
    with Run.open(specialised) as run, TrialLog(specialised / "run.sqlite", readonly=True) as log:
        job = Job(run, task, (load_target(COUNTING), load_target(PARAMETERS)), print)
        shared, asked = train(job), []

        def serving(arch: Architecture) -> torch.nn.Module:
            asked.append(arch)
            return shared.serving(arch)

        error, trial = WholeSplitError(job, serving), next(one for one in log if one.state == "done")
        assert len(task.validation) <= 2048  # all of which a trial sees
        assert error(trial.arch) == error(trial.arch) == pytest.approx(trial.values["error"], abs=1e-12)
        assert asked == [trial.arch]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "mobilenet", "digits", "--method", "fbnet", "--out", "x"], "trains no shared weights"),
        (["train", "mobilenet", "digits", "--steps", "3", "--budget", "1min", "--out", "x"], "two ways"),
        (["train", "nowhere", "digits", "--out", "x"], "no space is named"),
        (["specialise", "missing", "--latency", "1ms"], "no such run"),
        (["specialise", "missing", "--latency", "fast"], "not understood"),
        (["specialise", "missing", "--latency", "1ms", "--target", "toaster"], "no target is named"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(arguments)
    told = capsys.readouterr().err
    assert code == 2 and message in told.replace("\n", " ") and "Traceback" not in told


def test_limits_that_are_none_are_refused(supernet: Path) -> None:
    for wrong, message in (({"": [0.0]}, "above 0"), ({"": []}, "above 0"), ({"board": [1.0]}, "not searched for")):
        with pytest.raises(ValueError, match=message):
            recipes.specialise(supernet, target=COUNTING, latencies_ms=wrong)
    with pytest.raises(ValueError, match="do not go together"):
        recipes.specialise(supernet, target=COUNTING, latencies_ms=[1.0], limits={"latency_ms": 1.0})


def together(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `sartor` by torchrun with two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sartor"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, timeout=300, capture_output=True, text=True
    )


@pytest.mark.slow  # two processes that import torch, twice
def test_two_processes_train_one_run(tmp_path: Path) -> None:
    for name, more in (("whole", []), ("divided", ["--shard"])):
        out = tmp_path / name
        done = together("train", SPACE, "digits", "--steps", "6", "--batch-size", "32", *more, "--out", out)
        assert done.returncode == 0, done.stderr
        record = json.loads((out / "run.json").read_text())
        assert record["effort"]["updates"] == 6 and "train" in record["stages"]
        assert [json.loads(line)["step"] for line in (out / "train.jsonl").read_text().splitlines()] == [*range(1, 7)]
    recipes.specialise(tmp_path / "divided", target=COUNTING, latencies_ms=[0.02], trials=4).close()


@pytest.mark.slow  # two processes that import torch, three times
@pytest.mark.timeout(900)
def test_two_processes_of_which_one_is_killed_end_as_if_undisturbed(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    asked = ("train", SPACE, "digits", "--method", KILLED, "--steps", "10", "--batch-size", "32", "--out")
    done = together(*asked, whole)
    assert done.returncode == 0, done.stderr
    done = together(*asked, killed, TESTS_KILLED_AT="6")
    assert done.returncode != 0 and "worker 1 of 2 is gone" in done.stderr
    kept = Run.open(killed, lock=False).load_checkpoint()
    assert kept is not None and kept[0] == 6 and len(log_of(killed)) == 6  # nothing that was done is lost
    done = together("resume", killed)
    assert done.returncode == 0, done.stderr
    ended = [Run.open(run, lock=False).load_checkpoint() for run in (killed, whole)]
    assert all(one is not None and one[0] == 10 for one in ended)
    (resumed, _), (expected, _) = (flatten(one[1]["learner"]) for one in ended if one)
    assert resumed.keys() == expected.keys() and all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert log_of(killed) == log_of(whole)
    records = [json.loads((run / "run.json").read_text()) for run in (killed, whole)]
    assert records[0]["effort"] == records[1]["effort"] == {"passes": 40, "looks": 0, "updates": 10}
    assert records[0]["reached"] == records[1]["reached"]


def log_of(run: Path) -> list[dict[str, float]]:
    """Return what was logged, but for the time it took."""
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in ("seconds", "samples_per_s")} for line in lines]


DEAR = ("shiftnas",)  # its generator learns costs before the first step
OF_TRANSFORMERS = ("autodistil",)  # it relates tokens; `test_pretrained` trains it
SHARING = [one for one in names.built_in("methods") if names.shares_weights(one) and one not in OF_TRANSFORMERS]


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow if name in DEAR else ()) for name in SHARING]
)
def test_every_learner_of_shared_weights_is_trained_and_made_again(method: str, tmp_path: Path) -> None:
    task = load_task("digits")
    space = "micro" if method == "gm_nas" else SPACE  # it splits two choices
    with recipes.train_supernet(task, space=space, method=method, out=tmp_path / "net", steps=12, batch_size=32) as run:
        job = Job(run, task, (), print)
        shared = train(job)  # it is finished: the weights are read
        again = pickle.loads(pickle.dumps(shared.remade)).serving()
        for arch in job.hand_made().values():
            if arch in search_space(shared.serving(arch)):
                here, there = (specialised_of(make(arch), arch, job) for make in (shared.serving, again))
                assert torch.equal(here(task.example), there(task.example))
        assert run.record["effort"]["passes"] >= 1


def specialised_of(net: torch.nn.Module, arch: Architecture, job: Job) -> torch.nn.Module:
    return evaluation.specialised(net, arch, job.calibration)
