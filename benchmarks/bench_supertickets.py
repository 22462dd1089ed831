# SPDX-License-Identifier: Apache-2.0
"""SuperTickets: search and pruning in one training, beside search, train, prune and retrain; tickets on another task.

Noisy digits (500 training images), two mixed-kernel blocks of width 8, 80 % of all weights pruned, 140 passes of 32
images in all for each row, one recipe. `in turn`: channels are searched for a third, the network found is trained from
scratch for a third, pruned by magnitude at once, and retrained under its masks for a third. `one training`: masks last
for no part, half or all of the time between prunings (weights return at once, half way, or never). `nonzero`: weights
left; `MACs` of the dense form. `transfer`: a ticket from the digits 0 to 4 tuned on 5 to 9 for 40 passes, beside a
random mask of the same sparsity in each layer on the same weights. Test accuracy in %, batch norm estimated anew; mean
and deviation of 3 seeds; `ahead` and p: seeds with more than the first row of the part, sign test.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn

from oneshot_common import digits
from sartor.evaluation import predictions
from sartor.nn.pruning import masked, masked_as_is, prune
from sartor.oneshot import Recipe, Supervised
from sartor.oneshot.supertickets import SuperTickets, transferred
from sartor.recipes.training import reset_parameters
from sartor.spaces.mixed_kernels import MixedResidual
from sartor.supernet import recalibrate_batchnorm, search_space
from sartor.workload import macs, trace

Row = Mapping[str, str | float | int | None]
Data = tuple[Tensor, Tensor]

RECIPE = Recipe(schedule="cosine", dropout=0.0)
STEPS, TUNING, BATCH, TARGET, WIDTH = 140, 40, 32, 0.8, 8
# In so short a training a stronger penalty, a higher threshold and a shorter mean do what the paper's do in theirs.
SEARCH: dict[str, Any] = {"rho": 3e-3, "threshold": 0.1, "ema": 0.9, "least_macs": 0.0}


class Mixed(nn.Module):
    """Two mixed-kernel blocks: (N, 1, 8, 8) -> (N, classes)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.blocks = nn.Sequential(
            MixedResidual(WIDTH, WIDTH, 1, "first"), MixedResidual(WIDTH, 2 * WIDTH, 2, "second")
        )
        self.classifier = nn.Linear(2 * WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, classes)."""
        out: Tensor = self.classifier(F.relu(self.blocks(self.stem(x))).mean((2, 3)))
        return out


def rows(quick: bool) -> Iterator[Row]:
    """Rows of the two parts."""
    seeds, steps = (1, 28) if quick else (3, STEPS)
    train, test = data()
    names = ("in turn", "one training, weights return at once", "half way", "never")
    found = [
        [in_turn(seed, steps, train, test), *(together(seed, steps, hold, train, test) for hold in (0.0, 0.5, 1.0))]
        for seed in range(seeds)
    ]
    yield from _rows("80 % pruned", names, found)
    moved = [transfer(seed, steps, train, test) for seed in range(seeds)]
    yield from _rows("transfer", ("random mask", "ticket"), moved)


def data() -> tuple[Data, Data]:
    """Return training and test images with their labels."""
    task = digits().task
    train, test = next(iter(task.train.batches(500))), list(task.test.batches(512))
    return (train[0], train[1]), (torch.cat([x for x, _ in test]), torch.cat([y for _, y in test]))


def together(seed: int, steps: int, hold: float, train: Data, test: Data) -> tuple[float, float, float]:
    """Return the score of a ticket."""
    return score(learned(seed, steps, train, hold=hold, target=TARGET).ticket(), train, test)


def in_turn(seed: int, steps: int, train: Data, test: Data) -> tuple[float, float, float]:
    """Search, train, prune, retrain: a third of the passes each for all but pruning."""
    network = learned(seed, steps // 3, train, target=0.0).ticket()
    torch.manual_seed(seed)
    reset_parameters(network)
    supervised(network, steps // 3, train, seed + 100)
    prune(masked(network), TARGET)
    supervised(network, steps - 2 * (steps // 3), train, seed + 200)
    return score(network, train, test)


def learned(seed: int, steps: int, train: Data, classes: int = 10, **given: Any) -> SuperTickets:
    """Train a SuperTickets learner."""
    torch.manual_seed(seed)
    net = Mixed(classes)
    learner = SuperTickets(net, search_space(net), steps=steps, batch_size=BATCH, recipe=RECIPE, **SEARCH, **given)
    for step in range(steps):
        learner.step(_batch(train, seed, step))
    return learner


def supervised(network: nn.Module, steps: int, train: Data, seed: int) -> None:
    """Train a network as it is, masks included."""
    learner = Supervised(network, steps=steps, batch_size=BATCH, recipe=RECIPE)
    for step in range(steps):
        learner.step(_batch(train, seed, step))


def transfer(seed: int, steps: int, train: Data, test: Data) -> list[tuple[float, float, float]]:
    """Tune on the upper five digits what a training on the lower five left, and the same under random masks."""
    lower, (upper, held_out) = _classes(train, 0), (_classes(train, 5), _classes(test, 5))
    learner = learned(seed, steps, lower, 5, target=TARGET)
    ticket, dense = learner.ticket(), learner.ticket(0.0)
    rng = torch.Generator().manual_seed(seed)
    chance = copy.deepcopy(dense)
    for (name, weight), (_, model) in zip(chance.named_parameters(), ticket.named_parameters(), strict=True):
        if weight.dim() > 1 and not name.startswith("classifier"):
            order = torch.randperm(weight.numel(), generator=rng)[: int((model == 0).sum())]
            weight.data.view(-1)[order] = 0.0
    found = []
    for start in (chance, ticket):
        torch.manual_seed(seed)
        network = transferred(start, nn.Linear(2 * WIDTH, 5))
        supervised(network, max(steps * TUNING // STEPS, 1), upper, seed + 300)
        found.append(score(network, upper, held_out))
    return found


def score(network: nn.Module, train: Data, test: Data) -> tuple[float, float, float]:
    """Return test accuracy in percent, nonzero weights of convolutions and linear layers, and dense MACs."""
    recalibrate_batchnorm(network, torch.split(train[0], 125))
    outputs, labels = predictions(network, [test])
    network = masked_as_is(network)
    nonzero = sum(int((m.weight != 0).sum()) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    right = float((outputs.argmax(1) == labels).float().mean())
    return 100 * right, float(nonzero), macs(trace(network, torch.empty(1, 1, 8, 8)))


def _classes(part: Data, first: int) -> Data:
    chosen = (part[1] >= first) & (part[1] < first + 5)
    return part[0][chosen], part[1][chosen] - first


def _batch(part: Data, seed: int, step: int) -> Data:
    rng = torch.Generator().manual_seed(100_000 * seed + step)
    chosen = torch.randperm(len(part[1]), generator=rng)[:BATCH]
    return part[0][chosen], part[1][chosen]


def _rows(part: str, names: Sequence[str], values: Sequence[Sequence[tuple[float, float, float]]]) -> Iterator[Row]:
    table = np.array(values)  # (seeds, rows, 3)
    for place, name in enumerate(names):
        ahead = table[:, place, 0] - table[:, 0, 0]
        decided = int((ahead != 0).sum())
        p = float(binomtest(int((ahead > 0).sum()), decided).pvalue) if decided and place else None
        accuracy, nonzero, cost = table[:, place].mean(0).tolist()
        spread = float(table[:, place, 0].std(ddof=1)) if len(table) > 1 else 0.0
        yield {"part": part, "what": name, "accuracy": round(accuracy, 2), "±": round(spread, 2),
               "nonzero": round(nonzero), "MACs": round(cost), "ahead": int((ahead > 0).sum()), "p": p}  # fmt: skip
