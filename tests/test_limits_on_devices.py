# SPDX-License-Identifier: Apache-2.0
"""The main job with several targets, every kind of limit, and the weights of an earlier run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sartor import recipes
from sartor.cli import main
from sartor.limits import FORMS
from sartor.recipes import device_search, verification
from sartor.recipes.job import Job
from sartor.recipes.profile_device import profile_device
from sartor.recipes.profiling import LimitError, profile
from sartor.recipes.searching import objectives
from sartor.report.reading import read_run
from sartor.run import Run
from sartor.targets import load_target
from sartor.targets.artefacts import TargetError
from sartor.task import load_task
from sartor.trial import TrialLog

HERE = Path(__file__).parent
SPACE = f"{HERE / 'own_parts.py'}:TinyNetwork"
COUNTING, PARAMETERS = (f"{HERE / 'own_parts.py'}:{name}" for name in ("CountingTarget", "ParameterTarget"))
SMALL: dict[str, Any] = {"space": SPACE, "steps": 12, "trials": 10, "budget_s": None, "baselines": False}
LIMITS = {"latency_ms@counting": 0.02, "latency_ms@parameters": 1.0}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search for two targets."""
    out = tmp_path_factory.mktemp("runs") / "both"
    with recipes.search_for_device("digits", target=[COUNTING, PARAMETERS], out=out, limits=LIMITS, **SMALL):
        return out


def fronts(run: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((run / "fronts.json").read_text())
    return found


def measured(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "pareto" / name / "measurement.json").read_text())["targets"]
    return found


def test_every_target_has_a_front_within_its_own_limit(both: Path) -> None:
    for target, limit in (("counting", 0.02), ("parameters", 1.0)):
        entries = [measured(both, name)[target] for name in fronts(both)[target]]
        latencies = [entry["measurement"]["latency_ms"] for entry in entries]
        assert latencies and latencies == sorted(latencies) and latencies[-1] <= limit
        accuracies = [entry["accuracy"]["validation"] for entry in entries]
        assert accuracies == sorted(accuracies), "of the front, what is slower is more accurate"


def test_what_is_good_on_all_keeps_all_limits_and_is_recommended(both: Path) -> None:
    common = fronts(both)["all targets"]
    assert common
    assert all(entry["within_limit"] for name in common for entry in measured(both, name).values())
    best = json.loads((both / "best" / "architecture.json").read_text())
    assert any(json.loads((both / "pareto" / name / "architecture.json").read_text()) == best for name in common)
    assert "on all of counting, parameters" in (both / "best" / "why.txt").read_text()


def test_the_report_shows_every_target(both: Path) -> None:
    summary = json.loads((both / "report.json").read_text())
    assert summary["asked"]["target"] == "counting"
    assert [one["target"] for one in summary["other_targets"]] == ["parameters"]
    assert {row["name"] for row in summary["other_targets"][0]["front"]} == set(fronts(both)["parameters"])
    assert [row["name"] for row in summary["good_on_all"]] == fronts(both)["all targets"]
    assert "Accuracy against latency on parameters, at most 1.0 ms" in (both / "report.html").read_text()


def test_candidates_that_suit_no_target_are_not_run(both: Path) -> None:
    with TrialLog(both / "run.sqlite", readonly=True) as log:
        for trial in log:
            assert (trial.state == "done") == (trial.values["limits_used"] <= 1.0)
            if trial.state == "done":
                assert trial.values["latency_ms"] <= 0.02 or trial.values["latency_ms@parameters"] <= 1.0


def test_a_search_for_several_targets_is_resumed_and_changes_nothing(both: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(both, copy)
    recipes.resume(copy).close()
    assert fronts(copy) == fronts(both)
    assert read_run(copy).front == read_run(both).front


@pytest.mark.parametrize("form", FORMS)
def test_the_verdict_is_the_same_for_every_form(tmp_path: Path, form: str) -> None:
    limits = {"latency_ms": 0.02, "params": 1500.0}
    arguments = {**SMALL, "target": COUNTING, "limits": limits, "limit_as": form, "strategy": "regularized_evolution"}
    with recipes.search_for_device("digits", out=tmp_path / "run", **arguments) as run:
        members = [path / "measurement.json" for path in (run.path / "pareto").iterdir()]
        assert members
        for path in members:
            entry = json.loads(path.read_text())["targets"]["counting"]
            assert entry["within_limit"] and {"latency_ms", "params"} == set(entry["limits"])
        if form != "hard":
            with TrialLog(run.path / "run.sqlite", readonly=True) as log:
                assert all(trial.state == "done" for trial in log), "nothing is infeasible while searching"


def test_energy_and_memory_are_limits_where_a_target_measures_them(tmp_path: Path) -> None:
    limits = {"energy_mj": 1.0, "memory_mb": 0.9}
    with recipes.search_for_device("digits", target=PARAMETERS, out=tmp_path / "run", limits=limits, **SMALL) as run:
        entries = [measured(run.path, path.name)["parameters"] for path in (run.path / "pareto").iterdir()]
    assert entries and all(entry["limits"]["memory_mb"]["value"] <= 0.9 for entry in entries)


def test_a_limit_of_what_a_target_does_not_measure_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="counting does not measure energy per inference on this machine"):
        recipes.search_for_device("digits", target=COUNTING, out=tmp_path / "a", limits={"energy_mj": 1.0}, **SMALL)


def test_a_limit_out_of_reach_on_one_target_is_a_warning_and_on_all_an_error(tmp_path: Path) -> None:
    said: list[str] = []
    limits = {"latency_ms@counting": 1e-6, "latency_ms@parameters": 1.0}
    arguments = {**SMALL, "target": [COUNTING, PARAMETERS], "on_progress": said.append}
    with recipes.search_for_device("digits", out=tmp_path / "a", limits=limits, **arguments) as run:
        assert not fronts(run.path)["counting"] and fronts(run.path)["parameters"]
    assert any("no network of this space has a median latency" in line for line in said)
    with pytest.raises(LimitError, match="on counting"):
        recipes.search_for_device("digits", out=tmp_path / "b", limits={"latency_ms": 1e-6}, **arguments)


def test_weights_of_an_earlier_run_serve_another_limit(both: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    shutil.copytree(both, earlier)
    arguments = {**SMALL, "target": COUNTING, "limits": {"latency_ms": 0.01}, "weights": earlier}
    with recipes.search_for_device("digits", out=tmp_path / "run", **arguments) as run:
        assert run.record["plan"]["steps"] == 0 and run.record["plan"]["shared_steps"] == 12
        assert not (run.path / "train.jsonl").exists()
        first = fronts(run.path)["counting"]
    assert first
    shutil.rmtree(earlier)  # what was taken over is kept
    shutil.rmtree(tmp_path / "run" / "candidates", ignore_errors=True)
    recipes.resume(tmp_path / "run").close()
    with recipes.search_for_device("digits", out=tmp_path / "on", **{**arguments, "weights": tmp_path / "run"}) as run:
        assert run.record["plan"]["shared_steps"] == 12


def test_weights_of_another_split_are_refused(both: Path, tmp_path: Path) -> None:
    """They have been trained on images that would test the networks now."""
    with pytest.raises(ValueError, match=r"trained on another split of this data.*search with seed 0"):
        recipes.search_for_device("digits", target=COUNTING, out=tmp_path / "a", weights=both, seed=1, **SMALL)


def test_the_share_of_a_limit_is_that_on_the_target_that_suits_best(tmp_path: Path) -> None:
    """Signed, so that a Lagrangian's multiplier falls where limits are kept."""
    targets = (load_target(COUNTING), load_target(PARAMETERS))
    arguments = {"data": "digits", "space": SPACE, "limits": LIMITS, "seed": 0, "threads": 1, "baselines": False}
    with Run.create(tmp_path / "run", {"arguments": arguments}) as run:
        job = Job(run, load_task("digits"), targets, print)
        profile(job)
        goals = {goal.name: goal for goal in objectives(job, lambda arch: 0.5)}
        for arch in (job.space.smallest(), job.space.largest()):
            shares = [goals["latency_ms"].measure(arch) / 0.02, goals["latency_ms@parameters"].measure(arch) / 1.0]
            assert goals["limits_used"].measure(arch) == pytest.approx(min(shares))
        assert goals["limits_used"].measure(job.space.smallest()) < 1


def test_a_device_that_is_lost_at_the_verdict_ends_the_stage_and_resumes(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {**SMALL, "target": COUNTING, "weights": both}
    whole = verification.measure_members

    def lost(job: Job, members: list[Any], candidates: Any, splits: tuple[str, ...] = ("validation", "test")) -> Any:
        def cut(artefacts: Sequence[Any]) -> None:
            reasons = dict.fromkeys(range(len(artefacts)), "connection lost")
            raise TargetError("connection lost", reasons, [None] * len(artefacts))

        monkeypatch.setattr(job.target, "measure", cut)
        return whole(job, members, candidates, splits)

    with monkeypatch.context() as patched:
        patched.setattr(device_search, "measure_members", lost)
        with pytest.raises(TargetError, match="connection lost"):
            recipes.search_for_device("digits", out=tmp_path / "run", **arguments)
    monkeypatch.undo()
    with recipes.resume(tmp_path / "run") as run:
        assert fronts(run.path)["counting"]


def test_a_datasheet_in_a_line_is_a_target(tmp_path: Path) -> None:
    arguments = {**SMALL, "target": ["datasheet:npu: 4 TOPS, 8.5 GB/s, 20 us, 1 pJ/MAC, 80 pJ/B", COUNTING]}
    with recipes.search_for_device("digits", out=tmp_path / "run", limits={"energy_mj@npu": 1.0}, **arguments) as run:
        assert fronts(run.path)["npu"]
        assert "computed latency" in (run.path / "best" / "why.txt").read_text()
        notes = json.loads((run.path / "report.json").read_text())["notes"]
    assert any("Latencies on npu are computed from a datasheet" in note for note in notes)
    assert main(["search", "digits", "--target", "datasheet:fast", "--out", str(tmp_path / "x")]) == 2


def test_weights_that_do_not_fit_are_told(both: Path, tmp_path: Path) -> None:
    arguments = {**SMALL, "target": COUNTING, "weights": both}
    with pytest.raises(ValueError, match=r"are of space .*TinyNetwork', and 'mobilenet' is searched"):
        recipes.search_for_device("digits", out=tmp_path / "a", **{**arguments, "space": "mobilenet"})
    with pytest.raises(ValueError, match="for images of height 8, not 12"):
        recipes.search_for_device("digits", out=tmp_path / "b", image_size=12, **arguments)
    record = json.loads((both / "run.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(both, other)
    (other / "run.json").write_text(json.dumps({**record, "stages": {}}))
    with pytest.raises(ValueError, match="has no trained weights yet"):
        recipes.search_for_device("digits", out=tmp_path / "c", **{**arguments, "weights": other})
    with pytest.raises(FileNotFoundError, match="no run in"):
        recipes.search_for_device("digits", out=tmp_path / "d", **{**arguments, "weights": tmp_path / "nowhere"})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--latency", "ort=1ms"], "limits a target that is not searched for; the targets are onnxruntime"),
        (["--latency", "=1ms"], "names no target"),
        (["--energy", "5W"], "unknown unit 'W'"),
        (["--limit-as", "penalty"], "need a limit"),
        (["--limit-as", "soft"], "soft"),
        (["--target", "torch", "--target", "torch"], "each once"),
        (["--weights", "nowhere"], "no run in"),
    ],
)
def test_wrong_input_is_one_line(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "digits", *options, "--steps", "1", "--trials", "1", "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) == 1


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of one target for the images of the digits."""
    out = tmp_path_factory.mktemp("profiles") / "counting.costs"
    profile_device(target=COUNTING, space=SPACE, out=out, size=8, channels=1, samples=4, tests=2)
    return out


def test_a_profile_made_before_predicts_for_a_search(profiled: Path, tmp_path: Path) -> None:
    arguments = {**SMALL, "target": COUNTING, "limits": {"latency_ms": 0.02}}
    with recipes.search_for_device("digits", out=tmp_path / "run", costs=profiled, **arguments) as run:
        model = json.loads((run.path / "latency_model.json").read_text())
        assert "the profile that was given" in model["method"] and model["mape"] < 1e-6
        assert fronts(run.path)["counting"]


def test_a_profile_that_does_not_fit_is_told(profiled: Path, tmp_path: Path) -> None:
    arguments = {**SMALL, "costs": profiled}
    with pytest.raises(ValueError, match="holds no such profile; its profiles: counting on"):
        recipes.search_for_device("digits", target=PARAMETERS, out=tmp_path / "a", **arguments)
    with pytest.raises(ValueError, match=r"measured under other conditions \(threads was 1, is 2\); adapt it"):
        recipes.search_for_device("digits", target=COUNTING, threads=2, out=tmp_path / "b", **arguments)
    with pytest.raises(ValueError, match=r"no such profile; its profiles: .*1x8x8, 10 classes"):
        recipes.search_for_device("digits", target=COUNTING, image_size=12, out=tmp_path / "d", **arguments)
    with pytest.raises(FileNotFoundError, match="`sartor profile` writes one"):
        recipes.search_for_device("digits", out=tmp_path / "c", **{**arguments, "costs": tmp_path / "x.costs"})
