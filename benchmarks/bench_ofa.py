# SPDX-License-Identifier: Apache-2.0
"""Progressive shrinking beside uniform sampling; sorted channels; slimmable widths: what the papers claim, on digits.

Noisy digits of `oneshot_common`: 500 images to train on, 600 to choose by, 697 to report on; batches of 64, one recipe
(RMSProp, cosine). Values are accuracies in percent on the images to report on, mean and deviation of three seeds; every
comparison is at equal forward-backward passes. Sub-networks have re-calibrated batch norms unless a row says otherwise.

sorted: the largest network of an elastic chain (widths 8, 16, 32, depths 1, 2, kernels 3, 5, expansions 2, 3, 4) is
trained alone, and its half is cut out. norms, sandwich, slimming: three convolutions of searched widths. norms: widths
1, 3/4, 1/2 and 1/4 trained together. sandwich: ten widths, after four random ones a step on the labels, and after the
sandwich. slimming: AutoSlim's descent to the MACs of half the width, and half the width, with the shared weights of the
sandwich. stages: the chain, by shrinking with the paper's learning rates, with the first stage's in all stages, and
without sorting; by single paths drawn uniformly, on the labels; and networks trained alone. predictor: from 300
sub-networks of the second of these; tau on 100 others; then 2,000 evaluations of an evolution on the predictor below
the median of MACs, whose best five are measured, beside the best of the 300 below it.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import oneshot_common
from oneshot_common import BATCH, Comparison
from sartor.architecture import Architecture, Option
from sartor.choice import Choice, Size
from sartor.evaluation import predictions, specialised
from sartor.fit import fit
from sartor.nn import BatchNorm2d, Conv2d, Linear, Repeat
from sartor.objective import Objective
from sartor.oneshot import Supervised
from sartor.oneshot._macs import Macs
from sartor.oneshot._training import Training, draws
from sartor.oneshot.ofa import OFA
from sartor.oneshot.ofa_stages import STAGES
from sartor.oneshot.sampling import at_width
from sartor.oneshot.slimmable import Slimmable
from sartor.oneshot.spos import SPOS
from sartor.oneshot.universally_slimmable import UniversallySlimmable
from sartor.permutation import channel_groups, permute, sort_channels
from sartor.predictors import MLP
from sartor.ranking import kendall_tau
from sartor.search import search
from sartor.spaces.mobilenet import InvertedResidual
from sartor.strategies.autoslim import AutoSlim
from sartor.strategies.regularized_evolution import RegularizedEvolution
from sartor.supernet import extract, search_space
from sartor.trial import Trial

Row = Mapping[str, str | float | None]
Archs = Callable[[random.Random], Sequence[Mapping[str, Option]]]

IMAGE, CLASSES = (1, 8, 8), 10
PARTS = [i / 12 for i in range(3, 13)]  # ten widths, a quarter to all


class Chain(nn.Module):
    """Stem, two stages of one or two inverted bottlenecks, mean over the map, linear."""

    def __init__(self) -> None:
        super().__init__()
        widths = [Choice((8, 16, 32), name=f"stages.{i}.width") for i in range(2)]
        self.stem, self.norm = Conv2d(1, widths[0], 3, padding=1, bias=False), BatchNorm2d(widths[0])
        self.stages, before = nn.Sequential(), widths[0]
        for stride, width in enumerate(widths, 1):
            blocks = [InvertedResidual(before, width, stride, (3, 5), (2, 3, 4))]
            blocks.append(InvertedResidual(width, width, 1, (3, 5), (2, 3, 4)))
            self.stages.append(Repeat(*blocks, depth=Choice((1, 2))))
            before = width
        self.classifier = Linear(before, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)."""
        out: Tensor = self.classifier(self.stages(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))
        return out

    def reset_parameters(self) -> None:
        """Initialise anew, by torch's defaults."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()


class Widths(nn.Module):
    """Three convolutions of searched widths, the map halved behind the first; mean over the map, linear."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before: int | Size = 1
        for i in range(3):
            width = Choice([round(48 * part) for part in PARTS], name=f"layers.{i}.width")
            layers += [Conv2d(before, width, 3, padding=1, bias=False), BatchNorm2d(width), nn.ReLU()]
            layers += [] if i else [nn.MaxPool2d(2)]
            before = width
        self.layers, self.classifier = nn.Sequential(*layers), Linear(before, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)."""
        out: Tensor = self.classifier(self.layers(x).mean((2, 3)))
        return out


class Labelled:
    """A learner of sub-networks on the labels alone, several a step, in the network as it is."""

    def __init__(self, net: nn.Module, task: Callable[..., Tensor], archs: Archs, steps: int) -> None:
        self.net, self.loss, self.archs = net, task, archs
        recipe = oneshot_common.RECIPE
        self.training = Training(net, steps=steps, batch_size=BATCH, recipe=recipe)

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step."""
        for images, labels in self.training.parts(batch):
            for arch in self.archs(draws(0, self.training.done)):
                loss = self.training.recipe.smoothed(self.loss, self.training.logits(arch, images), labels)
                self.training.backward(loss)
        return {"loss": loss.item(), "learning_rate": self.training.update()}

    def state_dict(self) -> dict[str, object]:
        """Return the state."""
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore it."""
        self.training.load_state_dict(state)


class Digits:
    """The data, a network on it, and its seeds and passes."""

    def __init__(self, network: Callable[[], nn.Module], quick: bool) -> None:
        digits = oneshot_common.digits()
        self.common = Comparison(digits.task, network, Path())
        self.task, self.space = digits.task, search_space(network())
        self.seeds, self.passes = (1, 120) if quick else (3, 1200)
        self.quick = quick

    def network(self, seed: int) -> nn.Module:
        """Return the network with the first weights of a seed."""
        torch.manual_seed(seed)
        return self.common.network()

    def trained(self, learner: object, steps: int, seed: int) -> float:
        """Train; return the CPU seconds."""
        before = time.process_time()
        fit(learner, self.task.train, steps=steps, batch_size=BATCH, seed=seed, progress=oneshot_common._quiet)  # type: ignore[arg-type]
        return time.process_time() - before

    def accuracy(self, network: nn.Module, part: str = "test") -> float:
        """Return percent on the images to report on ("test") or to choose by ("validation")."""
        outputs, labels = predictions(network, getattr(self.task, part).batches(512))
        return 100 * self.task.metric(outputs, labels)

    def of(self, net: nn.Module, arch: Architecture, part: str = "test") -> float:
        """Return the accuracy of a sub-network, its batch norms re-calibrated."""
        return self.accuracy(specialised(net, arch, self.common.calibration), part)


def rows(quick: bool) -> Iterator[Row]:
    """A row per proof, method and what was measured."""
    chain, widths = Digits(Chain, quick), Digits(Widths, quick)
    shrunk: list[nn.Module] = []
    slim: list[nn.Module] = []
    yield from sorted_channels(chain)
    yield from norms(widths)
    yield from sandwich(widths, slim)
    yield from slimming(widths, slim)
    yield from stages(chain, shrunk)
    yield from predictor(chain, shrunk)


def _row(proof: str, method: str, what: str, values: Sequence[float], seconds: Sequence[float] = ()) -> Row:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    cpu = round(float(np.mean(seconds)), 1) if seconds else None
    mean = round(float(np.mean(values)), 3)
    return {"proof": proof, "method": method, "of": what, "mean": mean, "deviation": deviation, "cpu_s": cpu}


# ---- progressive shrinking ------------------------------------------------------------------------


def shrinking(flat: bool = False, sort: bool = True) -> Callable[..., OFA]:
    """Return what makes the learner, flat with one learning rate in all stages."""
    chosen = [replace(stage, lr=1.0) for stage in STAGES] if flat else STAGES
    return partial(OFA, stages=chosen, sort=sort)


METHODS: Mapping[str, Callable[..., OFA | SPOS]] = {
    "shrinking": shrinking(),
    "shrinking, one learning rate": shrinking(flat=True),
    "the same, unsorted": shrinking(flat=True, sort=False),
    "uniform": SPOS,
}


def stages(digits: Digits, shrunk: list[nn.Module]) -> Iterator[Row]:
    """Rows of accuracy; the networks of the second method are handed on."""
    archs = [digits.space.sample(random.Random(i)) for i in range(3 if digits.quick else 20)]
    for name, kind in METHODS.items():
        found: dict[str, list[float]] = {"largest": [], "mean of 20": [], "smallest": []}
        seconds = []
        for seed in range(digits.seeds):
            net = digits.network(seed)

            def made(steps: int, net: nn.Module = net, seed: int = seed) -> OFA | SPOS:
                given = {"steps": steps, "batch_size": BATCH, "recipe": oneshot_common.RECIPE, "seed": seed}
                return kind(net, digits.space, digits.task.loss, **given)  # noqa: B023 - called in this turn

            learner = made(round(digits.passes / made(digits.passes).passes_per_step))
            seconds.append(digits.trained(learner, learner.training.steps, seed))
            found["largest"].append(digits.of(net, digits.space.largest()))
            found["mean of 20"].append(float(np.mean([digits.of(net, arch) for arch in archs])))
            found["smallest"].append(digits.of(net, digits.space.smallest()))
            if name == "shrinking, one learning rate":
                shrunk.append(net)
        for what, values in found.items():
            yield _row("stages", name, what, values, seconds)
    for what, arch in (("largest", digits.space.largest()), ("smallest", digits.space.smallest())):
        values = []
        for seed in range(digits.seeds):
            network = extract(digits.network(seed), arch)
            network.reset_parameters()  # type: ignore[operator]
            alone = Supervised(
                network, digits.task.loss, steps=digits.passes, batch_size=BATCH, recipe=oneshot_common.RECIPE
            )
            digits.trained(alone, digits.passes, seed)
            values.append(digits.accuracy(network.eval()))
        yield _row("stages", "alone", what, values)


# ---- sorted channels ------------------------------------------------------------------------------


def sorted_channels(digits: Digits) -> Iterator[Row]:
    """Rows of the half of a network that was trained at its largest."""
    half = digits.space.largest().replace({n: o[-2] for n, o in digits.space.choices.items() if n.endswith("width")})
    thin = half.replace({n: 2 for n in digits.space.choices if n.endswith("expand")})
    cuts = {"half the width": half, "half the width and expansion": thin}
    found: dict[tuple[str, str], list[float]] = {
        (how, what): [] for what in cuts for how in ("sorted", "first", "random")
    }
    for seed in range(digits.seeds):
        net = digits.network(seed)
        steps = digits.passes // 4
        learner = Supervised(net, digits.task.loss, steps=steps, batch_size=BATCH, recipe=oneshot_common.RECIPE)
        digits.trained(learner, steps, seed)
        ordered = copy.deepcopy(net)
        sort_channels(ordered)
        shuffled = [_shuffled(net, draw) for draw in range(10)]
        for what, arch in cuts.items():
            found["sorted", what].append(digits.of(ordered, arch))
            found["first", what].append(digits.of(net, arch))
            found["random", what].append(float(np.mean([digits.of(one, arch) for one in shuffled])))
    for (how, what), values in found.items():
        yield _row("sorted", f"{how} channels", what, values)


def _shuffled(net: nn.Module, seed: int) -> nn.Module:
    net, rng = copy.deepcopy(net), torch.Generator().manual_seed(seed)
    for channels in channel_groups(net):
        permute(channels, torch.randperm(channels.extent, generator=rng))
    return net


# ---- a predictor and a search ---------------------------------------------------------------------


def predictor(digits: Digits, shrunk: Sequence[nn.Module]) -> Iterator[Row]:
    """Rows of the predictor's tau, and of what is found with it below the median of MACs."""
    pairs, others = (30, 10) if digits.quick else (300, 100)
    taus, found, best = [], [], []
    macs = Macs(digits.network(0), IMAGE)
    for seed, net in enumerate(shrunk):
        rng = random.Random(seed)
        archs = [*dict.fromkeys(digits.space.sample(rng) for _ in range(2 * (pairs + others)))][: pairs + others]
        values = np.array([digits.of(net, arch, "validation") for arch in archs])
        model = MLP(digits.space, seed=seed).fit(archs[:pairs], values[:pairs])
        taus.append(kendall_tau(model.predict(archs[pairs:])[0], values[pairs:]))
        cap = float(np.median([macs(arch) for arch in archs[:pairs]]))
        within = [(value, arch) for value, arch in zip(values[:pairs], archs[:pairs], strict=True) if macs(arch) <= cap]
        best.append(digits.of(net, max(within, key=lambda pair: pair[0])[1]))
        found.append(digits.of(net, _searched(digits, net, model, macs, cap, seed)))
    yield _row("predictor", "MLP", f"tau, {pairs} pairs", taus)
    yield _row("predictor", f"best of {pairs}", "below the median of MACs", best)
    yield _row("predictor", "evolution on the predictor", "below the median of MACs", found)


def _searched(digits: Digits, net: nn.Module, model: MLP, macs: Macs, cap: float, seed: int) -> Architecture:
    """Return the best, measured, of the five that the predictor puts first."""
    objectives = (
        Objective("predicted", lambda arch: float(model.predict([arch])[0][0]), goal="max"),
        Objective("macs", macs, at_most=cap, cheap=True),
    )
    strategy = RegularizedEvolution(digits.space, objectives, population=100, tournament=25)
    log = search(digits.space, strategy, objectives, trials=200 if digits.quick else 2000, seed=seed)
    done = {trial.arch: trial.values["predicted"] for trial in log if trial.state == "done"}
    first = sorted(done, key=done.__getitem__)[-5:]
    return max(first, key=lambda arch: digits.of(net, arch, "validation"))


# ---- slimmable networks ---------------------------------------------------------------------------

FOUR = (1.0, 0.75, 0.5, 0.25)


def norms(digits: Digits) -> Iterator[Row]:
    """Rows of four widths trained together, by whose statistics they are read."""
    steps = digits.passes // 4
    archs = {width: at_width(digits.space, width) for width in FOUR}
    found: dict[tuple[str, float], list[float]] = {}
    for seed in range(digits.seeds):
        net = digits.network(seed)
        shared = Labelled(net, digits.task.loss, lambda _: list(archs.values()), steps)
        digits.trained(shared, steps, seed)
        private = Slimmable(
            digits.network(seed),
            digits.space,
            digits.task.loss,
            steps=steps,
            batch_size=BATCH,
            recipe=oneshot_common.RECIPE,
        )
        digits.trained(private, steps, seed)
        for width, arch in archs.items():
            for how, value in (
                ("shared statistics", digits.accuracy(extract(net, arch).eval())),
                ("shared norms, calibrated", digits.of(net, arch)),
                ("private norms", digits.accuracy(extract(private.net, private.at(width)).eval())),
            ):
                found.setdefault((how, width), []).append(value)
    for (how, width), values in sorted(found.items(), key=lambda pair: pair[0][0]):
        yield _row("norms", how, f"width {width:g}", values)


def sandwich(digits: Digits, slim: list[nn.Module]) -> Iterator[Row]:
    """Rows of ten widths; the networks of the sandwich, each layer with a width of its own, are handed on."""
    steps = digits.passes // 4

    def four(rng: random.Random) -> list[Architecture]:
        return [at_width(digits.space, rng.uniform(0.25, 1.0)) for _ in range(4)]

    for name in ("random widths", "sandwich", "sandwich, a width for each layer"):
        found = []
        for seed in range(digits.seeds):
            net = digits.network(seed)
            given: Any = {"steps": steps, "batch_size": BATCH, "recipe": oneshot_common.RECIPE, "seed": seed}
            learner = (
                Labelled(net, digits.task.loss, four, steps)
                if name == "random widths"
                else UniversallySlimmable(net, digits.space, digits.task.loss, uniform=name == "sandwich", **given)
            )
            digits.trained(learner, steps, seed)
            found.append([digits.of(net, at_width(digits.space, part)) for part in PARTS])
            if "each layer" in name:
                slim.append(net)
        for what, place in (("mean of ten widths", slice(None)), ("narrowest", slice(1)), ("widest", slice(-1, None))):
            yield _row("sandwich", name, what, [float(np.mean(one[place])) for one in found])


def slimming(digits: Digits, slim: Sequence[nn.Module]) -> Iterator[Row]:
    """Rows of AutoSlim's descent and of half the width, at no more MACs."""
    macs = Macs(digits.network(0), IMAGE)
    half = at_width(digits.space, 0.5)
    greedy = []
    for net in slim:
        strategy = AutoSlim(digits.space, (Objective("error", macs),), resource=macs, budget=macs(half))
        number = 0
        while not strategy.path or macs(strategy.path[-1]) > macs(half):
            arch = strategy.ask(random.Random(number))
            error = 100 - digits.of(net, arch, "validation")
            strategy.tell(Trial(number, arch, {"error": error}, state="done"))
            number += 1
        greedy.append(digits.of(net, strategy.path[-1]))
    yield _row("slimming", "half the width", "at most its MACs", [digits.of(net, half) for net in slim])
    yield _row("slimming", "AutoSlim", "at most its MACs", greedy)
