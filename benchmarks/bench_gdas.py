# SPDX-License-Identifier: Apache-2.0
"""GDAS with the published gradient of operations that were not drawn, and with the gradient that they would have given.

The 64 networks of the micro space, whose table is the truth; ten seeds, half of the training images for the logits,
batches of 32, learning rates as in the scoreboard of gradient-based methods. published: the logits of operations that
were not drawn have the gradient of their weight alone. gated: these run in the backward pass, one after the other.
rank: of the network found, 1 the best, 32.5 by chance. entropy: of the logits at the end in nats, 4.16 at the start.
cpu_s: of a search.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy.stats import rankdata

from sartor.bench.gradient import ground, search_network
from sartor.differentiable.gdas import GDAS, RECIPE
from sartor.differentiable.mixers import Mix, gated, zero_valued
from sartor.supernet import search_space
from sartor.tables import load

Row = Mapping[str, str | float | int | None]
SETTINGS = (("published", zero_valued, 1), ("published", zero_valued, 4), ("gated", gated, 1))


def rows(quick: bool) -> Iterator[Row]:
    """A row for each form and length."""
    seeds, steps = (1, 20) if quick else (10, 269)
    table = load("micro")
    ranks = dict(zip(table.architectures(), rankdata(-table.column("digits_val")), strict=True))
    for name, mix, times in SETTINGS:
        found = [_search(mix, steps * times, seed) for seed in range(seeds)]
        yield {
            "gradient": name,
            "steps": steps * times,
            "rank": _mean([float(ranks[one.arch]) for one in found]),
            "best": sum(float(ranks[one.arch]) == 1.0 for one in found),
            "entropy": _mean([float(one.watched[-1]) for one in found]),
            "cpu_s": f"{np.median([one.cpu_s for one in found]):.1f}",
        }


def _search(mix: Mix, steps: int, seed: int) -> Any:
    def made(scene: Any) -> Any:
        net = scene.network(None)
        recipe = RECIPE.shortened(scene.steps)
        return GDAS(net, search_space(net), steps=scene.steps, seed=scene.seed, recipe=recipe, mix=mix)

    def entropy(search: Any) -> float:
        return float(search.alphas.entropy().detach())

    return search_network(ground("micro"), made, steps=steps, seed=seed, watch=entropy, parts=1)


def _mean(values: list[float]) -> str:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{np.mean(values):.1f} ± {error:.1f}"
