# SPDX-License-Identifier: Apache-2.0
"""HELP on one device: what follows from its samples, and the predictor that this makes.

Letters of shapes: those of `_help_network`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sartor.architecture import Architecture
from sartor.predictors._help_network import Floats, Inputs, Line, Meta, Weights
from sartor.predictors._help_tasks import Rows
from sartor.predictors._networks import one_thread
from sartor.predictors._samples import Scale, checked, unfitted

_CHUNK = 512

Fitted = tuple[Line, Weights, Tensor]
"""The line, theta' and v of every task."""


def predicted(
    meta: Meta, samples: Inputs, y: Tensor, asked: Inputs, normal: Tensor | None
) -> tuple[Tensor, Tensor, Fitted]:
    """Return scores (T, Q), the divergence of z, and what was fitted.

    samples: x (T, S, ...) and f (T, S, D); y: (T, S); asked: x (Q, ...) and f (Q, D); normal: (T, Z), or drawn by
        torch's generator.
    """
    line = meta.regression(samples.f, y)
    v = meta.embedding(line, y)
    z, divergence = meta.drawn(v, torch.randn(len(y), meta.entries) if normal is None else normal)
    weights = meta.adapted(Inputs(samples.x, line(samples.f)), y, v, z)
    base = line(asked.f.expand(len(y), *asked.f.shape))
    return meta.scores(weights, asked.x, base, v), divergence, (line, weights, v)


def rows_of(inputs: Inputs, rows: Rows) -> Inputs:
    """Return the inputs of (...) rows."""
    return Inputs(*(one[torch.from_numpy(rows)] for one in inputs))


def rows_of_references(references: Sequence[Architecture], archs: Sequence[Architecture]) -> Rows | None:
    """Return where each reference is, None if there are no references; ValueError names one that is missing."""
    if not references:
        return None
    rows = {arch: row for row, arch in enumerate(archs)}
    if missing := [arch for arch in references if arch not in rows]:
        raise ValueError(f"no latency is given for the reference {missing[0]!r}: measure all {len(references)}")
    return np.array([rows[arch] for arch in references], dtype=np.intp)


class AdaptedHELP:
    """A `Predictor` of one device, made by `HELP.adapt`; `fit` adapts it anew, to that fit's samples alone.

    meta: what was learnt over devices. encode: from architectures to inputs. references: what must be measured, in
        order, if anything must. draws: of z, whose predictions are averaged; seed: of those.
    """

    def __init__(
        self,
        meta: Meta,
        encode: Callable[[Sequence[Architecture]], Inputs],
        *,
        references: Sequence[Architecture] = (),
        draws: int,
        seed: int,
    ) -> None:
        self._meta, self._encode, self._references, self._draws, self._seed = meta, encode, references, draws, seed
        self._scale: Scale | None = None

    def fit(self, archs: Sequence[Architecture], values: Floats) -> Self:
        """Adapt to N measured architectures; ValueError for fewer than 2, NaN, infinity or a missing reference."""
        values = checked(archs, values)
        if (rows := rows_of_references(self._references, archs)) is not None:
            archs, values = [archs[row] for row in rows], values[rows]
        self._scale = Scale.of(values)
        samples = self._encode(archs)
        y = torch.from_numpy(self._scale.standardised(values)).float().expand(self._draws, -1)
        normal = torch.randn(self._draws, self._meta.entries, generator=torch.Generator().manual_seed(self._seed))
        with one_thread(), torch.no_grad():
            same = Inputs(*(one.expand(self._draws, *one.shape) for one in samples))
            _, _, self._fitted = predicted(self._meta, same, y, samples, normal)
        line = self._fitted[0]
        # The trace of the hat matrix, S - tr(inverse), counts the parameters in use; the centre is one more.
        freedom = max(1.0, float(line.inverse[0].trace()) - 1)
        self._noise = float(line.residual[0]) * (len(archs) / freedom) ** 0.5
        return self

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) means and standard deviations, over z and of the line; ValueError before `fit`."""
        if self._scale is None:
            raise unfitted(self)
        inputs = self._encode(archs)
        means, deviations = [np.empty(0)], [np.empty(0)]
        for start in range(0, len(archs), _CHUNK):
            part = Inputs(*(one[start : start + _CHUNK] for one in inputs))
            mean, deviation = self._scores(part)
            means.append(mean)
            deviations.append(deviation)
        mean, deviation = np.concatenate(means), np.concatenate(deviations)
        return self._scale.mean + self._scale.spread * mean, self._scale.spread * deviation

    def _scores(self, inputs: Inputs) -> tuple[Floats, Floats]:
        line, weights, v = self._fitted
        with one_thread(), torch.no_grad():
            f = inputs.f.expand(len(v), *inputs.f.shape)
            scores = self._meta.scores(weights, inputs.x, line(f), v)
            known = self._noise * self._meta.deviation(line, f)[0]
            deviation = (scores.var(dim=0, correction=0) + known.square()).sqrt()
        return scores.mean(dim=0).double().numpy(), deviation.double().numpy()
