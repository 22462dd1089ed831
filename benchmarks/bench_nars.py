"""NARS on networks and recipes for digits: joint search beside architecture first, recipe second, at equal trainings.

Every pair of one of 18 perceptrons and one of 20 recipes is trained once, for 3 epochs on 600 digits; the value is the
accuracy on 597 others. 40 trainings: NARS over the product; random search over it; and 20 trainings of architectures
with the middle recipe, then 20 of recipes with the best of them. SARTOR_SEEDS sets the seeds (30).
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from sartor.architecture import Architecture
from sartor.encodings import architectures, enumerated
from sartor.objective import Objective
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies.nars import NARS
from sartor.strategies.random_search import RandomSearch
from sartor.trial import TrialLog

Row = Mapping[str, str | float | int | None]
RECIPE = ("lr", "momentum")
SPACE = SearchSpace(
    {
        "depth": (1, 2, 4),
        "width": (8, 32, 128),
        "activation": ("relu", "tanh"),
        "lr": (0.003, 0.01, 0.03, 0.1, 0.3),
        "momentum": (0.0, 0.5, 0.9, 0.97),
    }
)
MIDDLE = {"lr": 0.03, "momentum": 0.5}
TRAININGS = 40


def rows(quick: bool) -> Iterator[Row]:
    """A row per way to search, and one on whether the best recipe depends on the architecture."""
    seeds = 3 if quick else int(os.environ.get("SARTOR_SEEDS", "30"))
    table = trained()
    best: dict[tuple[object, ...], tuple[float, Architecture]] = {}
    for arch, value in table.items():
        kind = tuple(option for name, option in arch.items() if name not in RECIPE)
        best[kind] = max(best.get(kind, (0.0, arch)), (value, arch), key=lambda pair: pair[0])
    recipes = {tuple(arch[name] for name in RECIPE) for _, arch in best.values()}
    yield {
        "search": "different best recipes of the 18 networks",
        "seeds": None,
        "mean": len(recipes),
        "deviation": None,
    }
    yield {"search": "best of all pairs", "seeds": None, "mean": round(max(table.values()), 3), "deviation": None}
    objectives = [Objective("accuracy", table.__getitem__, goal="max")]
    joint, drawn, staged = [], [], []
    for seed in range(seeds):
        strategy = NARS(SPACE, objectives, recipe=RECIPE, initial=10, batch=10)
        joint.append(top(search(SPACE, strategy, objectives, trials=TRAININGS, seed=seed)))
        drawn.append(top(search(SPACE, RandomSearch(SPACE, unique=True), objectives, trials=TRAININGS, seed=seed)))
        staged.append(in_stages(table, seed))
    for name, values in (("NARS", joint), ("random search", drawn), ("architecture, then recipe", staged)):
        spread = round(float(np.std(values, ddof=1)), 4)
        yield {"search": name, "seeds": seeds, "mean": round(float(np.mean(values)), 4), "deviation": spread}


def top(log: TrialLog) -> float:
    """Return the best accuracy of a log."""
    return max(trial.values["accuracy"] for trial in log)


def in_stages(table: Mapping[Architecture, float], seed: int) -> float:
    """Search all 18 architectures with the middle recipe, then 22 random recipes of the best."""
    rng = random.Random(seed)
    fixed = [arch for arch in table if all(arch[name] == option for name, option in MIDDLE.items())]
    best = max(fixed, key=table.__getitem__)
    others = [arch for arch in table if all(arch[name] == best[name] for name in best if name not in RECIPE)]
    return max(table[arch] for arch in rng.sample(others, min(len(others), TRAININGS - len(fixed))))


def trained() -> dict[Architecture, float]:
    """Return the accuracy of every pair."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = torch.from_numpy(digits.data[order] / 16).float()
    y = torch.from_numpy(digits.target[order])
    return {arch: accuracy(arch, x, y) for arch in architectures(SPACE, enumerated(SPACE))}


def accuracy(arch: Architecture, x: torch.Tensor, y: torch.Tensor) -> float:
    """Train on the first 600 digits; return the accuracy on 597 others."""
    width, activation = int(str(arch["width"])), nn.ReLU if arch["activation"] == "relu" else nn.Tanh
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = [64, *[width] * int(str(arch["depth"]))]
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), activation())]
        net = nn.Sequential(*layers, nn.Linear(width, 10))
        rate, momentum = float(str(arch["lr"])), float(str(arch["momentum"]))
        optimiser = torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum)
        for _ in range(3):
            for rows in torch.split(torch.randperm(600), 20):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    with torch.no_grad():
        return float((net(x[1200:]).argmax(dim=1) == y[1200:]).double().mean())
