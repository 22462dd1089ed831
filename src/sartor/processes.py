# SPDX-License-Identifier: Apache-2.0
"""An executor whose processes can be killed: for candidates with limits on time and memory."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_POLL_S = 0.02  # how often memory is looked at, and how soon a shutdown is noticed


class LimitExceeded(Exception):
    """The call took too long or too much memory, or killed its process; the message says which."""


class WorkerError(RuntimeError):
    """A process could not be started, or could not load what it needs."""


class ProcessExecutor(Executor):
    """Runs `fn(shared, *args)` in spawned processes, each killed and replaced when a call exceeds a limit.

    shared: sent to each process once, when it starts (objectives may hold whole networks).
    time_limit_s: seconds of wall clock per call, without the start of the process.
    memory_limit_mb: resident memory of the process in 10^6 bytes, imports included.

    A call that exceeds a limit, or whose process dies, raises LimitExceeded from its future.
    """

    def __init__(
        self,
        shared: object,
        workers: int = 1,
        *,
        time_limit_s: float | None = None,
        memory_limit_mb: float | None = None,
    ) -> None:
        """Start one thread per process; processes start with their first call. `shared` must be picklable."""
        if memory_limit_mb is not None and not Path("/proc/self/statm").exists():
            raise ValueError("memory_limit_mb needs /proc, which this system lacks: leave it out")
        payload = pickle.dumps(shared)
        self._tasks: queue.SimpleQueue[tuple[Future[Any], bytes] | None] = queue.SimpleQueue()
        self._closed = False
        self._killed = threading.Event()
        self._threads = []
        for _ in range(workers):
            worker = _Worker(payload, time_limit_s, memory_limit_mb, self._killed)
            self._threads.append(threading.Thread(target=self._serve, args=(worker,), daemon=True))
            self._threads[-1].start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Queue the call `fn(shared, *args, **kwargs)`."""
        if self._closed:
            raise RuntimeError("the executor was shut down")
        future: Future[Any] = Future()
        self._tasks.put((future, pickle.dumps((fn, args, kwargs))))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes after the queued calls; `cancel_futures` drops these and kills what runs."""
        self._closed = True
        if cancel_futures:
            self._killed.set()
        for _ in self._threads:
            self._tasks.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _serve(self, worker: _Worker) -> None:
        """Feed one process, in a thread of its own."""
        while (task := self._tasks.get()) is not None:
            future, call = task
            if self._killed.is_set():
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(worker.call(call))
            except BaseException as error:
                future.set_exception(error)
        worker.end()


class _Worker:
    """A process and our end of its pipe; the process is started when it is needed."""

    def __init__(
        self,
        payload: bytes,
        time_limit_s: float | None,
        memory_limit_mb: float | None,
        killed: threading.Event,
    ) -> None:
        self._payload = payload
        self._time_limit_s = time_limit_s
        self._memory_limit_mb = memory_limit_mb
        self._killed = killed
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def call(self, call: bytes) -> Any:
        """Return what the call returns, or raise what it raises."""
        if self._process is None:
            self._start()
        assert self._process is not None and self._pipe is not None
        try:
            self._pipe.send_bytes(call)
            self._await_answer(self._process, self._pipe)
            returned, result = self._pipe.recv()
        except (EOFError, OSError):
            raise LimitExceeded(f"its process {self.end()}") from None
        except BaseException:
            self.end()
            raise
        if returned:
            return result
        raise result

    def end(self) -> str:
        """Kill the process, if there is one; say how it had ended."""
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if process is None or pipe is None:
            return "was not started"
        pipe.close()
        process.join(timeout=_POLL_S)  # one that died on its own tells how
        process.kill()
        process.join()
        code = process.exitcode or 0
        process.close()
        return f"died by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._payload), daemon=True)
        self._pipe = ours
        try:
            self._process.start()
            theirs.close()
            while not wait([ours, self._process.sentinel], timeout=_POLL_S):
                self._check_not_killed()
            trouble = ours.recv()
        except (EOFError, OSError):
            trouble = (
                f"it {self.end()}; a script that calls search needs `if __name__ == '__main__':`, "
                "and objectives must come from a file that can be imported"
            )
        except BaseException:
            self.end()
            raise
        if trouble:
            self.end()
            raise WorkerError(f"a process for the candidates could not start: {trouble}")

    def _await_answer(self, process: BaseProcess, pipe: Connection) -> None:
        assert process.pid is not None
        deadline = None if self._time_limit_s is None else time.monotonic() + self._time_limit_s
        while not wait([pipe, process.sentinel], timeout=_POLL_S):
            self._check_not_killed()
            if deadline is not None and time.monotonic() > deadline:
                raise LimitExceeded(f"it took longer than the limit of {self._time_limit_s:g} s")
            if self._memory_limit_mb is not None and _resident_mb(process.pid) > self._memory_limit_mb:
                raise LimitExceeded(f"it took more memory than the limit of {self._memory_limit_mb:g} MB")

    def _check_not_killed(self) -> None:
        if self._killed.is_set():
            raise LimitExceeded("it was stopped with the search")


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):  # it has just ended
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _work(pipe: Connection, payload: bytes) -> None:
    """Answer calls until the pipe closes: the whole life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the search, which then ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        shared = pickle.loads(payload)
    except BaseException as error:
        pipe.send(f"it cannot load the objectives ({type(error).__name__}: {error})")
        return
    pipe.send(None)
    with suppress(EOFError, OSError):
        while True:
            call = pipe.recv_bytes()
            answer: tuple[bool, Any]
            try:
                fn, args, kwargs = pickle.loads(call)
                answer = True, fn(shared, *args, **kwargs)
            except BaseException as error:
                answer = False, RuntimeError(f"{type(error).__name__}: {error}")
            pipe.send(answer)


def _end_with_parent() -> None:
    """Do not outlive a search that was killed, however long the candidate would take."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
