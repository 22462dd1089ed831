# SPDX-License-Identifier: Apache-2.0
"""The graph convolutional predictor of BRP-NAS.

Dudziak, Chau, Abdelfattah, Lee, Kim and Lane, "BRP-NAS: Prediction-based NAS using GCNs", NeurIPS 2020,
arXiv:2007.08668.

A node for each choice, linked as information flows, holds the option; a global node hears all of them, and what it
holds after four layers is the embedding of the architecture. One linear layer makes a value or, with a loss of the
order, a score of it.

Differs from the paper: single precision; all epochs instead of early stopping, which would take half the samples for
validation; the relation of two architectures is the difference of their scores (loss `bpr`), so that it is
antisymmetric and transitive, instead of a comparator of two embeddings; uncertainty by Monte Carlo dropout (Gal and
Ghahramani, ICML 2016); any space has a graph: where no links are given, its gates are the links and a node also holds
which choice it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import torch

from sartor.architecture import Architecture
from sartor.encodings import graph, neighbourhood
from sartor.predictors._graph_network import GraphNetwork
from sartor.predictors._networks import calibration, one_thread
from sartor.predictors._samples import Floats, Scale, checked, unfitted
from sartor.predictors.losses import Loss, mse
from sartor.space import SearchSpace

__all__ = ["GCN"]

_CHUNK = 512


class GCN:
    """A `Predictor` on the graph of choices.

    links: pairs of names, the second of which reads what the first makes: ("op_01", "op_12") in a cell. With links,
        equal choices at equal places of the graph are the same.
    loss: one of `sartor.predictors.losses`, or a function of the same form.
    layers, units, dropout, lr, weight_decay, epochs, batch: those of the authors' code (4, 600, .2, 3.5e-4, 5e-4, 250,
        64).
    draws: of the dropout, for the uncertainty; 0 for none.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        links: Sequence[tuple[str, str]] = (),
        loss: Loss = mse,
        layers: int = 4,
        units: int = 600,
        dropout: float = 0.2,
        lr: float = 3.5e-4,
        weight_decay: float = 5e-4,
        epochs: int = 250,
        batch: int = 64,
        draws: int = 8,
        seed: int = 0,
    ) -> None:
        """Take the space; ValueError for sizes out of range and for links between what is no choice."""
        if min(layers, units, epochs) < 1 or batch < 2 or draws < 0 or not 0 <= dropout < 1:
            raise ValueError(f"layers {layers}, units {units}, epochs {epochs}, batch {batch}, dropout {dropout}")
        self.space, self.loss, self.seed, self.draws = space, loss, seed, draws
        self.layers, self.units, self.dropout = layers, units, dropout
        self.lr, self.weight_decay, self.epochs, self.batch = lr, weight_decay, epochs, batch
        self._places = not links
        self._heard = torch.from_numpy(neighbourhood(space, links)).float()
        self._scale: Scale | None = None

    def fit(self, archs: Sequence[Architecture], values: Floats) -> Self:
        """Train from new weights; ValueError for fewer than 2 samples, NaN or infinity."""
        values = checked(archs, values)
        self._scale = Scale.of(values)
        x, y = self._nodes(archs), self._scale.standardised(values)
        with one_thread(), torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            size = {"units": self.units, "layers": self.layers, "dropout": self.dropout}
            self._net = GraphNetwork(self._heard, x.shape[2], **size)  # type: ignore[arg-type]
            self._head = torch.nn.Linear(self.units, 1)
            self._train(x, torch.from_numpy(y).float())
        self._line = calibration(self._scores(x), y)
        return self

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) means and the (N,) standard deviations under dropout; ValueError before `fit`."""
        if self._scale is None:
            raise unfitted(self)
        x, (slope, base) = self._nodes(archs), self._line
        mean = self._scale.mean + self._scale.spread * (slope * self._scores(x) + base)
        if not self.draws:
            return mean, np.zeros(len(archs))
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            several = np.stack([self._scores(x, dropout=True) for _ in range(self.draws)])
        return mean, self._scale.spread * slope * several.std(axis=0)

    def _train(self, x: torch.Tensor, y: torch.Tensor) -> None:
        parameters = [*self._net.parameters(), *self._head.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.epochs)
        for _ in range(self.epochs):
            for rows in _batches(len(y), self.batch):
                optimiser.zero_grad()
                self.loss(self._head(self._net(x[rows]))[:, 0], y[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            schedule.step()

    def _nodes(self, archs: Sequence[Architecture]) -> torch.Tensor:
        return torch.from_numpy(graph(self.space, archs, places=self._places)).float()

    def _scores(self, x: torch.Tensor, *, dropout: bool = False) -> Floats:
        self._net.train(dropout)
        with one_thread(), torch.no_grad():
            parts = [self._head(self._net(part))[:, 0] for part in torch.split(x, _CHUNK)]
        return torch.cat(parts).double().numpy()


def _batches(count: int, size: int) -> Iterator[torch.Tensor]:
    """Yield shuffled rows in parts of `size`, the last of which takes the rest, so that none is a single row."""
    order = torch.randperm(count)
    bounds = [*range(0, max(1, count - size + 1), size), count]
    yield from (order[start:stop] for start, stop in itertools.pairwise(bounds))
