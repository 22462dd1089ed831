# SPDX-License-Identifier: Apache-2.0
"""LA-DARTS on NAS-Bench-201: the regressor beside a table, its gap off the manifold, and what lambda buys.

Regressor: 500 and 2,000 networks of a measured device (HELP's tables), 1,000 held out; 3 seeds. Gap: a soft
prediction over the mean prediction of 512 drawn networks, minus 1; probabilities of logits of a scale, 10 draws a seed.
Search: gradient descent on alpha, cross-entropy replaced by the validation error (12 epochs) that a second regressor
has learnt from 2,000 networks, plus lambda times latency in units of its mean; the option with the largest probability
is taken; the test accuracy is that of the table (CIFAR-10, 200 epochs).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sartor.architecture import Architecture
from sartor.predictors import LADARTS, Ridge
from sartor.predictors.la_darts import off_manifold_gap
from sartor.ranking import kendall_tau
from sartor.tables import Table, load

Row = Mapping[str, str | float | int | None]
Floats = NDArray[np.float64]

COLUMNS = (
    "part", "device", "what", "samples", "seeds", "mape", "tau", "gap uniform", "gap 1", "gap 3",
    "latency saved", "accuracy lost",
)  # fmt: skip


def rows(quick: bool) -> Iterator[Row]:
    """A row per question, device and variant; seeds are summarised by their mean."""
    table, seeds = load("nasbench201"), range(1 if quick else 3)
    for device in ("raspi4",) if quick else ("raspi4", "pixel3"):
        for samples in (500,) if quick else (500, 2000):
            yield from accuracy(table, device, samples, seeds)
        yield from gaps(table, device, seeds)
        yield from searches(table, device, seeds)


def accuracy(table: Table, device: str, samples: int, seeds: Sequence[int]) -> Iterator[Row]:
    """Compare the regressor with the additive table (ridge) on networks that neither has seen."""
    found: dict[str, list[tuple[float, float]]] = {"regressor": [], "additive table": []}
    for seed in seeds:
        archs = drawn(table, samples + 1000, seed)
        known, held = archs[:samples], archs[samples:]
        values, true = latencies(table, device, known), latencies(table, device, held)
        for name, model in (
            ("regressor", LADARTS(table.space, seed=seed)),
            ("additive table", Ridge(table.space, alpha=1e-3)),
        ):
            predicted = model.fit(known, values).predict(held)[0]
            found[name].append((float(np.mean(np.abs(predicted / true - 1))), kendall_tau(predicted, true)))
    for name, pairs in found.items():
        mape, tau = np.mean(pairs, axis=0)
        yield row("accuracy", device, name, samples=samples, seeds=len(seeds), mape=float(mape), tau=float(tau))


def gaps(table: Table, device: str, seeds: Sequence[int]) -> Iterator[Row]:
    """State how far soft predictions are from those of drawn networks, with and without correction."""
    variants = {"raw": (None, 0), "two kept": (2, 0), "one kept": (1, 0), "mixtures": (None, 1), "both": (2, 1)}
    found: dict[str, list[list[float]]] = {name: [] for name in variants}
    for seed in seeds:
        archs = drawn(table, 500, seed)
        fitted = {
            mixtures: LADARTS(table.space, mixtures=mixtures, seed=seed).fit(archs, latencies(table, device, archs))
            for mixtures in (0, 1)
        }
        for name, (keep, mixtures) in variants.items():
            fitted[mixtures].keep = keep
            found[name].append([gap(fitted[mixtures], scale, seed) for scale in (0.0, 1.0, 3.0)])
    for name, several in found.items():
        uniform, one, three = np.mean(several, axis=0)
        numbers = {"gap uniform": float(uniform), "gap 1": float(one), "gap 3": float(three)}
        yield row("gap", device, name, samples=500, seeds=len(seeds), **numbers)


def gap(predictor: LADARTS, scale: float, seed: int) -> float:
    """Return the mean gap over ten draws of logits."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    found = []
    for _ in range(10):
        weights = {
            name: torch.softmax(scale * torch.randn(len(options), generator=generator), 0)
            for name, options in predictor.space.choices.items()
        }
        found.append(off_manifold_gap(predictor, weights, rng=rng))
    return float(np.mean(found))


def searches(table: Table, device: str, seeds: Sequence[int]) -> Iterator[Row]:
    """Sweep lambda: what latency falls by, and what accuracy with it, against lambda = 0."""
    strengths = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)
    for what, keep, mixtures in (("search, two kept", 2, 0), ("search, mixtures", None, 1)):
        found = []
        for seed in seeds:
            archs = drawn(table, 2000, seed)
            ms = latencies(table, device, archs)
            latency = LADARTS(table.space, keep=keep, mixtures=mixtures, seed=seed).fit(archs, ms / ms.mean())
            errors = 100 - table.values("cifar10_val12", archs)
            error = LADARTS(table.space, keep=keep, mixtures=mixtures, seed=seed).fit(archs, errors)
            found.append([derived(error, latency, strength, seed) for strength in strengths])
        for place, strength in enumerate(strengths):
            pairs = [outcome(table, device, several[place], several[0]) for several in found]
            saved, lost = np.mean(pairs, axis=0)
            numbers = {"latency saved": float(saved), "accuracy lost": float(lost)}
            yield row("search", device, f"{what}, lambda {strength:g}", samples=2000, seeds=len(seeds), **numbers)


def derived(error: LADARTS, latency: LADARTS, strength: float, seed: int) -> Architecture:
    """Descend on alpha, 150 steps of Adam from small random values, and take the largest probabilities."""
    space, generator = error.space, torch.Generator().manual_seed(seed)
    alphas = {
        name: (1e-3 * torch.randn(len(o), generator=generator)).requires_grad_() for name, o in space.choices.items()
    }
    optimiser = torch.optim.Adam(alphas.values(), lr=0.1)
    for _ in range(150):
        weights: dict[str, Tensor] = {name: torch.softmax(alpha, 0) for name, alpha in alphas.items()}
        optimiser.zero_grad()
        loss: Tensor = error(weights) + strength * latency(weights)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return space.canonical({name: space.choices[name][int(alpha.argmax())] for name, alpha in alphas.items()})


def outcome(table: Table, device: str, found: Architecture, base: Architecture) -> tuple[float, float]:
    """Return the share of latency saved, and the points of test accuracy lost."""
    ms, accuracies = latencies(table, device, [found, base]), table.values("cifar10", [found, base])
    return float(1 - ms[0] / ms[1]), float(accuracies[1] - accuracies[0])


def drawn(table: Table, count: int, seed: int) -> list[Architecture]:
    """Return different networks whose output depends on their input: on phones the others take no time."""
    rng, found = random.Random(seed), dict[Architecture, None]()
    while len(found) < count:
        arch = table.space.sample(rng)
        if table.values("connected", [arch])[0]:
            found[arch] = None
    return list(found)


def latencies(table: Table, device: str, archs: Sequence[Architecture]) -> Floats:
    """Return the (N,) measured milliseconds."""
    return np.asarray(table.values(f"help_{device}_ms", archs), dtype=np.float64)


def row(part: str, device: str, what: str, **numbers: float) -> Row:
    """Return a row with all columns."""
    return {**dict.fromkeys(COLUMNS), "part": part, "device": device, "what": what, **numbers}
