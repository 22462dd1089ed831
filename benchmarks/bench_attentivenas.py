"""AttentiveNAS and AlphaNet: which sub-networks of a cost are trained, and by which divergence they learn.

*Supernets*: noisy digits, the elastic MobileNet for 8x8 images, equal passes; hypervolume of multiply-accumulates (as a
share of the largest network's) and error over 100 networks spread over the costs, in % of its greatest possible value.
The middle networks of the sandwich are drawn uniformly (BigNAS), as the best (BestUp-3) or worst (WorstUp-3) of three
of one cost, or as one of a cost; AlphaNet draws uniformly and has another divergence; it asks for
gradients to be clipped by value, which the common recipe does not, so two rows do. Looks are forward passes without
gradients, which come on top of the passes.

*Divergences*: a student of one Gaussian approximates a mixture of three on 200 points of a line, by Adam, from several
starts; the greatest over-estimate log q - log p and the greatest under-estimate log p - log q, over the points where
the target or the student has at least a thousandth of its greatest probability. Means over the starts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oneshot_common import RECIPE, Comparison, digits, spread
from sartor.architecture import Architecture
from sartor.oneshot._binned import Bins
from sartor.oneshot._macs import Macs
from sartor.oneshot.divergences import adaptive_alpha_divergence, alpha_divergence, kl
from sartor.pareto import hypervolume

Row = Mapping[str, str | float | int | None]
Divergence = Callable[[Tensor, Tensor], Tensor]

PASSES, SEEDS, NETWORKS = 800, 3, 100
CLIPPED = replace(RECIPE, clip_value=1.0)
LEARNERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "uniform (BigNAS)": ("bignas", {}),
    "one of a cost": ("attentivenas", {"candidates": 1}),
    "BestUp-3": ("attentivenas", {}),
    "WorstUp-3": ("attentivenas", {"pick": "worst"}),
    "AlphaNet": ("alphanet", {}),
    "uniform, gradients clipped": ("bignas", {"recipe": CLIPPED}),
    "AlphaNet, gradients clipped": ("alphanet", {"recipe": CLIPPED}),
}
DIVERGENCES: Mapping[str, Divergence] = {
    "KL, alpha 1": kl,
    "alpha -1, clip 5": partial(alpha_divergence, alpha=-1.0, clip=5.0),
    "adaptive, clip 5": adaptive_alpha_divergence,
    "adaptive, no clip": partial(adaptive_alpha_divergence, clip=float("inf")),
}


def rows(quick: bool) -> Iterator[Row]:
    """A row per divergence, and one per way to train."""
    yield from three_modes(100 if quick else 1500, 1 if quick else 4)
    comparison = digits()
    yield from supernets(comparison, 80 if quick else PASSES, 1 if quick else SEEDS)


def supernets(comparison: Comparison, passes: int, seeds: int) -> Iterator[Row]:
    """A row per way to train."""
    bins = Bins(comparison.space, Macs(comparison.network(), (1, 8, 8)), count=20)
    rng = random.Random("evaluated")
    archs = [bins.sample(bins.met[i % len(bins.met)], rng) for i in range(NETWORKS)]
    for label, (name, given) in LEARNERS.items():
        found = [_trained(comparison, label, name, given, passes, seed, archs) for seed in range(seeds)]
        volumes = [_volume(bins, archs, one["scores"]) for one in found]
        yield {
            "proof": f"supernets, {passes} passes, {seeds} seeds",
            "what": label,
            "hypervolume, %": spread(volumes, 2),
            "mean accuracy, %": spread([100 * float(np.mean(one["scores"])) for one in found]),
            "over-estimate": None,
            "under-estimate": None,
            "looks": found[0]["effort"][1],
            "CPU s": float(np.mean([one["cpu_s"] for one in found])),
        }


def _trained(
    comparison: Comparison,
    label: str,
    name: str,
    given: Mapping[str, Any],
    passes: int,
    seed: int,
    archs: list[Architecture],
) -> Mapping[str, Any]:
    def made() -> Mapping[str, Any]:
        learner, seconds = comparison.learned(name, seed, passes, **given)
        scores = [comparison.score(comparison.specialised(learner, arch))[0] for arch in archs]
        return {"scores": scores, "effort": list(learner.effort), "cpu_s": seconds}

    return comparison._kept(f"attentive/{label}-{passes}-{seed}", made)


def _volume(bins: Bins, archs: list[Architecture], accuracy: list[float]) -> float:
    points = [(bins.cost(arch) / bins.high, 1.0 - value) for arch, value in zip(archs, accuracy, strict=True)]
    return 100 * hypervolume(points, [1.0, 1.0])


def three_modes(steps: int, starts: int) -> Iterator[Row]:
    """A row per divergence: how far a Gaussian is from a mixture of three at most, in nats."""
    line = torch.linspace(-6.0, 6.0, 200)
    modes = torch.tensor([[-2.5, 0.0, 2.5], [0.7, 0.7, 0.7]])
    teacher = torch.logsumexp(-(((line[:, None] - modes[0]) / modes[1]) ** 2) / 2, 1)[None]
    for name, divergence in DIVERGENCES.items():
        errors = np.mean([_fitted(line, teacher, divergence, steps, start) for start in range(starts)], axis=0)
        yield {
            "proof": f"three modes, {starts} starts",
            "what": name,
            "hypervolume, %": None,
            "mean accuracy, %": None,
            "over-estimate": float(errors[0]),
            "under-estimate": float(errors[1]),
            "looks": None,
            "CPU s": None,
        }


def _fitted(line: Tensor, teacher: Tensor, divergence: Divergence, steps: int, start: int) -> tuple[float, float]:
    randomness = torch.Generator().manual_seed(start)
    mean = (4 * torch.rand((), generator=randomness) - 2).requires_grad_()
    log_scale = (torch.rand((), generator=randomness) - 0.5).requires_grad_()
    optimizer = torch.optim.Adam([mean, log_scale], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        divergence(_student(line, mean, log_scale), teacher).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        log_q, log_p = _student(line, mean, log_scale).log_softmax(1), teacher.log_softmax(1)
    floor = torch.log(torch.tensor(1e-3))
    seen = (log_p > log_p.max() + floor) | (log_q > log_q.max() + floor)
    gap = (log_q - log_p)[seen]
    return float(gap.max()), float((-gap).max())


def _student(line: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    logits: Tensor = -(((line - mean) / log_scale.exp()) ** 2)[None] / 2
    return logits
