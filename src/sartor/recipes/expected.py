# SPDX-License-Identifier: Apache-2.0
"""What architectures between architectures cost, so that a differentiable search descends its limits, too.

Sampled networks and their predicted costs are kept in the run folder, in `expected_costs.json`; what is fitted to them
is a function of that file, so that a resumed search goes on with the same costs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sartor.architecture import Architecture
from sartor.atomic import write_json
from sartor.costs import CostTable
from sartor.predictors.la_darts import LADARTS
from sartor.ranking import kendall_tau
from sartor.recipes.job import Job
from sartor.recipes.methods import takes_cost, use_of
from sartor.recipes.profiling import costs_on, spread_samples
from sartor.space import SearchSpace

__all__ = ["ShareOfLimits", "Soft", "constant_cost", "expected_cost"]

FILE = "expected_costs.json"
MOST, EACH = 160, 3  # networks, and networks for each option
HELD_OUT = 5  # one of so many, to see what a fit is worth
WORTH = 0.5  # a Kendall tau below which a cost does not join the loss
LEAST = 0.02  # of a limit: costs that a fit takes for less, or for negative, are that

Soft = Callable[[Mapping[str, Any]], Tensor]
Costs = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class ShareOfLimits:
    """The greatest share of a limit that an assignment uses, times `unit`: a scalar tensor with gradients.

    costs: each cost of an assignment with its limit, in the same unit. limited: whether these are limits to keep, and
    not what the middle network costs.
    """

    space: SearchSpace
    costs: Sequence[tuple[Soft, float]]
    unit: float = 1.0
    limited: bool = True

    def __call__(self, assignment: Mapping[str, Any]) -> Tensor:
        """Return the share under options, or weights of options, for each choice."""
        shares = torch.stack([cost(assignment) / limit for cost, limit in self.costs])
        return self.unit * shares.max().clamp_min(LEAST)


def expected_cost(job: Job, *, aloud: bool = False) -> ShareOfLimits | None:
    """Return the cost that joins the method's loss: of the limits of the first target, or else of its latency.

    None where the method's loss has none, and where nothing is limited and neither the method nor the user asks for
    one. What is not limited is measured by the middle network. `aloud`, it says what joins and what does not.
    """
    method, asked, say = job.method, job.arguments.get("cost_weight"), job.say if aloud else _quiet
    limits = job.limits_on(job.target)
    if not takes_cost(method):
        if limits or asked:
            say(f"the loss of {method} has no cost: limits decide when networks are chosen and verified")
        return None
    if asked == 0 or not (limits or asked or use_of(method).always):
        return None
    archs, sampled = _samples(job, list(limits) or ["latency_ms"])
    costs: list[tuple[Soft, float]] = []
    for name, values in sampled.items():
        soft, tau = _fitted(job, archs, values)
        if tau < WORTH:
            say(f"{name} is no sum over choices (tau {tau:.2f}): it decides when networks are chosen and verified")
            continue
        middle = float(values[archs.index(job.middle())])
        costs.append((soft, limits.get(name, middle)))
        say(f"{name} joins the loss of {method}: its sum over choices ranks predictions with tau {tau:.2f}")
    return ShareOfLimits(job.space, costs, use_of(method).unit, limited=bool(limits)) if costs else None


def constant_cost(job: Job) -> Soft | None:
    """Return a cost that is the same for all, to make and to time a learner with; None where the method has none."""
    return _constant if takes_cost(job.method) else None


def _quiet(line: str) -> None:
    return None


def _constant(assignment: Mapping[str, Any]) -> Tensor:
    return torch.tensor(10.0)


def _samples(job: Job, wanted: Sequence[str]) -> tuple[list[Architecture], Costs]:
    """Sampled networks and what they cost, from the run folder where they are there already."""
    path = job.path / FILE
    if not path.is_file():
        options = sum(map(len, job.space.choices.values()))
        given = [*job.hand_made().values()]
        rng = random.Random(f"{job.seed}/expected")
        archs = spread_samples(job.space, min(MOST, EACH * options), given, rng)
        predicted = costs_on(job, job.target)
        values = {name: [predicted[name](arch) for arch in archs] for name in wanted}
        write_json(path, {"architectures": [dict(arch) for arch in archs], "costs": values})
    known = json.loads(path.read_text())
    archs = [Architecture.from_json(json.dumps(one)) for one in known["architectures"]]
    return archs, {name: np.array(values) for name, values in known["costs"].items()}


def _fitted(job: Job, archs: Sequence[Architecture], values: NDArray[np.float64]) -> tuple[Soft, float]:
    """The cost of assignments that is fitted to networks, and how well such a fit ranks networks that it has not seen.

    Networks are seen in the order in which they were drawn, so that every fifth is one of any size.
    """
    held = np.arange(len(archs)) % HELD_OUT == HELD_OUT - 1
    tau = 0.0
    if held.sum() > 1 and np.ptp(values[held]) > 0:
        fitted = _fit(job, [arch for arch, out in zip(archs, held, strict=True) if not out], values[~held])
        unseen = [arch for arch, out in zip(archs, held, strict=True) if out]
        tau = kendall_tau([float(fitted(arch)) for arch in unseen], list(values[held]))
    return _fit(job, archs, values), tau


def _fit(job: Job, archs: Sequence[Architecture], values: NDArray[np.float64]) -> Soft:
    """LA-DARTS's regressor for LA-DARTS; for all others a table, which is exact for what adds up over choices."""
    if job.method == "la_darts":
        return LADARTS(job.space, seed=job.seed).fit(archs, values)
    return CostTable.fitted(job.space, archs, values)
