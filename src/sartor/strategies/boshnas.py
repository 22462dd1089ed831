# SPDX-License-Identifier: Apache-2.0
"""BOSHNAS, Bayesian optimisation with a second-order, heteroscedastic surrogate.

Tuli, Dedhia, Tuli and Jha, "FlexiBERT: Are Current Transformer Architectures too Homogeneous and Rigid?",
JAIR, 2023, arXiv:2205.11656. Official code: jha-lab/txf_design-space and jha-lab/boshnas.

Idea: embed architectures so that distance is edit distance. Three small networks give the mean, the aleatoric and
the epistemic uncertainty of any point of the embedding. Descend with second-order steps on the input (GOBI) to
the point of the best bound, and query the architecture that is nearest to it; now and then query where the
surrogate knows least, or at random.

Differs from the paper: the embedding is one-hot, in which the squared distance is twice the number of choices
that differ, in place of a fitted embedding of graph edit distances; so any space has one, and the nearest
architecture that is new is found exactly, without a library. The surrogate is trained anew for each batch, f as
fast as g and h, and all three by AdamW on full batches for a fixed number of epochs. Targets are ranks in place of
scaled values, one failed training being as far from the rest as all good ones are apart. The trust region is an
absolute radius: that of the code is a quarter of the coordinate, which is no region at 0. Products with the Hessian
are differences of two gradients. No weights are transferred.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor import encodings
from sartor.architecture import Architecture
from sartor.objective import Objective, check_names, costs
from sartor.space import SearchSpace
from sartor.strategies._indicator import cheap_excess, sampled_within
from sartor.strategies._operators import excess
from sartor.trial import Trial

_SNAPS = 1000
_POOL = 1000
_RATE = 2e-3  # of g: the code's

Queries = tuple[list[Architecture], list[Architecture]]  # by the bound, and by uncertainty


class BOSHNAS:
    """Minimises (or maximises) the first objective; the others count through their bounds only.

    samples: random architectures before the first fit.
    batch: queries between two fits, k; GOBI starts from as many random architectures.
    uncertain, diverse: probabilities of a query where uncertainty is largest, and of a random one (alpha, beta).
    epochs: of each network (200: code). exploration: weight of the uncertainty in the bound (0.5: code).
    aleatoric: whether the bound counts aleatoric uncertainty as well.
    steps, step, trust: of GOBI: at most so many (200), the learning rate of AdaHessian (0.5), and how far a
        coordinate moves in one step (0.25).
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        samples: int = 20,
        batch: int = 10,
        uncertain: float = 0.1,
        diverse: float = 0.1,
        epochs: int = 200,
        exploration: float = 0.5,
        aleatoric: bool = False,
        steps: int = 200,
        step: float = 0.5,
        trust: float = 0.25,
    ) -> None:
        """Start with nothing told; ValueError for numbers out of range."""
        check_names(objectives)
        if samples < 2 or min(batch, epochs, steps) < 1:
            raise ValueError(
                f"samples is {samples}, batch {batch}, epochs {epochs} and steps {steps}: "
                "they must be at least 2, 1, 1 and 1"
            )
        if not (uncertain >= 0 and diverse >= 0 and uncertain + diverse <= 1 and step > 0 and trust > 0):
            raise ValueError(
                f"uncertain is {uncertain}, diverse {diverse}, step {step} and trust {trust}: "
                "the first two are probabilities, the others above 0"
            )
        self.space = space
        self.objectives = tuple(objectives)
        self.samples = samples
        self.batch = batch
        self.uncertain = uncertain
        self.diverse = diverse
        self.epochs = epochs
        self.exploration = exploration
        self.aleatoric = aleatoric
        self.steps = steps
        self.step = step
        self.trust = trust
        self._archs: dict[Architecture, None] = {}
        self._losses: list[tuple[float, float]] = []  # excess and cost: smaller is better
        self._queries: tuple[int, Queries] = -1, ([], [])  # told when they were made

    def ask(self, rng: random.Random) -> Architecture:
        """Sample first; then query by the bound, by uncertainty (alpha) or for diversity (beta)."""
        count = len(self._archs)
        fitted = count - max(0, count - self.samples) % self.batch
        mode = rng.random()
        if count < self.samples or mode >= 1 - self.diverse:
            return sampled_within(self.space, rng, self._archs, self.objectives)
        if self._queries[0] != fitted:
            self._queries = fitted, self._designed(fitted)
        queries = self._queries[1][mode < self.uncertain]
        left = [arch for arch in queries if arch not in self._archs]
        if not left:
            return sampled_within(self.space, rng, self._archs, self.objectives)
        return left[int(rng.random() * len(left))]

    def tell(self, trial: Trial) -> None:
        """Take in an architecture once."""
        if trial.arch not in self._archs:
            self._archs[trial.arch] = None
            self._losses.append((excess(trial, self.objectives), costs(trial, self.objectives[:1])[0]))

    def state_dict(self) -> dict[str, Any]:
        """Return what was told, as tensors; networks are functions of it, and are fitted when they are needed."""
        import torch

        rows = encodings.indices(self.space, [*self._archs])
        losses = torch.tensor(self._losses, dtype=torch.float64).reshape(-1, 2)
        return {"rows": torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)), "losses": losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what was told."""
        self._archs = dict.fromkeys(encodings.architectures(self.space, state["rows"].numpy().astype(np.intp)))
        self._losses = [(beyond, cost) for beyond, cost in state["losses"].tolist()]
        self._queries = -1, ([], [])

    # ---- queries ----------------------------------------------------------------------------------

    def _designed(self, count: int) -> Queries:
        """Fit to the first `count` architectures; return a batch by GOBI and a batch by uncertainty."""
        from sartor.strategies._gobi import gobi, nearest
        from sartor.strategies._heteroscedastic import Heteroscedastic

        archs = list(itertools.islice(self._archs, count))
        points, targets = encodings.onehot(self.space, archs), _ranks(self._losses[:count])
        surrogate = Heteroscedastic(points, targets, epochs=self.epochs, rate=_RATE, seed=count)
        rng = random.Random(f"boshnas/{count}")
        starts = encodings.onehot(self.space, [self.space.sample(rng) for _ in range(self.batch)])
        bound = partial(surrogate.bound, exploration=self.exploration, aleatoric=self.aleatoric)
        told, queries = set(archs), dict[Architecture, None]()
        for point in gobi(bound, starts, steps=self.steps, rate=self.step, trust=self.trust, seed=count):
            near = itertools.islice(nearest(self.space, point), _SNAPS)
            new = (arch for arch in near if arch not in told and arch not in queries and self._permitted(arch))
            queries.update(dict.fromkeys(itertools.islice(new, 1)))
        pool = [arch for arch in dict.fromkeys(self.space.sample(rng) for _ in range(_POOL)) if arch not in told]
        order = np.argsort(-surrogate.epistemic(encodings.onehot(self.space, pool)), kind="stable")
        allowed = (pool[i] for i in order if not cheap_excess(pool[i], self.objectives))
        return [*queries], list(itertools.islice(allowed, self.batch))

    def _permitted(self, arch: Architecture) -> bool:
        allowed = self.space.constraint is None or bool(self.space.constraint(arch))
        return allowed and cheap_excess(arch, self.objectives) == 0


def _ranks(losses: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Return (N,) targets: for each (excess, cost), the part of the others that are better."""
    ordered = sorted(losses)
    return np.array([bisect.bisect_left(ordered, loss) for loss in losses]) / max(1, len(losses) - 1)
