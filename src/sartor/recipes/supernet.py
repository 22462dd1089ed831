# SPDX-License-Identifier: Apache-2.0
"""Train the shared weights of a space once, so that every device and limit is then specialised from them in minutes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from sartor import distributed, names, own
from sartor.data.read import absolute_source
from sartor.evaluation import predicted, scored, specialised
from sartor.oneshot import Copies, check_memory, training_memory
from sartor.recipes.job import Job, Say
from sartor.recipes.methods import BIGNAS
from sartor.recipes.planning import MIN_STEPS, fastest_threads
from sartor.recipes.pretrained import method_for, task_for
from sartor.recipes.record import arguments_of, check_same, new_record, silent
from sartor.recipes.training import Shared, supernet_learner, train
from sartor.run import Run
from sartor.task import Task

__all__ = ["WORK", "resume_training", "train_supernet"]

WORK = "train"
"""What `run.json` says of a run that only trains."""

PLANNED = 0.95  # of a budget is trained; the rest is for the start and the evaluation


def train_supernet(
    data: str | Path | Task,
    *,
    space: str,
    out: str | Path,
    method: str | None = None,
    steps: int | None = None,
    budget_s: float | None = None,
    batch_size: int | None = None,
    recipe: Literal["short", "paper"] = "short",
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    accumulate: int = 1,
    seed: int = 0,
    image_size: int | tuple[int, int] | None = None,
    length: int | None = None,
    elastic: Mapping[str, Sequence[Any]] | None = None,
    uniform: Sequence[str] = (),
    shard: bool = False,
    force: bool = False,
    resume: bool = False,
    on_progress: Say | None = None,
) -> Run:
    """Train the shared weights of `space` on `data`; the returned run is what `specialise` starts from.

    Under `torchrun` every process calls this: each takes its share of a batch, and the first one writes the run.

    Args:
        data: what `load_task` takes, or a `Task`.
        space: a name of `sartor list spaces`, `path.py:Class`, or `hf:` and a folder or id of a pretrained network.
        out: the run folder; it must be new, or hold a run and `force` be given.
        method: a learner of shared weights, of `sartor list methods` or `path.py:Class`; None is "bignas", of a
            pretrained network "instatune", of a language model "llama_nas".
        steps, budget_s: length of the training; give one. Seconds are turned into steps before it starts.
        batch_size: samples per step, of all processes together; about 32 or 64 by the size of the data, if None.
        recipe: "short" is a cosine without dropout, for trainings of minutes to hours; "paper" the method's own.
        precision, accumulate: of the passes, and parts of a batch; see `sartor.oneshot.Means`.
        seed: of splits, weights, batches and sub-networks.
        image_size: what images of unequal size are resized to, see `load_task`.
        length, elastic, uniform: of a pretrained network, see `search_for_device`.
        shard: divide weights, gradients and moments among the processes (FSDP2), for what does not fit into one.
        force, resume: replace the run in `out`, or continue it if there is one: as it was started, whatever is given.
        on_progress: called with a line at each stage.

    Raises ValueError for what cannot be used, before anything is trained and with `out` left free, and for a run to
    continue that is no training or had other data; FileExistsError when `out` is taken.
    """
    if (steps is None) == (budget_s is None):
        raise ValueError("give the steps of the training, or a budget_s")
    if shard and distributed_world() == 1:
        raise ValueError("weights are divided among several processes: start them with torchrun, or leave shard out")
    names.check("spaces", space)
    method = method_for(space, data, BIGNAS) if method is None else method
    names.check_train(method)
    if resume and (Path(out) / "run.json").is_file():
        known = _known(Path(out))
        data, seed = data if isinstance(data, Task) else known["data"], known["seed"]
        space, length = known["space"], known.get("length")
        image_size = tuple(known["image_size"]) if isinstance(known["image_size"], list) else known["image_size"]
    task = data if isinstance(data, Task) else task_for(data, space, seed=seed, image_size=image_size, length=length)
    arguments = {
        "work": WORK, "data": task.name if isinstance(data, Task) else absolute_source(str(data)),
        "given": isinstance(data, Task), "target": [], "limits": {}, "budget_s": budget_s, "steps": steps,
        "trials": None, "space": own.absolute(space), "method": own.absolute(method), "recipe": recipe,
        "batch_size": batch_size, "means": {"precision": precision, "accumulate": accumulate}, "shard": shard,
        "strategy": "auto", "seed": seed, "threads": 1, "trial_timeout_s": None, "image_size": image_size,
        "length": length, "elastic": {role: list(them) for role, them in (elastic or {}).items()},
        "uniform": list(uniform), "baselines": False,
    }  # fmt: skip
    with distributed.start() as device:
        run = _of_all(lambda: Run.create(out, new_record(arguments, task, ()), force=force, resume=resume))
        return _continued(_job(run, task, on_progress or silent, str(device)))


def resume_training(path: Path, task: Task, say: Say) -> Run:
    """Train to the end what `train_supernet` began; ValueError where the data are no longer the same."""
    with distributed.start() as device:
        return _continued(_job(_of_all(lambda: Run.open(path)), task, say, str(device)))


def _known(folder: Path) -> dict[str, Any]:
    """What a training in a folder was asked; ValueError where the run there is none."""
    asked = arguments_of(Run.open(folder, lock=False))
    if asked.get("work") != WORK:
        raise ValueError(f"{folder} is no training of shared weights: `sartor resume {folder}` continues it")
    return asked


def _job(run: Run, task: Task, say: Say, device: str) -> Job:
    """The work on a run, which is closed where its data are no longer the same."""
    try:
        check_same(run, task, ())
    except BaseException:
        run.close()
        raise
    return Job(run, task, (), say, device)


def distributed_world() -> int:
    """Return how many processes torchrun started; they need not have met yet."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _of_all(made: Callable[[], Run]) -> Run:
    """The run folder, held by the first process; the others have its record to read, or learn why there is none."""
    run: Run | None = None
    failed: Exception | None = None
    known: dict[str, Any] = {}
    try:
        if distributed.is_first():
            run = made()
            known = {"path": str(run.path), "record": run.record}
    except (OSError, ValueError) as error:
        failed, known = error, {"error": str(error)}
    told = json.loads(distributed.from_first(json.dumps(known).encode()))
    if failed is not None:
        raise failed
    if "error" in told:
        raise ValueError(f"the first process has no run: {told['error']}")
    return run or Run(Path(told["path"]), told["record"], None)


def _continued(job: Job) -> Run:
    """Train to the end; the run stays open for the caller, and is closed by an error."""
    threads, first = torch.get_num_threads(), distributed.is_first()
    job.say = job.say if first else silent
    try:
        if "plan" not in job.run.record:
            planned = json.loads(distributed.from_first(json.dumps(_plan(job)).encode()))
            _check_fits(job, planned)
            _write(job, {"plan": planned})
        elif "evaluate" not in job.run.stages:
            _check_fits(job, job.plan)
        job.use_threads()
        if "evaluate" not in job.run.stages:
            job.say(f"training {job.arguments['space']} by {job.method}: {job.plan['steps']} steps")
            with job.run.stage("train") if first else contextlib.nullcontext():
                shared = train(job)
            if first:
                _evaluate(job, shared)
    except BaseException as error:
        job.run.close()
        if first and isinstance(error, ValueError) and "plan" not in job.run.record:  # nothing was done yet
            shutil.rmtree(job.path, ignore_errors=True)
        raise
    finally:
        torch.set_num_threads(threads)
    return job.run


def _write(job: Job, changes: Mapping[str, Any]) -> None:
    """Note something in the run, which only the first process writes."""
    if distributed.is_first():
        job.run.update(changes)
    else:
        job.run.record = {**job.run.record, **changes}


def _check_fits(job: Job, planned: Mapping[str, Any]) -> None:
    """Tell, before anything is trained, when the memory is short, with the copies that the learner will hold.

    Raises ValueError where it does not suffice, where the method does not fit the space, and for a batch that does not
    divide.
    """
    size, workers, parts = planned["batch_size"], distributed.world(), job.means.accumulate
    if size % (workers * parts):
        among = f"{workers} process{'es' if workers > 1 else ''}, in {parts} part{'s' if parts > 1 else ''} each"
        raise ValueError(f"a batch of {size} does not divide among {among}: give a multiple of {workers * parts}")
    learner = supernet_learner(job, steps=planned["steps"], batch_size=size, alone=True)
    if job.arguments.get("shard"):  # not every method takes divided weights
        supernet_learner(job, steps=planned["steps"], batch_size=size)
    recipe = job.recipe  # the paper's own may keep one moment less
    need = training_memory(
        learner.net, job.largest(), job.task.example, batch_size=size, recipe=recipe,
        means=job.means, workers=workers, sharded=bool(job.arguments.get("shard")),
        copies=getattr(learner, "copies", Copies()),
    )  # fmt: skip
    if warning := check_memory(need, job.device):
        job.say(f"warning: {warning}")


def _evaluate(job: Job, shared: Shared) -> None:
    with job.run.stage("evaluate"):
        reached = _reached(job, shared.serving)
        job.run.update({"reached": reached})
    told = ", ".join(f"{name} {100 * one['validation']:.2f} %" for name, one in reached.items())
    job.say(f"validation {job.task.metric_name} with the shared weights: {told}")


def _plan(job: Job) -> dict[str, Any]:
    """The counts of work, fixed before training."""
    train_size, asked = len(job.task.train), job.arguments
    parts = distributed.world() * job.means.accumulate
    usual = min(32 if train_size < 10_000 else 64, train_size)
    batch_size = asked.get("batch_size") or max(parts, usual // parts * parts)
    if asked["steps"] is not None:
        return {"batch_size": batch_size, "steps": asked["steps"], "training_threads": 1}
    started = time.monotonic()
    threads, step_s = fastest_threads(job, batch_size)
    left = PLANNED * asked["budget_s"] - (time.monotonic() - started)
    steps = max(1, int(left / step_s))
    job.say(f"plan: {steps} training step{'s' * (steps > 1)} of {1000 * step_s:.0f} ms")
    if steps < MIN_STEPS:
        job.say(f"warning: {asked['budget_s']:g} s are too few to train these weights; what follows is of no use")
    return {"batch_size": batch_size, "steps": steps, "training_threads": threads, "seconds": {"step": step_s}}


def _reached(job: Job, serving: Any) -> Mapping[str, Any]:
    """Validation accuracy of the hand-made networks with the shared weights."""
    found = {}
    for name, arch in job.hand_made().items():
        network = specialised(serving(arch), arch, job.calibration)
        accuracy = scored(job.task.metric, predicted(network, job.task.validation.batches(256)))
        found[name] = {"id": arch.id, "validation": accuracy}
    return found
