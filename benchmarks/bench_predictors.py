"""Predictors by rank correlation from few labels: losses of values and of the order, and pretraining.

Held-out Kendall tau, mean and standard deviation over seeds that draw the labelled networks; 2,000 others are ranked.
NAS-Bench-201 (CIFAR-10 test accuracy) and NAS-Bench-Macro. `published` are values measured before with networks of the
same size; the pretrained encoder learns FLOPs and parameters on Macro, and how often each operation occurs on
NAS-Bench-201. SARTOR_SEEDS sets the seeds (10), SARTOR_GCN those of the graph network, at its published size (2).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from sartor.predictors import GBDT, GCN, MLP, GaussianProcess, PretrainedMLP, Ridge
from sartor.predictors.losses import bpr, diffkendall, mse, pairwise_hinge
from sartor.protocols import Predictor
from sartor.ranking import kendall_tau
from sartor.tables import Table, load

Row = Mapping[str, str | float | int | None]
Make = Callable[[Table, int], Predictor]

HELD_OUT = 2000
LABELS = {"nasbench201": (20, 50, 78, 156, 400), "nasbench_macro": (20, 50, 100, 200)}
VALUE = {"nasbench201": "cifar10", "nasbench_macro": "accuracy"}
EDGES = ("op_01", "op_02", "op_12", "op_03", "op_13", "op_23")
LINKS = [(one, other) for one in EDGES for other in EDGES if one[-1] == other[-2]]
PUBLISHED: dict[tuple[str, str], tuple[float | None, ...]] = {
    ("nasbench201", "MLP, squares"): (0.315, 0.403, 0.432, 0.545, 0.637),
    ("nasbench201", "MLP, hinge of pairs"): (0.374, 0.524, 0.588, 0.649, 0.730),
    ("nasbench201", "MLP, DiffKendall"): (0.389, 0.534, 0.596, 0.656, 0.732),
    ("nasbench201", "pretrained MLP"): (0.360, 0.405, 0.454, None, None),
    ("nasbench201", "GBDT"): (None, 0.322, None, None, 0.606),
    ("nasbench_macro", "MLP, squares"): (0.654, 0.811, 0.857, 0.895),
    ("nasbench_macro", "MLP, DiffKendall"): (0.694, 0.832, 0.883, 0.903),
    ("nasbench_macro", "pretrained MLP"): (0.729, 0.835, 0.872, 0.895),
    ("nasbench_macro", "GBDT"): (None, 0.729, 0.810, 0.848),
}


def pretrained(table: Table, seed: int) -> Predictor:
    """Return the predictor of FBNetV3 with what is free of the table."""
    if "flops_m" not in table.columns or table.name == "nasbench201":
        return PretrainedMLP(table.space, seed=seed)
    free = ("flops_m", "params_m")
    return PretrainedMLP(
        table.space,
        statistics=lambda archs: np.stack([table.values(column, archs) for column in free], axis=1),
        seed=seed,
    )


MAKES: dict[str, Make] = {
    "ridge": lambda table, seed: Ridge(table.space),
    "Gaussian process": lambda table, seed: GaussianProcess(table.space),
    "GBDT": lambda table, seed: GBDT(table.space, members=0, seed=seed),
    "MLP, squares": lambda table, seed: MLP(table.space, seed=seed),
    "MLP, hinge of pairs": lambda table, seed: MLP(table.space, loss=pairwise_hinge, seed=seed),
    "MLP, BPR": lambda table, seed: MLP(table.space, loss=bpr, seed=seed),
    "MLP, DiffKendall": lambda table, seed: MLP(table.space, loss=diffkendall, seed=seed),
    "pretrained MLP": pretrained,
}


def rows(quick: bool) -> Iterator[Row]:
    """A row per table, predictor and number of labels."""
    seeds = 2 if quick else int(os.environ.get("SARTOR_SEEDS", "10"))
    for name, counts in LABELS.items():
        for place, count in enumerate(counts[:2] if quick else counts):
            for predictor, make in MAKES.items():
                published = PUBLISHED.get((name, predictor), (None,) * len(counts))[place]
                yield row(name, predictor, make, count, seeds, published)
    for loss in () if quick or os.environ.get("SARTOR_GCN") == "0" else (mse, bpr):
        graph = partial(GCN, links=LINKS, loss=loss, draws=0)
        many = int(os.environ.get("SARTOR_GCN", "2"))
        yield row("nasbench201", f"GCN, {loss.__name__}", lambda t, s, g=graph: g(t.space, seed=s), 78, many, None)  # type: ignore[misc]


def row(name: str, predictor: str, make: Make, labels: int, seeds: int, published: float | None) -> Row:
    """Fit for each seed and correlate."""
    taus = [tau(load(name), make, labels, seed) for seed in range(seeds)]
    return {
        "table": name,
        "labels": labels,
        "predictor": predictor,
        "seeds": seeds,
        "tau": round(float(np.mean(taus)), 3),
        "deviation": round(float(np.std(taus, ddof=1)), 3) if seeds > 1 else None,
        "published": published,
    }


def tau(table: Table, make: Make, labels: int, seed: int) -> float:
    """Return the correlation on networks that were not labelled."""
    archs, values = table.architectures(), table.values(VALUE[table.name], table.architectures())
    drawn = np.random.default_rng(seed).permutation(len(archs))[: labels + HELD_OUT]
    known, held = drawn[:labels], drawn[labels:]
    model = make(table, seed).fit([archs[i] for i in known], values[known])
    return kendall_tau(model.predict([archs[i] for i in held])[0], values[held])
