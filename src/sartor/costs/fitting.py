# SPDX-License-Identifier: Apache-2.0
"""Fit every model of latency to some measured networks, and choose the one that predicts best what it has not seen.

The choice is made by cross-validation among the networks that the fit may see. Networks that are kept for the test take
no part in it, so that the error that is stated for them holds.
"""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.costs.additive import Line, additive, counted, summed
from sartor.costs.errors import Interval, errors
from sartor.costs.operators import OperatorTable
from sartor.predictors import GBDT, GCN, Ridge, WorkloadLatency
from sartor.predictors.workload_latency import OperatorCounts
from sartor.protocols import Predictor
from sartor.space import SearchSpace
from sartor.workload import Workload, macs, parameters

__all__ = [
    "BASELINES",
    "MODELS",
    "Judged",
    "candidates",
    "chosen",
    "committee",
    "cross_validated",
    "judged",
    "prediction",
]

Floats = NDArray[np.float64]
Make = Callable[[], Predictor]

MODELS: Mapping[str, str] = {
    "operators": "the sum of the operator table, brought to level",
    "additive": "the operator table with fusion, for each kind of operator",
    "workload": "calls, arithmetic and traffic for each kind of operator",
    "ridge": "a milliseconds' worth of each option",
    "gbdt": "boosted trees on options and operator counts, of what `additive` leaves",
    "gcn": "a graph network on the choices, of what `additive` leaves",
}
"""The models that are tried, by name; the first is taken where several are equal."""

BASELINES: Mapping[str, Callable[[Workload], float]] = {"flops": macs, "parameters": parameters}
"""Counts that any model must beat; never chosen."""

FOLDS = 5
_KEPT = 1 << 16
LEAST = 0.1  # of the fastest network that was measured: no prediction is below


class Residual:
    """A `Predictor` that learns, on a logarithmic scale, what another one leaves; both may be any predictors.

    Latencies of a space differ by factors, and so do their errors. The base is fitted to the same samples.
    """

    def __init__(self, base: Predictor, rest: Predictor) -> None:
        self.base, self.rest = base, rest

    def fit(self, archs: Sequence[Architecture], values: Floats) -> Self:
        """Fit the base, then the rest to the logarithms of true over predicted."""
        y = np.asarray(values, dtype=np.float64)
        self.least = LEAST * float(y.min())
        self.base.fit(archs, y)
        self.rest.fit(archs, np.log(y / np.maximum(self.base.predict(archs)[0], self.least)))
        return self

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) milliseconds and the (N,) standard deviations of the correction."""
        base = np.maximum(self.base.predict(archs)[0], self.least)
        log, deviation = self.rest.predict(archs)
        mean = base * np.exp(np.clip(log, -3.0, 3.0))
        return mean, mean * deviation


@dataclass(frozen=True)
class Judged:
    """What a model is worth: cross-validated on what it may learn from, and on the test; None where there is none."""

    name: str
    validation: Mapping[str, Interval]
    test: Mapping[str, Interval] | None

    @property
    def is_model(self) -> bool:
        """Whether it may be chosen."""
        return self.name not in BASELINES


def candidates(
    space: SearchSpace, workload: Callable[[Architecture], Workload], table: OperatorTable | None, *, seed: int = 0
) -> dict[str, Make]:
    """Return what makes each model and baseline anew, by name.

    Without an operator table there are no `operators` and `additive`, and without LightGBM there is no `gbdt`. Where
    `additive` is missing, the models that correct it correct `workload`.
    """
    found: dict[str, Make] = {}
    work: Make = partial(WorkloadLatency, workload)
    base = work
    if table is not None:
        found["operators"] = partial(Line, lru_cache(_KEPT)(summed(table, workload)), free=1)
        base = found["additive"] = partial(Line, lru_cache(_KEPT)(additive(table, workload)))
    found["workload"] = work
    found["ridge"] = partial(Ridge, space)
    counts = OperatorCounts(workload, _typical(space))
    if importlib.util.find_spec("lightgbm"):
        found["gbdt"] = lambda: Residual(base(), GBDT(space, members=0, seed=seed, extra=counts))
    # A tenth of the published width and half of the epochs, for a tenth of the published samples.
    found["gcn"] = lambda: Residual(base(), GCN(space, units=64, epochs=120, draws=0, seed=seed))
    for name, count in BASELINES.items():
        found[name] = partial(Line, lru_cache(_KEPT)(counted(count, workload)), free=1)
    return found


def _typical(space: SearchSpace) -> list[Architecture]:
    """Architectures in which about every operator of a space occurs."""
    rng = random.Random(0)
    return [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(30))]


def cross_validated(make: Make, archs: Sequence[Architecture], values: Floats, folds: int = FOLDS) -> Floats:
    """(N,) predictions, each by a fit that has not seen its network; folds interleave the samples by their values.

    ValueError for fewer than 3 samples.
    """
    if len(archs) < 3:
        raise ValueError(f"{len(archs)} measured networks cannot be held out in turn; measure at least 3")
    order, count = np.argsort(values, kind="stable").tolist(), min(folds, len(values))
    predicted = np.empty(len(values))
    for fold in range(count):
        rows = order[fold::count]
        seen = sorted({*order} - {*rows})
        predicted[rows] = prediction(make, {archs[i]: float(values[i]) for i in seen}, [archs[i] for i in rows])
    return predicted


def prediction(make: Make, train: Mapping[Architecture, float], asked: Sequence[Architecture]) -> Floats:
    """(N,) milliseconds of `asked` by a fit to `train`; at least a tenth of what was measured, as none is below 0."""
    values = np.array([*train.values()])
    return np.asarray(np.maximum(make().fit([*train], values).predict(asked)[0], LEAST * values.min()))


def judged(
    makers: Mapping[str, Make],
    train: Mapping[Architecture, float],
    test: Mapping[Architecture, float],
    *,
    folds: int = FOLDS,
    on_model: Callable[[str], None] = lambda name: None,
) -> list[Judged]:
    """Judge all models by cross-validation on `train`, and by their fit to `train` on `test`, which may be empty."""
    archs, values = [*train], np.array([*train.values()])
    found = []
    for name, make in makers.items():
        on_model(name)
        validation = errors(cross_validated(make, archs, values, folds), values)
        tested = None
        if len(test) > 1:
            tested = errors(prediction(make, train, [*test]), np.array([*test.values()]))
        found.append(Judged(name, validation, tested))
    return found


def chosen(several: Sequence[Judged]) -> Judged:
    """Return the first model that is about as good as the best in cross-validation; ValueError if none is a model.

    The simpler models come first, and a difference of 2 % of the error, or of .0001, is none.
    """
    errors_of = {one.name: one.validation["mape"].value or 0.0 for one in several if one.is_model}
    if not errors_of:
        raise ValueError("there is no model to choose from")
    bound = 1.02 * min(errors_of.values()) + 1e-4
    return next(one for one in several if errors_of.get(one.name, math.inf) <= bound)


def committee(makers: Mapping[str, Make], train: Mapping[Architecture, float], pool: Sequence[Architecture]) -> Floats:
    """(N,) disagreement of the quick models on a pool: the standard deviation of their logarithms."""
    quick = [makers[name] for name in ("additive", "workload", "ridge", "gbdt") if name in makers]
    logs = [np.log(prediction(make, train, pool)) for make in quick]
    return np.asarray(np.std(logs, axis=0))
