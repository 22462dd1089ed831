# SPDX-License-Identifier: Apache-2.0
"""Continue any run: a device search, a specialisation, or the training of shared weights."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sartor.recipes.asked import load_targets
from sartor.recipes.device_search import finish
from sartor.recipes.job import Job, Say
from sartor.recipes.pretrained import task_for
from sartor.recipes.record import arguments_of, check_same, silent
from sartor.recipes.supernet import WORK, resume_training
from sartor.run import Run
from sartor.task import Task

__all__ = ["resume"]


def resume(
    path: str | Path,
    *,
    budget_s: float | None = None,
    data: Task | None = None,
    on_progress: Say | None = None,
) -> Run:
    """Continue the run in `path` to its end; `budget_s` more seconds go into further trials.

    `data` is needed when the run was started with a `Task` instead of a path. The trials are the same, bit for bit
    but for timings, as those of a run which was never stopped; with `steps` and `trials` instead of a budget, so are
    the weights. Seconds that a killed process spent on a stage are not known, and not taken from the budget.
    Raises ValueError or OSError as `Run.open` does, and ValueError when data or target are no longer the same.
    """
    started, path = time.monotonic(), Path(path)
    arguments = arguments_of(Run.open(path, lock=False))
    if arguments["given"] and data is None:
        raise ValueError(f"{path} was started with a Task of its own; give it again as data=")
    trains = arguments.get("work") == WORK
    if trains and budget_s is not None:
        raise ValueError(f"{path} is a training, whose length was fixed when it started: train a new run for longer")
    task = data or task_for(
        arguments["data"],
        arguments["space"],
        seed=arguments["seed"],
        image_size=_size(arguments["image_size"]),
        length=arguments.get("length"),
    )
    if trains:
        return resume_training(path, task, on_progress or silent)
    run = Run.open(path)
    try:
        targets = load_targets(arguments["target"], threads=arguments["threads"])
        check_same(run, task, targets)
        job = Job(run, task, targets, on_progress or silent)
    except BaseException:
        run.close()
        raise
    return finish(job, started, budget_s)


def _size(recorded: Any) -> int | tuple[int, int] | None:
    return tuple(recorded) if isinstance(recorded, list) else recorded
