"""ShiftNAS: the bias of uniform sampling, a generator of wanted costs, and bins shifted to what has most left to learn.

Space: the elastic MobileNet for 8x8 images, costs in multiply-accumulates. *Bias*: share of 10,000 uniform draws in the
central third of the range, for the network and for eight elastic choices of nine widths. *Generator*: 200 targets,
evenly spread over the range; median relative error, share within one bin (a tenth of the range) and mean Hamming
distance of 20 networks of one cost; beside it, random networks: for each target, the nearest of as many as the
generator's training asked costs for, divided by the targets. *Training*: noisy digits, equal passes, single-path
training with networks uniform over choices, with bins drawn uniformly, and ShiftNAS; accuracy in % of the smallest and
largest tenth of 40 networks spread over the range of costs, and of the mean over bins.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oneshot_common import Comparison, digits, spread
from sartor.architecture import Architecture
from sartor.oneshot._binned import Bins
from sartor.oneshot._macs import Macs
from sartor.oneshot.shiftnas_generator import CostNetwork, Generator, learn_from_cost, seeded
from sartor.space import SearchSpace

Row = Mapping[str, str | float | int | None]
Values = NDArray[np.float64]

PASSES, SEEDS, NETWORKS, BINS = 800, 3, 40, 10
WARM, ASKED, SAMPLES = 1500, 64, 8000


def rows(quick: bool) -> Iterator[Row]:
    """Rows of the three proofs."""
    comparison = digits()
    bins = binned(comparison)
    yield from bias(bins)
    yield from generator(bins, 200 if quick else WARM)
    yield from training(comparison, bins, 60 if quick else PASSES, 1 if quick else SEEDS)


def binned(comparison: Comparison) -> Bins:
    """Return the bins of the digits' space."""
    return Bins(comparison.space, Macs(comparison.network(), (1, 8, 8)), count=BINS, samples=SAMPLES)


def bias(bins: Bins) -> Iterator[Row]:
    """Share of uniform draws by thirds of the range."""
    eight = SearchSpace({f"width{i}": tuple(range(1, 10)) for i in range(8)})
    summed = Bins(eight, lambda arch: float(sum(arch.values())), count=3, samples=10_000)  # type: ignore[arg-type]
    cut = Bins(bins.space, bins.cost, count=3, samples=10_000)
    for name, found in (("sum of eight choices", summed), ("MobileNet, MACs", cut)):
        thirds = zip(("lower", "central", "upper"), found.prior.tolist(), strict=True)
        yield from _measures("bias", name, {f"draws in the {part} third, %": f"{100 * p:.1f}" for part, p in thirds})


def generator(bins: Bins, steps: int) -> Iterator[Row]:
    """Errors of the generator and of random search with as many costs."""
    targets = np.linspace(bins.low, bins.high, 200)
    before = time.process_time()
    made = learnt(bins, steps)
    seconds = time.process_time() - before
    with torch.no_grad():
        drawn = made.architectures(made(torch.from_numpy(targets), seeded(random.Random(1))))
        likeliest = made.architectures(made(torch.from_numpy(targets)))
        same = [hamming(several(made, float(target))) for target in targets[[40, 100, 160]]]
    asked = SAMPLES + steps * ASKED
    distance = {"mean Hamming distance at one cost": f"{float(np.mean(same)):.2f}"}
    yield from _measures("generator", "drawn", {**_errors(bins, drawn, targets), **distance}, seconds)
    yield from _measures("generator", "the likeliest", _errors(bins, likeliest, targets), seconds)
    rng, nearest = random.Random(2), []
    for target in targets.tolist():
        archs = [bins.space.sample(rng) for _ in range(asked // len(targets))]
        away = [abs(bins.cost(arch) - target) for arch in archs]
        nearest.append(archs[away.index(min(away))])
    what = f"the nearest of {asked // len(targets)} random ones"
    yield from _measures("generator", what, _errors(bins, nearest, targets))


def learnt(bins: Bins, steps: int) -> Generator:
    """Return a generator that learned from costs alone."""
    network, made = CostNetwork(bins.space), Generator(bins.space)
    made.know(*network.fit(bins.cost, samples=SAMPLES, steps=steps))

    def wanted(rng: random.Random) -> torch.Tensor:
        return torch.tensor([rng.uniform(bins.low, bins.high) for _ in range(ASKED)], dtype=torch.float64)

    learn_from_cost(made, network, bins.cost, wanted, steps=steps, rng=random.Random(0))
    return made


def several(made: Generator, target: float) -> list[Architecture]:
    """Return 20 networks of one cost."""
    return made.architectures(made(torch.full((20,), target, dtype=torch.float64), seeded(random.Random(3))))


def hamming(archs: Sequence[Architecture]) -> float:
    """Return the mean number of choices in which two of them differ."""
    return float(np.mean([sum(a[name] != b[name] for name in a) for a, b in itertools.combinations(archs, 2)]))


def _errors(bins: Bins, archs: Sequence[Architecture], targets: Values) -> dict[str, str]:
    costs = np.array([bins.cost(arch) for arch in archs])
    error = 100 * float(np.median(np.abs(costs - targets) / targets))
    within = 100 * float((np.abs(costs - targets) <= bins.width).mean())
    return {"median relative error, %": f"{error:.2f}", "within one bin, %": f"{within:.1f}"}


def _measures(proof: str, what: str, found: Mapping[str, str], seconds: float | None = None) -> Iterator[Row]:
    for measure, value in found.items():
        yield {"proof": proof, "what": what, "measure": measure, "value": value, "CPU s": seconds}


def training(comparison: Comparison, bins: Bins, passes: int, seeds: int) -> Iterator[Row]:
    """Accuracy at the ends and on the mean over bins, for three ways to draw networks."""
    archs = spread_over(bins)

    def flat(space: SearchSpace, rng: random.Random) -> Architecture:
        return bins.sample(rng.choice(bins.met), rng)

    methods: dict[str, tuple[str, dict[str, Any]]] = {
        "uniform": ("spos", {}),
        "uniform over costs": ("spos", {"prior": flat}),
        "ShiftNAS, bins kept uniform": ("shiftnas", {"floor": 1.0, "bins": BINS}),
        "ShiftNAS": ("shiftnas", {"bins": BINS}),
    }
    for label, (name, given) in methods.items():
        found, seconds = [], []
        for seed in range(seeds):
            scores, cpu = scored(comparison, label, name, passes, seed, archs, **given)
            found.append(by_cost(bins, archs, scores))
            seconds.append(cpu)
        ends = {key: spread([one[key] for one in found]) for key in found[0]}
        yield from _measures(f"training, {passes} passes, {seeds} seeds", label, ends, float(np.mean(seconds)))


def spread_over(bins: Bins) -> list[Architecture]:
    """Return the networks that are evaluated: as many of each bin, and both extremes."""
    rng = random.Random("evaluated")
    each = NETWORKS // len(bins.met)
    archs = [bins.sample(place, rng) for place in bins.met for _ in range(each)]
    return sorted({*archs, bins.space.smallest(), bins.space.largest()}, key=lambda arch: (bins.cost(arch), arch.id))


def scored(
    comparison: Comparison, label: str, name: str, passes: int, seed: int, archs: list[Architecture], **given: Any
) -> tuple[list[float], float]:
    """Return the accuracy of each network, and the CPU seconds of the training; kept."""

    def made() -> Mapping[str, Any]:
        learner, seconds = comparison.learned(name, seed, passes, **given)
        return {"scores": [comparison.score(comparison.specialised(learner, a))[0] for a in archs], "cpu_s": seconds}

    kept = comparison._kept(f"shift/{label}-{passes}-{seed}", made)
    return kept["scores"], kept["cpu_s"]


def by_cost(bins: Bins, archs: list[Architecture], scores: list[float]) -> dict[str, float]:
    """Return accuracy in % of the cheapest and the costliest tenth, and the mean of the bins' means."""
    accuracy = 100 * np.array(scores)
    tenth = max(1, len(archs) // 10)
    places = np.array([bins.of(arch) for arch in archs])
    mean = float(np.mean([accuracy[places == place].mean() for place in np.unique(places)]))
    return {
        "accuracy of the smallest tenth, %": float(accuracy[:tenth].mean()),
        "accuracy of the largest tenth, %": float(accuracy[-tenth:].mean()),
        "mean accuracy over bins, %": mean,
    }
