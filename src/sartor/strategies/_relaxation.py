# SPDX-License-Identifier: Apache-2.0
"""A space as a box of real numbers, and hierarchical simplicial homology global optimisation (SHGO) in it.

Endres, Sandrock and Focke, "A simplicial homology algorithm for Lipschitz optimisation", Journal of Global
Optimization 72, 2018, as `scipy.optimize.shgo`.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.space import SearchSpace

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Function = Callable[[Floats], float]

_SWEEPS = 3
_EXACT = 1e-6  # SLSQP meets a constraint as closely as this
_CORNERS = 6  # a design is rounded both ways in its so many least decided choices


class Relaxation:
    """Choice c of a space as a real position from 0 to K_c - 1 along its K_c options; gates are ignored.

    Numbers lie in their order. Other options lie in the order of `ranks`, or as they are listed.
    """

    def __init__(self, space: SearchSpace, ranks: Sequence[Floats] | None = None) -> None:
        """Order the options; ranks: for each choice, a number for each of its options."""
        self.space = space
        self.orders: list[Indices] = []
        self.levels: list[Floats] = []
        """For each choice, the numbers that its options are, by position; positions, if they are none."""
        for column, options in enumerate(space.choices.values()):
            numbers = all(isinstance(option, (int, float)) for option in options)
            values = np.array(options, dtype=float) if numbers else np.arange(len(options), dtype=float)
            keys = values if numbers or ranks is None else ranks[column]
            self.orders.append(np.argsort(keys, kind="stable"))
            self.levels.append(values[self.orders[-1]] if numbers else values)
        self.tops = np.array([len(order) - 1 for order in self.orders], dtype=float)

    def values(self, x: Floats) -> dict[str, float]:
        """Return by name what the positions `x`, as (C,), stand for: options interpolated, or positions."""
        named = zip(self.space.choices, x, self.levels, strict=True)
        return {name: float(np.interp(at, np.arange(len(levels)), levels)) for name, at, levels in named}

    def position(self, row: Indices) -> Floats:
        """Return the positions (C,) of option indices (C,)."""
        return np.array([np.flatnonzero(order == i)[0] for order, i in zip(self.orders, row, strict=True)], dtype=float)

    def rounded(self, x: Floats) -> Indices:
        """Return (M, C) option indices around positions `x`: each end of the least decided choices, M <= 64."""
        near = np.clip(np.rint(x), 0, self.tops)
        far = np.clip(near + np.where(x >= near, 1, -1), 0, self.tops)
        open_ = [c for c in np.argsort(-np.abs(x - near), kind="stable")[:_CORNERS] if abs(x[c] - near[c]) > 1e-3]
        table = []
        for flips in itertools.product((False, True), repeat=len(open_)):
            corner = near.copy()
            corner[open_] = np.where(flips, far[open_], near[open_])
            table.append([order[int(at)] for order, at in zip(self.orders, corner, strict=True)])
        return np.array(table, dtype=np.intp)

    def levels_of_detail(self) -> Iterator[list[list[int]]]:
        """Yield the variables of each level, coarse to fine; a variable is a list of columns that move as one.

        First all choices with equal options move together, which makes the cells of a network alike; then each
        moves alone.
        """
        free = [c for c, top in enumerate(self.tops) if top > 0]
        options = list(self.space.choices.values())
        alike: dict[str, list[int]] = {}
        for column in free:
            alike.setdefault(repr(options[column]), []).append(column)
        if len(alike) < len(free):
            yield list(alike.values())
        yield [[column] for column in free]


def hierarchical_shgo(
    function: Function,
    relaxation: Relaxation,
    start: Floats,
    constraints: Sequence[Function] = (),
    *,
    block: int,
    vertices: int,
) -> list[Floats]:
    """Minimise over positions under `constraint(x) >= 0`, level by level; return all minimisers found, as (C,).

    Each level changes at most `block` variables at once, the others staying at the best point so far, and goes
    on while that improves, for at most three sweeps; each call of SHGO refines a complex of about `vertices` points and
    gives its whole pool of local minimisers. At last all choices move together, by SLSQP from the best
    point: where a constraint is met exactly, no block can gain without another giving way.
    """

    def order(x: Floats) -> tuple[float, float]:
        broken = sum((max(0.0, -one(x) - _EXACT) for one in constraints), 0.0)
        return broken, function(x)

    point, pool = start, [start]
    for variables in relaxation.levels_of_detail():
        for _ in range(_SWEEPS):
            before = point
            for first in range(0, len(variables), block):
                found = _shgo(function, constraints, variables[first : first + block], relaxation, point, vertices)
                pool += found
                point = min([point, *found], key=order)
            if point is before or len(variables) <= block:
                break
    return [*pool, _descended(function, constraints, relaxation, point)]


def _descended(function: Function, constraints: Sequence[Function], relaxation: Relaxation, point: Floats) -> Floats:
    from scipy.optimize import minimize

    limits = [{"type": "ineq", "fun": one} for one in constraints]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        bounds = [(0.0, top) for top in relaxation.tops]
        result = minimize(function, point, method="SLSQP", bounds=bounds, constraints=limits)
    end: Floats = np.clip(result.x, 0.0, relaxation.tops)
    return end


def _shgo(
    function: Function,
    constraints: Sequence[Function],
    variables: list[list[int]],
    relaxation: Relaxation,
    point: Floats,
    vertices: int,
) -> list[Floats]:
    from scipy.optimize import shgo

    def placed(z: Floats) -> Floats:
        x = point.copy()
        for columns, part in zip(variables, z, strict=True):
            x[columns] = part * relaxation.tops[columns]
        return x

    bounds = [(0.0, 1.0)] * len(variables)
    limits = [{"type": "ineq", "fun": lambda z, one=one: one(placed(z))} for one in constraints]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SLSQP steps a rounding error out of the box, and is clipped
        result = shgo(
            lambda z: function(placed(z)),
            bounds,
            constraints=limits or None,
            n=vertices,
            sampling_method="simplicial",
            minimizer_kwargs={"method": "SLSQP"},
        )
    return [placed(np.clip(z, 0.0, 1.0)) for z in result.xl] if result.success else []
