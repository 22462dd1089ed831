# SPDX-License-Identifier: Apache-2.0
"""What two workers do in the tests: `train_together.py FOLDER TASK...`; a task is a method or what stops a run."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sartor import distributed
from sartor.distributed import messages
from sartor.fit import Progress, fit
from sartor.oneshot import BigNAS, Recipe
from sartor.run import Run
from sartor.supernet import search_space
from toy_group_net import GroupNet, OnePath
from toy_supernet import ToySplit

STEPS, BATCH = 50, 8
SHORT, STOPPED_AFTER = 12, 5  # steps of the trainings with a run, and of those when the second worker is stopped
RECIPES = {
    "bignas": Recipe(lr=0.3, dropout=None),
    "path": Recipe(optimizer="sgd", lr=1.0, weight_decay=1e-3, clip_norm=1.0, schedule="cosine", nesterov=True),
}
METHODS: Mapping[str, Any] = {"bignas": partial(BigNAS, n_random=1), "path": OnePath}
SIGNALS = {"killed": signal.SIGKILL, "interrupted": signal.SIGINT, "hung": signal.SIGSTOP}


def learner(name: str, *, sharded: bool = False) -> Any:
    """Make a learner with the same weights everywhere."""
    torch.manual_seed(0)
    net = GroupNet()
    space = search_space(net)
    if sharded:
        distributed.shard(net)
    return METHODS[name](net, space, steps=STEPS, batch_size=BATCH, recipe=RECIPES[name])


def trained(name: str, *, sharded: bool = False) -> tuple[list[dict[str, float]], Any]:
    """Train; return what each step logged, and the learner."""
    seen: list[dict[str, float]] = []
    one = learner(name, sharded=sharded)
    show: Progress = lambda _, __, line: seen.append(dict(line))  # noqa: E731
    fit(one, ToySplit(), steps=STEPS, batch_size=BATCH, augment=False, progress=show)
    return [{key: line[key] for key in line if key not in ("seconds", "samples_per_s")} for line in seen], one


def compare(folder: Path, task: str) -> None:
    """Train by a method, `-sharded` perhaps; the first worker writes what it saw and the state of the learner."""
    name, _, how = task.partition("-")
    seen, one = trained(name, sharded=bool(how))
    state = one.state_dict()
    if distributed.is_first():
        (folder / f"{task}.json").write_text(json.dumps(seen))
        torch.save(state, folder / f"{task}.pt")
    if not how:
        return
    distributed.wait()
    again = learner(name, sharded=True)  # what was gathered is what is divided again
    again.load_state_dict(torch.load(folder / f"{task}.pt", weights_only=True))
    back = again.state_dict()
    if distributed.is_first():
        torch.save(back, folder / f"{task}-again.pt")


class Stopped(BigNAS):
    """BigNAS, whose second worker gets a signal after some steps."""

    signal: signal.Signals | None = None

    def step(self, batch: Any) -> Mapping[str, float]:
        """Take a step, if it comes to that."""
        if self.signal and self.training.done == STOPPED_AFTER and distributed.rank() == 1:
            os.kill(os.getpid(), self.signal)
        return super().step(batch)


def run(folder: Path, how: str) -> None:
    """Train with a run that is there or is made."""
    torch.manual_seed(0)
    net = GroupNet()
    one = Stopped(net, search_space(net), steps=SHORT, batch_size=BATCH, recipe=RECIPES["bignas"])
    one.signal = SIGNALS.get(how)
    kept = Run.create(folder, {}, resume=True) if distributed.is_first() else None
    fit(one, ToySplit(), steps=SHORT, batch_size=BATCH, run=kept, every=2)
    if kept:
        kept.close()


class Selfish:
    """A learner that does not average its gradients."""

    def __init__(self) -> None:
        self.net = torch.nn.Linear(1, 1)

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Add this worker's own mean."""
        with torch.no_grad():
            self.net.weight += batch[0].mean()
        return {"loss": 0.0}

    def state_dict(self) -> dict[str, Any]:
        """Return the weights."""
        return dict(self.net.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the weights."""
        self.net.load_state_dict(state)


def refusal(call: Callable[[], object]) -> str:
    """Return what the ValueError says that a call ends in."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def say(folder: Path) -> None:
    """Write what each worker sees of the messages between them."""
    rank = distributed.rank()
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3,), (2, 2), (5,), (1,))]
    weights[3].data = weights[3].data.double()
    for weight in (*weights[:2], weights[3]):
        weight.grad = torch.full_like(weight, float(rank + 1))
    messages.BUCKET_BYTES = 16  # every gradient is a message of its own
    distributed.average_gradients(weights)
    averaged = [None if weight.grad is None else weight.grad.flatten().tolist() for weight in weights]
    weights[rank].grad = None
    rows = {"images": torch.arange(6), "more": [torch.arange(4), "text"], "one": torch.tensor(1.0)}
    shared: Any = distributed.share(rows)
    found = {
        "gradients": averaged,
        "different": refusal(lambda: distributed.average_gradients(weights)),
        "share": [shared["images"].tolist(), shared["more"][0].tolist(), shared["more"][1], float(shared["one"])],
        "odd": refusal(lambda: distributed.share(torch.arange(5))),
        "average": distributed.average({"a": float(rank), "b": 3.0}),
        "agreed": [distributed.agree(rank == 1), distributed.agree(False)],
        "told": [distributed.from_first(text).decode() for text in (b"abc" * (rank + 1), b"", f"{rank}".encode())],
        "selfish": refusal(lambda: fit(Selfish(), ToySplit(), steps=2, batch_size=4)),
        "twice": refusal(lambda: distributed.shard(distributed.shard(GroupNet()))),
        "tied": refusal(lambda: distributed.shard(tied())),
    }
    (folder / f"said-{rank}.json").write_text(json.dumps(found))


def tied() -> torch.nn.Module:
    """Return a network two of whose blocks share a weight."""
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    two.weight = one.weight
    return torch.nn.Sequential(torch.nn.Sequential(one, two))


if __name__ == "__main__":
    torch.set_num_threads(1)
    path, *tasks = sys.argv[1:]
    with distributed.start(timeout_s=float(os.environ["SARTOR_TIMEOUT"])):
        for task in tasks:
            kind, _, where = task.partition(":")
            if kind == "messages":
                say(Path(path))
            elif where:
                run(Path(path) / where, kind)
            else:
                compare(Path(path), kind)
