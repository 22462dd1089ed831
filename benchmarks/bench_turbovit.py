"""Generative search on NAS-Bench-201 beside its published row, and under a FLOPs bound on NAS-Bench-Macro.

NAS-Bench-201: 200-epoch test accuracy of the best of 50, 100, 200 and 400 queries by 12-epoch validation, 100 seeds.
NAS-Bench-Macro: the most accurate network with at most the median FLOPs is known by enumeration; how many of 30
searches find it within 300 queries, and how many of the last 20 candidates exceed the bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from incumbents import Make, nasbench201_values
from sartor.search import search
from sartor.strategies.random_search import RandomSearch
from sartor.strategies.regularized_evolution import RegularizedEvolution
from sartor.strategies.turbovit import TurboViT
from sartor.tables import load

Row = Mapping[str, str | float | int | None]
AFTER = (50, 100, 200, 400)
PUBLISHED = (93.71, 94.03, 94.31, 94.37)


def rows(quick: bool) -> Iterator[Row]:
    """A row per number of queries, then one per strategy under the bound."""
    seeds = 10 if quick else 100
    for queries, values, published in zip(AFTER, nasbench201_values(TurboViT, seeds, AFTER).T, PUBLISHED, strict=True):
        yield {
            "task": f"nasbench201, {queries} queries",
            "strategy": "turbovit",
            "seeds": seeds,
            "mean": round(float(values.mean()), 3),
            "deviation": round(float(values.std(ddof=1)), 3),
            "published": published,
            "over the bound": None,
        }
    makes: dict[str, Make] = {
        "turbovit": TurboViT,
        "regularized_evolution": lambda s, o: RegularizedEvolution(s, o, population=30, tournament=10),
        "random_search": RandomSearch,
    }
    for name, make in makes.items():
        yield bounded(name, make, 3 if quick else 30)


def bounded(name: str, make: Make, seeds: int) -> Row:
    """Search NAS-Bench-Macro under the median of its FLOPs; the mean is the share of searches that hit the optimum."""
    table = load("nasbench_macro")
    flops, accuracy = table.column("flops_m"), table.column("accuracy")
    limit = float(np.median(flops))
    best = float(accuracy[flops <= limit].max())
    objectives = [table.objective("accuracy"), table.objective("flops_m", at_most=limit)]
    hits, beyond = [], []
    for seed in range(seeds):
        log = search(table.space, make(table.space, objectives), objectives, trials=300, seed=seed)
        hits.append(max(trial.values["accuracy"] for trial in log if trial.state == "done") >= best)
        beyond.append(sum(trial.state == "infeasible" for trial in log[-20:]))
    return {
        "task": "nasbench_macro, optimum under the median FLOPs in 300 queries",
        "strategy": name,
        "seeds": seeds,
        "mean": round(float(np.mean(hits)), 3),
        "deviation": round(float(np.std(hits, ddof=1)), 3),
        "published": None,
        "over the bound": f"{np.mean(beyond):.1f} of the last 20",
    }
