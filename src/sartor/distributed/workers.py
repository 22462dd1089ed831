# SPDX-License-Identifier: Apache-2.0
"""The workers of one training: joining them, leaving them, and saying which of them is gone."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed as dist

__all__ = ["WorkerLost", "is_first", "is_loss", "local_world", "rank", "start", "world"]

TIMEOUT_S = 45.0
BEAT_S = 0.5
SILENCE_S = 2.5  # after which a worker that does not beat is gone


class WorkerLost(RuntimeError):
    """Another worker has died or does not answer; the message names it."""


def world() -> int:
    """Return the number of workers, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this worker's number, from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_first() -> bool:
    """Say whether this worker is the one that writes: logs, checkpoints, the run folder, the terminal."""
    return rank() == 0


def local_world() -> int:
    """Return how many of the workers share this machine and its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if world() > 1 else 1


@contextlib.contextmanager
def start(timeout_s: float = TIMEOUT_S) -> Iterator[torch.device]:
    """Join the workers that `torchrun` started, for the block; give the device of this one.

    Without torchrun's environment this is the only worker, and the block runs as it would anywhere. The workers use
    gloo, and NCCL between GPUs, of which each takes its own.

    Args:
        timeout_s: how long a worker waits for another one. A worker that dies is noticed at once, one that hangs after
            this time. What the first worker does alone, such as writing a checkpoint, must take less.

    Raises:
        ValueError: this machine has fewer GPUs than workers, or torchrun's environment is incomplete.
        WorkerLost: another worker died or hung while this one waited for it.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return
    address, device = _address(), _own_device()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
    try:
        with _Beat(*address) as beat:
            try:
                yield device
            except RuntimeError as error:
                if not is_loss(error):
                    raise
                raise WorkerLost(_message(error, beat)) from error
    finally:
        dist.destroy_process_group()


def is_loss(error: BaseException) -> bool:
    """Say whether an error came from the connection to the other workers, and not from this worker's own doing."""
    ours = isinstance(error, WorkerLost)
    return not ours and (isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL")))


def _address() -> tuple[str, int]:
    lacking = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if lacking:
        raise ValueError(f"WORLD_SIZE is set but {', '.join(lacking)} is not: start the workers with torchrun")
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def _own_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    own, here = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if own >= here:
        raise ValueError(f"worker {own} of this machine has no GPU, there are {here}: give --nproc-per-node={here}")
    torch.cuda.set_device(own)
    return torch.device("cuda", own)


def _message(error: BaseException, beat: _Beat) -> str:
    """Say which workers are gone, and what `add_note` has told on the way."""
    with _unkilled():
        gone = beat.gone()
    them = " and ".join(map(str, gone))
    which = f"worker {them} of {world()} is gone" if gone else f"one of {world()} workers does not answer"
    first = re.sub(r"^\[\S*\] ", "", str(error)).partition(". ")[0].strip()  # without the place in gloo's source
    return "; ".join([f"{which} (worker {rank()} waited for it: {first})", *getattr(error, "__notes__", ())])


@contextlib.contextmanager
def _unkilled() -> Iterator[None]:
    """Do not end at the signal that torchrun sends to all workers when one has died, before that one was named."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


class _Beat:
    """A thread that tells the store of the process group, over its own connection, that this worker is alive.

    Blocked in a message, a worker still beats; dead or stopped it does not.
    """

    def __init__(self, host: str, port: int) -> None:
        limit = datetime.timedelta(seconds=SILENCE_S)
        store: Any = dist.TCPStore  # type: ignore[attr-defined]  # not in its __all__
        self.store = store(host, port, is_master=False, wait_for_workers=False, timeout=limit)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Beat:
        self.store.add(_key(rank()), 1)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _run(self) -> None:
        key = _key(rank())
        with contextlib.suppress(RuntimeError):  # the store has gone with the worker that held it
            while not self.ended.wait(BEAT_S):
                self.store.add(key, 1)

    def gone(self) -> list[int]:
        """Return the workers that have not beaten for a while; the first one if the store itself is gone."""
        try:
            before = self._counts()
            time.sleep(SILENCE_S)
            return [other for other, (a, b) in enumerate(zip(before, self._counts(), strict=True)) if a == b]
        except RuntimeError:
            return [0]

    def _counts(self) -> list[int]:
        return [int(self.store.add(_key(other), 0)) for other in range(world())]


def _key(number: int) -> str:
    return f"sartor/beat/{number}"
