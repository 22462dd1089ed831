"""Stage 1: measure a few networks on the target, and predict the latency of all others from them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr
from torch import nn

from sartor.architecture import Architecture
from sartor.atomic import write_json
from sartor.costs import CostStore
from sartor.deploy.scratch import scratch_beside
from sartor.nn import resized
from sartor.predictors import WorkloadLatency
from sartor.predictors.workload_latency import cross_validated
from sartor.protocols import Measurement, Target
from sartor.recipes.job import LIMITS, Job
from sartor.space import SearchSpace
from sartor.supernet import extract
from sartor.targets.artefacts import TargetError
from sartor.workload import macs, parameters

__all__ = ["LimitError", "latency", "profile", "spread_samples"]

Array = NDArray[np.float64]

SAMPLES = 24
SAMPLE_SECONDS = 0.25


class LimitError(ValueError):
    """No network of the space can meet the limit."""


def profile(job: Job) -> None:
    """Measure `SAMPLES` networks with random weights as they would be deployed, and store what was measured.

    Raises LimitError when even the smallest network is slower than the latency limit.
    """
    store, fingerprint = CostStore(job.path / "latency.costs"), job.target.fingerprint()
    archs = spread_samples(job.space, SAMPLES, [*job.hand_made().values()], random.Random(f"{job.seed}/profile"))
    if not store.samples(fingerprint):
        job.say(f"measuring {len(archs)} networks on {job.target.name}")
        measurements = zip(archs, _measured(job, archs), strict=True)
        store.add(fingerprint, [(arch, found) for arch, found in measurements if found is not None])
    measured = dict(store.samples(fingerprint))
    check_reachable(job, measured)
    _write_model(job, measured)


def _measured(job: Job, archs: Sequence[Architecture]) -> Sequence[Measurement | None]:
    """A measurement for each architecture, None where the runtime refuses it; TargetError if it refuses most."""
    network, calibration = job.network().eval(), [job.calibration[0]]
    with scratch_beside(job.path / "samples") as folder:
        artefacts = []
        for arch in archs:
            sample = _with_full_norms(extract(network, arch))
            path = folder / arch.id
            path.mkdir()
            inputs = [resized(images, sample) for images in calibration]
            artefacts.append(job.target.prepare(sample, (job.example(sample),), inputs, path))
        try:
            return _quick(job.target).measure(artefacts)
        except TargetError as error:
            if not error.measurements or 2 * len(error.reasons) > len(archs):
                raise
            job.say(f"{job.target.name} refuses {len(error.reasons)} of the {len(archs)} networks")
            return error.measurements


def _quick(target: Target) -> Target:
    """The target with less time for each network: the fit averages over many."""
    timed: Any = target
    if is_dataclass(timed) and any(field.name == "seconds" for field in fields(timed)):
        timed = replace(timed, seconds=SAMPLE_SECONDS)  # type: ignore[type-var]
    return timed  # type: ignore[no-any-return]


def _with_full_norms(network: nn.Module) -> nn.Module:
    """Norms that start at zero would let a runtime, or a quantiser, see a network that is mostly zero."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
    return network


def check_reachable(job: Job, measured: Mapping[Architecture, Measurement]) -> None:
    """Say, before anything is trained, that a limit cannot be met."""
    values = {
        "latency_ms": {arch: found.latency_ms for arch, found in measured.items()},
        **{name: {arch: count(arch) for arch in measured} for name, count in counts(job).items()},
    }
    for name, limit in job.limits.items():
        least = min(values[name], key=lambda arch: values[name][arch])
        value = values[name][least]
        if value > limit:
            which = "the smallest" if least == job.space.smallest() else f"the least, {least.id},"
            where = f" on {job.target.name}" if name in ("latency_ms", "size_bytes") else ""
            raise LimitError(
                f"no network of this space has {LIMITS[name]} of {limit:g} or less{where}: {which} has {value:.3g}; "
                f"ask for at least {1.1 * value:.2g}, or name another target or space"
            )


def counts(job: Job) -> dict[str, Callable[[Architecture], float]]:
    """The limits that need no measurement of a candidate: exact counts, and the size of its file.

    A file grows with the parameters by what a line through the measured samples says.
    """
    samples = _samples(job)
    numbers = np.array([parameters(job.workload(arch)) for arch, _ in samples])
    sizes = np.array([1e6 * measurement.size_mb for _, measurement in samples])
    slope, least = np.polyfit(numbers, sizes, 1) if len(set(numbers)) > 1 else (0.0, sizes[0])
    return {
        "size_bytes": lambda arch: float(least + slope * parameters(job.workload(arch))),
        "macs": lambda arch: macs(job.workload(arch)),
        "params": lambda arch: parameters(job.workload(arch)),
    }


def _samples(job: Job) -> list[tuple[Architecture, Measurement]]:
    return CostStore(job.path / "latency.costs").samples(job.target.fingerprint())


def latency(job: Job) -> Callable[[Architecture], float]:
    """Milliseconds of an architecture: as measured for those that were, as predicted for all others."""
    samples = _samples(job)
    measured = {arch: float(ms) for (arch, _), ms in zip(samples, typical([m for _, m in samples]), strict=True)}
    predictor = WorkloadLatency(job.workload).fit(list(measured), np.array([*measured.values()]))
    return lambda arch: measured[arch] if arch in measured else float(predictor.predict([arch])[0][0])


def samples_within(job: Job) -> list[Architecture]:
    """The measured sample networks that keep all limits, from fast to slow."""
    counted = counts(job)
    values = [
        (
            found.latency_ms,
            arch,
            {"latency_ms": found.latency_ms, **{name: count(arch) for name, count in counted.items()}},
        )
        for arch, found in _samples(job)
    ]
    within = [(ms, arch) for ms, arch, value in values if all(value[n] <= limit for n, limit in job.limits.items())]
    return [arch for _, arch in sorted(within, key=lambda pair: pair[0])]


def typical(measurements: Sequence[Measurement]) -> Array:
    """(N,) milliseconds that other work on the machine disturbs least: each p10, at the level of the medians."""
    p10, p50 = (np.array([getattr(m, name) for m in measurements]) for name in ("p10", "latency_ms"))
    return np.asarray(p10 * np.median(p50 / p10))


def _write_model(job: Job, measured: dict[Architecture, Measurement]) -> None:
    """State what the predictor is worth, on networks that the fit has not seen."""
    archs, values = list(measured), np.array([m.latency_ms for m in measured.values()])
    predicted = cross_validated(WorkloadLatency(job.workload), archs, typical([*measured.values()]))
    pairs = [
        {"id": arch.id, "predicted_ms": float(p), "measured_ms": float(v), "held_out": True}
        for arch, p, v in zip(archs, predicted, values, strict=True)
    ]
    errors = {
        "mape": float(np.mean(np.abs(predicted / values - 1.0))),
        "spearman": _correlation(spearmanr, predicted, values),
        "kendall": _correlation(kendalltau, predicted, values),
    }
    method = "5-fold cross-validation: each network is predicted by a fit that has not seen it"
    write_json(
        job.path / "latency_model.json",
        {"samples": len(archs), "held_out": len(archs), "method": method, **errors, "pairs": pairs},
    )
    ranked = "no rank correlation" if errors["spearman"] is None else f"rank correlation {errors['spearman']:.3f}"
    job.say(f"latency model: error {errors['mape']:.1%}, {ranked} on held-out networks")


def _correlation(statistic: Callable[..., Any], a: Array, b: Array) -> float | None:
    """The rank correlation, None where all of one side are equal."""
    return float(statistic(a, b).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else None


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
