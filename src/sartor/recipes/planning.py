"""Stage 2: turn a wall-clock budget into counts of work, so that a resumed run does the same work.

Short trials of each kind of work are timed on this machine; the counts are written to the record before training.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from sartor.deploy.scratch import scratch_beside
from sartor.evaluation import SharedWeightError
from sartor.oneshot import BigNAS, Supervised
from sartor.recipes.job import Job
from sartor.recipes.training import evaluation_batches, longer, supernet_learner, supervised_learner
from sartor.recipes.verification import complete_member, measure_members, write_member
from sartor.supernet import extract
from sartor.targets.machine import usable_cores

__all__ = ["plan"]

VERIFIED, MIN_VERIFIED = 20, 8  # networks that the search found, and that are fine-tuned and measured
SANDWICH = 4  # sub-networks in a step of the shared weights
SEARCH_SHARE = 0.08  # of the time that planning leaves
MIN_STEPS, MIN_TRIALS, MAX_TRIALS = 30, 40, 300
FRONT_SHARE = 0.3  # of the measured networks end on the front, about, and are exported in every format
REPORT_S = 6.0
WORTH_ALL_CORES = 0.7  # of the step on one thread


def plan(job: Job, *, budget_s: float | None, spent_s: float, steps: int | None, trials: int | None) -> dict[str, Any]:
    """The counts for `budget_s` seconds, of which `spent_s` are gone, or exactly `steps` and `trials`."""
    started = time.monotonic()
    batch_size = min(32 if len(job.task.train) < 10_000 else 64, len(job.task.train))
    if steps is not None and trials is not None:
        # One thread: the same bits on any number of cores.
        return {"batch_size": batch_size, **_counts(steps, trials, VERIFIED), "training_threads": 1}
    threads, step_s = _fastest_threads(job, batch_size)
    torch.set_num_threads(threads)
    plain_s = _plain_seconds(job, batch_size)
    trial_s, (measure_s, export_s) = _timed(_trial(job)), _verification_seconds(job)
    left = (budget_s or 0.0) - spent_s - (time.monotonic() - started) - REPORT_S - len(plain_s) * measure_s
    each_s = measure_s + FRONT_SHARE * export_s
    trials = min(MAX_TRIALS, max(MIN_TRIALS, int(SEARCH_SHARE * left / trial_s)))
    baselines_s = sum(seconds * longer(seconds, plain_s["middle"]) for seconds in plain_s.values())
    affordable, verified = 0, MIN_VERIFIED
    for verified in range(VERIFIED, MIN_VERIFIED - 1, -1):
        # A step of the shared weights brings one of each network that is shown, and somewhat more of each baseline.
        networks_s = verified * _mean_step(plain_s) + (1 + SANDWICH / verified) * baselines_s
        affordable = int((left - trials * trial_s - verified * each_s) / (step_s + networks_s))
        if affordable * batch_size >= len(job.task.train):  # rather fewer networks than some that saw half the data
            break
    if affordable < MIN_STEPS:
        job.say(f"warning: {budget_s:g} s are too few here; the work planned takes longer")
    counts = _counts(max(MIN_STEPS, affordable), trials, verified)
    job.say("plan: {steps} training steps, {trials} trials, {verified} networks verified".format(**counts))
    seconds = {"step": step_s, **plain_s, "trial": trial_s, "measure": measure_s, "export": export_s}
    return {"batch_size": batch_size, **counts, "training_threads": threads, "seconds": seconds}


def _counts(steps: int, trials: int, verified: int) -> dict[str, int]:
    """The counts of a plan.

    Each network that is shown is fine-tuned for as many steps as the shared weights had, a small one for more. A
    baseline has those steps, and its part of the shared ones, in which each step trains four networks for all that are
    shown: equal cost.
    """
    baseline = steps + SANDWICH * steps // verified
    return {
        "steps": steps, "trials": trials, "verified": verified, "finetune_steps": steps, "baseline_steps": baseline
    }  # fmt: skip


def _mean_step(plain_s: Mapping[str, float]) -> float:
    """Seconds that a planned step of a network to be verified takes: they are spread evenly, in ratio."""
    costs = np.geomspace(plain_s["smallest"], plain_s["largest"], 9)
    return float(np.mean([cost * longer(cost, plain_s["middle"]) for cost in costs]))


def more_trials(job: Job, budget_s: float) -> int:
    """How many further trials fit into `budget_s` more seconds, beside fine-tuning and verifying a new front."""
    seconds = job.plan.get("seconds")
    if not seconds:
        measure_s, export_s = _verification_seconds(job)
        steps_s = _plain_seconds(job, job.plan["batch_size"])
        seconds = {"trial": _timed(_trial(job)), "measure": measure_s, "export": export_s, **steps_s}
    finetune_s = job.plan["finetune_steps"] * _mean_step(seconds)
    each_s = finetune_s + 2 * seconds["measure"] + FRONT_SHARE * seconds["export"]  # the earlier are measured again
    return max(1, int((budget_s - job.plan["verified"] * each_s - REPORT_S) / seconds["trial"]))


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


def _plain_seconds(job: Job, batch_size: int) -> dict[str, float]:
    """Seconds of a step of each hand-made network."""
    return {name: _timed(_baseline_step(job, arch, batch_size)) for name, arch in job.hand_made().items()}


def _baseline_step(job: Job, arch: Any, batch_size: int) -> Callable[[], object]:
    return _step(job, supervised_learner(job, arch, steps=1000, batch_size=batch_size), batch_size)


def _trial(job: Job) -> Callable[[], object]:
    """Candidates' evaluations, each of another network, as the operators of a known one are remembered."""
    measure = SharedWeightError(job.network(), job.task.metric, evaluation_batches(job), job.calibration)
    rng = random.Random(f"{job.seed}/plan")

    def trial() -> None:
        arch = job.space.sample(rng)
        measure(arch)
        job.workload(arch)

    return trial


def _verification_seconds(job: Job) -> tuple[float, float]:
    """Seconds to measure and evaluate one network, and to export it in every format, caches warm."""
    arch = job.middle()
    network = extract(job.network().eval(), arch)
    with scratch_beside(job.path / "plan") as folder:
        seconds = []
        for attempt in ("cold", "warm"):
            before = time.monotonic()
            member = write_member(job, folder / attempt, arch, lambda: network, {})
            measure_members(job, [member], {}, splits=("validation",))
            between = time.monotonic()
            complete_member(job, member)
            seconds.append((between - before, time.monotonic() - between))
    return seconds[1]
