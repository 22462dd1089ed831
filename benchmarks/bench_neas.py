# SPDX-License-Identifier: Apache-2.0
"""NEAS: ensembles beside single networks of equal cost, ways to shrink the space, and what diversity is worth.

Noisy digits (500 training images), five slots of four operations, ensembles of two; a supernet of 400 passes for a
seed, 3 seeds. `equal cost`: at most 250,000 multiply-accumulates. Evolution of 40 evaluations (validation loss,
inherited weights) among single networks, ensembles that share no slot, and all splits; the best two of each retrained
alone, 200 passes each. `shrinking`: a third of the options dropped by what is said; tau is of inherited against
stand-alone losses of 6 ensembles drawn from what is left, `accuracy` that of the ensemble found there, retrained.
`diversity`: of 100 pairs that share no slot, the correlation of diversity and ensemble accuracy, and the same at equal
mean accuracy of the members (partial). Accuracy in % and loss on the test images; mean and deviation of the seeds; p:
sign test of the accuracy against the first row of a part.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn

from oneshot_common import Comparison, digits
from sartor.architecture import Architecture
from sartor.evaluation import predictions, specialised
from sartor.fit import fit
from sartor.objective import Objective
from sartor.oneshot import Recipe
from sartor.oneshot.neas import NEAS, JoinedNetwork
from sartor.oneshot.neas_retraining import Retraining
from sartor.oneshot.neas_shrinking import diversity
from sartor.ranking import kendall_tau
from sartor.recipes.training import reset_parameters
from sartor.search import search
from sartor.space import SearchSpace
from sartor.spaces.micro import Micro
from sartor.strategies.regularized_evolution import RegularizedEvolution
from sartor.supernet import extract, recalibrate_batchnorm, search_space
from sartor.workload import macs, trace

Row = Mapping[str, str | float | int | None]

RECIPE = Recipe(schedule="cosine", dropout=0.0)
SLOTS, WIDTH, CAP, BATCH = 5, 12, 250_000, 64
SUPERNET, RETRAIN = 400, 200  # passes
KINDS = ("one network", "nothing shared", "any split")


class Slots(nn.Module):
    """The micro space with five slots: (N, 1, 8, 8) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        parts = [Micro(width=WIDTH), Micro(width=WIDTH)]
        self.stem, self.classifier = parts[0].stem, parts[0].classifier
        self.slots = nn.Sequential(*[slot for part in parts for slot in part.slots][:SLOTS])
        for number, slot in enumerate(self.slots):
            slot.choice.name = f"slot_{number}"  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)."""
        out: Tensor = self.classifier(F.relu(self.slots(self.stem(x))).mean((2, 3)))
        return out


class Chance(NEAS):
    """Drops options at random."""

    def scores(self) -> Mapping[str, list[float]]:
        """Random numbers of the seed and step."""
        rng = random.Random(f"{self.seed}/{self.training.done}")
        return {name: [rng.random() for _ in row] for name, row in super().scores().items()}


def rows(quick: bool) -> Iterator[Row]:
    """Rows of the three parts."""
    seeds, comparison = (1 if quick else 3), digits()
    cost, shrunk, pairs = [], [], []
    for seed in range(seeds):
        whole = trained(comparison, seed, quick, shrinks=0)
        cost.append([retrained(comparison, whole, best, seed, quick) for best in found(comparison, whole, seed, quick)])
        pairs.append(correlations(comparison, whole, seed, 20 if quick else 100))
        shrunk.append([shrinking(comparison, seed, quick, way) for way in ("chance", "loss", "both")])
    yield from _rows("equal cost", KINDS, cost)
    yield from _rows("shrinking", ("at random", "by the loss", "by loss and diversity"), shrunk)
    for place, name in enumerate(("correlation", "at equal accuracy of members")):
        yield _row("diversity", name, np.array([[pair[place]] for pair in pairs]), None)


def trained(comparison: Comparison, seed: int, quick: bool, way: str = "both", **given: Any) -> NEAS:
    """Train a supernet, its options dropped by chance, by the loss or by both."""
    torch.manual_seed(seed)
    net, steps = Slots(), (40 if quick else SUPERNET) // 2
    kind, weight = (Chance if way == "chance" else NEAS), (0.25 if way == "both" else 0.0)
    shared: dict[str, Any] = {
        "steps": steps,
        "batch_size": BATCH,
        "seed": seed,
        "recipe": RECIPE,
        "diversity_weight": weight,
    }
    learner = kind(net, search_space(net), comparison.task.loss, **shared, **given)
    fit(learner, comparison.task.train, steps=steps, batch_size=BATCH, seed=seed, progress=_quiet)
    return learner


def found(comparison: Comparison, learner: NEAS, seed: int, quick: bool) -> list[list[Architecture]]:
    """Return the best two under the cap among single networks, ensembles of nothing shared, and all."""
    spaces = [learner.space.restrict(apart=apart) for apart in (0, SLOTS, list(range(SLOTS + 1)))]
    return [_best(comparison, learner, space, seed, quick) for space in spaces]


def _best(comparison: Comparison, learner: NEAS, space: SearchSpace, seed: int, quick: bool) -> list[Architecture]:
    batches = list(comparison.task.validation.batches(512))

    def loss(arch: Architecture) -> float:
        outputs, labels = predictions(specialised(learner.net, arch, comparison.calibration), batches)
        return float(F.cross_entropy(outputs, labels))

    def cost(arch: Architecture) -> float:
        return macs(trace(extract(learner.net, arch), torch.empty(1, 1, 8, 8)))

    objectives = (Objective("loss", loss), Objective("macs", cost, at_most=CAP, cheap=True))
    strategy = RegularizedEvolution(space, objectives, population=15, tournament=5)
    log = search(space, strategy, objectives, trials=8 if quick else 40, seed=seed)
    done = sorted((t for t in log if t.state == "done"), key=lambda trial: trial.values["loss"])
    return list(dict.fromkeys(trial.arch for trial in done))[:2]


def retrained(
    comparison: Comparison, learner: NEAS, archs: Sequence[Architecture], seed: int, quick: bool
) -> tuple[float, float, float]:
    """Return the mean test accuracy and loss of architectures trained alone, and their mean cost."""
    scores = [alone(comparison, learner, arch, seed, quick) for arch in archs]
    costs = [macs(trace(extract(learner.net, arch), torch.empty(1, 1, 8, 8))) for arch in archs]
    return *np.mean(scores, axis=0).tolist(), float(np.mean(costs))


def alone(comparison: Comparison, learner: NEAS, arch: Architecture, seed: int, quick: bool) -> tuple[float, float]:
    """Return the test accuracy, in percent, and loss of an ensemble trained from scratch; a member is a pass."""
    torch.manual_seed(seed)
    network = extract(learner.net, arch)
    assert isinstance(network, JoinedNetwork)
    reset_parameters(network)
    steps = (20 if quick else RETRAIN) // max(len(network.heads), 1)
    training = Retraining(network, comparison.task.loss, steps=steps, batch_size=BATCH, recipe=RECIPE)
    fit(training, comparison.task.train, steps=steps, batch_size=BATCH, seed=seed, progress=_quiet)
    recalibrate_batchnorm(network, comparison.calibration)
    return score(comparison, network)


def score(comparison: Comparison, network: nn.Module) -> tuple[float, float]:
    """Return the test accuracy, in percent, and loss."""
    outputs, labels = predictions(network, list(comparison.task.test.batches(512)))
    return 100 * comparison.task.metric(outputs, labels), float(F.cross_entropy(outputs, labels))


def shrinking(comparison: Comparison, seed: int, quick: bool, way: str) -> tuple[float, float, float]:
    """Return test accuracy and loss of what is found in the shrunken space, and tau there."""
    learner = trained(comparison, seed, quick, way)
    archs = [learner.space.sample(random.Random(f"{seed}/{i}")) for i in range(3 if quick else 6)]
    truth = [alone(comparison, learner, arch, seed, quick)[1] for arch in archs]
    shared = [score(comparison, specialised(learner.net, arch, comparison.calibration))[1] for arch in archs]
    best = _best(comparison, learner, learner.space, seed, quick)[:1]
    accuracy, loss, _ = retrained(comparison, learner, best, seed, quick)
    return accuracy, loss, kendall_tau(shared, truth)


def correlations(comparison: Comparison, learner: NEAS, seed: int, count: int) -> tuple[float, float]:
    """Return the correlation of diversity and ensemble accuracy over pairs, and the partial one."""
    space, rng = learner.space.restrict(apart=SLOTS), random.Random(seed)
    data = list(comparison.task.test.batches(512))
    table = []
    for _ in range(count):
        network = specialised(learner.net, space.sample(rng), comparison.calibration)
        assert isinstance(network, JoinedNetwork)
        with network.separated():
            logits, labels = predictions(network, data)
        members = np.mean([comparison.task.metric(one, labels) for one in logits.unbind(1)])
        table.append((float(diversity(logits)), comparison.task.metric(logits.mean(1), labels), float(members)))
    plain = np.corrcoef(np.array(table), rowvar=False)
    (de, dm), em = plain[0, 1:], plain[1, 2]
    return float(de), float((de - dm * em) / np.sqrt((1 - dm**2) * (1 - em**2)))


def _rows(part: str, names: Sequence[str], values: list[list[tuple[float, float, float]]]) -> Iterator[Row]:
    table = np.array(values)  # (seeds, rows, 3)
    for place, name in enumerate(names):
        ahead = table[:, place, 0] - table[:, 0, 0]
        decided = int((ahead != 0).sum())
        p = float(binomtest(int((ahead > 0).sum()), decided).pvalue) if decided else 1.0
        yield _row(part, name, table[:, place], p if place else None)


def _row(part: str, name: str, values: np.ndarray[Any, Any], p: float | None) -> Row:
    """A row: accuracy, loss and a last column (MACs or tau); of correlations the last alone."""
    mean = [round(float(v), 4) for v in values.mean(0)]
    spread = [round(float(v), 4) for v in (values.std(0, ddof=1) if len(values) > 1 else 0 * values[0])]
    first = {"accuracy": mean[0], "±": spread[0], "loss": mean[1]} if len(mean) > 1 else dict.fromkeys(_FIRST)
    last = {"MACs, tau or r": mean[-1], "± of it": spread[-1]}
    return {"part": part, "what": name, **first, **last, "p": p}


_FIRST = ("accuracy", "±", "loss")


def _quiet(done: int, steps: int, scalars: Mapping[str, float]) -> None:
    return None
