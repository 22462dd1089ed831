"""Six strategies on NAS-Bench-201 beside the means that were published for them: the first test of a scoreboard.

The searches read the 12-epoch validation accuracy of CIFAR-10; the value is the 200-epoch test accuracy of the
incumbent after 50, 100, 200 and 400 queries (optimum 94.37). Two means agree if they differ by no more than two
standard errors of the difference; over all cells, this is a two-sided p of 0.0455 corrected by Holm. Published means
are rounded to 0.01, which is allowed for; where no deviation was published, ours stands for both. GBDT-NAS runs each
budget by itself, as half of it is drawn at random. 100 seeds, GBDT-NAS 30.

SARTOR_OUT keeps the scoreboards.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.bench import Entry, bench, table_problem
from sartor.bench.curves import curves
from sartor.bench.queries import read_queries
from sartor.bench.running import read_record
from sartor.bench.statistics import holm, two_standard_errors
from sartor.objective import Objective
from sartor.protocols import Strategy
from sartor.space import SearchSpace

Row = Mapping[str, str | float | int | None]

STEPS = (50, 100, 200, 400)
TWO_ERRORS = math.erfc(2 / math.sqrt(2))
ROUNDED = 0.005
EDGES = ("op_01", "op_02", "op_12", "op_03", "op_13", "op_23")  # in the order of the cell's string


@dataclass(frozen=True)
class Published:
    """Mean and, where it was stated, standard deviation after each of STEPS, over `seeds` searches."""

    means: tuple[float, float, float, float]
    seeds: int
    deviations: tuple[float | None, ...] = (None, None, None, None)


SCOREBOARD = {
    "random": Published((93.40, 93.68, 93.88, 93.99), 100, (0.59, 0.42, 0.28, 0.22)),
    "MCTS": Published((93.50, 93.86, 93.97, 94.07), 100),
    "REINFORCE": Published((93.58, 93.82, 93.95, 94.11), 100),
    "regularized evolution": Published((93.71, 94.07, 94.22, 94.26), 100, (0.53, 0.33, 0.27, 0.24)),
    "GBDT-NAS": Published((93.82, 94.14, 94.33, 94.37), 30, (None, None, None, 0.0)),
    "local search": Published((93.87, 94.16, 94.32, 94.37), 100, (0.61, 0.27, 0.16, 0.0)),
}


def reinforce(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """Return the table of logits, one row per edge, trained with a learning rate of 0.01."""
    from sartor.strategies.nasnet_controller import FactorisedPolicy, NASNetController, Reinforce

    update = Reinforce(learning_rate=0.01, decay=0.9)
    return NASNetController(space, objectives, policy=FactorisedPolicy, update=update)


def entries() -> list[Entry]:
    """Return the strategies with the hyper-parameters of the published runs."""
    same = "nothing here: the settings of the published runs"
    entry = partial(Entry, tuned=same)
    mcts = {"exploration": 0.2, "rewards": (0.0, 100.0), "order": EDGES}
    return [
        entry("random", "random_search"),
        entry("MCTS", "deeparchitect_mcts", settings=mcts),
        entry("REINFORCE", reinforce),
        entry("regularized evolution", "regularized_evolution", settings={"population": 30, "tournament": 10}),
        entry("local search", "local_search", settings={"initial": 1}),
    ]


def rows(quick: bool) -> Iterator[Row]:
    """A row per strategy and number of queries."""
    seeds = 8 if quick else 100
    steps = STEPS[:2] if quick else STEPS
    with tempfile.TemporaryDirectory() as folder:
        out = Path(os.environ.get("SARTOR_OUT", folder))
        found = searched(out / "all", entries(), seeds, steps[-1])
        trees = [Entry("GBDT-NAS", "gbdt_nas", tuned="nothing here: the settings of the published runs")]
        by_budget = [searched(out / f"gbdt-{step}", trees, min(seeds, 30), step)["GBDT-NAS"][:, -1] for step in steps]
    ours = {name: [curve[:, step - 1] for step in steps] for name, curve in found.items()} | {"GBDT-NAS": by_budget}
    cells = [(name, place) for name in SCOREBOARD for place in range(len(steps))]
    p_values = [p_value(ours[name][place], SCOREBOARD[name], place) for name, place in cells]
    corrected = holm(p_values)
    for (name, place), p, after in zip(cells, p_values, corrected.tolist(), strict=True):
        values = ours[name][place]
        yield {
            "strategy": name,
            "queries": steps[place],
            "seeds": len(values),
            "ours": round(float(values.mean()), 3),
            "deviation": round(float(values.std(ddof=1)), 3),
            "published": SCOREBOARD[name].means[place],
            "p": p,
            "p, Holm": after,
            "agrees": "yes" if after >= TWO_ERRORS else "no",
        }


def searched(out: Path, taking_part: Sequence[Entry], seeds: int, queries: int) -> dict[str, NDArray[Any]]:
    """Return for each entry the (seeds, queries) reported values of its incumbents."""
    out.parent.mkdir(parents=True, exist_ok=True)
    problem = table_problem("nasbench201", "cifar10")
    bench(problem, taking_part, queries=queries, seeds=seeds, out=out, resume=out.exists())
    searches = read_queries(out, read_record(out)["problem"])
    return {name: curves(one, "max", None).reported for name, one in searches.items()}


def p_value(ours: NDArray[Any], published: Published, place: int) -> float:
    """Return the p-value of the difference to the published mean, less what rounding may have made of it."""
    mean, spread = float(ours.mean()), float(np.std(ours, ddof=1))
    gap = max(0.0, abs(mean - published.means[place]) - ROUNDED)
    deviation = published.deviations[place]
    return two_standard_errors(
        (gap, spread, len(ours)), (0.0, spread if deviation is None else deviation, published.seeds)
    )
