# SPDX-License-Identifier: Apache-2.0
"""Stage 4: search validation error with shared weights against the predicted costs, and choose what to verify."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sartor import names
from sartor.architecture import Architecture
from sartor.limits import under_limits
from sartor.objective import Objective, costs, violation
from sartor.pareto import non_dominated_sort
from sartor.protocols import Strategy, Target
from sartor.recipes.drawing import Drawn
from sartor.recipes.job import COUNTED, Job
from sartor.recipes.profiling import costs_on, counts, latency, samples_within, spread_samples
from sartor.recipes.rungs import Rung, Rungs
from sartor.recipes.training import PortableError, Shared
from sartor.recipes.whole_split import WholeSplitError
from sartor.search import search
from sartor.space import SearchSpace
from sartor.trial import Trial, TrialLog

__all__ = ["LOOKED_AT", "Candidates", "best_of_rungs", "nearer", "objectives", "search_trials", "worth_verifying"]

NEAR = 0.9  # of a latency limit: networks that use it
LOOKS = 400  # at networks of the space, for some that do; no more than trials, as each is a prediction
MOST_CHANGES = 8  # of the largest network, for some near it
LOOKED_AT = 6  # networks of each of several limits, on the whole validation split
OF_A_RUNG, ROOM = 2, 0.9  # of these are verified, and one more within the part of the limit that is surely met
OF_THE_NEARER, VERIFIED_NEARER, SURELY = 6, 2, 0.98  # looked at, verified, where no network used the limit
NEAR_SHARE = 1 / 4  # of what is verified is near the limit

Candidates = Mapping[Architecture, Mapping[str, float]]
"""Networks to verify, with the milliseconds that were predicted for each target, by its name."""

Cost = Callable[[Architecture], float]


def search_trials(job: Job, shared: Shared) -> Candidates:
    """Run the trials; the candidates to verify, from fast to slow on the first target.

    What a differentiable search read out is always among them, within the limits or not. Where every trial was
    infeasible, as under a limit that only the very smallest meet, the candidates are those of the measured sample that
    keep the limits: there is at least one, or the profile would have said so.
    """
    measure_error = PortableError(job, shared)
    goals = objectives(job, measure_error)
    predicted = {target.name: latency(job, target) for target in job.targets}
    strategy, searched = under_limits(
        lambda space, given: _strategy(job, shared, space, given), job.space, goals,
        job.arguments.get("limit_as", "hard"), ceiling=1.0,
    )  # fmt: skip
    if job.ladder:
        rungs = [Rung(job.column("latency_ms", target), ms) for target in job.targets for ms in job.rungs(target)]
        at_hand = job.hand_made().values()
        strategy = Rungs(job.space, searched, rungs=rungs, front=strategy, trials=job.plan["trials"], at_hand=at_hand)
    with TrialLog(job.path / "run.sqlite") as log:
        search(
            job.space,
            strategy,
            searched,
            trials=job.plan["trials"],
            seed=job.seed,
            log=log,
            time_limit_s=job.arguments["trial_timeout_s"],
        )
        done = [trial for trial in log if trial.state == "done"]
    chosen, closely = [] if shared.first is None else [shared.first], WholeSplitError(job, shared.serving)
    for target in job.targets:
        goals = [Objective("error", measure_error), *limited(job, target)]
        chosen += (
            best_of_rungs(job, target, done, goals, closely) if job.ladder else _chosen_for(job, target, done, goals)
        )
    known = {arch: {name: cost(arch) for name, cost in predicted.items()} for arch in dict.fromkeys(chosen)}
    return dict(sorted(known.items(), key=lambda item: item[1][job.target.name]))


def _chosen_for(job: Job, target: Target, done: Sequence[Trial], goals: Sequence[Objective]) -> list[Architecture]:
    """The networks to verify for one target: its part of all that are verified."""
    count = max(2, job.plan["verified"] // len(job.targets))
    done = [*done, *_near_the_limit(job, goals, done, int(NEAR_SHARE * count))]
    feasible = list({trial.arch: trial for trial in done if not violation(trial, goals)}.values())
    within = samples_within(job, target)
    if not feasible:
        job.say(f"no trial kept the limits of {target.name}; verifying those of the measured sample that do")
        return within[:count]
    chosen = [trial.arch for trial in worth_verifying(feasible, goals[:2], count)]
    smallest = job.smallest()  # the fastest end of every front, and few trials come near
    return [smallest, *chosen] if smallest in within else chosen


def best_of_rungs(
    job: Job, target: Target, done: Sequence[Trial], goals: Sequence[Objective], closely: Cost
) -> list[Architecture]:
    """For each limit the networks of least error within it, and one with room to spare, as predictions err.

    A trial sees a part of the validation split, and the best of many is partly the luckiest: so the few best are
    compared `closely`, on all of it, before any is exported.
    """
    feasible = sorted((trial for trial in done if not violation(trial, goals)), key=lambda trial: trial.values["error"])
    chosen = [job.smallest()]
    for limit in job.rungs(target):
        for part, count in ((1.0, OF_A_RUNG), (ROOM, 1)):
            within = (trial.arch for trial in feasible if trial.values[goals[1].name] <= part * limit)
            chosen += sorted(itertools.islice(within, LOOKED_AT), key=closely)[:count]
    return list(dict.fromkeys(chosen))


def _near_the_limit(job: Job, goals: Sequence[Objective], done: Sequence[Trial], wanted: int) -> list[Trial]:
    """Trials of further networks that use the latency limit, where fewer than `wanted` of the search do.

    A search goes where the front is steep, and a limit that is far from there would be left unused for want of a look.
    """
    latency_ms = goals[1]
    limit = latency_ms.at_most
    if limit is None:
        return []

    def uses(ms: float) -> bool:
        return NEAR * limit <= ms <= limit

    lacking = wanted - sum(uses(trial.values.get(latency_ms.name, 0.0)) for trial in done)
    rng = random.Random(f"{job.seed}/near the limit")
    tried = {trial.arch for trial in done}
    found: list[Trial] = []
    looks = min(LOOKS, int(job.plan["trials"]))
    for arch in _looks(job, looks, rng) if lacking > 0 else ():
        if len(found) >= 2 * lacking:
            break
        costs_of = {goal.name: goal.measure(arch) for goal in goals[1:]}
        if arch not in tried and uses(costs_of[latency_ms.name]):
            values = {"error": goals[0].measure(arch), **costs_of}
            found.append(Trial(job.plan["trials"] + len(found), arch, values, state="done"))
            tried.add(arch)
    return found


def nearer(
    job: Job, shared: Shared, target: Target, measured: Mapping[Architecture, tuple[float, float]]
) -> Candidates:
    """Further networks to verify where none that was measured uses the latency limit of a target; {} where one does.

    Predictions err by some percent, and a limit can fall between what proved too slow and what is far below. So the
    predictions are set right by what was measured: `measured` has the milliseconds, predicted and true.
    """
    limit = job.limits_on(target).get("latency_ms")
    if limit is None or any(NEAR * limit <= true <= limit for _, true in measured.values()):
        return {}
    slow = [true / told for told, true in measured.values() if told > limit / 2] or [1.0]
    goals, ratio = limited(job, target), float(np.median(slow))
    within = [replace(goals[0], at_most=None), *goals[1:]]
    found: dict[Architecture, float] = {}
    for arch in _looks(job, min(LOOKS, int(job.plan["trials"])), random.Random(f"{job.seed}/nearer")):
        ms = goals[0].measure(arch)
        if len(found) == OF_THE_NEARER:
            break
        if arch not in measured and NEAR * limit <= ratio * ms <= SURELY * limit:
            trial = Trial(0, arch, {goal.name: goal.measure(arch) for goal in within}, state="done")
            found |= {} if violation(trial, within) else {arch: ms}
    measure_error = PortableError(job, shared)
    best = sorted(found, key=measure_error)[:VERIFIED_NEARER]
    return {arch: {target.name: found[arch]} for arch in best}


def _looks(job: Job, count: int, rng: random.Random) -> Iterator[Architecture]:
    """`count` networks from the smallest to the largest, and as many near the largest, which drawing hardly gives."""
    yield from spread_samples(job.space, count, [], rng)
    for look in range(count):
        arch = job.largest()
        for _ in range(1 + look % MOST_CHANGES):
            arch = job.space.mutate(arch, rng)
        yield arch


def objectives(job: Job, measure_error: Callable[[Architecture], float]) -> list[Objective]:
    """Validation error, predicted latency on every target, and the further limits; all but the error are cheap.

    Of one target the limits are bounds. Of several, a network need keep those of one: bounded is the greatest share
    of a limit that it uses, on the target where that is least.
    """
    found = [Objective("error", measure_error)]
    every = [limited(job, target) for target in job.targets]
    if len(every) == 1:
        return [*found, *every[0]]
    unbound = [Objective(one.name, one.measure, cheap=True) for limits in every for one in limits]
    found += list({one.name: one for one in unbound}.values())
    if not job.limits:
        return found

    def used(arch: Architecture) -> float:
        """The greatest share of a limit that an architecture uses, on the target that it suits best."""
        shares = [[one.measure(arch) / one.at_most for one in limits if one.at_most is not None] for limits in every]
        return min(max(share, default=0.0) for share in shares)

    return [*found, Objective("limits_used", used, cheap=True, at_most=1.0)]


def limited(job: Job, target: Target) -> list[Objective]:
    """The latency on a target, and all that has a limit there, with their bounds."""
    limits, predicted = job.limits_on(target), {**costs_on(job, target), **counts(job)}
    wanted = ["latency_ms", *(name for name in limits if name != "latency_ms")]
    return [
        Objective(
            name if name in COUNTED else job.column(name, target), predicted[name], cheap=True, at_most=limits.get(name)
        )
        for name in wanted
    ]


def _strategy(job: Job, shared: Shared, space: SearchSpace, goals: Sequence[Objective]) -> Strategy:
    """The strategy, with the population of the first plan where it has one: a search that is extended goes on.

    After a differentiable search it is what was learned that is looked at, unless a strategy was named.
    """
    if shared.first is not None and job.arguments["strategy"] == "auto":
        return Drawn(space, goals, first=shared.first, probabilities=shared.probabilities)
    kind: Any = names.load("strategies", job.arguments["strategy"])
    options = {}
    if "population" in inspect.signature(kind).parameters:
        options["population"] = job.plan["population"]
    strategy: Strategy = kind(space, goals, **options)
    return strategy


def worth_verifying(trials: Sequence[Trial], goals: Sequence[Objective], count: int) -> list[Trial]:
    """Return `count` trials, from fast to slow: of each of as many bands of latency the one with the least error.

    Shared weights rank networks of one speed; across speeds they flatter the small ones, which leave less to a
    training of their own. So a slower network is taken though the trials show a faster one ahead of it. Bands are
    equal in ratio; where some are empty, the front of what remains fills up, and then the front of what then remains.
    A quarter is of those that use a latency limit, as some of these will prove too slow when they are measured.
    `goals` are the error and the latency, in this order.
    """
    points = np.array([costs(trial, goals) for trial in trials])
    best_first = np.lexsort(points.T[::-1])
    scale = np.log(np.maximum(points[:, 1], 1e-12))
    limit = goals[1].at_most
    near = [int(i) for i in best_first if limit is not None and points[i, 1] >= NEAR * limit]
    chosen = [int(best_first[0]), int(np.lexsort(points.T)[0])]  # of least error, and the fastest
    chosen += [i for i in near if i not in chosen][: int(NEAR_SHARE * count)]
    rest = max(1, count - len(chosen) + 2)
    bands = np.floor(rest * (scale - scale.min()) / (np.ptp(scale) or 1.0)).clip(max=rest - 1)
    for i in best_first:
        if bands[i] not in bands[chosen]:
            chosen.append(int(i))
    behind = [int(i) for layer in non_dominated_sort(points) for i in layer]
    kept = list(dict.fromkeys([*chosen, *behind]))[:count]
    return sorted((trials[i] for i in kept), key=lambda trial: costs(trial, goals)[::-1])
