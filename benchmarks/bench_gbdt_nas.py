"""GBDT-NAS on NAS-Bench-201: its row of the scoreboard, queries saved over random search, and what pruning keeps.

Searches read the 12-epoch validation accuracy of CIFAR-10; the value is the 200-epoch test accuracy of the incumbent.
Rows by budget: half of it random, then three rounds. Queries saved: random search's mean after 400 queries, by test and
by the validation accuracy that the search reads, and after how many a GBDT-NAS of small rounds has it. Pruning: the
options of the least SHAP values are pruned from 150 random networks, and the space that is left is looked at whole.
SARTOR_SEEDS sets the seeds (30).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from incumbents import SIGNAL, VALUE, Make, nasbench201_values
from sartor.encodings import architectures, enumerated
from sartor.search import search
from sartor.strategies.gbdt_nas import GBDTNAS
from sartor.strategies.random_search import RandomSearch
from sartor.tables import load
from sartor.trial import Trial

Row = Mapping[str, str | float | int | None]
PUBLISHED = {50: 93.82, 100: 94.14, 200: 94.33, 400: 94.37}
RANDOM = 93.99
UPTO = 100


def rows(quick: bool) -> Iterator[Row]:
    """Rows of the scoreboard, of the queries saved and of the pruning."""
    seeds = 3 if quick else int(os.environ.get("SARTOR_SEEDS", "30"))
    for queries, published in PUBLISHED.items():
        values = nasbench201_values(partial(GBDTNAS, queries=queries), seeds, [queries])[:, 0]
        yield found(f"after {queries} queries", seeds, values, published)
    theirs = incumbents(RandomSearch, seeds if quick else 100, 400)[:, :, -1]
    yield found("random search, after 400 queries", len(theirs[0]), theirs[0], RANDOM)
    yield found("random search, after 400 queries: validation", len(theirs[1]), theirs[1], None)
    curves = incumbents(partial(GBDTNAS, initial=15, batch=5), seeds, UPTO)
    for queries in (30, 40, 50, 75, 100):
        yield found(f"rounds of 5, after {queries} queries", seeds, curves[0, :, queries - 1], None)
    for what, curve, mean in zip(("test", "validation"), curves, theirs.mean(axis=1), strict=True):
        reached = np.flatnonzero(curve.mean(axis=0) >= mean)
        yield found(f"rounds of 5, queries to random search's mean: {what}", seeds, reached[:1] + 1.0, None)
    yield from pruning(2 if quick else 10)


def incumbents(make: Make, seeds: int, queries: int) -> NDArray[np.float64]:
    """Return (2, seeds, queries): test and validation accuracy of the best by validation after each query."""
    table = load("nasbench201")
    objectives = [table.objective(SIGNAL)]
    curves = []
    for seed in range(seeds):
        log = search(table.space, make(table.space, objectives), objectives, trials=queries, seed=seed)
        archs = [trial.arch for trial in log]
        signal = table.values(SIGNAL, archs)
        best = [int(np.argmax(signal[: count + 1])) for count in range(queries)]
        curves.append([table.values(VALUE, archs)[best], signal[best]])
    return np.array(curves).transpose(1, 0, 2)


def found(what: str, seeds: int, values: NDArray[Any], published: float | None) -> Row:
    """One line."""
    spread = round(float(np.std(values, ddof=1)), 3) if len(values) > 1 else None
    mean = round(float(np.mean(values)), 3) if len(values) else None
    return {"what": what, "seeds": seeds, "mean": mean, "deviation": spread, "published": published}


def pruning(seeds: int) -> Iterator[Row]:
    """Prune at most 10 of the 30 pairs of edge and operation once, after 150 random networks."""
    table = load("nasbench201")
    objectives = [table.objective(SIGNAL)]
    value = table.values(VALUE, table.architectures())
    best = set(np.argsort(-value)[:15].tolist())
    kept, mean, top, optimum = [], [], [], []
    for seed in range(seeds):
        strategy, rng = GBDTNAS(table.space, objectives, initial=150, batch=10, prune=10), random.Random(seed)
        for number in range(150):
            arch = table.space.sample(rng)
            strategy.tell(Trial(number, arch, {SIGNAL: float(table.values(SIGNAL, [arch])[0])}, state="done"))
        left = table.rows(architectures(strategy.pruned, enumerated(strategy.pruned)))
        kept.append(100 * len(left) / len(value))
        mean.append(value[left].mean())
        top.append(100 * len(best & set(left.tolist())) / 15)
        optimum.append(100.0 * (int(value.argmax()) in set(left.tolist())))
    for what, values, published in (
        ("pruning: space kept, %", kept, 7.9),
        ("pruning: mean test accuracy (87.04 before)", mean, 92.16),
        ("pruning: of the 15 best kept, %", top, 86.0),
        ("pruning: optimum kept, % of seeds", optimum, 90.0),
    ):
        yield found(what, seeds, np.array(values), published)
