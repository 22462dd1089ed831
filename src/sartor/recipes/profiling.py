"""Stage 1: measure a few networks on the target, and predict the latency of all others from them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.atomic import write_bytes, write_json
from sartor.costs import CostStore
from sartor.costs.additive import Line
from sartor.costs.errors import errors
from sartor.costs.levels import typical
from sartor.costs.profile import Profile, load_profile
from sartor.deploy.scratch import scratch_beside
from sartor.predictors import WorkloadLatency
from sartor.predictors.workload_latency import cross_validated
from sartor.protocols import Measurement, Target
from sartor.recipes._profile_bench import Bench, check_accepted
from sartor.recipes.job import COUNTED, LIMITS, Job
from sartor.space import SearchSpace
from sartor.targets.fingerprint import differences
from sartor.workload import Workload, macs, parameters

__all__ = [
    "MEASURED",
    "LimitError",
    "costs_on",
    "counts",
    "drift",
    "latency",
    "measured_value",
    "profile",
    "samples_within",
    "spread_samples",
]

Array = NDArray[np.float64]

SAMPLES = 24
DRIFT_SAMPLES = 6
LEVEL_SAMPLES = 8  # where a profile is given, which knows all but the speed of today
PROFILE = "profile.costs"  # in the run folder
MEASURED = ("latency_ms", "energy_mj", "memory_mb", "size_bytes")  # the limits that a measurement decides


class LimitError(ValueError):
    """No network of the space can meet the limit."""


def profile(job: Job) -> None:
    """Measure `SAMPLES` networks with random weights as they would be deployed, and store what was measured.

    Raises LimitError when even the smallest network is slower than the latency limit, or than the loosest of several,
    on every target, and ValueError for a limit of something that a target does not measure.
    """
    adopt_profiles(job)
    unreachable: list[LimitError] = []
    for target in job.targets:
        store, fingerprint, count = _store(job), target.fingerprint(), SAMPLES
        if profile_of(job, target) is not None:
            count = LEVEL_SAMPLES
        given = [*job.hand_made().values()]
        archs = spread_samples(job.space, count, given, random.Random(f"{job.seed}/profile"))
        if not store.samples(fingerprint):
            job.say(f"measuring {len(archs)} networks on {target.name}")
            measurements = zip(archs, _measured(job, target, archs), strict=True)
            store.add(fingerprint, [(arch, found) for arch, found in measurements if found is not None])
        try:
            check_reachable(job, target)
        except LimitError as error:
            unreachable.append(error)
    if len(unreachable) == len(job.targets):
        raise unreachable[0]
    for one in unreachable:
        job.say(f"warning: {one}")
    _write_models(job)


def adopt_profiles(job: Job) -> None:
    """Copy the profile that was named with `costs` into the run, so that it goes on without it.

    Raises ValueError where it has none of a target and the space, or one that was measured under other conditions.
    """
    given, kept = job.arguments.get("costs"), job.path / PROFILE
    if not given:
        return
    if not kept.is_file():
        write_bytes(kept, Path(given).read_bytes())
    for target in job.targets:
        try:
            found = profile_of(job, target)
        except ValueError as error:  # speaks of the copy, which nobody has named
            raise ValueError(str(error).replace(str(kept), str(given))) from None
        assert found is not None
        unlike = differences(found.fingerprint, target.fingerprint())
        other = [f"{key} was {was or 'not told'}, is {now or 'not told'}" for key, (was, now) in unlike.items()]
        if other:
            raise ValueError(
                f"the profile of {target.name} in {given} was measured under other conditions ({other[0]}); adapt it: "
                f"sartor profile --from {given} --samples 10 --target {target.name} --out NEW.costs"
            )


def profile_of(job: Job, target: Target) -> Profile | None:
    """The adopted profile of a target, this space and this shape of data; None where the search was given none.

    Raises ValueError, which lists what there is, where the file has no such profile.
    """
    if not job.arguments.get("costs"):
        return None
    return load_profile(job.path / PROFILE, target=target.name, space_is=job.space, shape=job.shape, network=job.ghost)


def drift(job: Job) -> dict[str, float]:
    """How many times as slow as in the profile each target is now, by a few of the same networks.

    Training takes minutes in which a shared machine may change its speed; a limit is kept, and used, by predictions of
    the speed at the end.
    """
    found = {}
    for target in job.targets:
        samples = dict(_samples(job, target))
        archs = sorted(samples, key=lambda arch: samples[arch].latency_ms)[:: max(1, len(samples) // DRIFT_SAMPLES)]
        now = _measured(job, target, archs)
        ratios = [new.p10 / samples[arch].p10 for arch, new in zip(archs, now, strict=True) if new is not None]
        found[target.name] = float(np.median(ratios)) if ratios else 1.0
    return found


def _store(job: Job) -> CostStore:
    return CostStore(job.path / "latency.costs")


def _measured(job: Job, target: Target, archs: Sequence[Architecture]) -> Sequence[Measurement | None]:
    """A measurement for each architecture, None where the runtime refuses it; TargetError if it refuses most."""
    with scratch_beside(job.path / "samples") as folder:
        bench = Bench(target, job.initial.eval(), job.measured, folder, job.calibration[0])
        found = bench.networks(archs)
    check_accepted(target, found)
    if refused := sum(one.measurement is None for one in found):
        job.say(f"{target.name} refuses {refused} of the {len(archs)} networks")
    return [one.measurement for one in found]


def check_reachable(job: Job, target: Target) -> None:
    """Say, before anything is trained, that a limit cannot be met."""
    samples = dict(_samples(job, target))
    predicted = costs_on(job, target)
    loosest = {"latency_ms": max(rungs)} if (rungs := job.rungs(target)) else {}
    for name, limit in {**job.limits_on(target), **loosest}.items():
        if name not in predicted:
            what = LIMITS[name].partition(" in ")[0].partition(" ")[2]
            notes = [note for found in samples.values() for note in found.notes]
            told = next((note for note in notes if note.startswith("energy not measured")), "")
            why = f" ({told})" if told and name == "energy_mj" else ""
            raise ValueError(
                f"{target.name} does not measure {what} on this machine{why}, so a limit of it cannot be checked; "
                "leave it out, or name another target"
            )
        if name in MEASURED:
            values = {arch: measured_value(found, name) for arch, found in samples.items()}
        else:
            values = {arch: predicted[name](arch) for arch in samples}
        least = min(values, key=lambda arch: values[arch])
        value = values[least]
        if value > limit:
            which = "the smallest" if least == job.smallest() else f"the least, {least.id},"
            where = f" on {target.name}" if name not in COUNTED else ""
            raise LimitError(
                f"no network of this space has {LIMITS[name]} of {limit:g} or less{where}: {which} has {value:.3g}; "
                f"ask for at least {1.1 * value:.2g}, or name another target or space"
            )


def measured_value(measurement: Measurement, name: str) -> float:
    """What a measurement says of a limit of `MEASURED`; NaN where it says nothing."""
    value = 1e6 * measurement.size_mb if name == "size_bytes" else getattr(measurement, name)
    return math.nan if value is None else float(value)


Cost = Callable[[Architecture], float]


def costs_on(job: Job, target: Target) -> dict[str, Cost]:
    """What every architecture costs on a target, by the names of `LIMITS`: counted, or predicted from the samples.

    Absent is what the target does not measure. A file grows with the parameters, memory with them and with the largest
    activations, by a line through the samples.
    """
    samples = _samples(job, target)
    archs = [arch for arch, _ in samples]
    found: dict[str, Cost] = {"latency_ms": latency(job, target), **counts(job)}
    for name, features in (("size_bytes", _size_features), ("memory_mb", _memory_features)):
        values = np.array([measured_value(measurement, name) for _, measurement in samples])
        if np.isfinite(values).all() and (values > 0).all():
            found[name] = _line(job, features, archs, values)
    energies = np.array([measured_value(measurement, "energy_mj") for _, measurement in samples])
    known = np.isfinite(energies) & (energies > 0)  # a tiny network may drown in what the device takes anyway
    if 2 * known.sum() > len(archs):
        energy = WorkloadLatency(job.workload).fit([a for a, k in zip(archs, known, strict=True) if k], energies[known])
        found["energy_mj"] = lambda arch: float(energy.predict([arch])[0][0])
    return found


def counts(job: Job) -> dict[str, Cost]:
    """The limits that need no target: exact counts."""
    return {
        "macs": lambda arch: macs(job.workload(arch)),
        "params": lambda arch: parameters(job.workload(arch)),
    }


def _line(
    job: Job, features: Callable[[Workload], Array], archs: Sequence[Architecture], values: Array
) -> Callable[[Architecture], float]:
    line = Line(lambda arch: features(job.workload(arch))).fit(archs, values)
    return lambda arch: float(line.predict([arch])[0][0])


def _size_features(workload: Workload) -> Array:
    return np.array([parameters(workload), float(len(workload))])


def _memory_features(workload: Workload) -> Array:
    largest = max((math.prod(op.output) + sum(map(math.prod, op.inputs[:1])) for op in workload), default=0)
    return np.array([parameters(workload), float(largest)])


def _samples(job: Job, target: Target) -> list[tuple[Architecture, Measurement]]:
    return _store(job).samples(target.fingerprint())


def latency(job: Job, target: Target) -> Cost:
    """Milliseconds of an architecture: as measured for those that were, as predicted for all others.

    Both at the speed of the target when the search began; so are the predictions of a profile that was given.
    """
    samples = _samples(job, target)
    now = job.run.record.get("drift", {}).get(target.name, 1.0)
    values = now * typical([measurement for _, measurement in samples])
    known = profile_of(job, target)
    if known is not None:
        level = float(np.median(values / known.predict([arch for arch, _ in samples])[0]))
        return lambda arch: level * known.latency(arch)
    measured = {arch: float(ms) for (arch, _), ms in zip(samples, values, strict=True)}
    predictor = WorkloadLatency(job.workload).fit(list(measured), np.array([*measured.values()]))
    return lambda arch: measured[arch] if arch in measured else float(predictor.predict([arch])[0][0])


def samples_within(job: Job, target: Target) -> list[Architecture]:
    """The measured sample networks that keep all limits of a target, from fast to slow."""
    predicted, limits = costs_on(job, target), job.limits_on(target)
    within = []
    for arch, found in _samples(job, target):
        values = {n: measured_value(found, n) if n in MEASURED else predicted[n](arch) for n in limits}
        if all(values[name] <= limit for name, limit in limits.items()):
            within.append((found.latency_ms, arch))
    return [arch for _, arch in sorted(within, key=lambda pair: pair[0])]


def _write_models(job: Job) -> None:
    """State what the predictors are worth; those of further targets are kept beside the first one's."""
    models = {target.name: _model(job, target) for target in job.targets}
    others = {name: model for name, model in models.items() if name != job.target.name}
    write_json(job.path / "latency_model.json", {**models[job.target.name], "others": others})


def _model(job: Job, target: Target) -> dict[str, Any]:
    """What the predictor of a target is worth, on networks that the fit has not seen."""
    samples = _samples(job, target)
    archs, measurements = [arch for arch, _ in samples], [measurement for _, measurement in samples]
    values = np.array([measurement.latency_ms for measurement in measurements])
    method = "5-fold cross-validation: each network is predicted by a fit that has not seen it"
    if profile_of(job, target) is None:
        predicted = cross_validated(WorkloadLatency(job.workload), archs, typical(measurements))
    else:
        cost, method = latency(job, target), "the profile that was given, at the level of these networks"
        predicted = np.array([cost(arch) for arch in archs])
    pairs = [
        {"id": arch.id, "predicted_ms": float(p), "measured_ms": float(v), "held_out": True}
        for arch, p, v in zip(archs, predicted, values, strict=True)
    ]
    found = errors(predicted, values)
    told = {name: found[name].value for name in ("mape", "spearman", "kendall")}
    ranked = "no rank correlation" if told["spearman"] is None else f"rank correlation {told['spearman']:.3f}"
    job.say(f"latency model of {target.name}: error {told['mape']:.1%}, {ranked} on held-out networks")
    return {"samples": len(archs), "held_out": len(archs), "method": method, **told, "pairs": pairs}


def spread_samples(
    space: SearchSpace, count: int, given: Sequence[Architecture], rng: random.Random
) -> list[Architecture]:
    """`given` and further architectures, `count` in all, from the smallest to the largest.

    Uniform sampling of many choices gives networks of one, middling size. Here sample i leans to the options at
    i / count of their range: half of its choices take that option, the others a random one.
    """
    found = dict.fromkeys(given)
    for attempt in range(20 * count):
        if len(found) >= min(count, space.size):
            break
        level = (attempt % count) / max(1, count - 1)
        values = {
            name: options[round(level * (len(options) - 1))] if rng.random() < 0.5 else rng.choice(options)
            for name, options in space.choices.items()
        }
        arch = space.canonical(values)
        if arch in space:
            found[arch] = None
    return list(found)[: max(count, len(given))]
