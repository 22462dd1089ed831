"""Stage 2: turn a wall-clock budget into counts of work, so that a resumed run does the same work.

Short trials of each kind of work are timed on this machine; the counts are written to the record before training.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sartor.evaluation import SharedWeightError
from sartor.oneshot import BigNAS, Supervised
from sartor.recipes.job import Job, usable_cores
from sartor.recipes.training import evaluation_batches, supernet_learner, supervised_learner
from sartor.recipes.verification import complete_member, measure_members, write_member
from sartor.supernet import extract

__all__ = ["plan"]

VERIFIED = 16  # networks of the predicted front that are tuned and measured
TUNING = 5  # each of them is tuned for a fifth of the steps that the shared weights were trained
VERIFYING_SHARE = 0.4  # of the time that is left, for measuring and exporting at the most
TRAINING_SHARE = 0.8  # of the time that neither planning nor verification takes; the search has the rest
MIN_STEPS, MIN_TRIALS, MAX_TRIALS = 30, 40, 2000
FRONT_SHARE = 0.6  # of the measured networks end on the front, about, and are exported in every format
REPORT_S = 6.0
WORTH_ALL_CORES = 0.7  # of the step on one thread


def plan(job: Job, *, budget_s: float | None, spent_s: float, steps: int | None, trials: int | None) -> dict[str, Any]:
    """The counts for `budget_s` seconds, of which `spent_s` are gone, or exactly `steps` and `trials`."""
    started = time.monotonic()
    batch_size = min(64 if len(job.task.train) < 10_000 else 128, len(job.task.train))
    if steps is not None and trials is not None:
        counts = {"steps": steps, "tuning_steps": steps // TUNING, "trials": trials, "verified": VERIFIED}
        return {"batch_size": batch_size, **counts, "training_threads": usable_cores()}
    threads, step_s = _fastest_threads(job, batch_size)
    torch.set_num_threads(threads)
    baselines = job.hand_made().values()
    baselines_s = sum(_timed(_baseline_step(job, arch, batch_size)) for arch in baselines)
    trial_s, (measure_s, export_s) = _timed(_trial(job)), _verification_seconds(job)
    left = (budget_s or 0.0) - spent_s - (time.monotonic() - started) - REPORT_S
    each_s = measure_s + FRONT_SHARE * export_s
    verified = max(4, min(VERIFIED, math.floor(VERIFYING_SHARE * left / each_s)))
    rest = max(0.0, left - verified * each_s - len(baselines) * measure_s)
    tuning_s = verified * baselines_s / len(baselines) / TUNING
    counts = {
        "steps": max(MIN_STEPS, int(TRAINING_SHARE * rest / (step_s + baselines_s + tuning_s))),
        "trials": min(MAX_TRIALS, max(MIN_TRIALS, int((1 - TRAINING_SHARE) * rest / trial_s))),
        "verified": verified,
    }
    counts["tuning_steps"] = counts["steps"] // TUNING
    job.say("plan: {steps} training steps, {trials} trials, {verified} networks verified".format(**counts))
    seconds = {
        "step": step_s,
        "baseline_steps": baselines_s,
        "trial": trial_s,
        "measure": measure_s,
        "export": export_s,
    }
    return {"batch_size": batch_size, **counts, "training_threads": threads, "seconds": seconds}


def more_trials(job: Job, budget_s: float) -> int:
    """How many further trials fit into `budget_s` more seconds, beside verifying the front again."""
    seconds = job.plan.get("seconds")
    if not seconds:
        measure_s, export_s = _verification_seconds(job)
        seconds = {"trial": _timed(_trial(job)), "measure": measure_s, "export": export_s}
    rest = budget_s - job.plan["verified"] * (seconds["measure"] + FRONT_SHARE * seconds["export"]) - REPORT_S
    return max(1, int(rest / seconds["trial"]))


def _timed(work: Callable[[], object], repeats: int = 3) -> float:
    """Median wall-clock seconds of one call, after one that warms up."""
    work()
    seconds = []
    for _ in range(repeats):
        before = time.monotonic()
        work()
        seconds.append(time.monotonic() - before)
    return sorted(seconds)[repeats // 2]


def _fastest_threads(job: Job, batch_size: int) -> tuple[int, float]:
    """One thread, unless all are clearly faster: small networks seldom gain, and suffer most from other work."""
    step_s = {}
    for threads in (1, usable_cores()):
        torch.set_num_threads(threads)
        learner = supernet_learner(job, steps=1000, batch_size=batch_size)
        step_s[threads] = _timed(_step(job, learner, batch_size), repeats=5)
    best = usable_cores() if step_s[usable_cores()] < WORTH_ALL_CORES * step_s[1] else 1
    return best, step_s[best]


def _step(job: Job, learner: BigNAS | Supervised, batch_size: int) -> Callable[[], object]:
    return lambda: learner.step(job.task.train.batch(learner.done, batch_size, augment=True))


def _baseline_step(job: Job, arch: Any, batch_size: int) -> Callable[[], object]:
    return _step(job, supervised_learner(job, arch, steps=1000, batch_size=batch_size), batch_size)


def _trial(job: Job) -> Callable[[], object]:
    """One candidate's evaluation: of the middle network, which is about the average one."""
    batches = evaluation_batches(job)
    measure = SharedWeightError(job.network(), job.task.metric, batches, job.calibration)
    return lambda: (measure(job.middle()), job.workload(job.middle()))


def _verification_seconds(job: Job) -> tuple[float, float]:
    """Seconds to measure and evaluate one network, and to export it in every format, caches warm."""
    arch = job.middle()
    network = extract(job.network().eval(), arch)
    with tempfile.TemporaryDirectory(prefix="plan-", dir=job.path) as folder:
        seconds = []
        for attempt in ("cold", "warm"):
            before = time.monotonic()
            member = write_member(job, Path(folder) / attempt, arch, lambda: network, {})
            measure_members(job, [member], {})
            between = time.monotonic()
            complete_member(job, member)
            seconds.append((between - before, time.monotonic() - between))
    return seconds[1]
