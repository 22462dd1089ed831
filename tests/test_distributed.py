# SPDX-License-Identifier: Apache-2.0
"""Two workers over gloo: they compute what one does, stop together, name who is gone, and lose nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sartor import distributed
from sartor.checkpoint import load_newest
from sartor.distributed.sharding import blocks_of
from sartor.supernet import extract, search_space
from toy_group_net import GroupNet
from toy_supernet import toy_batch
from train_together import SHORT, STEPS, STOPPED_AFTER, trained

TESTS = Path(__file__).parent
SCRIPT = TESTS / "train_together.py"
FEW = 4.0  # seconds that a worker waits for another one


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1", **more}


def together(folder: Path, *tasks: str) -> None:
    """Run the tasks with two workers; torchrun does no more than this, but starts a third process for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(SCRIPT), str(folder), *tasks]
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SARTOR_TIMEOUT": "60"}
    each = [environment(**given, RANK=number, LOCAL_RANK=number) for number in ("0", "1")]
    workers = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for env in each]
    for worker in workers:
        _, errors = worker.communicate(timeout=200)
        assert worker.returncode == 0, errors


def by_torchrun(folder: Path, *tasks: str) -> str:
    """Run the tasks with two workers by torchrun, to a bad end; return what they said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    env = environment(SARTOR_TIMEOUT=str(FEW))
    found = subprocess.run([*command, str(folder), *tasks], env=env, capture_output=True, text=True, timeout=200)
    assert found.returncode != 0
    return found.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which two workers have trained, one of them was killed, and the training was resumed."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "killed.txt").write_text(by_torchrun(folder, "killed:resumed"), encoding="utf-8")
    newest = max(path.stat().st_mtime for path in (folder / "resumed" / "checkpoint").iterdir())
    (folder / "seconds.txt").write_text(str(time.time() - newest), encoding="utf-8")  # a step before the kill
    (folder / "kept.txt").write_text(str(load_newest(folder / "resumed" / "checkpoint")[0]))  # type: ignore[index]
    together(folder, "bignas", "path", "path-sharded", "undisturbed:whole", "continued:resumed", "messages")
    return folder


def assert_as_alone(folder: Path, task: str) -> None:
    """Losses and weights of two workers are those of one process."""
    alone, learner = trained(task.partition("-")[0])
    seen = json.loads((folder / f"{task}.json").read_text())
    assert len(seen) == len(alone) == STEPS and seen[0].keys() == alone[0].keys()
    for one, other in zip(seen, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    state, own = torch.load(folder / f"{task}.pt", weights_only=True), learner.state_dict()
    assert state["effort"] == own["effort"] and state["net"].keys() == own["net"].keys()
    for name, value in own["net"].items():
        torch.testing.assert_close(state["net"][name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", ["bignas", "path", "path-sharded"])
def test_two_workers_compute_what_one_does(folder: Path, task: str) -> None:
    assert_as_alone(folder, task)


def assert_loads(folder: Path, task: str) -> None:
    state, again = (torch.load(folder / f"{name}.pt", weights_only=True) for name in (task, f"{task}-again"))
    assert all(torch.equal(again["net"][name], value) for name, value in state["net"].items())
    moments = [(one, again["optimizer"]["state"][key]) for key, one in state["optimizer"]["state"].items()]
    assert moments and all(torch.equal(a[name], b[name]) for a, b in moments for name in a)
    net = GroupNet()
    net.load_state_dict(state["net"])
    space = search_space(net)
    small = extract(net, space.smallest())
    assert small(toy_batch(0)[0]).isfinite().all()


def test_the_state_of_divided_weights_is_whole_and_loads_anywhere(folder: Path) -> None:
    assert_loads(folder, "path-sharded")


def test_a_killed_worker_ends_the_job_and_is_named(folder: Path) -> None:
    text = (folder / "killed.txt").read_text()
    assert "WorkerLost: worker 1 of 2 is gone (worker 0 waited for it: " in text
    kept = STOPPED_AFTER - STOPPED_AFTER % 2
    assert f"train had done {STOPPED_AFTER} steps; the checkpoint of step {kept} is kept" in text
    assert int((folder / "kept.txt").read_text()) == kept
    assert float((folder / "seconds.txt").read_text()) < 60


def states(folder: Path) -> list[dict[str, Tensor]]:
    found = load_newest(folder / "checkpoint")
    assert found and found[0] == SHORT
    learner: dict[str, Any] = found[1]["learner"]
    moments: dict[int, dict[str, Tensor]] = learner["optimizer"]["state"]
    return [learner["net"], {f"{i}.{name}": value for i, one in moments.items() for name, value in one.items()}]


def steps_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("step", "loss", "distillation")} for line in lines]


def test_a_killed_training_ends_with_the_bits_of_an_undisturbed_one(folder: Path) -> None:
    for resumed, whole in zip(states(folder / "resumed"), states(folder / "whole"), strict=True):
        assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert steps_of(folder / "resumed") == steps_of(folder / "whole")
    assert len(steps_of(folder / "whole")) == SHORT


def test_what_workers_tell_each_other(folder: Path) -> None:
    both = [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(2)]
    assert both[0].pop("share") == [[0, 1, 2], [0, 1], "text", 1.0]
    assert both[1].pop("share") == [[3, 4, 5], [2, 3], "text", 1.0]
    assert both[0] == both[1]
    said = both[0]
    assert said["gradients"] == [[1.5] * 3, [1.5] * 4, None, [1.5]]
    assert said["average"] == {"a": 0.5, "b": 3.0} and said["agreed"] == [True, False]
    assert said["told"] == ["abc", "", "0"]
    assert "a batch of 5 does not divide among 2 workers" in said["odd"]
    assert "trained different sub-networks" in said["different"]
    assert "Selfish does not average its gradients" in said["selfish"]
    assert "shard it once" in said["twice"] and "'weight' belongs to several blocks" in said["tied"]


@pytest.mark.slow
def test_divided_weights_train_by_the_sandwich_as_whole_ones(tmp_path: Path) -> None:
    together(tmp_path, "bignas-sharded")
    assert_as_alone(tmp_path, "bignas-sharded")
    assert_loads(tmp_path, "bignas-sharded")


@pytest.mark.slow
def test_workers_stop_at_the_same_step_whichever_was_told(tmp_path: Path) -> None:
    text = by_torchrun(tmp_path, "interrupted:run")
    assert text.count("KeyboardInterrupt\n") >= 2 and "WorkerLost" not in text
    found = load_newest(tmp_path / "run" / "checkpoint")
    assert found and found[0] == STOPPED_AFTER + 1
    together(tmp_path, "undisturbed:whole", "continued:run")
    for resumed, whole in zip(states(tmp_path / "run"), states(tmp_path / "whole"), strict=True):
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_a_worker_that_hangs_is_named(tmp_path: Path) -> None:
    text = by_torchrun(tmp_path, "hung:run")
    assert "WorkerLost: worker 1 of 2 is gone" in text and f"had done {STOPPED_AFTER} steps" in text


def test_one_worker_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.start() as device:
        assert device.type in ("cpu", "cuda")
        assert distributed.is_first() and distributed.world() == distributed.local_world() == 1
        batch = toy_batch(0)
        assert distributed.share(batch) is batch
        assert distributed.average({"loss": 2.0}) == {"loss": 2.0}
        assert distributed.from_first(b"data") == b"data" and distributed.same_everywhere(b"x")
        assert distributed.agree(True) and not distributed.agree(False)
        net = GroupNet()
        assert distributed.shard(net) is net and not any(map(distributed.is_sharded, net.parameters()))
        state = {"net": net.state_dict()}
        assert distributed.gathered(state) is state


def test_an_incomplete_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="WORLD_SIZE is set but RANK, LOCAL_RANK"), distributed.start():
        pass


def test_blocks_are_the_elements_of_lists_and_choices() -> None:
    net = GroupNet()
    assert blocks_of(net) == [*net.blocks.children(), net.mix["conv"]]
    nested = nn.Sequential(nn.Sequential(nn.Linear(1, 1), nn.ReLU()), nn.ModuleList([nn.Linear(1, 1)]))
    assert [type(block) for block in blocks_of(nested)] == [nn.Linear, nn.Linear]
