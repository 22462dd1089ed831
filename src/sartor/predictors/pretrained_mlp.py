# SPDX-License-Identifier: Apache-2.0
"""The predictor of FBNetV3: an encoder that has learnt free statistics before it learns accuracy.

Dai, Wan, Zhang, Wu, He, Wei, Chen, Tian, Yu, Vajda and Gonzalez, "FBNetV3: Joint Architecture-Recipe Search using
Predictor Pretraining", CVPR 2021, arXiv:2006.02049, section 3.2.

Statistics such as FLOPs and parameters cost nothing, so that an encoder of architectures can learn them from thousands;
what it has learnt of the architecture is then there before the first accuracy is. Training recipes enter after the
encoder, as they do not change the statistics.

Differs from the paper: an ensemble, for the uncertainty; each fit starts from the pretrained encoder, not from the fit
before, so that it depends on its samples alone; numbers of the recipe are one-hot too, and the penalty is AdamW's.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.encodings import onehot, onehot_names, option_counts
from sartor.predictors._networks import Members, one_thread, trained
from sartor.predictors._samples import Floats, Scale, checked, unfitted
from sartor.predictors.losses import huber
from sartor.space import SearchSpace

__all__ = ["PretrainedMLP", "Statistics"]

Statistics = Callable[[Sequence[Architecture]], NDArray[np.float64]]
_BATCH = 256


class PretrainedMLP:
    """A `Predictor`: the mean of several networks and the standard deviation between them.

    statistics: from N architectures to (N, K) numbers that are free (default: how often each option occurs).
    recipe: names of the choices of the training recipe, which the encoder does not see.
    unlabelled: architectures drawn for the pretraining; 0 for none.
    units: of the hidden layer, of the embedding and of the accuracy head's hidden layer.
    pretraining, frozen, steps: of AdamW: on statistics, on accuracy with the encoder fixed, and then on all.
    lr: of the first two; the last has a third of it. All fall to 0.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        statistics: Statistics | None = None,
        recipe: Collection[str] = (),
        unlabelled: int = 2000,
        units: int = 64,
        members: int = 5,
        pretraining: int = 400,
        frozen: int = 50,
        steps: int = 150,
        lr: float = 1e-2,
        weight_decay: float = 1e-2,
        seed: int = 0,
    ) -> None:
        """Take the space and pretrain at the first fit; ValueError for sizes or names that cannot be."""
        if unknown := set(recipe) - set(space.choices):
            raise ValueError(f"recipe names {sorted(unknown)}, but the choices are {', '.join(space.choices)}")
        if min(units, members, steps) < 1 or min(unlabelled, pretraining, frozen) < 0:
            raise ValueError(f"units {units}, members {members}, steps {steps}: at least 1; other sizes at least 0")
        self.space, self.seed = space, seed
        self.statistics: Statistics = partial(option_counts, space) if statistics is None else statistics
        self.unlabelled, self.units, self.members = unlabelled, units, members
        self.pretraining, self.frozen, self.steps = pretraining, frozen, steps
        self.lr, self.weight_decay = lr, weight_decay
        self._is_recipe = torch.tensor([name in recipe for name, _ in onehot_names(space)])
        self._pretrained: Members | None = None
        self._scale: Scale | None = None

    @property
    def is_pretrained(self) -> bool:
        """Whether the encoder has been trained."""
        return self._pretrained is not None

    def pretrain(self) -> float:
        """Train the encoder on the statistics, once; return the share of their variance it explains, 0 to 1."""
        generator = torch.Generator().manual_seed(self.seed)
        inputs = int((~self._is_recipe).sum())
        with one_thread():
            encoder = Members(self.members, (inputs, self.units, self.units), generator, ends=False)
            self._pretrained, explained = encoder, 0.0
            if self.unlabelled and inputs:
                rng = random.Random(self.seed)
                archs = [self.space.sample(rng) for _ in range(self.unlabelled)]
                labels = torch.from_numpy(_standardised(self.statistics(archs))).float()
                head = Members(self.members, (self.units, labels.shape[1]), generator)
                explained = self._learn_statistics(encoder, head, self._encoded(archs), labels, generator)
        return explained

    def fit(self, archs: Sequence[Architecture], values: Floats) -> Self:
        """Train head, then all, from the pretrained encoder; ValueError for fewer than 2 samples or NaN."""
        values = checked(archs, values)
        if self._pretrained is None:
            self.pretrain()
        assert self._pretrained is not None
        self._scale = Scale.of(values)
        x, y = self._encoded(archs), torch.from_numpy(self._scale.standardised(values)).float()
        generator = torch.Generator().manual_seed(self.seed + 1)
        recipes = int(self._is_recipe.sum())
        hidden = (self.units,) if recipes else ()
        with one_thread():
            self._encoder = copy.deepcopy(self._pretrained)
            self._head = Members(self.members, (self.units + recipes, *hidden, 1), generator)
            head, both = list(self._head.parameters()), [*self._encoder.parameters(), *self._head.parameters()]
            for parameters, steps, lr in ((head, self.frozen, self.lr), (both, self.steps, self.lr / 3)):
                trained(
                    self._scores,
                    parameters,
                    x,
                    y,
                    loss=huber,
                    steps=steps,
                    lr=lr,
                    weight_decay=self.weight_decay,
                    batch=_BATCH,
                    generator=generator,
                )
        return self

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) means and the (N,) standard deviations of the members; ValueError before `fit`."""
        if self._scale is None:
            raise unfitted(self)
        with one_thread(), torch.no_grad():
            several = self._scores(self._encoded(archs)).double().numpy()
        return self._scale.mean + self._scale.spread * several.mean(axis=0), self._scale.spread * several.std(axis=0)

    def _learn_statistics(
        self, encoder: Members, head: Members, x: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> float:
        rows = x[:, ~self._is_recipe]

        def loss(scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            return huber(scores.flatten(1), values.flatten())

        trained(
            lambda rows: head(encoder(rows)),
            [*encoder.parameters(), *head.parameters()],
            rows,
            labels,
            loss=loss,
            steps=self.pretraining,
            lr=self.lr,
            weight_decay=self.weight_decay,
            batch=_BATCH,
            generator=generator,
        )
        with torch.no_grad():
            residual = (head(encoder(rows)) - labels).square().mean()
        return float(1 - residual / labels.square().mean().clamp(min=1e-12))

    def _scores(self, x: torch.Tensor) -> torch.Tensor:
        """Return (M, N): the accuracy head on [embedding, recipe]."""
        embedding = self._encoder(x[:, ~self._is_recipe])
        recipe = x[:, self._is_recipe].expand(len(embedding), -1, -1)
        return self._head(torch.cat([embedding, recipe], dim=-1))[..., 0]  # type: ignore[no-any-return]

    def _encoded(self, archs: Sequence[Architecture]) -> torch.Tensor:
        return torch.from_numpy(onehot(self.space, archs)).float()


def _standardised(statistics: NDArray[np.float64]) -> Floats:
    """Return the columns at mean 0 and spread 1, positive ones by their logarithm."""
    columns = np.asarray(statistics, dtype=np.float64)
    if columns.ndim != 2 or not np.isfinite(columns).all():
        raise ValueError(f"statistics of shape {columns.shape} must be finite numbers, (N, K)")
    columns = np.where((columns > 0).all(axis=0), np.log(np.where(columns > 0, columns, 1.0)), columns)
    return np.stack([Scale.of(column).standardised(column) for column in columns.T], axis=1)
