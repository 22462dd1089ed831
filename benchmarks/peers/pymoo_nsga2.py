"""NSGA-II of pymoo on a table, one process, for `benchmarks/peer.py`: a JSON request in, a JSON answer out.

The operators are those of a categorical space, as ours: uniform crossover of probability 0.9, and each variable drawn
anew with chance 1/n. Networks without a value are constraint violations and cost nothing.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.sampling.rnd import IntegerRandomSampling


class Redraw(Mutation):  # type: ignore[misc]
    """Each variable takes another of its options with chance 1/n."""

    def _do(self, problem: Any, X: Any, random_state: Any = None, **kwargs: Any) -> Any:
        options = problem.xu + 1
        changed = random_state.random(X.shape) < 1 / X.shape[1]
        steps = (random_state.random(X.shape) * (options - 1)).astype(int) + 1
        return np.where(changed, (X + steps) % options, X)


class Table(Problem):  # type: ignore[misc]
    """All objectives looked up at once; NaN is a violation."""

    def __init__(self, values: Any) -> None:
        *options, objectives = values.shape
        super().__init__(
            n_var=len(options), n_obj=objectives, n_ieq_constr=1, xl=0, xu=np.array(options) - 1, vtype=int
        )
        self.values = values

    def _evaluate(self, x: Any, out: Any, *args: Any, **kwargs: Any) -> None:
        found = self.values[tuple(x.astype(int).T)]
        missing = np.isnan(found).any(axis=1)
        out["F"] = np.where(missing[:, None], 1e9, found)
        out["G"] = np.where(missing, 1.0, -1.0)[:, None]


def searched(values: Any, request: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return one search: what it evaluated, in order, and its CPU time."""
    problem = Table(values)
    algorithm = NSGA2(
        pop_size=request["population"],
        sampling=IntegerRandomSampling(),
        crossover=UniformCrossover(prob=0.9),
        mutation=Redraw(prob=1.0),
    )
    start = time.process_time()
    algorithm.setup(problem, termination=NoTermination(), seed=seed, verbose=False)
    found: list[list[int]] = []
    asked = 0
    while len(found) < request["queries"] and asked < 20 * request["queries"]:
        population = algorithm.ask()
        algorithm.evaluator.eval(problem, population)
        algorithm.tell(infills=population)
        asked += len(population)
        feasible = population.get("G")[:, 0] <= 0
        found += population.get("X").astype(int)[feasible].tolist()
    return {"seed": seed, "cpu_s": time.process_time() - start, "found": found[: request["queries"]]}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    table = np.load(asked["table"])
    json.dump([searched(table, asked, seed) for seed in asked["seeds"]], sys.stdout)
