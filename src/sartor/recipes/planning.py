"""Turn a wall-clock budget into counts of work, so that a resumed run does the same work.

Short trials of each kind of work are timed on this machine; the counts are written to the record before the work. What
the networks of the front train by themselves is planned after the search, when it is known which they are, and what
time the shared weights and the search have really left.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sartor import distributed
from sartor.architecture import Architecture
from sartor.deploy.scratch import scratch_beside
from sartor.evaluation import SharedWeightError
from sartor.fit import Indexed, moved
from sartor.protocols import Learner
from sartor.recipes.asked import earlier_plan
from sartor.recipes.expected import constant_cost
from sartor.recipes.job import Job
from sartor.recipes.methods import BIGNAS, use_of
from sartor.recipes.supernets import data_of
from sartor.recipes.training import (
    batches_of,
    evaluation_batches,
    longer,
    method_learner,
    step_seconds,
    supernet_learner,
    supervised_learner,
)
from sartor.recipes.verification import complete_member, measure_members, write_member
from sartor.supernet import extract
from sartor.targets.machine import usable_cores

__all__ = ["MIN_STEPS", "fastest_threads", "more_trials", "plan", "plan_alone"]

VERIFIED, MIN_VERIFIED = 24, 8  # networks that the search found, and that are fine-tuned and measured
RETRAINED = 6  # networks, where each is trained from scratch
SANDWICH = 4  # sub-networks in a step of the shared weights
LEVELS = 2  # networks that a step of a differentiable method is taken to cost where nothing is timed
TRIED_STEPS, TRIED_S = 40, 4.0  # of a differentiable method, to time it: its whole course in little
SEARCH_SHARE = 0.08  # of the time that planning leaves
SEARCHED = 0.3  # of the time that is then left is for a differentiable search at least: it has to decide, not only rank
SEARCH_SHARE_ALONE = 0.25  # where the shared weights are there already
MIN_STEPS, MIN_TRIALS, MAX_TRIALS = 30, 40, 300
TOGETHER = 0.5  # of the time of measuring networks one by one is what it takes in one go, about
FRONT_SHARE = 0.3  # of the measured networks end on the front, about, and are exported in every format
REPORT_S = 6.0
WORTH_ALL_CORES = 0.7  # of the step on one thread


def plan(job: Job, *, budget_s: float | None, spent_s: float, steps: int | None, trials: int | None) -> dict[str, Any]:
    """The counts for `budget_s` seconds, of which `spent_s` are gone, or exactly `steps` and `trials`."""
    started = time.monotonic()
    batch_size = min(32 if len(job.task.train) < 10_000 else 64, len(job.task.train))
    adopted = earlier_plan(Path(job.arguments["weights"])) if job.arguments.get("weights") else {}
    if steps is not None and trials is not None:
        # One thread: the same bits on any number of cores.
        shared = 0 if adopted else steps
        counts = _counts(job, shared, trials, _most(job)) | _networks(job, {})
        counts |= _alone(shared, steps, counts["verified"], counts.get("networks", SANDWICH))
        return {"batch_size": batch_size, **counts, **adopted, "training_threads": 1}
    threads, step_s = (adopted["training_threads"], 0.0) if adopted else fastest_threads(job, batch_size)
    torch.set_num_threads(threads)
    plain_s = _plain_seconds(job, batch_size)
    trial_s, (measure_s, export_s) = _timed(_trial(job)), _verification_seconds(job)
    left = (budget_s or 0.0) - spent_s - (time.monotonic() - started) - REPORT_S
    each_s = measure_s + FRONT_SHARE * export_s
    share = SEARCH_SHARE_ALONE if adopted else SEARCH_SHARE
    trials = min(MAX_TRIALS, max(MIN_TRIALS, int(share * left / trial_s)))
    baselines_s = 0.0
    if job.compares:
        left -= len(plain_s) * measure_s
        baselines_s = sum(seconds * longer(seconds, plain_s["middle"]) for seconds in plain_s.values())
    networks = _networks(job, {"step": step_s, **plain_s})
    most, least = _most(job), min(MIN_VERIFIED, _most(job))
    affordable, verified = 0, least
    for verified in range(min(most, max(least, job.space.size)), least - 1, -1):
        # A step of the shared weights brings one of each network that is shown, and somewhat more of each baseline.
        shares = 1 if adopted else 1 + networks.get("networks", SANDWICH) / verified
        networks_s = verified * _mean_step(plain_s) + shares * baselines_s
        free = left - trials * trial_s - verified * each_s
        affordable = int(free / (step_s + networks_s))
        if job.reads_out:
            affordable = max(affordable, int(SEARCHED * free / step_s))
        if affordable * batch_size >= len(job.task.train):  # rather fewer networks than some that saw half the data
            break
    if affordable < MIN_STEPS:
        job.say(f"warning: {budget_s:g} s are too few here; the work planned takes longer")
    counts = _counts(job, 0 if adopted else max(MIN_STEPS, affordable), trials, verified) | networks
    job.say("plan: {steps} training steps, {trials} trials, {verified} networks verified".format(**counts))
    seconds = {"step": step_s, **plain_s, "trial": trial_s, "measure": measure_s, "export": export_s}
    return {"batch_size": batch_size, "training_threads": threads, **counts, **adopted, "seconds": seconds}


def _counts(job: Job, steps: int, trials: int, verified: int) -> dict[str, int]:
    """The counts of the shared work; of a population, where the strategy has one, generations fit into the trials."""
    verified = min(verified, job.space.size)
    return {"steps": steps, "trials": trials, "verified": verified, "population": max(25, min(100, trials // 5))}


def _most(job: Job) -> int:
    """The most networks that are verified."""
    return RETRAINED if job.retrains else VERIFIED


def _networks(job: Job, seconds: Mapping[str, float]) -> dict[str, int]:
    """How many networks of middling size a step trains: of a differentiable method, by its time; {} for a sandwich."""
    if job.method == BIGNAS:
        return {}
    if not job.reads_out:
        return {"networks": max(1, round(supernet_learner(job, steps=1000, batch_size=8).passes_per_step))}
    return {"networks": max(1, round(seconds["step"] / seconds["middle"])) if seconds else LEVELS}


def plan_alone(job: Job, candidates: Iterable[Architecture], *, spent_s: float) -> dict[str, Any]:
    """The plan, with what `candidates` and the baselines train by themselves in the time that is left.

    About as many steps as the shared weights had, for that is how the first plan divided the time.
    """
    started, archs, shared = time.monotonic(), list(candidates), job.plan["steps"]
    networks = job.plan.get("networks", SANDWICH)
    planned = max(len(archs), job.plan["verified"])  # what the shared weights were trained for, found or not
    seconds = {**job.plan["seconds"], **_plain_seconds(job, job.plan["batch_size"])}

    def step_s(arch: Architecture) -> float:
        cost = step_seconds(job, arch, seconds)
        return cost * longer(cost, seconds["middle"])

    left = (job.arguments["budget_s"] or 0.0) - spent_s - REPORT_S - (time.monotonic() - started)
    left -= len(archs) * (seconds["measure"] + FRONT_SHARE * seconds["export"])
    candidates_s, baselines_s = sum(map(step_s, archs)), 0.0
    if job.compares:
        baselines_s = sum(map(step_s, job.hand_made().values()))
        left -= len(job.hand_made()) * seconds["measure"] + networks * shared / planned * baselines_s
    steps = int(left / max(candidates_s + baselines_s, 1e-9))
    if steps < MIN_STEPS:
        job.say(f"warning: the budget is nearly spent; training {MIN_STEPS} steps more for each network all the same")
    steps = max(MIN_STEPS, steps)
    job.say(f"plan: each network trains {steps} steps by itself, small ones more")
    return {**job.plan, **_alone(shared, steps, planned, networks), "seconds": seconds}


def _alone(shared: int, steps: int, verified: int, networks: int) -> dict[str, int]:
    """Count the steps of networks by themselves.

    A baseline has those of a network that is shown, and its part of the `shared` ones, each of which trains so many
    `networks` for all that are shown: equal cost.
    """
    return {"finetune_steps": steps, "baseline_steps": steps + networks * shared // verified}


def _mean_step(plain_s: Mapping[str, float]) -> float:
    """Seconds that a planned step of a network to be verified takes: they are spread evenly, in ratio."""
    costs = np.geomspace(plain_s["smallest"], plain_s["largest"], 9)
    return float(np.mean([cost * longer(cost, plain_s["middle"]) for cost in costs]))


def more_trials(job: Job, budget_s: float) -> int:
    """How many further trials fit into `budget_s` more seconds, beside fine-tuning and verifying a new front.

    Half of what is verified is taken to be new; what was trained before is only measured again.
    """
    seconds = job.plan.get("seconds")
    if not seconds:
        measure_s, export_s = _verification_seconds(job)
        steps_s = _plain_seconds(job, job.plan["batch_size"])
        seconds = {"trial": _timed(_trial(job)), "measure": measure_s, "export": export_s, **steps_s}
    finetune_s = job.plan["finetune_steps"] * _mean_step(seconds)
    each_s = (finetune_s + FRONT_SHARE * seconds["export"]) / 2 + 2 * seconds["measure"]
    trials = int((budget_s - job.plan["verified"] * each_s - REPORT_S) / seconds["trial"])
    if trials < 1:
        job.say(f"warning: {budget_s:g} s more are too few here for a new front; they buy one trial, and take longer")
    trials = min(MAX_TRIALS, max(1, trials))
    job.say(f"plan: {trials} trials more")
    return trials


def _timed(work: Callable[[], object], repeats: int = 3) -> float:
    """Median wall-clock seconds of one call, after one that warms up."""
    work()
    seconds = []
    for _ in range(repeats):
        before = time.monotonic()
        work()
        seconds.append(time.monotonic() - before)
    return sorted(seconds)[repeats // 2]


def fastest_threads(job: Job, batch_size: int) -> tuple[int, float]:
    """One thread, unless all are clearly faster: small networks seldom gain, and suffer most from other work."""
    step_s = {}
    for threads in (1, usable_cores()):
        torch.set_num_threads(threads)
        step_s[threads] = _shared_seconds(job, batch_size)
    best = usable_cores() if step_s[usable_cores()] < WORTH_ALL_CORES * step_s[1] else 1
    return best, step_s[best]


def _shared_seconds(job: Job, batch_size: int) -> float:
    """Seconds of a step of the shared weights.

    A differentiable method trains other things at its end than at its start, so that its whole course is timed, with
    few steps.
    """
    if not job.reads_out:
        learner = supernet_learner(job, steps=1000, batch_size=batch_size)
        return _timed(_step(learner, data_of(learner, job.task.train), batch_size, job.device), repeats=5)
    least = use_of(job.method).least

    def course(steps: int) -> Callable[[], object]:
        searcher = method_learner(job, job.network(searching=True), steps=steps, cost=constant_cost(job))
        return _step(searcher, batches_of(job, searcher), batch_size)

    one_s = _timed(course(TRIED_STEPS), repeats=1)
    steps = max(least, min(TRIED_STEPS, int(TRIED_S / one_s)))
    step, before = course(steps), time.monotonic()
    for _ in range(steps):
        step()
    return (time.monotonic() - before) / steps


def _step(learner: Learner, batches: Indexed, batch_size: int, device: str | None = None) -> Callable[[], object]:
    done = itertools.count()
    return lambda: learner.step(moved(distributed.share(batches.batch(next(done), batch_size, augment=True)), device))


def _plain_seconds(job: Job, batch_size: int) -> dict[str, float]:
    """Seconds of a step of each hand-made network."""
    return {name: _timed(_baseline_step(job, arch, batch_size)) for name, arch in job.hand_made().items()}


def _baseline_step(job: Job, arch: Any, batch_size: int) -> Callable[[], object]:
    return _step(supervised_learner(job, arch, steps=1000, batch_size=batch_size), job.task.train, batch_size)


def _trial(job: Job) -> Callable[[], object]:
    """Candidates' evaluations, each of another network, as the operators of a known one are remembered."""
    measure = SharedWeightError(job.network(searching=True), job.task.metric, evaluation_batches(job), job.calibration)
    rng = random.Random(f"{job.seed}/plan")

    def trial() -> None:
        arch = job.space.sample(rng)
        measure(arch)
        job.workload(arch)

    return trial


def _verification_seconds(job: Job) -> tuple[float, float]:
    """Seconds to measure and evaluate one of many networks, and to export it in every format, caches warm."""
    arch = job.middle()
    network = extract(job.initial, arch).eval()
    with scratch_beside(job.path / "plan") as folder:
        seconds = []
        for attempt in ("cold", "warm"):
            before = time.monotonic()
            member = write_member(job, folder / attempt, arch, lambda: (network, {}))
            measure_members(job, [member], {}, splits=("validation",))
            between = time.monotonic()
            complete_member(job, member)
            seconds.append((between - before, time.monotonic() - between))
    measure_s, export_s = seconds[1]
    return TOGETHER * measure_s, export_s
