# SPDX-License-Identifier: Apache-2.0
"""Limits of costs, in the five ways that searches take them.

A limit is the bound of an objective. How it is taken is a word, the same for every strategy and on the command line:

- ``hard``: a candidate beyond it is infeasible, and ranks behind every other (Deb, 2000);
- ``pareto``: no bound while searching; the cost is one more objective;
- ``penalty``: what is beyond it, relative to it, is added to the first objective, times a strength;
- ``exponent``: the first objective times (cost / limit) to a power (Tan et al., "MnasNet", CVPR 2019,
  arXiv:1807.11626);
- ``lagrangian``: (cost / limit - 1) times a multiplier is added, which rises while limits are exceeded and falls while
  they are not (dual ascent).

The last three fold everything into one number. Their arithmetic is that of floats and of tensors, so that the loss of
a learner with differentiable costs is folded by the same functions. Whatever the form, a log keeps the raw values.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast, get_args

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names
from sartor.protocols import Stateful, Strategy
from sartor.space import SearchSpace
from sartor.trial import Candidate, Trial

__all__ = ["FORMS", "Form", "Lagrangian", "check_form", "exponent", "penalty", "under_limits", "unlimited"]

Form = Literal["hard", "penalty", "exponent", "lagrangian", "pareto"]
FORMS: tuple[str, ...] = get_args(Form)

Number = TypeVar("Number")  # a float or a tensor
Fold = Callable[[float, Sequence[float]], float]
Make = Callable[[SearchSpace, Sequence[Objective]], Strategy]

STRENGTH = 10.0  # of the penalty: 10 % beyond a limit costs as much as the whole range of an error rate
POWER = -0.07  # MnasNet, section 3: twice the latency for 5 % more accuracy is an even trade
RATE = 0.1  # of dual ascent


def penalty(loss: Number, ratios: Sequence[Number], strength: float = STRENGTH) -> Number:
    """Return loss + strength * sum(max(ratio - 1, 0)), with ratio = cost / limit."""
    beyond: Any = sum((_beyond(ratio) for ratio in ratios), 0.0)
    return cast(Number, loss + strength * beyond)


def exponent(reward: Number, ratios: Sequence[Number], power: float = POWER) -> Number:
    """Return reward * product(ratio ** power): MnasNet's objective (its equation 2), to be maximised.

    With the paper's power on both sides of the limit it is a soft one; a loss to be minimised takes ``-power``.
    """
    value: Any = reward
    for ratio in ratios:
        value = value * cast(Any, ratio) ** power
    return cast(Number, value)


@dataclass
class Lagrangian:
    """loss + sum(multiplier * (ratio - 1)), with multipliers by dual ascent.

    `update` moves each multiplier by `rate` times how far its cost is beyond the limit, never below 0.
    """

    multipliers: list[float]
    rate: float = RATE

    def __call__(self, loss: Number, ratios: Sequence[Number]) -> Number:
        """Return the Lagrangian of a loss to be minimised."""
        pairs: Any = zip(self.multipliers, ratios, strict=True)
        excess: Any = sum((weight * (ratio - 1.0) for weight, ratio in pairs), 0.0)
        return cast(Number, loss + excess)

    def update(self, ratios: Sequence[float]) -> None:
        """Take one step of dual ascent."""
        pairs = zip(self.multipliers, ratios, strict=True)
        self.multipliers = [max(0.0, weight + self.rate * (ratio - 1.0)) for weight, ratio in pairs]


def under_limits(
    make: Make, space: SearchSpace, objectives: Sequence[Objective], form: Form = "hard", *,
    strength: float = STRENGTH, power: float = POWER, rate: float = RATE, ceiling: float | None = None,
) -> tuple[Strategy, list[Objective]]:  # fmt: skip
    """Return the strategy that `make` makes under limits of a form, and the objectives to search with.

    The limits are the bounds of `objectives` but the first, which is what folding forms fold into.

    strength, power, rate: of penalty, exponent and lagrangian.
    ceiling: 1 for a first objective that is an error rate to be minimised: the exponent form then maximises MnasNet's
        (1 - error) * ratio ** power. Without it, what is minimised is multiplied by ratio ** -power itself.

    Raises ValueError as `check_form`.
    """
    check_names(objectives)
    check_form(objectives, form)
    if form == "hard":
        return make(space, objectives), list(objectives)
    free = unlimited(objectives)
    if form == "pareto":
        return make(space, free), free
    limited = [objective for objective in objectives[1:] if objective.bounded]
    inner = make(space, free[:1])
    folds: dict[str, Fold] = {
        "penalty": _Penalty(strength),
        "exponent": _Exponent(power, ceiling),
        "lagrangian": Lagrangian([0.0] * len(limited), rate),
    }
    kind = _StatefulFolded if isinstance(inner, Stateful) else _Folded
    return kind(inner, free[0], limited, folds[form]), free


def check_form(objectives: Sequence[Objective], form: str) -> None:
    """Check that objectives can be searched with under a form.

    Raises ValueError for an unknown form, or a folding one where no objective but the first has a bound, or a bound is
    not positive.
    """
    if form not in FORMS:
        raise ValueError(f"no limit is taken as {form!r}: use {', '.join(FORMS)}")
    if form in ("hard", "pareto"):
        return
    limited = [objective for objective in objectives[1:] if objective.bounded]
    if not limited:
        raise ValueError(f"limits taken as {form!r} need a limit, and no objective but the first has a bound")
    for objective in limited:
        if min(b for b in (objective.at_most, objective.at_least) if b is not None) <= 0:
            raise ValueError(f"objective {objective.name!r} has a bound that is not positive: use the form 'hard'")


def unlimited(objectives: Sequence[Objective]) -> list[Objective]:
    """Return the objectives without their bounds; the first one keeps its own."""
    return [objectives[0], *(replace(one, at_most=None, at_least=None) for one in objectives[1:])]


@dataclass(frozen=True)
class _Penalty:
    strength: float

    def __call__(self, loss: float, ratios: Sequence[float]) -> float:
        return penalty(loss, ratios, self.strength)


@dataclass(frozen=True)
class _Exponent:
    """A negative loss is a reward with its sign turned."""

    power: float
    ceiling: float | None

    def __call__(self, loss: float, ratios: Sequence[float]) -> float:
        if self.ceiling is not None and loss >= 0:
            return -exponent(self.ceiling - loss, ratios, self.power)
        return -exponent(-loss, ratios, self.power) if loss < 0 else exponent(loss, ratios, -self.power)


class _Folded:
    """A strategy that is told one number: its first objective with the limits folded in."""

    def __init__(
        self,
        inner: Strategy,
        objective: Objective,
        limited: Sequence[Objective],
        fold: Fold,
    ) -> None:
        self.inner, self.objective, self.limited, self.fold = inner, objective, tuple(limited), fold

    def ask(self, rng: random.Random) -> Architecture | Candidate:
        """Ask the strategy itself."""
        return self.inner.ask(rng)

    def tell(self, trial: Trial) -> None:
        """Tell it the folded value; multipliers move after it."""
        name, sign = self.objective.name, 1.0 if self.objective.goal == "min" else -1.0
        needed = [name, *(one.name for one in self.limited)]
        if trial.state != "done" or not all(math.isfinite(trial.values.get(one, math.nan)) for one in needed):
            self.inner.tell(trial)
            return
        ratios = [_ratio(one, trial.values[one.name]) for one in self.limited]
        self.inner.tell(replace(trial, values={name: sign * self.fold(sign * trial.values[name], ratios)}))
        if isinstance(self.fold, Lagrangian):
            self.fold.update(ratios)


class _StatefulFolded(_Folded):
    """One whose state is saved: the multipliers go with it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the strategy and the multipliers."""
        multipliers = list(self.fold.multipliers) if isinstance(self.fold, Lagrangian) else []
        return {"strategy": cast(Stateful, self.inner).state_dict(), "multipliers": multipliers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        cast(Stateful, self.inner).load_state_dict(state["strategy"])
        if isinstance(self.fold, Lagrangian):
            self.fold.multipliers = [float(weight) for weight in state["multipliers"]]


def _beyond(ratio: Any) -> Any:
    """max(ratio - 1, 0), for floats and tensors."""
    return (ratio - 1.0 + abs(ratio - 1.0)) / 2.0


def _ratio(objective: Objective, value: float) -> float:
    """Return the share of its limit that a value uses, above 1 beyond it; of two bounds the tighter one."""
    upper = value / objective.at_most if objective.at_most is not None else 0.0
    lower = objective.at_least / max(value, 1e-12) if objective.at_least is not None else 0.0
    return max(upper, lower, 1e-12)
