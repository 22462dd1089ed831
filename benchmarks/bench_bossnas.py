"""BossNAS's ranking against networks trained alone, beside its own parts, an untrained supernet, and one with labels.

Noisy digits (500 images to train on, noise of deviation .35), two blocks of two layers of four operations, 256
networks. 60 of them are trained alone, for 200 steps of 64 images; their accuracy on the 1,297 other images is the
truth. BossNAS takes 120 steps a block, of 8 passes each, and rates on 256 of those images, without their labels; SPOS
takes 1,920 steps, as many passes, and ranks by its loss on all of them. `rho` is Spearman's with the truth, mean and
deviation of three seeds. The number of 3x3 convolutions needs no training at all. `spread` is that of the projections
at the end of the first block, 1 for random directions; below .1 they have collapsed. What is trained is kept in
runs/bossnas, and continued there.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oneshot_common import digits

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from sartor.architecture import Architecture
from sartor.evaluation import predictions, specialised
from sartor.fit import fit
from sartor.oneshot import Recipe, Supervised
from sartor.oneshot.bossnas import BossNAS
from sartor.oneshot.spos import SPOS
from sartor.ranking import spearman
from sartor.space import SearchSpace
from sartor.supernet import extract, recalibrate_batchnorm, search_space
from toy_blocks import ToyBlocks

Row = Mapping[str, str | float | int | None]

BATCH = 64
FOLDER = Path(__file__).parents[1] / "runs" / "bossnas"
RECIPE = Recipe(optimizer="adam", lr=0.01, lr_batch=64, schedule="cosine", dropout=None, label_smoothing=0.0)
KINDS: dict[str, dict[str, Any]] = {
    "BossNAS": {},
    "target: a path's own": {"ensemble": False},
    "untrained": {"recipe": replace(RECIPE, lr=0.0), "momentum": (1.0, 1.0)},
    "no average, no predictor": {"momentum": (0.0, 0.0), "predictor": False},
}


def rows(quick: bool) -> Iterator[Row]:
    """A row per way to rank."""
    study = Study(networks=8 if quick else 60, steps=20 if quick else 120, truth=20 if quick else 200)
    seeds = range(1 if quick else 3)
    truth = study.truth()
    counts = [sum(option == "conv3" for option in arch.values()) for arch in study.archs]
    yield _row("number of 3x3 convolutions", [{"scores": counts}], truth)
    for name in KINDS:
        yield _row(name, [study.bossnas(name, seed) for seed in seeds], truth)
    yield _row("SPOS, with labels", [study.spos(seed) for seed in seeds], truth)


class Study:
    """Digits, the toy space, the networks of the truth, and the lengths of all trainings."""

    def __init__(self, networks: int, steps: int, truth: int) -> None:
        self.data, self.steps, self.alone = digits(FOLDER), steps, truth
        self.space: SearchSpace = search_space(ToyBlocks())
        rng, found = random.Random("truth"), dict[Architecture, None]()
        while len(found) < networks:
            found[self.space.sample(rng)] = None
        self.archs = list(found)

    def truth(self) -> list[float]:
        """Accuracy of each network, trained alone."""
        return [self._known(arch) for arch in self.archs]

    def _known(self, arch: Architecture) -> float:
        kept = self.data._kept(f"alone-{arch.id}-{self.alone}", lambda: {"accuracy": self._alone(arch)})
        return float(kept["accuracy"])

    def _alone(self, arch: Architecture) -> float:
        torch.manual_seed(0)
        network: Any = extract(ToyBlocks(), arch)
        learner = Supervised(network, steps=self.alone, batch_size=BATCH, recipe=RECIPE)
        self._fit(learner, self.alone, 0)
        recalibrate_batchnorm(network, self.data.calibration)
        return self.data.score(network.eval())[0]

    def bossnas(self, name: str, seed: int) -> Mapping[str, Any]:
        """Scores of the networks, higher better, the spread at the end of the first block, and CPU seconds."""
        steps = 1 if name == "untrained" else self.steps
        return self.data._kept(f"{name}-{seed}-{steps}", lambda: self._bossnas(steps, seed, KINDS[name]))

    def _bossnas(self, steps: int, seed: int, given: Mapping[str, Any]) -> Mapping[str, Any]:
        torch.manual_seed(seed)
        validation = [self.data.held_out[0][0][:256]]
        settings: dict[str, Any] = {"recipe": RECIPE, "hidden": 64, "features": 32, "validation": validation, **given}
        learner = BossNAS(ToyBlocks(), self.space, steps=2 * steps, batch_size=BATCH, seed=seed, **settings)
        spreads: list[float] = []
        before = time.process_time()
        self._fit(learner, 2 * steps, seed, lambda scalars: spreads.append(scalars["spread"]))
        seconds = time.process_time() - before
        scores = [-learner.score(arch) for arch in self.archs]
        return {"scores": scores, "spread": spreads[steps - 1], "cpu_s": seconds}

    def spos(self, seed: int) -> Mapping[str, Any]:
        """The same of uniform single paths with labels, of as many passes."""
        return self.data._kept(f"spos-{seed}-{self.steps}", lambda: self._spos(seed))

    def _spos(self, seed: int) -> Mapping[str, Any]:
        torch.manual_seed(seed)
        steps = 16 * self.steps
        learner = SPOS(ToyBlocks(), self.space, steps=steps, batch_size=BATCH, seed=seed, recipe=RECIPE)
        before = time.process_time()
        self._fit(learner, steps, seed)
        seconds = time.process_time() - before
        return {"scores": [self._shared(learner.net, arch) for arch in self.archs], "cpu_s": seconds}

    def _shared(self, net: torch.nn.Module, arch: Architecture) -> float:
        outputs, labels = predictions(specialised(net, arch, self.data.calibration), self.data.held_out)
        return -float(torch.nn.functional.cross_entropy(outputs, labels))

    def _fit(
        self, learner: Any, steps: int, seed: int, note: Callable[[Mapping[str, float]], None] | None = None
    ) -> None:
        def progress(done: int, steps: int, scalars: Mapping[str, float]) -> None:
            if note is not None:
                note(scalars)

        fit(learner, self.data.task.train, steps=steps, batch_size=BATCH, seed=seed, progress=progress)


def _row(name: str, found: Sequence[Mapping[str, Any]], truth: Sequence[float]) -> Row:
    rhos = [spearman(one["scores"], truth) for one in found]
    spreads, seconds = ([one[key] for one in found if key in one] for key in ("spread", "cpu_s"))
    return {
        "ranked by": name,
        "rho": float(np.mean(rhos)),
        "deviation": float(np.std(rhos, ddof=1)) if len(rhos) > 1 else None,
        "spread": float(np.mean(spreads)) if spreads else None,
        "cpu_s": round(float(np.mean(seconds)), 1) if seconds else None,
    }
