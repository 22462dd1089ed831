"""LINAS, NSGA-II and random search on NAS-Bench-Macro: hypervolume of accuracy and FLOPs over that of the optimum.

Reference point: 1.01 times the most FLOPs, and 85 %. Populations of 25; the published means are of 5 seeds. The inner
search of LINAS is shown in both forms: the whole space predicted, and an evolution of 2,000 predictions. Warm start:
the front found for FLOPs in 100 evaluations starts a search for parameters. SARTOR_SEEDS sets the seeds (10).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.objective import Objective, costs
from sartor.pareto import hypervolume
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies.linas import LINAS
from sartor.strategies.nsga2 import NSGA2
from sartor.strategies.random_search import RandomSearch
from sartor.tables import load

Row = Mapping[str, str | float | int | None]
Make = Callable[..., Strategy]
AFTER = (25, 50, 100, 150, 200)
PUBLISHED: dict[str, tuple[float | None, ...]] = {
    "random search": (0.821, 0.848, 0.904, 0.908, 0.919),
    "NSGA-II": (0.807, 0.862, 0.923, 0.953, 0.966),
    "LINAS": (0.807, 0.938, 0.965, 0.975, 0.977),
}


class Evolving(LINAS):
    """LINAS that never predicts the whole space."""

    def __init__(self, space: SearchSpace, objectives: Sequence[Objective], **sizes: int) -> None:
        """Forget the list of the space."""
        super().__init__(space, objectives, **sizes)  # type: ignore[arg-type]
        self._whole = None


def rows(quick: bool) -> Iterator[Row]:
    """A row per strategy and number of evaluations."""
    seeds = 2 if quick else int(os.environ.get("SARTOR_SEEDS", "10"))
    makes: dict[str, Make] = {
        "random search": RandomSearch,
        "NSGA-II": partial(NSGA2, population=25),
        "LINAS": partial(LINAS, population=25),
        "LINAS, inner evolution": partial(Evolving, population=25, evaluations=2000),
    }
    for name, make in makes.items():
        volumes = np.array([searched(make, "flops_m", seed, 100 if quick else 200) for seed in range(seeds)])
        for place, queries in enumerate(AFTER[: volumes.shape[1]]):
            yield row(name, "flops_m", queries, volumes[:, place], PUBLISHED.get(name, (None,) * 5)[place])
    cold, warm = [], []
    for seed in range(seeds):
        cold.append(searched(partial(LINAS, population=25), "params_m", 1000 + seed, 100))
        found = front("flops_m", seed)
        warm.append(searched(partial(LINAS, population=25, warm=found), "params_m", 1000 + seed, 100))
    for name, volumes in (("LINAS, cold", np.array(cold)), ("LINAS, warm from FLOPs", np.array(warm))):
        for place, queries in enumerate(AFTER[:3]):
            yield row(name, "params_m", queries, volumes[:, place], None)


def row(name: str, cost: str, queries: int, volumes: NDArray[np.float64], published: float | None) -> Row:
    """One line."""
    return {
        "strategy": name,
        "cost": cost,
        "evaluations": queries,
        "seeds": len(volumes),
        "hypervolume": round(float(volumes.mean()), 3),
        "deviation": round(float(volumes.std(ddof=1)), 3),
        "published": published,
    }


def problem(cost: str) -> tuple[list[Objective], list[float], float]:
    """Return the objectives, the reference point and the hypervolume of the whole table."""
    table = load("nasbench_macro")
    objectives = [table.objective("accuracy", goal="max"), table.objective(cost)]
    costliest = table.values(cost, table.architectures())
    reference = [-85.0, 1.01 * float(costliest.max())]
    points = np.stack([-table.values("accuracy", table.architectures()), costliest], axis=1)
    return objectives, reference, hypervolume(points, reference)


def searched(make: Make, cost: str, seed: int, trials: int) -> list[float]:
    """Return the shares of the optimum after each of AFTER up to `trials`."""
    objectives, reference, optimum = problem(cost)
    space = load("nasbench_macro").space
    log = search(space, make(space, objectives), objectives, trials=trials, seed=seed)
    points = np.array([costs(trial, objectives) for trial in log])
    return [hypervolume(points[:queries], reference) / optimum for queries in AFTER if queries <= trials]


def front(cost: str, seed: int) -> list[Architecture]:
    """Return the front of a search of 100 evaluations."""
    objectives, _, _ = problem(cost)
    space = load("nasbench_macro").space
    log = search(space, LINAS(space, objectives, population=25), objectives, trials=100, seed=seed)
    return [trial.arch for trial in log.pareto(objectives)]
