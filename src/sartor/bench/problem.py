# SPDX-License-Identifier: Apache-2.0
"""What all entries of a scoreboard are given: a space, what the search reads, and what is reported of its finds."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names
from sartor.pareto import hypervolume
from sartor.space import SearchSpace

if TYPE_CHECKING:
    from sartor.tables import Table

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """One comparison: every entry searches `space` for `objectives` and is judged by what is reported.

    objectives: what the search reads. The first is the signal, by which the incumbent is chosen; with several,
        all span the hypervolume.
    reported: the values (N,) of N architectures by which finds are judged, with the goal of the signal, and which
        no search reads; None: the signal itself. `reported_name` names it.
    everything: (N, 1 + M) for N architectures that are the whole space: reported value, then the M objectives.
        From it follow the optimum, the random average, the exact curve of random search and the best hypervolume.
    uniform: whether a random draw from the space is any row of `everything` with equal chance.
    reference: of the hypervolume, one value per objective in its own unit; by default the worst of `everything`.
    notes: what a reader of the report must know.
    arguments: how to make this problem again, for a command that resumes.
    """

    name: str
    space: SearchSpace
    objectives: tuple[Objective, ...]
    reported: Callable[[Sequence[Architecture]], ArrayLike] | None = None
    reported_name: str = ""
    everything: Floats | None = field(default=None, repr=False)
    uniform: bool = True
    reference: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the fields; ValueError says which does not fit."""
        check_names(self.objectives)
        if self.reported is not None and not self.reported_name:
            raise ValueError(f"problem {self.name!r} reports values without a name: give reported_name")
        if self.reported_name in {one.name for one in self.objectives}:
            raise ValueError(
                f"problem {self.name!r}: {self.reported_name!r} is an objective, so it is read by the search"
            )
        if self.reference is not None and len(self.reference) != len(self.objectives):
            raise ValueError(
                f"the reference has {len(self.reference)} values for {len(self.objectives)} objectives: give one each"
            )
        if self.everything is not None and self.everything.shape[1:] != (1 + len(self.objectives),):
            raise ValueError(
                f"everything is of shape {self.everything.shape}: a row is a reported value and then "
                f"{len(self.objectives)} objectives"
            )

    def reported_values(self, archs: Sequence[Architecture], signal: Floats) -> Floats:
        """Return the (N,) reported values of N architectures whose (N,) signals are known."""
        if self.reported is None:
            return signal
        return np.asarray(self.reported(archs), dtype=float)

    def known(self, queries: int) -> dict[str, Any]:
        """Return what is known without any search, as JSON can carry it; {} of a space that is not known whole."""
        from sartor.bench.statistics import expected_best

        if self.everything is None:
            return {"reference": list(self.reference)} if self.reference else {}
        feasible = self._feasible(self.everything)
        rows = self.everything[feasible]
        if not len(rows):
            raise ValueError(f"no architecture of {self.name} keeps the bounds: widen them")
        goal = self.objectives[0].goal
        reported = rows[:, 0]
        best = float(reported.max() if goal == "max" else reported.min())
        found: dict[str, Any] = {"architectures": len(rows), "optimum": best, "average": float(reported.mean())}
        found["signal_optimum"] = float(rows[:, 1].max() if goal == "max" else rows[:, 1].min())
        if feasible.all() and self.uniform:
            found["random"] = expected_best(rows[:, 1], reported, queries, goal).tolist()
        if len(self.objectives) > 1:
            found |= self._volumes(rows)
        return found

    def _feasible(self, rows: Floats) -> NDArray[np.bool_]:
        kept = np.ones(len(rows), dtype=bool)
        for column, objective in enumerate(self.objectives, start=1):
            if objective.bounded:
                kept &= np.array([objective.excess(value) == 0 for value in rows[:, column].tolist()], dtype=bool)
        return kept

    def _volumes(self, rows: Floats) -> dict[str, Any]:
        """Return the reference and the hypervolume of the whole space, by the signal and by the reported value."""
        signs = np.array([1.0 if one.goal == "min" else -1.0 for one in self.objectives])
        read, judged = rows[:, 1:] * signs, np.column_stack([rows[:, 0], rows[:, 2:]]) * signs
        reference = read.max(axis=0) if self.reference is None else np.array(self.reference) * signs
        reported_reference = np.array([judged[:, 0].max(), *reference[1:]])
        volumes = hypervolume(read, reference), hypervolume(judged, reported_reference)
        found = {
            "reference": (reference * signs).tolist(),
            "reported_reference": (reported_reference * signs).tolist(),
        }
        # Where one value is all there is of an objective, nothing lies below the reference.
        return found | ({"volume": volumes[0], "reported_volume": volumes[1]} if all(volumes) else {})


@dataclass(frozen=True)
class _Column:
    """The values of one column of a table."""

    table: Table
    column: str

    def __call__(self, archs: Sequence[Architecture]) -> Floats:
        return np.asarray(self.table.values(self.column, archs), dtype=float)


def table_problem(
    space: str,
    objective: str,
    *,
    device: str | None = None,
    costs: Iterable[str] = (),
    signal: str | None = None,
    latency_ms: float | None = None,
    fidelities: Mapping[float, str] | None = None,
) -> Problem:
    """Return the problem of a table that comes with the package.

    space: a name of `sartor list tables`, such as "nasbench201".
    objective: the column that is reported, such as "cifar100"; more of it is better.
    device: adds the latency of that device as an objective to be minimised, `<objective>_<device>_latency_ms`
        or `help_<device>_ms`; with `latency_ms`, a bound of it.
    costs: further columns to be minimised, such as "flops_m".
    fidelities: budgets below 1 with the columns that cheaper trainings give, for strategies that choose a budget.
    signal: the column that the search reads; by default `<objective>_val12`, or `x_val` where the objective is
        `x_test`, or the objective itself where the table has no such column.

    Architectures that lack a value in one of these columns are left out of the space, by its constraint.
    Raises ValueError for a name that the table does not have, with the closest that it has.
    """
    from sartor import tables

    table = tables.load(space)
    column = _known(table, objective, "objective")
    read = _known(table, signal, "signal") if signal else _signal(table, column)
    minimised = [
        *([_latency(table, column, device)] if device else []),
        *(_known(table, cost, "cost") for cost in costs),
    ]
    if latency_ms is not None and not device:
        raise ValueError("a limit of the latency needs a device: name one")
    columns = [column, read, *minimised]
    everything = np.column_stack([np.asarray(table.columns[name], dtype=float) for name in columns])
    measured = np.isfinite(everything).all(axis=1)
    part = table if measured.all() else table.where(measured)
    objectives = [part.objective(read, goal="max", fidelities=fidelities)]
    objectives += [
        part.objective(name, goal="min", at_most=latency_ms if device and not place else None)
        for place, name in enumerate(minimised)
    ]
    return Problem(
        name=_title(space, column, device, minimised),
        space=part.space,
        objectives=tuple(objectives),
        reported=None if read == column else _Column(part, column),
        reported_name="" if read == column else column,
        everything=everything[measured],
        uniform=table.canonical is None,
        notes=_notes(measured, list(dict.fromkeys(columns))),
        arguments={
            "space": space,
            "objective": objective,
            "device": device,
            "costs": list(costs),
            "signal": signal,
            "latency_ms": latency_ms,
            "fidelities": {str(budget): name for budget, name in (fidelities or {}).items()},
        },
    )


def _signal(table: Table, column: str) -> str:
    cheaper = f"{column}_val12", f"{column.removesuffix('_test')}_val" if column.endswith("_test") else ""
    return next((name for name in cheaper if name in table.columns), column)


def _known(table: Table, name: str, what: str) -> str:
    if name in table.columns:
        return name
    raise ValueError(f"{what} {name!r} is no column of {table.name}; {_hint(name, table.columns)}")


def _latency(table: Table, column: str, device: str) -> str:
    places = {
        **{name[5:-3]: name for name in table.columns if name.startswith("help_") and name.endswith("_ms")},
        **{
            name.removeprefix(f"{column}_").removesuffix("_latency_ms"): name
            for name in table.columns
            if name.startswith(f"{column}_") and name.endswith("_latency_ms")
        },
    }
    if device in places:
        return places[device]
    raise ValueError(f"{table.name} has no latency of {device!r} for {column}; {_hint(device, places)}")


def _hint(name: str, known: Iterable[str]) -> str:
    known = [*known]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"there are: {', '.join(known) or 'none'}"


def _title(space: str, column: str, device: str | None, minimised: Sequence[str]) -> str:
    also = ([f"latency on {device}"] if device else []) + [*minimised[bool(device) :]]
    return f"{space}: {column}" + (f" and {', '.join(also)}" if also else "")


def _notes(measured: NDArray[np.bool_], columns: Sequence[str]) -> tuple[str, ...]:
    if measured.all():
        return ()
    return (
        f"Only {int(measured.sum()):,} of {len(measured):,} architectures were measured in all of "
        f"{', '.join(columns)}; the others are not in the space.",
    )
