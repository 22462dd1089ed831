"""SD-DARTS beside DARTS on the micro space: what discretising loses, how sharp the minimum is, what is found.

Digits: half of the training images for the weights and half for the alphas, batches of 32; the supernet without scales
in its batch norms. All searches of a seed start from the same weights and see the same batches. `gap`: accuracy of the
supernet minus that of the network read out of it with its weights, on the validation images, in %. `sharpness`: rise of
their loss one step of 5 % of the weights' norm along the gradient. `eigenvalue`: the largest of the Hessian of their
loss in the alphas. `found` and `rank`: validation accuracy in % of the network found, trained by itself, and its place
among the 64. `lower gap`, `lower sharpness`: seeds in which they are lower than DARTS's, and p is of the sign test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor

from sartor.differentiable import relaxations
from sartor.differentiable.darts import DARTS
from sartor.differentiable.descent import Recipe, total_loss
from sartor.differentiable.diagnostics import discretisation_gap, hessian_eigenvalue, score, sharpness
from sartor.differentiable.sd_darts import SDDARTS
from sartor.spaces.micro import Micro
from sartor.supernet import search_space
from sartor.tables import load
from sartor.task import accuracy, load_task

Row = Mapping[str, str | float | int | None]
Batch = tuple[Tensor, Tensor]

RECIPE = Recipe(lr=0.1, lr_min=0.001, alpha_lr=0.01)  # a search of 300 steps, not of 25,000
SMOOTHED = partial(F.cross_entropy, label_smoothing=0.1)
METHODS: Mapping[str, Callable[..., Any]] = {
    "DARTS": DARTS,
    "DARTS, labels smoothed": lambda net, space, **given: DARTS(net, space, SMOOTHED, **given),
    "SD-DARTS, one teacher": lambda net, space, **given: SDDARTS(net, space, snapshots=1, **given),
    "SD-DARTS, three vote": SDDARTS,
}


def rows(quick: bool) -> Iterator[Row]:
    """A row per method."""
    seeds, steps = (2, 20) if quick else (8, 300)
    images, labels = load_task("digits").train.batch(0, 1077)
    found = {
        name: np.array([outcome(make, images, labels, seed, steps) for seed in range(seeds)])
        for name, make in METHODS.items()
    }
    reference = found["DARTS"]
    for name, values in found.items():
        mean = values.mean(0)
        error = values.std(0, ddof=1) / seeds**0.5
        row: dict[str, str | float | int | None] = {"method": name, "seeds": seeds}
        for place, column in enumerate(("gap", "sharpness", "eigenvalue", "found", "rank", "supernet")):
            row[column], row[f"{column} s.e."] = round(float(mean[place]), 3), round(float(error[place]), 3)
        for place, column in enumerate(("gap", "sharpness")):
            lower = int((values[:, place] < reference[:, place]).sum())
            differ = int((values[:, place] != reference[:, place]).sum())
            row[f"lower {column}"] = lower if differ else None
            row[f"p of {column}"] = round(float(binomtest(lower, differ).pvalue), 3) if differ else None
        yield row


def outcome(make: Callable[..., Any], images: Tensor, labels: Tensor, seed: int, steps: int) -> list[float]:
    """Search once; return gap, sharpness, eigenvalue, accuracy and rank of what was found, and the supernet's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Micro(affine=False)
    search = make(net, search_space(net), steps=steps, seed=seed, recipe=RECIPE)
    generator = torch.Generator().manual_seed(seed)
    halves = torch.randperm(len(labels), generator=generator).chunk(2)
    for _ in range(steps):
        drawn = [half[torch.randint(len(half), (32,), generator=generator)] for half in halves]
        search.step(tuple((images[one], labels[one]) for one in drawn))
    return judged(search)


def judged(search: Any) -> list[float]:
    """Measure a search that is over on the validation images and in the table."""
    validation = load_task("digits").validation.batch(0, 451)
    net, arch = search.net, search.architecture()
    soft = search.alphas.assignment(search.alphas.probabilities())

    def loss() -> Tensor:
        mixed = search.alphas.assignment(relaxations.softmax(search.alphas.logits))
        return total_loss(net, mixed, validation)[0]

    gap = discretisation_gap(net, soft, arch, [validation], accuracy)
    supernet = score(net, soft, [validation], accuracy)
    table = load("micro")
    every = table.columns["digits_val"]
    own = float(table.values("digits_val", [arch])[0])
    rank = 1 + int((every > own).sum())
    eigenvalue = hessian_eigenvalue(loss, search.descent.alpha_parameters)
    return [100 * gap, sharpness(net, soft, validation, F.cross_entropy), eigenvalue, own, rank, 100 * supernet]
