# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from sartor.fit import fit
from sartor.oneshot import BigNAS, Recipe
from sartor.run import Run
from sartor.supernet import search_space
from toy_supernet import ToyNet, ToySplit, toy_batch

KILLED = """
import sys, torch
torch.set_num_threads(1)
from test_fit import bignas
from toy_supernet import ToySplit
from sartor.fit import fit
from sartor.run import Run
def show(done, steps, scalars):
    print(done, flush=True)
    sys.stdin.readline()
run = Run.create(sys.argv[1], {}, resume=True)
fit(bignas(), ToySplit(), steps=12, batch_size=8, run=run, every=3, progress=show)
"""


class Dropout:
    """A learner whose loss and weights depend on every number that torch's generator gives."""

    def __init__(self, rate: float = 0.1) -> None:
        self.weight, self.rate = torch.ones(3), rate

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        noise = torch.rand(3)
        self.weight = self.weight - self.rate * (noise * batch[0].mean() + self.weight)
        return {"loss": float(self.weight.square().sum()), "learning_rate": self.rate}

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]


def bignas() -> BigNAS:
    torch.manual_seed(0)
    net = ToyNet()
    return BigNAS(net, search_space(net), steps=12, batch_size=8, recipe=Recipe(lr=0.3))


def weights(learner: BigNAS) -> list[Tensor]:
    return [value.clone() for value in learner.net.state_dict().values()]


def shuffled(seed: int = 3) -> DataLoader[tuple[Tensor, ...]]:
    images, labels = toy_batch(seed, 20)
    return DataLoader(TensorDataset(images, labels), batch_size=4, shuffle=True)


class Stop(Exception):
    pass


def stop_after(step: int) -> Any:
    def show(done: int, steps: int, scalars: Mapping[str, float]) -> None:
        if done == step:
            raise Stop

    return show


def test_it_takes_the_steps_and_reports_each() -> None:
    seen: list[tuple[int, int]] = []
    learner = bignas()
    fit(learner, ToySplit(), steps=5, batch_size=8, progress=lambda done, steps, _: seen.append((done, steps)))
    assert seen == [(done, 5) for done in range(1, 6)] and learner.training.done == 5


def test_the_data_of_a_split_and_of_an_iterable_reach_the_learner() -> None:
    sizes: list[int] = []

    class Sizes(Dropout):
        def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
            sizes.append(len(batch[0]))
            return super().step(batch)

    fit(Sizes(), ToySplit(), steps=2, batch_size=7)
    fit(Sizes(), [toy_batch(0, 3), toy_batch(1, 4)], steps=3)
    assert sizes == [7, 7, 3, 4, 3]


@pytest.mark.parametrize("augment", [True, False])
def test_augmentation_is_asked_for_or_not(augment: bool) -> None:
    asked: list[bool] = []

    class Asked(ToySplit):
        def batch(self, step: int, size: int, *, augment: bool = False) -> tuple[Tensor, Tensor]:
            asked.append(augment)
            return super().batch(step, size)

    fit(Dropout(), Asked(), steps=2, augment=augment)
    assert asked == [augment, augment]


@pytest.mark.parametrize("stopped", random.Random(7).sample(range(1, 12), 3))
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, stopped: int) -> None:
    whole = bignas()
    fit(whole, ToySplit(), steps=12, batch_size=8)
    with Run.create(tmp_path, {}) as run:
        with pytest.raises(Stop):
            fit(bignas(), ToySplit(), steps=12, batch_size=8, run=run, every=2, progress=stop_after(stopped))
        resumed = bignas()
        fit(resumed, ToySplit(), steps=12, batch_size=8, run=run, every=2)
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))


def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = bignas()
    fit(whole, ToySplit(), steps=12, batch_size=8)
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as process:
        assert process.stdin and process.stdout
        for step in range(1, random.Random(11).randrange(4, 12)):
            assert process.stdout.readline() == f"{step}\n"
            process.stdin.write("\n")
            process.stdin.flush()
        process.send_signal(signal.SIGKILL)
    resumed = bignas()
    with Run.open(tmp_path) as run:
        fit(resumed, ToySplit(), steps=12, batch_size=8, run=run)
    assert all(map(torch.equal, weights(resumed), weights(whole)))


@pytest.mark.parametrize("source", [shuffled, lambda: [toy_batch(i, 4) for i in range(5)]])
def test_a_resumed_iterable_skips_to_where_it_was(tmp_path: Path, source: Any) -> None:
    whole, resumed = Dropout(), Dropout()
    fit(whole, source(), steps=13)
    with Run.create(tmp_path, {}) as run:
        with pytest.raises(Stop):
            fit(Dropout(), source(), steps=13, run=run, every=1, progress=stop_after(9))
        fit(resumed, source(), steps=13, run=run)
    assert torch.equal(whole.weight, resumed.weight)


def test_the_seed_decides_and_the_callers_generator_is_left_alone() -> None:
    results: list[Tensor] = []
    for seed in (0, 0, 1):
        learner = Dropout()
        torch.manual_seed(len(results))
        before = torch.get_rng_state()
        fit(learner, shuffled(), steps=4, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(learner.weight)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_batches_that_run_out_are_an_error() -> None:
    with pytest.raises(ValueError, match="the batches ended after 2: give what can be gone through again"):
        fit(Dropout(), iter([toy_batch(0), toy_batch(1)]), steps=3)
    with pytest.raises(ValueError, match="the batches ended after 0"):
        fit(Dropout(), [], steps=3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path, value: float) -> None:
    class Diverging(Dropout):
        def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
            scalars = super().step(batch)
            return {**scalars, "loss": value if float(batch[0][0, 0]) == 5 else scalars["loss"]}

    batches = [(torch.full((1, 1), float(i)), torch.zeros(1)) for i in range(9)]
    message = rf"the loss is {value} at step 6: lower the learning rate \(now 0\.1\); the checkpoint of step 4 is"
    with Run.create(tmp_path, {}) as run:
        with pytest.raises(ValueError, match=message):
            fit(Diverging(), batches, steps=9, run=run, every=2)
        found = run.load_checkpoint()
    assert found and found[0] == 4


def test_weights_with_nan_never_become_a_checkpoint(tmp_path: Path) -> None:
    class Broken(Dropout):
        def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
            self.weight = self.weight * (math.nan if float(batch[0][0, 0]) == 3 else 1)
            return {"loss": 1.0}

    batches = [(torch.full((1, 1), float(i)), torch.zeros(1)) for i in range(9)]
    with Run.create(tmp_path, {}) as run:
        with pytest.raises(ValueError, match="weight holds NaN after step 4 of train: lower the learning rate"):
            fit(Broken(), batches, steps=9, run=run, every=2)
        found = run.load_checkpoint()
    assert found and found[0] == 2


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """Python's own handler, whatever a runtime or a test before has left: without one, SIGINT ends the process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_ends_after_the_step_and_saves_it(tmp_path: Path) -> None:
    class Interrupted(Dropout):
        def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
            if float(batch[0][0, 0]) == 4:
                signal.raise_signal(signal.SIGINT)
            return super().step(batch)

    batches = [(torch.full((1, 1), float(i)), torch.zeros(1)) for i in range(9)]
    whole, resumed = Dropout(), Dropout()
    fit(whole, batches, steps=9)
    with Run.create(tmp_path, {}) as run:
        with pytest.raises(KeyboardInterrupt):
            fit(Interrupted(), batches, steps=9, run=run)
        found = run.load_checkpoint()
        assert found and found[0] == 5
        fit(resumed, batches, steps=9, run=run)
    assert torch.equal(whole.weight, resumed.weight)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c_raises")
def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    class Stubborn(Dropout):
        def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not reached")

    with Run.create(tmp_path, {}) as run:
        with pytest.raises(KeyboardInterrupt):
            fit(Stubborn(), [toy_batch(0)], steps=9, run=run)
        assert run.load_checkpoint() is None


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    learner = Dropout()
    thread = threading.Thread(target=fit, args=(learner, [toy_batch(0)]), kwargs={"steps": 2})
    thread.start()
    thread.join()
    assert not torch.equal(learner.weight, torch.ones(3))


def test_the_log_is_bounded_and_has_the_first_and_last_step(tmp_path: Path) -> None:
    lines: list[str] = []
    with Run.create(tmp_path, {}) as run:
        fit(Dropout(), [toy_batch(0, 4)], steps=734, run=run, log=lines.append)
    logged = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(logged) == len(lines) <= 502
    assert logged[0]["step"] == 1 and logged[-1]["step"] == 734
    assert set(logged[0]) == {"step", "seconds", "samples_per_s", "loss", "learning_rate"}
    assert logged[-1]["samples_per_s"] > 0 and lines[0].startswith("step 1  seconds")


def test_a_scalar_that_is_not_finite_is_null_in_the_log(tmp_path: Path) -> None:
    class Odd(Dropout):
        def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
            return {"loss": 1.0, "ratio": math.inf}

    with Run.create(tmp_path, {}) as run:
        fit(Odd(), [toy_batch(0)], steps=1, run=run)
    assert json.loads((tmp_path / "train.jsonl").read_text())["ratio"] is None


def test_seconds_go_on_over_a_resume_and_a_finished_training_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    with Run.create(tmp_path, {}) as run:
        for steps in (4, 8, 8):
            fit(Dropout(), [toy_batch(0)], steps=steps, run=run)
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(seconds) == 8 and seconds == sorted(seconds) and seconds[-1] > seconds[3]


@pytest.mark.parametrize(
    ("arguments", "message"), [({"steps": -1}, "steps = -1"), ({"steps": 1, "every": 0}, "every = 0")]
)
def test_wrong_numbers_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Dropout(), [toy_batch(0)], **arguments)


def test_fewer_steps_than_were_done_are_refused(tmp_path: Path) -> None:
    with Run.create(tmp_path, {}) as run:
        fit(Dropout(), [toy_batch(0)], steps=5, run=run)
        with pytest.raises(ValueError, match="train has done 5 steps already, more than steps = 3"):
            fit(Dropout(), [toy_batch(0)], steps=3, run=run)


def test_nested_batches_are_moved_and_counted() -> None:
    seen: list[Any] = []

    class Keep(Dropout):
        def step(self, batch: Any) -> Mapping[str, float]:
            seen.append(batch)
            return {"loss": 0.0}

    batch = {"train": [torch.ones(6, 2), "text"], "val": (torch.ones(2),)}
    speeds: list[float] = []
    fit(Keep(), [batch], steps=1, device="meta", progress=lambda *a: speeds.append(a[2]["samples_per_s"]))
    fit(Keep(), [["text"]], steps=1, progress=lambda *a: speeds.append(a[2]["samples_per_s"]))
    assert seen[0]["train"][0].is_meta and seen[0]["train"][1] == "text" and seen[0]["val"][0].is_meta
    assert speeds[0] > 0 and speeds[1] == 0


def test_a_terminal_gets_a_bar_and_a_file_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        fit(Dropout(), [toy_batch(0)], steps=3)
        text = stream.getvalue()
        assert ("3/3" in text and "samples/s" in text and "loss" in text) if shown else not text


def test_two_trainings_of_one_run_do_not_meet(tmp_path: Path) -> None:
    with Run.create(tmp_path, {}) as run:
        fit(Dropout(), [toy_batch(0)], steps=3, run=run)
        fit(Dropout(), [toy_batch(0)], steps=2, run=run, stage="baseline-largest")
    assert (tmp_path / "baseline-largest.jsonl").exists()


@contextlib.contextmanager
def handler() -> Iterator[list[int]]:
    calls: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    yield calls
    signal.signal(signal.SIGINT, before)


def test_a_handler_of_the_program_is_left_in_place() -> None:
    class Interrupted(Dropout):
        def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
            signal.raise_signal(signal.SIGINT)
            return super().step(batch)

    with handler() as calls:
        fit(Interrupted(), [toy_batch(0)], steps=2)
    assert len(calls) == 2
