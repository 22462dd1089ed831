"""BOSHNAS beside random search, regularized evolution and GBDT-NAS on NAS-Bench-201; GOBI and uncertainty alone.

Searches: 200-epoch test accuracy of the best of 50, 100 and 200 queries by 12-epoch validation (GBDT-NAS is told its
budget, so runs once for each). GOBI: ten queries by it and the ten best of 1,000 random candidates, from 60 random
networks told: the surrogate's bound and the true value of the best of each. Uncertainty: of 1,000 networks that were
not seen, how many lie within 1.96 standard deviations, the likelihood, and the epistemic deviation of a network
before and after its 24 neighbours are told. SARTOR_SEEDS sets the seeds (20).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from incumbents import SIGNAL, Make, nasbench201_values
from sartor import encodings
from sartor.strategies._gobi import gobi, nearest
from sartor.strategies._heteroscedastic import Heteroscedastic
from sartor.strategies.boshnas import BOSHNAS
from sartor.strategies.gbdt_nas import GBDTNAS
from sartor.strategies.random_search import RandomSearch
from sartor.strategies.regularized_evolution import RegularizedEvolution
from sartor.tables import load

Row = Mapping[str, str | float | int | None]
Floats = NDArray[np.float64]
AFTER = (50, 100, 200)


def rows(quick: bool) -> Iterator[Row]:
    """A row per strategy and number of queries, then those of the parts."""
    seeds = 2 if quick else int(os.environ.get("SARTOR_SEEDS", "20"))
    after = AFTER[:1] if quick else AFTER
    makes: dict[str, Make] = {
        "random_search": RandomSearch,
        "regularized_evolution": lambda s, o: RegularizedEvolution(s, o, population=30, tournament=10),
        "boshnas": BOSHNAS,
    }
    for name, make in makes.items():
        values = nasbench201_values(make, seeds, after)
        for queries, column in zip(after, values.T, strict=True):
            yield row(f"{name}, {queries} queries", "test accuracy, %", column)
    for queries in after:
        values = nasbench201_values(partial(GBDTNAS, queries=queries), seeds, [queries])
        yield row(f"gbdt_nas, {queries} queries", "test accuracy, %", values[:, 0])
    yield from input_optimisation(seeds)
    yield from uncertainty(seeds)


def row(what: str, unit: str, values: Floats) -> Row:
    """Return the mean and deviation over seeds."""
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    return {"what": what, "unit": unit, "seeds": len(values), "mean": mean, "deviation": deviation}


def told(seed: int, count: int) -> tuple[NDArray[np.intp], Floats, Heteroscedastic]:
    """Return rows that were told, the encodings of all rows, and the surrogate of the ranks of the told."""
    table = load("nasbench201")
    encoded = encodings.onehot(table.space, table.architectures())
    chosen = np.random.default_rng(seed).choice(len(table), count, replace=False)
    return chosen, encoded, fitted(encoded, chosen, seed)


def fitted(encoded: Floats, chosen: NDArray[np.intp], seed: int) -> Heteroscedastic:
    """Fit to the ranks of the chosen rows, from 0 for the best to 1."""
    signal = -load("nasbench201").column(SIGNAL)[chosen]
    ranks = np.argsort(np.argsort(signal)) / (len(chosen) - 1)
    return Heteroscedastic(encoded[chosen], ranks, epochs=200, rate=2e-3, seed=seed)


def input_optimisation(seeds: int) -> Iterator[Row]:
    """GOBI beside the best of random candidates."""
    table = load("nasbench201")
    best: dict[str, list[tuple[float, float]]] = {"GOBI": [], "1,000 random candidates": []}
    for seed in range(seeds):
        chosen, encoded, surrogate = told(seed, 60)
        known = set(chosen.tolist())
        bound = partial(surrogate.bound, exploration=0.5)
        rng = random.Random(seed)
        starts = encoded[rng.sample(range(len(table)), 10)]
        found: list[int] = []
        for point in gobi(bound, starts, steps=200, rate=0.5, trust=0.25, seed=seed):
            snapped = (table.row(arch) for arch in nearest(table.space, point))
            found.append(next(row for row in snapped if row not in known and row not in found))
        pool = [row for row in rng.sample(range(len(table)), 1000) if row not in known]
        random_best = [pool[i] for i in np.argsort(bound(encoded[pool])[0])[:10]]
        for name, rows_ in zip(best, (found, random_best), strict=True):
            best[name].append((float(bound(encoded[rows_])[0].min()), float(table.column(SIGNAL)[rows_].max())))
    for name, pairs in best.items():
        bounds, values = np.array(pairs).T
        yield row(f"best of 10 by {name}", "bound (lower is better)", bounds)
        yield row(f"best of 10 by {name}", "12-epoch validation accuracy, %", values)


def uncertainty(seeds: int) -> Iterator[Row]:
    """Coverage and likelihood where nothing was told, and what neighbours change."""
    table = load("nasbench201")
    signal = -table.column(SIGNAL)
    coverage, likelihood, before, after = [], [], [], []
    for seed in range(seeds):
        chosen, encoded, surrogate = told(seed, 100)
        others = np.random.default_rng(seed + 1000).choice(len(table), 1000, replace=False)
        ranks = (signal[others][:, None] > signal[chosen]).mean(axis=1)
        mean, variance = surrogate.mean(encoded[others])
        total = variance + surrogate.epistemic(encoded[others]) ** 2
        errors = ranks - mean
        coverage.append(np.mean(np.abs(errors) <= 1.96 * np.sqrt(total)))
        likelihood.append(np.mean(0.5 * (np.log(2 * np.pi * total) + errors**2 / total)))
        centre = int(others[0])
        around = table.rows(table.space.neighbours(table.architecture(centre)))
        more = fitted(encoded, np.unique(np.concatenate([chosen, around])), seed)
        before.append(float(surrogate.epistemic(encoded[[centre]])[0]))
        after.append(float(more.epistemic(encoded[[centre]])[0]))
    yield row("within 1.96 deviations, of 1,000 not told", "share", np.array(coverage))
    yield row("negative log-likelihood of 1,000 not told", "nats of ranks in [0, 1]", np.array(likelihood))
    yield row("epistemic deviation of a network", "rank in [0, 1]", np.array(before))
    yield row("epistemic deviation, its neighbours told", "rank in [0, 1]", np.array(after))
