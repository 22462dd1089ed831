# SPDX-License-Identifier: Apache-2.0
"""`fit`: train a learner step by step, with a log, checkpoints and exact resume, alone or with other workers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sartor import distributed
from sartor.checkpoint import nan_in, pack, unpack
from sartor.distributed.workers import is_loss
from sartor.protocols import Learner
from sartor.run import Run

__all__ = ["Indexed", "Progress", "fit", "moved"]

_STOP = "stop"

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with the steps done, the steps in all, and the scalars of this step."""


@runtime_checkable
class Indexed(Protocol):
    """Data whose batch at a step can be asked for directly, as a `Split` of a task."""

    def batch(self, step: int, size: int, *, augment: bool = False) -> Any:
        """Return the batch of `step`, the same at every call."""
        ...


def fit(
    learner: Learner,
    batches: Indexed | Iterable[Any],
    *,
    steps: int,
    batch_size: int = 64,
    augment: bool = True,
    seed: int = 0,
    run: Run | None = None,
    stage: str = "train",
    every: int = 500,
    log_every: int | None = None,
    log: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Train `learner` until it has done `steps` steps in all.

    With a run, a `fit` that was stopped in any way continues at the newest checkpoint and ends with the
    weights, bit for bit, that it would have had. For this, torch's generators are seeded anew from `seed` and
    the step before each step; the caller's generators are as before afterwards.

    Within `distributed.start`, each worker calls this with an equal learner and takes its share of every batch. The
    first one alone has the run, writes and shows; a checkpoint is that of a training by one process, but for the
    statistics of batch norms, which are those of the first worker's shares.

    Args:
        learner: its `step` returns the scalars to log, with "loss" among them.
        batches: data with a `batch(step, size)` method; or an iterable of batches, gone through again and
            again, which must give the same batches each time it starts from the same torch seed, as a
            DataLoader does. On resume an iterable skips what was used; data with `batch` has nothing to skip.
        steps: total number of steps, those before a resume included.
        batch_size: samples per step, of all workers together, for data with a `batch` method.
        augment: ask data with a `batch` method for augmented samples.
        seed: decides dropout, augmentation and shuffling that draw from torch's generators.
        run: where the log `<stage>.jsonl` and the checkpoints go; without it nothing is kept. The first worker's.
        stage: names this training among several of one run.
        every: steps between checkpoints; one more is written at the end.
        log_every: steps between log lines; None spreads at most 500 lines over the training.
        log: called with a line of text at each log line.
        progress: called after each step; None shows a bar when stderr is a terminal.
        device: where the tensors of a batch are moved.

    Raises:
        ValueError: the loss or the weights are no longer finite, the batches ran out or do not divide among the
            workers, the newest checkpoint is beyond `steps`, or the workers' weights have become different.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, once the step under way is done and saved. A second one does not wait.
            Workers stop at the same step whichever of them was told, and wait for each other.
    """
    if steps < 0 or every < 1:
        raise ValueError(f"steps = {steps}, every = {every}: ask for 0 or more, and for 1 or more")
    first = distributed.is_first()
    kept = _Kept(learner, run if first else None, stage, every, steps)
    log_every = log_every or max(1, math.ceil(steps / 500))
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(_cuda_devices()))
        write = stack.enter_context(run.log(stage, after=kept.done)) if run and first else None
        show = _hidden if not first else progress or stack.enter_context(_bar(stage, kept.done, steps))
        stop = stack.enter_context(_interruptible())
        stack.enter_context(_placed(kept))
        clock = _Clock(kept.seconds)
        for batch in _stream(batches, batch_size, augment, seed, kept.done, steps):
            scalars, stopped = _together(learner.step(moved(distributed.share(batch), device)), stop)
            done = kept.count()
            _check_loss(scalars, done, kept.saved)
            line = {"step": done, "seconds": clock.seconds, "samples_per_s": clock.speed(batch), **scalars}
            show(done, steps, line)
            if first and (done % log_every == 0 or done in (1, steps)):
                _tell(line, write, log)
            kept.save_if_due(clock.seconds, stopped)
            if stopped:
                stop.set()
                break
        distributed.wait()


def _together(scalars: Mapping[str, float], stop: threading.Event) -> tuple[dict[str, float], bool]:
    """Return the means of the scalars over the workers, and whether any worker was told to stop."""
    if distributed.world() == 1:
        return dict(scalars), stop.is_set()
    means = distributed.average({**scalars, _STOP: float(stop.is_set())})
    return means, means.pop(_STOP) > 0


class _Kept:
    """What a training keeps: how far it is, and its checkpoints, which the first worker writes and reads for all."""

    def __init__(self, learner: Learner, run: Run | None, stage: str, every: int, steps: int) -> None:
        self.learner, self.run, self.stage, self.every, self.steps = learner, run, stage, every, steps
        found = run.load_checkpoint(stage) if run else None
        if distributed.world() > 1:
            found, self.keeps = unpack(distributed.from_first(pack((found, run is not None))))
        else:
            self.keeps = run is not None
        self.done, state = found or (0, {"seconds": 0.0})
        self.saved, self.seconds = self.done, float(state["seconds"])
        if self.done > steps:
            asked = f"more than steps = {steps}: ask for at least {self.done}"
            raise ValueError(f"{stage} has done {self.done} steps already, {asked}")
        if found:
            learner.load_state_dict(state["learner"])

    def count(self) -> int:
        """Count a step; return how many are done. After the first, see that the workers have stayed alike."""
        self.done += 1
        if self.done == self.saved + 1:
            _check_alike(self.learner)
        return self.done

    def save_if_due(self, seconds: float, stopped: bool) -> None:
        """Write a checkpoint where one is due; all workers take part, as they may have to gather it."""
        if not self.keeps or not (self.done % self.every == 0 or self.done == self.steps or stopped):
            return
        state = self.learner.state_dict()
        name = nan_in(state) if distributed.is_first() else None
        name = json.loads(distributed.from_first(json.dumps(name).encode()))
        if name:  # a loss that is still finite can have given a gradient that is not
            raise ValueError(f"{name} holds NaN after step {self.done} of {self.stage}: lower the learning rate")
        if self.run:
            self.run.save_checkpoint(self.done, {"learner": state, "seconds": seconds}, self.stage)
        self.saved = self.done


def _check_alike(learner: Learner) -> None:
    """Refuse to go on where the weights of the workers differ, as those of a learner would that averages nothing."""
    if distributed.world() == 1:
        return
    digest = hashlib.sha256()
    for net in _networks(learner):
        for weight in (p.detach() for p in net.parameters() if not distributed.is_sharded(p)):
            digest.update(weight.double().sum().cpu().numpy().tobytes())
    if not distributed.same_everywhere(digest.digest()):
        name = type(learner).__name__
        raise ValueError(
            f"the workers' weights differ: {name} does not average its gradients, or they did not start equal"
        )


def _networks(owner: object) -> Iterator[torch.nn.Module]:
    """Yield the networks that a learner holds, or the learner inside it."""
    for value in vars(owner).values():
        if isinstance(value, torch.nn.Module):
            yield value
        elif isinstance(value, Learner):
            yield from _networks(value)


@contextlib.contextmanager
def _placed(kept: _Kept) -> Iterator[None]:
    """Let an error that another worker's end has caused say where the training was."""
    try:
        yield
    except RuntimeError as error:
        if is_loss(error):
            again = (
                f"; the checkpoint of step {kept.saved} is kept, from which a resume continues" if kept.keeps else ""
            )
            error.add_note(f"{kept.stage} had done {kept.done} steps{again}")
        raise


def _hidden(done: int, steps: int, scalars: Mapping[str, float]) -> None:
    return None


def _tell(
    line: Mapping[str, float],
    write: Callable[[Mapping[str, Any]], None] | None,
    log: Callable[[str], None] | None,
) -> None:
    if write:
        write({name: value if math.isfinite(value) else None for name, value in line.items()})
    if log:
        log("  ".join(f"{name} {value:.5g}" for name, value in line.items()))


def _check_loss(scalars: Mapping[str, float], step: int, saved: int) -> None:
    loss = scalars.get("loss", 0.0)
    if math.isfinite(loss):
        return
    rate = f" (now {scalars['learning_rate']:.3g})" if "learning_rate" in scalars else ""
    kept = f"; the checkpoint of step {saved} is kept" if saved else ""
    raise ValueError(f"the loss is {loss} at step {step}: lower the learning rate{rate}{kept}")


def _stream(
    source: Indexed | Iterable[Any], size: int, augment: bool, seed: int, done: int, steps: int
) -> Iterator[Any]:
    """Yield the batch of each step after `done`, seeding torch's generators for the step before the draw."""
    indexed = isinstance(source, Indexed)
    endless = iter(()) if isinstance(source, Indexed) else _endless(source)
    for step in range(done if indexed else 0, steps):
        torch.manual_seed(random.Random(f"{seed}/{step}").getrandbits(63))
        batch = source.batch(step, size, augment=augment) if isinstance(source, Indexed) else next(endless)
        if step >= done:
            if distributed.rank():  # the batch was the same for all workers, but each drops out units of its own
                torch.manual_seed(random.Random(f"{seed}/{step}/{distributed.rank()}").getrandbits(63))
            yield batch


def _endless(source: Iterable[Any]) -> Iterator[Any]:
    used = 0
    while True:
        before = used
        for batch in source:
            used += 1
            yield batch
        if used == before:
            again = "give what can be gone through again, such as a list or a DataLoader"
            raise ValueError(f"the batches ended after {used}: {again}")


def moved(batch: Any, device: torch.device | str | None) -> Any:
    """Return a batch, tensors in any nesting, on a device; as it is for None."""
    if device is None:
        return batch
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(moved(value, device) for value in batch)
    return batch


def _samples(batch: Any) -> int:
    """Return the length of the first tensor in a batch."""
    while isinstance(batch, (tuple, list, Mapping)):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch), None)
    return len(batch) if isinstance(batch, Tensor) and batch.dim() else 0


class _Clock:
    """Seconds since the first step, those before a resume included, and samples per second since it."""

    def __init__(self, seconds: float) -> None:
        self.begin = time.monotonic()
        self.earlier = seconds
        self.samples = 0

    @property
    def seconds(self) -> float:
        return round(self.earlier + time.monotonic() - self.begin, 3)

    def speed(self, batch: Any) -> float:
        """Count a batch; return the samples per second so far."""
        self.samples += _samples(batch)
        return round(self.samples / max(time.monotonic() - self.begin, 1e-9), 1)


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into an event, and raise it at the end of the block; a second one at once.

    A step that is broken off leaves weights that no run without a Ctrl-C ever has. With other workers a second one
    does not count: torchrun passes on what the terminal may have sent already. Elsewhere than in the main
    thread, or where the program has its own handler, nothing is changed.
    """
    stop = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and distributed.world() == 1:
            raise KeyboardInterrupt
        stop.set()

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    main = threading.current_thread() is threading.main_thread()
    taken = {number: old for number, old in usual.items() if main and signal.getsignal(number) is old}
    for number in taken:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, old in taken.items():
            signal.signal(number, old)
    if stop.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _bar(stage: str, done: int, steps: int) -> Iterator[Progress]:
    """Show a progress bar on stderr, or nothing where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, steps, scalars: None
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} samples/s"),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(stage, total=steps, completed=done, loss=math.nan, speed=0.0)

        def show(done: int, steps: int, scalars: Mapping[str, float]) -> None:
            loss, speed = scalars.get("loss", math.nan), scalars["samples_per_s"]
            bar.update(task, completed=done, loss=loss, speed=speed)

        yield show


def _cuda_devices() -> list[int]:
    """Return the GPUs whose generators seeding touches; none where CUDA was never used."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return list(range(torch.cuda.device_count())) if used else []
