# SPDX-License-Identifier: Apache-2.0
"""FLASH, fast search with hardware optimisation: NN-Degree and simplicial homology global optimisation.

Li, Mandal, Ogras and Marculescu, "FLASH: Fast Neural Architecture Search with Hardware Optimization", ACM TECS
(ESWEEK), 2021, arXiv:2108.00568.

Idea: within a family of networks, the average degree of a neuron (NN-Degree, in closed form) predicts accuracy
once 25 samples are trained, and latency, energy and area are linear in a few features. Search is then a small
continuous problem with an analytic objective and analytic constraints. A hierarchical form of SHGO solves it in
a moment; its minimisers are rounded, and verified by measuring them.

Differs from the paper: the models are fitted again after each `batch` of verified designs. The accuracy model is
a two-parameter one that is linear in them, 1/accuracy = a/g + b with a above 0. Where no `degree` is given, as in a
space whose options are no numbers of links, the degree is estimated: what each option adds to it is found from the
trials by ridge regression on their ranks; and so is the cost of hardware without `hardware` features. The hierarchy
goes from equal cells to free ones, a few variables at a time, on a simplicial complex; a last descent moves all.
Rounding tries both ends of the least decided choices, and is extended by neighbours to a batch of new designs.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sartor import encodings
from sartor.architecture import Architecture
from sartor.objective import Objective, check_names, costs
from sartor.space import SearchSpace
from sartor.strategies._analytic import Added, Bound, Model, Weighed, option_effects, split
from sartor.strategies._indicator import cheap_excess, sampled_within
from sartor.strategies._relaxation import Floats, Indices, Relaxation, hierarchical_shgo
from sartor.trial import Trial

_RIDGE = 1.0  # accuracies are noisy
_HARDWARE_RIDGE = 1e-3  # costs are not, as accuracies go
_LEAST = 1e-9
_EXPANSIONS = 20  # where next to nothing is allowed, a batch stays incomplete


class Cell(NamedTuple):
    """A cell of `depth` layers of `width` channels, with so many long-range links between its layers."""

    width: float
    depth: float
    skips: float


def nn_degree(cells: Iterable[Cell]) -> float:
    """Return NN-Degree g: per cell, the short-range links of a neuron, and the mean number of its long-range ones.

    g = sum over cells of w + SC / (w d); ValueError for a cell without width or depth.
    """
    total = 0.0
    for width, depth, skips in cells:
        if not (width > 0 and depth > 0):
            raise ValueError(f"a cell has width {width} and depth {depth}: NN-Degree needs both above 0")
        total += width + skips / (width * depth)
    return total


def fitted_accuracy(degrees: Sequence[float], accuracies: Sequence[float]) -> tuple[float, float]:
    """Return a and b of accuracy = 1 / (a/g + b), by least squares of 1/accuracy; a is above 0: g never harms.

    ValueError for degrees or accuracies that are not above 0, or for fewer than two different degrees.
    """
    g, y = np.asarray(degrees, dtype=float), np.asarray(accuracies, dtype=float)
    if not (g.shape == y.shape and (g > 0).all() and (y > 0).all()):
        raise ValueError(f"{g.size} degrees and {y.size} accuracies: give as many of each, all above 0")
    if np.ptp(g) == 0:
        raise ValueError("the degrees are all equal: the accuracy model needs two that differ")
    return _falling(1 / g, 1 / y)


class FLASH:
    """Improves the first objective; the others count through their bounds, which are constraints of SHGO.

    degree: NN-Degree of a design, from what its choices stand for: a number where the options are numbers
        (interpolated, since SHGO moves between them), else the place among the options. `nn_degree` makes it
        from cells. Without it, the degree is estimated: each option adds to it what best explains the ranks.
    hardware: features F of a design, from the same; each bounded objective is lambda . F by least squares.
        Without it, each option adds its own part.
    samples: random architectures that the models are first fitted to (25: abstract); 0, with a degree, is the
        training-free search.
    batch: designs verified between two fits.
    block, vertices: variables that SHGO sees at once (more find better designs, and take longer), and points of its
        complex.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        degree: Callable[[Mapping[str, float]], float] | None = None,
        hardware: Callable[[Mapping[str, float]], Sequence[float]] | None = None,
        samples: int = 25,
        batch: int = 10,
        block: int = 6,
        vertices: int = 64,
    ) -> None:
        """Start with nothing told; ValueError for sizes out of range."""
        check_names(objectives)
        least = 0 if degree else 2
        if samples < least or batch < 1 or block < 1 or vertices < 1:
            raise ValueError(
                f"samples is {samples}, batch {batch}, block {block} and vertices {vertices}: "
                f"they must be at least {least}, 1, 1 and 1"
            )
        self.space = space
        self.objectives = tuple(objectives)
        self.degree = degree
        self.hardware = hardware
        self.samples = samples
        self.batch = batch
        self.block = block
        self.vertices = vertices
        self._archs: list[Architecture] = []
        self._costs: list[float] = []
        self._limited: dict[str, list[float]] = {one.name: [] for one in objectives if one.bounded}  # NaN: unknown
        self._seen: set[Architecture] = set()
        self._designs: tuple[int, list[Architecture]] = -1, []  # told when they were made, best first

    def ask(self, rng: random.Random) -> Architecture:
        """Sample first; then return one of the designs of this batch that were not verified yet."""
        count = len(self._archs)
        fitted = count - max(0, count - self.samples) % self.batch
        if count < self.samples or (self.degree is None and np.isfinite(self._costs[:fitted]).sum() < 2):
            return sampled_within(self.space, rng, self._seen, self.objectives)
        if self._designs[0] != fitted:
            self._designs = fitted, self._designed(fitted)
        left = [arch for arch in self._designs[1] if arch not in self._seen][: fitted + self.batch - count]
        if not left:
            return sampled_within(self.space, rng, self._seen, self.objectives)
        return left[int(rng.random() * len(left))]

    def tell(self, trial: Trial) -> None:
        """Take in the values, of any state of trial: bounded ones are known of infeasible trials as well."""
        if trial.arch in self._seen:
            return
        self._seen.add(trial.arch)
        self._archs.append(trial.arch)
        self._costs.append(costs(trial, self.objectives[:1])[0])
        for name, values in self._limited.items():
            values.append(trial.values.get(name, math.nan))

    # ---- models and design ------------------------------------------------------------------------

    def _designed(self, count: int) -> list[Architecture]:
        """Fit the models to the first `count` trials, minimise, and round: new designs, best first."""
        target = np.array(self._costs[:count], dtype=float)
        known = np.flatnonzero(np.isfinite(target))
        relaxation, loss = self._loss(known, target[known])
        bounds = [bound for one in self.objectives if one.bounded for bound in self._bounds(one, relaxation, count)]
        best = self._archs[known[np.argmin(target[known])]] if len(known) else self.space.smallest()
        minimisers = hierarchical_shgo(
            loss.at,
            relaxation,
            relaxation.position(encodings.indices(self.space, [best])[0]),
            [bound.slack for bound in bounds],
            block=self.block,
            vertices=self.vertices,
        )
        rows = np.concatenate([relaxation.rounded(x) for x in minimisers])
        found = dict.fromkeys(encodings.architectures(self.space, np.unique(rows, axis=0)))
        return self._ranked([*found], loss, bounds, set(self._archs[:count]))

    def _loss(self, known: Indices, target: Floats) -> tuple[Relaxation, Model]:
        """Return what SHGO minimises: the fitted function of the degree, or the degree that is estimated, falling."""
        archs = [self._archs[i] for i in known]
        if self.degree is None:
            # Ranks, since the degree is for order, and training that failed to converge is far off any line.
            ranks = np.argsort(np.argsort(target, kind="stable"), kind="stable") / len(target)
            constant, effects = option_effects(self.space, archs, ranks, _RIDGE)
            relaxation = Relaxation(self.space, split(self.space, effects))
            return relaxation, Added(relaxation, constant, effects)
        relaxation = Relaxation(self.space)
        inverse = Weighed(relaxation, self._inverse_degree, np.array([1.0, 0.0]))
        if len(known) < 2 or np.ptp(g := inverse.of(archs)) == 0:
            return relaxation, inverse  # training-free: by g alone
        if self.objectives[0].goal == "max" and (target < 0).all():
            target = -1 / target  # from minus accuracy to 1/accuracy
        return relaxation, Weighed(relaxation, self._inverse_degree, np.array(_falling(g, target)))

    def _inverse_degree(self, values: Mapping[str, float]) -> tuple[float, float]:
        assert self.degree is not None
        return 1 / self.degree(values), 1.0

    def _bounds(self, objective: Objective, relaxation: Relaxation, count: int) -> list[Bound]:
        """Return the bounds of an objective on its fitted model; none before two values are known."""
        values = np.array(self._limited[objective.name][:count], dtype=float)
        known = np.flatnonzero(np.isfinite(values))
        if len(known) < 2:
            return []
        archs = [self._archs[i] for i in known]
        model: Model
        if self.hardware is None:
            model = Added(relaxation, *option_effects(self.space, archs, values[known], _HARDWARE_RIDGE))
        else:
            places = (relaxation.position(row) for row in encodings.indices(self.space, archs))
            features = np.array([self.hardware(relaxation.values(x)) for x in places], dtype=float)
            model = Weighed(relaxation, self.hardware, np.linalg.lstsq(features, values[known], rcond=None)[0])
        sides = ((objective.at_most, 1), (objective.at_least, -1))
        return [Bound(model, limit, sign) for limit, sign in sides if limit is not None]

    def _ranked(
        self, found: list[Architecture], loss: Model, bounds: Sequence[Bound], told: set[Architecture]
    ) -> list[Architecture]:
        """Rank by predicted excess, then by predicted loss, with neighbours until there is a batch of new designs."""
        expanded: set[Architecture] = set()
        designs: list[Architecture] = []
        for _ in range(_EXPANSIONS):
            found = [arch for arch in found if self.space.constraint is None or self.space.constraint(arch)]
            excess = sum((bound.excess(found) for bound in bounds), np.zeros(len(found)))
            found = [found[i] for i in np.lexsort((loss.of(found), excess))]
            new = itertools.islice(
                (a for a in found if a not in told and not cheap_excess(a, self.objectives)), self.batch
            )
            best = [arch for arch in found if arch not in expanded][: self.batch]
            designs = list(new)
            if (len(designs) == self.batch and expanded) or not best:
                break
            expanded.update(best)
            found = [*dict.fromkeys([*found, *(other for arch in best for other in self.space.neighbours(arch))])]
        return designs


def _falling(x: Floats, y: Floats) -> tuple[float, float]:
    """Return slope and constant of y over x by least squares; the slope is above 0, be it by ever so little."""
    slope = float(np.dot(x - x.mean(), y - y.mean()) / np.dot(x - x.mean(), x - x.mean()))
    slope = max(slope, _LEAST)
    return slope, float(y.mean() - slope * x.mean())
