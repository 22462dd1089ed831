# SPDX-License-Identifier: Apache-2.0
"""Differentiable search as the main job: from data to verified networks, by methods built in and of one's own."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from own_parts import TrialAndError
from sartor import names, recipes
from sartor.architecture import Architecture
from sartor.cli import main
from sartor.costs import CostTable
from sartor.differentiable.penalties import hinge, mul_log
from sartor.objective import Objective
from sartor.recipes import planning
from sartor.recipes.asked import check_method
from sartor.recipes.drawing import Drawn
from sartor.recipes.expected import ShareOfLimits, expected_cost
from sartor.recipes.job import Job
from sartor.recipes.methods import USES, distribution, learner, penalty_of, use_of
from sartor.recipes.planning import plan
from sartor.recipes.profiling import profile
from sartor.recipes.watching import Watched
from sartor.run import Run
from sartor.space import SearchSpace
from sartor.spaces.micro import Micro
from sartor.supernet import search_space
from sartor.targets import load_target
from sartor.task import load_task
from sartor.trial import Trial
from test_device_search import check_equal, told

HERE = Path(__file__).parent
OWN = str(HERE / "own_parts.py")
TARGET, METHOD = f"{OWN}:CountingTarget", f"{OWN}:TrialAndError"
SMALL: dict[str, Any] = {
    "target": TARGET, "space": "micro", "steps": 12, "trials": 4, "budget_s": None, "baselines": False
}  # fmt: skip
COMMAND = ["search", "digits", "--target", TARGET, "--space", "micro", "--method", "gdas", "--latency", "60us",
           "--steps", "12", "--trials", "4", "--no-baselines", "--out"]  # fmt: skip


def lines(run: Path) -> list[dict[str, Any]]:
    """What a run wrote of the architecture's weights."""
    return [json.loads(line) for line in (run / "architecture.jsonl").read_text().splitlines()]


def networks(run: Path) -> dict[str, Path]:
    """The folders of all verified networks by their names."""
    return {path.name: path for part in ("pareto", "candidates") for path in run.glob(f"{part}/*")}


def prepared(out: Path, **arguments: Any) -> tuple[Job, list[str]]:
    """A job whose run was only begun, and what it says."""
    asked = {"data": "digits", "space": "micro", "limits": {}, "seed": 0, "threads": 1, "method": "darts", **arguments}
    said: list[str] = []
    return Job(Run.create(out, {"arguments": asked}), load_task("digits"), (load_target(TARGET),), said.append), said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of GDAS, through the command line."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*COMMAND, str(out)]) == 0
    return out


def test_the_command_searches_reads_out_verifies_exports_and_reports(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    first = record["read_out"]
    assert first["id"] in networks(finished) and list(first["choices"]) == ["slot_0", "slot_1", "slot_2"]
    assert json.loads(told(finished)[0][1]) == first["choices"]  # the first trial
    assert (finished / "best" / "model.onnx").is_file() and list((finished / "pareto").iterdir())
    assert record["arguments"]["method"] == "gdas" and "expected_costs.json" in {p.name for p in finished.iterdir()}
    page = (finished / "report.html").read_text()
    assert "What the search learned" in page and "slot_2" in page and first["id"] in page


def test_the_weights_of_the_architecture_are_written_while_they_are_learned(finished: Path) -> None:
    found = lines(finished)
    assert [line["step"] for line in found] == list(range(13))
    for line in found:
        assert all(sum(row) == pytest.approx(1.0, abs=1e-3) for row in line["probabilities"].values())
    assert found[-1]["entropy"] < found[1]["entropy"] and found[-1]["cost"] > 0
    assert "entropy" not in found[0]  # before the first step


def test_killed_while_it_searches_it_resumes_and_ends_as_it_would_have(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "sartor", *COMMAND, str(out)], stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("checkpoint/step-*.json")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and "train" not in json.loads((out / "run.json").read_text())["stages"]
    recipes.resume(out).close()
    check_equal(out, finished)
    assert lines(out) == lines(finished)


def test_a_method_of_ones_own_finds_networks(tmp_path: Path) -> None:
    said: list[str] = []
    arguments = {**SMALL, "method": METHOD, "limits": {"latency_ms": 0.06}, "on_progress": said.append}
    with recipes.search_for_device("digits", out=tmp_path / "run", **arguments) as run:
        assert run.record["read_out"]["id"] in networks(run.path) and len(lines(run.path)) == 13
        assert not (run.path / "expected_costs.json").exists()
    assert any("the loss of" in line and "has no cost" in line for line in said)


def test_networks_are_retrained_in_the_form_of_the_space_that_is_deployed(tmp_path: Path) -> None:
    arguments = {**SMALL, "space": f"{OWN}:TwoForms", "method": "darts", "steps": 5}
    with recipes.search_for_device("digits", out=tmp_path / "run", **arguments) as run:
        folders = networks(run.path).values()
        assert all("from scratch" in (path / "export.json").read_text() for path in folders)
        assert all(b"last.weight" in (path / "weights.safetensors").read_bytes() for path in folders)
    with recipes.search_for_device("digits", out=tmp_path / "other", retrain=False, **arguments) as run:
        folders = networks(run.path).values()
        assert all("fine-tuned" in (path / "export.json").read_text() for path in folders)
        assert not any(b"last.weight" in (path / "weights.safetensors").read_bytes() for path in folders)


def test_a_search_prefers_what_the_limit_allows(tmp_path: Path) -> None:
    """Under a large weight only the cost counts, until the limit is kept."""
    job, said = prepared(tmp_path / "run", limits={"latency_ms": 0.005}, cost_weight=1e4)
    profile(job)
    cost = expected_cost(job, aloud=True)
    assert cost is not None and any("latency_ms joins the loss of darts" in line for line in said)
    net = job.network(searching=True)
    search = learner("darts", net, job.space, job.task.loss, steps=40, seed=0, cost=cost, weight=1e4)
    for step in range(40):
        search.step((job.task.train.batch(step, 8), job.task.train.batch(step, 8)))
    assert set(search.architecture().values()) <= {"skip", "avg_pool_3x3"}  # the device counts no multiplications


def test_without_a_limit_only_methods_that_have_a_cost_of_their_own_have_one(tmp_path: Path) -> None:
    job, _ = prepared(tmp_path / "darts")
    assert expected_cost(job) is None
    job, _ = prepared(tmp_path / "fbnet", method="fbnet")
    profile(job)
    cost = expected_cost(job)
    assert cost is not None and cost.unit == 1e4
    assert float(cost(job.middle())) == pytest.approx(1e4, rel=0.2)  # the middle network is the unit
    before = (job.path / "expected_costs.json").read_bytes()
    again = expected_cost(job)
    assert again is not None and torch.equal(again(job.middle()), cost(job.middle()))
    assert (job.path / "expected_costs.json").read_bytes() == before
    job.run.update({"arguments": {**job.arguments, "cost_weight": 0.0}})
    assert expected_cost(job) is None


def test_the_greatest_share_of_a_limit_counts_and_has_a_gradient() -> None:
    space = SearchSpace({"a": (1, 2)})
    costs = [CostTable(space, 0.0, {"a": (1.0, 3.0)}), CostTable(space, 0.0, {"a": (5.0, 0.0)})]
    share = ShareOfLimits(space, [(costs[0], 2.0), (costs[1], 20.0)], unit=10.0)
    weights = torch.tensor([0.5, 0.5], requires_grad=True)
    value = share({"a": weights})
    (gradient,) = torch.autograd.grad(value, weights)
    assert value.item() == pytest.approx(10.0) and gradient.tolist() == pytest.approx([5.0, 15.0])
    assert share({"a": 1}).item() == pytest.approx(5.0)
    assert ShareOfLimits(space, [(costs[1], 1.0)])({"a": 2}).item() == pytest.approx(0.02)  # never 0, nor below


def test_penalties_are_the_published_ones_or_sums() -> None:
    assert penalty_of("fbnet", 1.0, limited=True) == mul_log(0.2, 0.6) and use_of("fbnet").portion == 0.8
    assert penalty_of("fp_nas", 2.0, limited=False) == hinge(2.0, 1.0)
    loss = torch.tensor(1.0)
    within, above = torch.tensor(0.5), torch.tensor(1.5)
    assert penalty_of("darts", 2.0, limited=True)(loss, within) == 1.0  # no pressure on what keeps the limit
    assert penalty_of("darts", 2.0, limited=True)(loss, above) == 2.0
    assert float(penalty_of("darts", 2.0, limited=False)(loss, within)) == pytest.approx(1.2)
    assert set(USES) <= set(names.built_in("methods"))


SPACE = SearchSpace({"a": (0, 1, 2), "b": (0, 1, 2), "inputs": ((0, 1), (0, 2), (1, 2))})
GOALS = [Objective("error", lambda arch: 0.0), Objective("latency_ms", lambda arch: 0.0, at_most=5.0)]


def drawn(**probabilities: list[float]) -> Drawn:
    return Drawn(SPACE, GOALS, first=Architecture({"a": 1, "b": 1, "inputs": (0, 2)}), probabilities=probabilities)


def followed(strategy: Drawn, count: int) -> list[Architecture]:
    asked = []
    for number in range(count):
        arch = strategy.ask(random.Random(f"7/{number}"))
        values = {"error": 1.0 - 0.1 * int(arch["a"]), "latency_ms": float(arch["a"]) + int(arch["b"])}  # type: ignore[arg-type]
        strategy.tell(Trial(number, arch, values, state="done"))
        asked.append(arch)
    return asked


def test_the_read_out_comes_first_and_draws_follow_the_distribution() -> None:
    asked = followed(drawn(a=[0.0, 0.0, 1.0], b=[0.9, 0.1, 0.0]), 6)
    assert dict(asked[0]) == {"a": 1, "b": 1, "inputs": (0, 2)}
    assert len(set(asked)) == 6
    assert [asked[i]["a"] for i in (1, 2, 4)] == [2, 2, 2]


def test_one_hot_probabilities_still_give_new_networks_until_all_are_told() -> None:
    asked = followed(drawn(a=[0.0, 1.0, 0.0], b=[0.0, 1.0, 0.0]), 27)
    assert len(set(asked)) >= 24
    assert all(arch in SPACE for arch in asked)


def test_the_same_tells_give_the_same_asks() -> None:
    assert followed(drawn(a=[0.2, 0.3, 0.5]), 12) == followed(drawn(a=[0.2, 0.3, 0.5]), 12)


class Toy:
    """A learner that only counts."""

    needs, done = "single", 0

    def step(self, batch: object) -> dict[str, float]:
        self.done += 1
        return {"loss": 1.0, "entropy": 0.5}

    def probabilities(self) -> dict[str, list[float]]:
        return {"a": [1 / (1 + self.done), self.done / (1 + self.done)]}

    def architecture(self) -> Architecture:
        return Architecture({"a": 0})

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


def watched(run: Run, steps: int, start: dict[str, Any] | None, until: int) -> dict[str, Any]:
    with Watched(Toy(), run, steps) as found:
        if start:
            found.load_state_dict(start)
        while found.done < until:
            found.step(None)
        return found.state_dict()


def test_the_log_has_each_step_once_however_often_it_was_stopped(tmp_path: Path) -> None:
    with Run.create(tmp_path / "once", {}) as once, Run.create(tmp_path / "twice", {}) as twice:
        watched(once, 200, None, 200)
        state = watched(twice, 200, None, 100)
        watched(twice, 200, state, 150)  # lost: no checkpoint of it
        watched(twice, 200, state, 200)
    assert lines(tmp_path / "once") == lines(tmp_path / "twice")
    assert [line["step"] for line in lines(tmp_path / "once")] == list(range(0, 201, 4))


def test_a_budget_becomes_steps_of_the_methods_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "TRIED_S", 0.01)
    monkeypatch.setattr(planning, "_verification_seconds", lambda job: (0.01, 0.01))
    monkeypatch.setattr(planning, "_plain_seconds", lambda job, size: dict(largest=0.03, middle=0.01, smallest=0.01))
    monkeypatch.setattr(planning, "_shared_seconds", lambda job, size: 0.05)
    job, threads = prepared(tmp_path / "run", method="gdas", baselines=False)[0], torch.get_num_threads()
    short, long = (plan(job, budget_s=s, spent_s=0.0, steps=None, trials=None) for s in (100.0, 1000.0))
    torch.set_num_threads(threads)
    assert short["networks"] == 5 and long["steps"] > 5 * short["steps"]
    counted = plan(job, budget_s=None, spent_s=0.0, steps=40, trials=4)
    assert (counted["steps"], counted["networks"], counted["finetune_steps"]) == (40, 2, 40)


@pytest.mark.parametrize(
    ("method", "others", "complaint"),
    [
        ("supervised", {}, "leaves nothing to search; those that do: "),
        ("dart", {}, "no method is named 'dart'; did you mean 'darts'"),
        (f"{OWN}:Blind", {}, "leaves nothing to search"),
        ("bignas", {"retrain": True}, "is for methods of differentiable search"),
        ("bignas", {"cost_weight": 1.0}, "a cost weight is for methods of differentiable search"),
        ("darts", {"cost_weight": -1.0}, "the cost weight is -1: give a number from 0"),
        ("darts", {"weights": True}, "'darts' trains its own"),
    ],
)
def test_what_does_not_go_together_is_told_in_one_line(method: str, others: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError) as error:
        check_method(method, "fbnet", **{"retrain": None, "cost_weight": None, "weights": False, **others})
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_a_method_that_does_not_fit_the_space_says_so_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="belong to no convolution"):
        recipes.search_for_device("digits", out=tmp_path / "run", **{**SMALL, "method": "single_path"})
    assert not (tmp_path / "run" / "latency.costs").exists()


FOLDER = Path(names.__file__).parent / "differentiable"
BUILT_IN = [name for name in names.built_in("methods") if (FOLDER / f"{name}.py").is_file()]


@pytest.mark.parametrize("method", BUILT_IN)
def test_every_method_can_be_made_and_says_what_it_prefers(method: str) -> None:
    from sartor.spaces.single_path import SinglePath

    net = SinglePath(10, 1, (8, 8)) if method == "single_path" else Micro()
    space = search_space(net)
    cost = CostTable(space, 100.0, {name: (0.0,) * len(options) for name, options in space.choices.items()})
    given = None if method == "balanced_mixture" else cost
    found = learner(method, net, space, torch.nn.functional.cross_entropy, steps=40, seed=0, cost=given)
    assert found.needs in ("pairs", "single") and found.architecture() in space
    rows = distribution(found)
    assert (method == "balanced_mixture") == (not rows)
    assert all(len(row) == len(space.choices[name]) for name, row in rows.items())


def test_the_toy_method_is_a_method() -> None:
    net = Micro()
    assert distribution(TrialAndError(net, search_space(net), None, steps=1, seed=0))["slot_0"] == [0.25] * 4


@pytest.mark.slow
def test_networks_that_dass_finds_are_pruned_and_exported_as_plain_ones(tmp_path: Path) -> None:
    with recipes.search_for_device("digits", out=tmp_path / "run", **{**SMALL, "method": "dass", "trials": 2}) as run:
        for path in networks(run.path).values():
            assert "pruned to 0.01" in (path / "export.json").read_text()
            weights = load_file(path / "weights.safetensors")
            assert not [name for name in weights if "parametrizations" in name]
            assert float((weights["classifier.weight"] != 0).float().mean()) == pytest.approx(0.01, abs=0.01)


@pytest.mark.slow
def test_cells_are_searched_in_one_form_and_retrained_in_the_other(tmp_path: Path) -> None:
    arguments = {**SMALL, "space": "darts", "method": "pc_darts", "steps": 2, "trials": 1}
    with recipes.search_for_device("digits", out=tmp_path / "run", **arguments) as run:
        assert run.record["read_out"]["id"] in networks(run.path)
        assert "The normal cell of network" in (run.path / "report.html").read_text()
        for path in networks(run.path).values():
            names_of = set(load_file(path / "weights.safetensors"))
            assert any(
                "preprocess.0.2.weight" in name or "preprocess.1.2.weight" in name for name in names_of
            )  # affine
