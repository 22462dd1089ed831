# SPDX-License-Identifier: Apache-2.0
"""Weights mixed for each architecture beside shared ones: the gap to networks trained alone, and the ranking.

On noisy digits (`oneshot_common`), in a perceptron of three hidden layers, each 8, 16, 32 or 64 wide. All arms train a
sandwich with in-place distillation for as many steps and passes; the truth are 30 networks trained alone. Controls: a
shared network of twice the widths, against networks of those widths trained alone; routers that see a constant instead
of the architecture; four supernets, one for each width of the first layer, that share the steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oneshot_common import BATCH, RECIPE, Comparison, digits, spread
from sartor.choice import Choice
from sartor.nn import Linear, Router
from sartor.oneshot.mixture_of_supernets import MixtureOfSupernets
from sartor.ranking import kendall_tau
from sartor.supernet import search_space

Row = Mapping[str, str | float | int | None]

WIDTHS = (8, 16, 32, 64)
FIRST = "net.1.out_features"

ARMS: dict[str, dict[str, Any]] = {
    "shared (m = 1)": {"experts": 1, "routing": "layer"},
    "layer-wise (m = 2)": {"routing": "layer"},
    "neuron-wise (m = 2)": {"routing": "neuron"},
    "layer-wise, constant encoding": {"routing": "layer", "constant": True},
    "neuron-wise, constant encoding": {"routing": "neuron", "constant": True},
    "four supernets, split by the first width": {"experts": 1, "routing": "layer", "split": True},
    "shared, twice as wide": {"experts": 1, "routing": "layer", "factor": 2},
}


class Perceptron(nn.Module):
    """(N, 1, 8, 8) -> (N, 10): three hidden layers of searched widths."""

    def __init__(self, factor: int = 1) -> None:
        super().__init__()
        a, b, c = (Choice([factor * width for width in WIDTHS]) for _ in range(3))
        layers = (Linear(64, a), nn.ReLU(), Linear(a, b), nn.ReLU(), Linear(b, c), nn.ReLU(), Linear(c, 10))
        self.net = nn.Sequential(nn.Flatten(), *layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)."""
        logits: Tensor = self.net(x)
        return logits


def rows(quick: bool) -> Iterator[Row]:
    """A row for each arm."""
    seeds, steps, networks = (2, 100, 4) if quick else (3, 400, 30)
    for name, given in ARMS.items():
        keywords = dict(given)
        comparison = of_factor(keywords.pop("factor", 1), networks, 60 if quick else 300)
        before = time.process_time()
        found = [outcome(comparison, seed, steps, **keywords) for seed in range(seeds)]
        seconds = (time.process_time() - before) / seeds
        columns = {key: spread([one[key] for one in found], digits) for key, digits in COLUMNS.items()}
        yield {"arm": name, **columns, "passes": 3 * steps, "CPU s": round(seconds, 1)}


COLUMNS = {"gap (%)": 2, "tau": 3, "smallest (%)": 1, "mean (%)": 1, "largest (%)": 1}


def of_factor(factor: int, networks: int, truth_steps: int) -> Comparison:
    """Return the comparison in perceptrons of a multiple of the widths; the truth is worked out, and kept, first."""
    folder = Path(f"runs/mixture-of-supernets/{factor}")
    given = digits(folder)
    network = partial(Perceptron, factor)
    comparison = replace(given, network=network, networks=networks, truth_steps=truth_steps, truth_seeds=1)
    assert comparison.truth
    return comparison


def outcome(comparison: Comparison, seed: int, steps: int, *, split: bool = False, **given: Any) -> dict[str, float]:
    """Train; return the mean gap to the networks trained alone, the ranking and the accuracies."""
    if split:
        options = comparison.space.choices[FIRST]
        nets = {width: trained(comparison, seed, steps // len(options), {FIRST: width}, **given) for width in options}
    else:
        nets = dict.fromkeys(comparison.space.choices[FIRST], trained(comparison, seed, steps, {}, **given))
    scores = [comparison.score(comparison.specialised(nets[arch[FIRST]], arch)) for arch in comparison.architectures]
    accuracy, alone = (100 * np.array([a for a, _ in one]) for one in (scores, comparison.truth))
    losses: Sequence[Sequence[float]] = [[loss for _, loss in one] for one in (scores, comparison.truth)]
    return {
        "gap (%)": float(np.abs(accuracy - alone)[2:].mean()),
        "tau": kendall_tau(*losses),
        "smallest (%)": float(accuracy[1]),
        "mean (%)": float(accuracy[2:].mean()),
        "largest (%)": float(accuracy[0]),
    }


def trained(
    comparison: Comparison, seed: int, steps: int, part: Mapping[str, Any], *, constant: bool = False, **given: Any
) -> MixtureOfSupernets:
    """Return a learner at the end of its training, in a part of the space."""
    torch.manual_seed(seed)
    net = comparison.network()
    space = search_space(net).restrict(part)
    learner = MixtureOfSupernets(net, space, steps=steps, batch_size=BATCH, recipe=RECIPE, seed=seed, **given)
    if constant:
        for router in (module for module in net.modules() if isinstance(module, Router)):
            table = router.encoding.table
            router.encoding.table = torch.rand(1, table.shape[1], generator=torch.Generator().manual_seed(seed)).expand(
                table.shape
            ) / len(router.encoding.choices)
    for step in range(steps):
        learner.step(comparison.task.train.batch(step, BATCH))
    return learner
