"""SPOS, FairNAS, PA&DA, Few-Shot and GM-NAS on a toy space of operations: rank correlation at equal passes, and proofs.

The space: five layers of identity, 3x3 average pool, 1x1 or 3x3 convolution, 12 channels, noisy digits (see
`oneshot_common`). Sixty networks trained alone, two seeds each, are the truth; tau is Kendall's, of the losses on
held-out images. All learners have one recipe. A row of `tau` gives mean and deviation over seeds, the share of seeds in
which the method ranks better than SPOS with as many passes, and the mean difference to it with its 95 % interval. Other
rows:

- statistics: tau of SPOS's networks with the batch-norm statistics of the supernet, those of the evaluated batch, and
  re-estimated ones.
- variance: E||g - E g||^2 over 500 draws of a path and a sample from a half-trained supernet, weighed with 1 / (n p),
  as a multiple of that of uniform draws.
- mislabelled: the mean chance of training samples with a wrong label (5 %), as a multiple of the mean of all.
- chance, groups: the last chance of each operation in PA&DA; the share of GM-NAS's splits that divide the convolutions
  from the operations without weights.
- evolution: accuracy of the best of 200 queries of NAS-Bench-Macro below the median FLOPs, over 20 seeds.

What was trained is kept in runs/paths, and continued there.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import t
from torch import Tensor, nn

import sartor.nn as elastic
from oneshot_common import BATCH, Comparison, digits
from sartor.architecture import Architecture
from sartor.atomic import write_json
from sartor.evaluation import predictions
from sartor.fit import fit
from sartor.objective import Objective
from sartor.oneshot._gradients import flat_gradient
from sartor.oneshot.fairnas import FairNAS
from sartor.oneshot.few_shot import FewShot
from sartor.oneshot.gm_nas import GMNAS
from sartor.oneshot.pa_da import PADA
from sartor.oneshot.splitting import Branch
from sartor.oneshot.spos import SPOS
from sartor.ranking import kendall_tau
from sartor.search import search
from sartor.strategies.random_search import RandomSearch
from sartor.strategies.regularized_evolution import RegularizedEvolution
from sartor.strategies.spos_evolution import SPOSEvolution
from sartor.supernet import activated, extract
from sartor.tables import load

Row = Mapping[str, str | float | int | None]

PASSES, SPLIT_PASSES, SEEDS = 600, 1800, 5
SIZES = {"networks": 58, "truth_steps": 300, "truth_seeds": 2}  # of the truth, beside the two extremes
STAGES = (8, 2, 1, 1)  # of one part: the supernet has a third of all training, the last eight parts another third
MATCHING = 4
OPERATIONS = ("identity", "pool", "conv1", "conv3")
FREE = {"identity", "pool"}


class Operations(nn.Module):
    """(N, 1, 8, 8) -> (N, 10): five layers of one operation each."""

    def __init__(self, layers: int = 5, width: int = 12) -> None:
        super().__init__()
        self.stem = _conv(1, width, 3)
        self.layers = nn.Sequential(*[elastic.OneOf(_operations(width)) for _ in range(layers)])
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)."""
        logits: Tensor = self.head(self.layers(self.stem(images)).mean((2, 3)))
        return logits

    def reset_parameters(self) -> None:
        """Initialise all layers anew."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()


def _operations(width: int) -> dict[str, nn.Module]:
    modules = (
        nn.Identity(),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        _conv(width, width, 1),
        _conv(width, width, 3),
    )
    return dict(zip(OPERATIONS, modules, strict=True))


def _conv(inputs: int, width: int, kernel: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, width, kernel, padding="same", bias=False), nn.BatchNorm2d(width), nn.ReLU())


class RandomGroups(GMNAS):
    """GM-NAS with random groups of a random choice: what matching is compared with. It makes no pass to match."""

    def _match(self, batch: tuple[Tensor, Tensor], rng: random.Random) -> dict[str, float]:
        for branch, sums in zip(self.branches.leaves, self.sums, strict=True):
            for name in self._unsplit(branch):
                matrix = np.array([[rng.random() for _ in OPERATIONS] for _ in OPERATIONS])
                sums[name] = matrix + matrix.T
        return {"loss": 0.0, "learning_rate": 0.0}

    def _passes(self, trained: int, matched: int) -> float:
        return float(trained)


SPLIT = {"stages": STAGES, "matching": MATCHING}
METHODS: dict[str, tuple[type, int, dict[str, Any]]] = {
    "SPOS": (SPOS, PASSES, {}),
    "FairNAS": (FairNAS, PASSES, {}),
    "PA&DA": (PADA, PASSES, {}),
    "SPOS, long": (SPOS, SPLIT_PASSES, {}),
    "Few-Shot, a random layer in 4": (FewShot, SPLIT_PASSES, {}),
    "random groups, 8 parts": (RandomGroups, SPLIT_PASSES, {"stages": STAGES, "matching": 1}),
    "GM-NAS, 8 parts": (GMNAS, SPLIT_PASSES, SPLIT),
}


def rows(quick: bool) -> Iterator[Row]:
    """Return the table; 5 seeds, or 1 of short trainings."""
    comparison = toy(quick)
    seeds, divisor = (1, 10) if quick else (SEEDS, 1)
    truth = [loss for _, loss in comparison.truth]
    found = {name: [ranked(comparison, name, seed, divisor) for seed in range(seeds)] for name in METHODS}
    tau = {name: [kendall_tau(one["losses"], truth) for one in several] for name, several in found.items()}
    for name, (_, passes, _) in METHODS.items():
        base = tau["SPOS" if passes == PASSES else "SPOS, long"]
        against = None if name.startswith("SPOS") else np.subtract(tau[name], base)
        ahead = None if against is None else float(np.mean(against > 0))
        difference = None if against is None or seeds < 2 else _interval(against)
        spent = float(np.mean([one["effort"][0] for one in found[name]]))
        cpu = float(np.mean([one["cpu_s"] for one in found[name]]))
        yield _row("tau", name, tau[name], passes=spent, ahead=ahead, against=difference, cpu_s=cpu)
    for place in ("inherited", "batch"):
        yield _row("statistics", f"SPOS, {place}", [kendall_tau(one[place], truth) for one in found["SPOS"]])
    yield from _others(comparison, found, seeds, quick)


def _others(comparison: Comparison, found: Mapping[str, Any], seeds: int, quick: bool) -> Iterator[Row]:
    for operation in OPERATIONS:
        chances = [one["chances"][operation] for one in found["PA&DA"]]
        yield _row("chance", operation, chances)
    apart = [float(np.mean([set(map(frozenset, split)) == {frozenset(FREE), frozenset(OPERATIONS) - FREE}
                            for split in one["splits"]])) for one in found["GM-NAS, 8 parts"]]  # fmt: skip
    yield _row("groups", "GM-NAS: convolutions apart", apart)
    few = 1 if quick else 3
    for name, values in variances(comparison, few, quick).items():
        yield _row("variance", name, values)
    yield _row("mislabelled", "PA&DA", [mislabelled(comparison, seed, quick) for seed in range(few)])
    for name, make in {
        "SPOS's evolution": SPOSEvolution,
        "regularized evolution": partial(RegularizedEvolution, population=50, tournament=10),
        "random search": partial(RandomSearch, unique=True),
    }.items():
        yield _row("evolution", name, [best_of_200(make, seed) for seed in range(3 if quick else 20)])


def toy(quick: bool) -> Comparison:
    """Return the comparison on the toy space."""
    folder = Path(os.environ.get("SARTOR_OUT") or Path(__file__).parents[1] / "runs" / "paths")
    sizes: dict[str, Any] = {"networks": 10, "truth_steps": 10, "truth_seeds": 1} if quick else SIZES
    return dataclasses.replace(digits(), network=Operations, folder=folder / ("quick" if quick else "full"), **sizes)


def ranked(comparison: Comparison, name: str, seed: int, divisor: int) -> dict[str, Any]:
    """Return the losses of all networks with a method's weights, and what it learnt; kept in the folder."""
    path = comparison.folder / f"{name}-{seed}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _ranked(comparison, name, seed, divisor))
    return json.loads(path.read_bytes())  # type: ignore[no-any-return]


def _ranked(comparison: Comparison, name: str, seed: int, divisor: int) -> dict[str, Any]:
    kind, passes, given = METHODS[name]
    given = {**given, "matching": 1} if divisor > 1 and "matching" in given else given
    before = time.process_time()
    learner = learned(comparison, kind, seed, passes // divisor, **given)
    seconds = time.process_time() - before
    found: dict[str, Any] = {"effort": list(learner.effort), "cpu_s": seconds}
    networks = [comparison.specialised(learner, arch) for arch in comparison.architectures]
    found["losses"] = [comparison.score(network)[1] for network in networks]
    if kind is SPOS:
        inherited = [extract(learner.net, arch).eval() for arch in comparison.architectures]
        found["inherited"] = [comparison.score(network)[1] for network in inherited]
        found["batch"] = [_by_batch(comparison, network) for network in inherited]
    if kind is PADA:
        (paths,) = learner.paths.values()
        found["chances"] = dict(zip(OPERATIONS, paths.chances.tolist(), strict=True))
    if kind is GMNAS:
        found["splits"] = _splits(learner.branches.leaves)
    return found


def learned(comparison: Comparison, kind: Any, seed: int, passes: int, train: Any = None, **given: Any) -> Any:
    """Return a learner after about `passes` passes."""
    torch.manual_seed(seed)
    net, train = comparison.network(), comparison.task.train if train is None else train
    shared = {"batch_size": BATCH, "seed": seed, "recipe": comparison.recipe, **given}
    steps = passes
    for _ in range(5):  # the passes of a step may depend on their number
        steps = max(
            1, round(passes / kind(copy.deepcopy(net), comparison.space, steps=steps, **shared).passes_per_step)
        )
    learner = kind(net, comparison.space, comparison.task.loss, steps=steps, **shared)
    data: Any = learner.data(train) if hasattr(learner, "data") else train
    fit(learner, data, steps=steps, batch_size=BATCH, seed=seed, progress=lambda *_: None)
    return learner


def _by_batch(comparison: Comparison, network: nn.Module) -> float:
    """Return the loss with the statistics of the batch that is evaluated."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False
    outputs, labels = predictions(network, comparison.held_out)
    return float(F.cross_entropy(outputs, labels))


def _splits(leaves: list[Branch]) -> list[list[list[str]]]:
    """Return the groups of each split that was made."""
    made = {leaf.path[: level + 1] for leaf in leaves for level in range(len(leaf.path))}
    parents = {(path[:-1], path[-1][0]) for path in made}
    return [[[str(o) for o in path[-1][1]] for path in sorted(made) if (path[:-1], path[-1][0]) == parent]
            for parent in sorted(parents)]  # fmt: skip


def variances(comparison: Comparison, seeds: int, quick: bool) -> dict[str, list[float]]:
    """Return the variance of the weighed gradient under each way to draw, relative to uniform draws."""
    found: dict[str, list[float]] = {"samples by importance": [], "paths by importance": [], "both": []}
    for seed in range(seeds):
        learner = learned(comparison, PADA, seed, 40 if quick else PASSES // 2)
        (paths,), samples = learner.paths.values(), learner.samples
        assert samples is not None
        for one in (paths, samples):
            one.refresh(0.9)  # the equal part keeps the weights 1 / (n p) bounded
        equal = torch.full_like(paths.chances, 0.25), torch.full_like(samples.chances, 1 / len(samples.chances))
        measured = partial(_variance, comparison, learner.net.eval(), draws=20 if quick else 500)
        uniform = measured(*equal)
        found["samples by importance"].append(measured(equal[0], samples.chances) / uniform)
        found["paths by importance"].append(measured(paths.chances, equal[1]) / uniform)
        found["both"].append(measured(paths.chances, samples.chances) / uniform)
    return found


def _variance(comparison: Comparison, net: nn.Module, paths: Tensor, samples: Tensor, *, draws: int) -> float:
    """Return E||g - E g||^2 of single samples and paths; statistics are the supernet's, so that samples stay apart."""
    rng = random.Random("variance")
    images, labels = next(comparison.task.train.batches(len(comparison.task.train)))
    gradients = []
    for _ in range(draws):
        places = rng.choices(range(len(OPERATIONS)), paths.tolist(), k=len(comparison.space.choices))
        arch = {name: OPERATIONS[place] for name, place in zip(comparison.space.choices, places, strict=True)}
        (i,) = rng.choices(range(len(labels)), samples.tolist())
        weight = float(1 / (paths[places] * len(paths)).prod() / (samples[i] * len(samples)))
        net.zero_grad(set_to_none=True)
        with activated(net, arch):
            F.cross_entropy(net(images[i : i + 1]), labels[i : i + 1]).backward()  # type: ignore[no-untyped-call]
        gradients.append(weight * flat_gradient([*net.parameters()]).double())
    table = torch.stack(gradients)
    return float((table - table.mean(0)).square().sum() / (draws - 1))


class Relabelled:
    """A split with other labels."""

    def __init__(self, split: Any, labels: Tensor) -> None:
        self.split, self.labels = split, labels

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def at(self, indices: NDArray[np.int64], step: int, *, augment: bool = False) -> tuple[Tensor, Tensor]:
        """Return the samples of these numbers."""
        return self.split.at(indices, step, augment=augment)[0], self.labels[torch.from_numpy(indices)]

    def batch(self, step: int, size: int, *, augment: bool = False) -> tuple[Tensor, Tensor]:
        """Return the samples of a step, in order."""
        return self.at(np.arange(step * size, (step + 1) * size) % len(self), step, augment=augment)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return all samples at once."""
        yield self.at(np.arange(len(self)), 0)


def mislabelled(comparison: Comparison, seed: int, quick: bool) -> float:
    """Return how much more often than the average PA&DA draws samples with a wrong label, after training."""
    labels = comparison.task.train.labels.clone()
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(labels), len(labels) // 20, replace=False)
    labels[wrong] = (labels[wrong] + torch.from_numpy(rng.integers(1, 10, len(wrong)))) % 10
    learner = learned(comparison, PADA, seed, 40 if quick else PASSES, Relabelled(comparison.task.train, labels))
    chances = learner.samples.chances
    return float(chances[wrong].mean() / chances.mean())


def best_of_200(make: Any, seed: int) -> float:
    """Return the accuracy in percent of the best network after 200 queries under the median FLOPs."""
    table = load("nasbench_macro")
    limit = float(np.median(table.column("flops_m")))

    def flops(arch: Architecture) -> float:
        return float(table.values("flops_m", [arch])[0])

    objectives = (table.objective("accuracy", goal="max"), Objective("flops_m", flops, at_most=limit, cheap=True))
    space = dataclasses.replace(table.space, constraint=lambda arch: flops(arch) <= limit)
    log = search(space, make(space, objectives), objectives, trials=200, seed=seed)
    return max(trial.values["accuracy"] for trial in log if trial.state == "done")


def _interval(differences: NDArray[np.float64]) -> str:
    """Return the mean, and half of its 95 % interval."""
    half = t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return f"{differences.mean():+.3f} ± {half:.3f}"


def _row(proof: str, what: str, values: list[float], **more: str | float | None) -> Row:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    found: dict[str, str | float | int | None] = {"proof": proof, "of": what, "mean": float(np.mean(values))}
    return {
        **found,
        "deviation": deviation,
        "seeds": len(values),
        **dict.fromkeys(("passes", "ahead", "against", "cpu_s")),
        **more,
    }
