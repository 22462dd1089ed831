# SPDX-License-Identifier: Apache-2.0
"""A latency regressor that a differentiable search can ask for soft architectures (LA-DARTS).

Xu, Xie, Zhang, Chen, Shi, Tian and Xiong, "Latency-Aware Differentiable Neural Architecture Search", 2020,
arXiv:2001.06392.

A table of operators adds up badly where branches run in parallel or are fused. A perceptron learns the latency of whole
networks from their one-hot codes, once for a device, and is then frozen. Fed with the code of the relaxed architecture,
its output is a loss, L = L_val(w, alpha) + lambda * LPM(enc(alpha)), and has a gradient in alpha.

Differs from the paper:
- A space of ours gives each choice exactly one option, and has no edges that are left out. So the `keep` strongest
  options of each choice stay in the code where the paper keeps the two strongest edges of each node; the gradient is
  that of all (straight-through).
- Any space and any number of measured networks, instead of the 196 bits of DARTS cells and 80,000 networks. The widths
  of the hidden layers are not those of the paper.
- Latencies are brought to mean 0 and spread 1 for training.
- `mixtures`, 0 by default, adds pairs of networks, mixed in code and latency, to what is trained on (Zhang et al.,
  "mixup", ICLR 2018, arXiv:1710.09412): a perceptron that has only seen corners of the cube takes its inside for fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sartor.architecture import Architecture, Option
from sartor.choice import Kept, Mixed
from sartor.encodings import architectures, onehot
from sartor.predictors._networks import Members, one_thread
from sartor.predictors._samples import Floats, Scale, checked, unfitted
from sartor.relaxation import Relaxation, strongest
from sartor.space import SearchSpace

__all__ = ["LADARTS", "off_manifold_gap"]


class LADARTS:
    """A `Predictor` that answers for soft architectures too.

    hidden: units of the hidden layers.
    keep: how many options of each choice a soft code keeps: 2 by default, 1 for a straight-through one-hot code, None
        for all of them.
    mixtures: pairs that are mixed, for each network of a batch (0: corners alone).
    steps, lr, batch: of Adam.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        hidden: Sequence[int] = (64, 64),
        keep: int | None = 2,
        mixtures: int = 0,
        steps: int = 1500,
        lr: float = 3e-3,
        batch: int = 256,
        seed: int = 0,
    ) -> None:
        """Take the space; ValueError for sizes out of range."""
        if steps < 1 or batch < 2 or mixtures < 0 or any(units < 1 for units in hidden):
            raise ValueError(f"steps {steps}, batch {batch}, mixtures {mixtures}, hidden {tuple(hidden)}: too small")
        if keep is not None and keep < 1:
            raise ValueError(f"keep is {keep}: keep at least 1 option of each choice, or None for all")
        self.space, self.hidden, self.keep, self.mixtures = space, tuple(hidden), keep, mixtures
        self.steps, self.lr, self.batch, self.seed = steps, lr, batch, seed
        self._relaxation = Relaxation(space)
        self._scale: Scale | None = None

    def fit(self, archs: Sequence[Architecture], values: Floats) -> Self:
        """Train from new weights and freeze them; ValueError for fewer than 2 samples, NaN or infinity."""
        values = checked(archs, values)
        x = torch.from_numpy(onehot(self.space, archs)).float()
        scale = Scale.of(values)
        y = torch.from_numpy(scale.standardised(values)).float()
        generator = torch.Generator().manual_seed(self.seed)
        net = Members(1, (x.shape[1], *self.hidden, 1), generator)
        optimiser = torch.optim.Adam(net.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        with one_thread(), torch.enable_grad():
            for _ in range(self.steps):
                codes, wanted = self._batch(x, y, generator)
                optimiser.zero_grad()
                torch.nn.functional.mse_loss(net(codes)[0, :, 0], wanted).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
        net.zero_grad()
        self._net, self._scale = net.requires_grad_(False), scale
        return self

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) means and (N,) zeros, as there is no estimate of the error; ValueError before `fit`."""
        code = torch.from_numpy(onehot(self.space, archs)).float()
        with one_thread(), torch.no_grad():
            mean = self._values(code).double().numpy()
        return mean, np.zeros_like(mean)

    def __call__(self, assignment: Mapping[str, Option | Tensor | Kept | Mixed]) -> Tensor:
        """Return the value of a soft architecture: a scalar tensor with gradients, LPM(enc(alpha)).

        The assignment gives each choice a weight for each option, or one option, as `sartor.supernet.activated` takes
        it. ValueError before `fit`, and for an assignment that does not fit the space.
        """
        weights = self._relaxation.weights(assignment)
        if self.keep is not None:
            weights = {name: strongest(weight, self.keep) for name, weight in weights.items()}
        code = self._relaxation.code(weights)
        return self._values(code[None].float())[0].to(code.dtype)

    def _values(self, code: Tensor) -> Tensor:
        if self._scale is None:
            raise unfitted(self)
        scores: Tensor = self._net(code)[0, :, 0]
        return self._scale.mean + self._scale.spread * scores

    def _batch(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return codes and values of all samples, or of `batch` drawn ones, and of mixtures of pairs of these."""
        if len(y) > self.batch:
            rows = torch.randperm(len(y), generator=generator)[: self.batch]
            x, y = x[rows], y[rows]
        codes, values = [x], [y]
        for _ in range(self.mixtures):
            other = torch.randperm(len(y), generator=generator)
            share = torch.rand(len(y), generator=generator)
            codes.append(torch.lerp(x[other], x, share[:, None]))
            values.append(torch.lerp(y[other], y, share))
        return torch.cat(codes), torch.cat(values)


def off_manifold_gap(
    predictor: LADARTS, weights: Mapping[str, Tensor], *, draws: int = 512, rng: np.random.Generator
) -> float:
    """Return how far a soft prediction is from the mean prediction of networks drawn with these weights, as its share.

    Below 0, the mixture looks cheaper than the networks that it stands for. `weights`: probabilities of the options of
    every choice. `draws`: networks, each choice drawn on its own.
    """
    space = predictor.space
    columns = []
    for name, options in space.choices.items():
        chances = weights[name].detach().double().numpy()
        columns.append(rng.choice(len(options), size=draws, p=chances / chances.sum()))
    expected = float(predictor.predict(architectures(space, np.stack(columns, axis=1)))[0].mean())
    return float(predictor(weights).detach()) / expected - 1.0
