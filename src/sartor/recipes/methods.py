# SPDX-License-Identifier: Apache-2.0
"""What a device search knows of each method of differentiable search, and how it makes the method's learner.

A method needs nothing here to be used, `path.py:Class` included: what is not said is as for DARTS.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from sartor import names
from sartor.architecture import Architecture
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.darts_pt import DARTSPT
from sartor.differentiable.descent import Recipe
from sartor.differentiable.pc_darts import PartialChannels
from sartor.differentiable.penalties import Penalty, add, add_log, hinge, mul_log, mul_log_ratio
from sartor.space import SearchSpace
from sartor.spaces.sharp_operations import SHARP_OPERATIONS

__all__ = ["BIGNAS", "Searcher", "Use", "distribution", "learner", "network_of", "penalty_of", "takes_cost", "use_of"]

BIGNAS = "bignas"
"""The method whose shared weights are searched by a strategy; all others learn where to look."""

TUNED = 1 / 10  # steps between two decisions of DARTS-PT, as a share of its search: 5 of 50 epochs
STRENGTH = 0.2  # of a cost that is 1 at its limit, where a method has no published strength

Cost = Callable[[Mapping[str, Any]], Tensor]


class Searcher(Protocol):
    """A learner that can be read out at any time; `needs` is "pairs" for batches of two shares, or "single"."""

    needs: str

    def step(self, batch: Any) -> Mapping[str, float]:
        """Train on one batch."""
        ...

    def architecture(self) -> Architecture:
        """Return what it would choose now."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


def _log_product(weight: float) -> Penalty:
    return mul_log(0.2, 0.6 * weight)


def _log_ratio(target: float, weight: float) -> Penalty:
    return mul_log_ratio(target, 0.2, 0.3 * weight)


def _hinge(weight: float) -> Penalty:
    return hinge(weight, 1.0)


def _log(weight: float) -> Penalty:
    return add_log(0.02 * weight)


@dataclass(frozen=True)
class Use:
    """How a method is used.

    portion: of the training split, whose images train the weights; the rest trains the architecture.
    penalty: how a cost joins its loss, from a weight that is 1 where the method is as published; None where no form is
        published, or one that knows no limit.
    unit: what a cost is at its limit. Where a form takes logarithms, it is the size of the published targets.
    always: whether a cost is a part of the method, so that it joins where there is no limit, too.
    least: the fewest steps that it can be tried with.
    searching, both: keywords of the networks that are searched, and of those that are trained alone besides.
    """

    portion: float = 0.5
    penalty: Callable[[float], Penalty] | None = None
    unit: float = 1.0
    always: bool = False
    least: int = 4
    searching: Mapping[str, Any] = field(default_factory=dict)
    both: Mapping[str, Any] = field(default_factory=dict)


USES: Mapping[str, Use] = {
    "darts_pt": Use(least=40),
    "fbnet": Use(portion=0.8, penalty=_log_product, unit=1e4, always=True),  # 10 ms in microseconds
    "fp_nas": Use(penalty=_hinge, always=True),
    "la_darts": Use(always=True),
    "pc_darts": Use(searching={"mixed": PartialChannels(4)}),
    "proxylessnas": Use(penalty=partial(_log_ratio, 80.0), unit=80.0, always=True),  # 80 milliseconds
    "sharp_darts": Use(both={"operations": SHARP_OPERATIONS}),
    "single_path": Use(penalty=_log, always=True),
    "tanglenas": Use(portion=0.8),
}


def use_of(method: str) -> Use:
    """Return how a method is used."""
    return USES.get(method, Use())


def penalty_of(method: str, weight: float, *, limited: bool) -> Penalty:
    """Return how a cost, a share of a limit, joins a method's loss: by its own form, or else by a sum.

    The sum has the whole cost where nothing is limited. Where something is, it has what is above the limit: the whole
    would go on to make networks cheaper that are within it, as the loss of the labels falls and the cost does not.
    """
    if (own := use_of(method).penalty) is not None:
        return own(weight)
    return hinge(weight, 1.0) if limited else add(STRENGTH * weight)


def learner(
    method: str,
    net: nn.Module,
    space: SearchSpace,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    seed: int,
    cost: Cost | None = None,
    weight: float = 1.0,
) -> Searcher:
    """Return the learner of a method on a network, its recipe shortened. ValueError where the two do not fit."""
    if method == "darts_pt":
        return _perturbed(net, space, loss, steps=steps, seed=seed, cost=cost, weight=weight)
    kind: Any = names.load("methods", method)
    given: dict[str, Any] = {"steps": steps, "seed": seed}
    if cost is not None:
        given |= {"cost": cost, "penalty": penalty_of(method, weight, limited=getattr(cost, "limited", False))}
    usual = getattr(inspect.signature(kind).parameters.get("recipe"), "default", None)
    if isinstance(usual, Recipe):
        given["recipe"] = usual.shortened(steps)
    try:
        inspect.signature(kind).bind(net, space, loss, **given)
    except TypeError as error:
        raise ValueError(
            f"the method {method!r} cannot be made with (net, space, loss, steps=, seed=): {error}"
        ) from None
    made: Searcher = kind(net, space, loss, **given)
    return made


def takes_cost(method: str) -> bool:
    """Say whether a method's loss can have a cost."""
    return method == "darts_pt" or "cost" in inspect.signature(names.load("methods", method)).parameters


def _perturbed(net: nn.Module, *given: Any, steps: int, seed: int, cost: Cost | None, weight: float) -> DARTSPT:
    """DARTS, and its read-out by perturbation, in `steps` steps together."""

    def made(searching: int, interval: int) -> DARTSPT:
        search: Any = learner("darts", net, *given, steps=searching, seed=seed, cost=cost, weight=weight)
        return DARTSPT(search, interval=interval, seed=seed)

    rounds = len(made(1, 1).rounds)
    searching = int((steps - 1) / (1 + TUNED * (rounds - 1)))
    interval = max(1, int(TUNED * searching))
    searching = steps - 1 - interval * (rounds - 1)
    if searching < 1:
        raise ValueError(f"{steps} steps are too few for the {rounds} rounds of DARTS-PT: give at least {2 * rounds}")
    return made(searching, interval)


def distribution(searcher: object) -> dict[str, Sequence[float]]:
    """Return the probabilities of the options of each choice as a method has learned them; {} where it has none.

    Of a method of one's own it is what its `probabilities()` returns, by choice, or its attribute `alphas` holds.
    """
    own = getattr(searcher, "probabilities", None)
    if callable(own):
        return {str(name): [float(one) for one in row] for name, row in own().items()}
    alphas = getattr(searcher, "alphas", None)
    if isinstance(alphas, nn.ModuleDict):  # of several tasks, the first
        alphas = next(iter(alphas.values()), None)
    if isinstance(alphas, Alphas):
        joint = getattr(searcher, "distribution", alphas)  # FP-NAS
        return {name: row.tolist() for name, row in alphas.named(joint.probabilities().detach()).items()}
    relaxed = getattr(searcher, "relaxed", None)  # Single-Path NAS: indicators
    weights = relaxed()[0] if callable(relaxed) else {}
    return {name: row.tolist() for name, row in weights.items() if isinstance(row, Tensor)}


def network_of(searcher: object, net: nn.Module, arch: Architecture) -> nn.Module:
    """Return the network whose weights an architecture shares: of several sets, the one that serves it best."""
    nets, layouts = getattr(searcher, "nets", None), getattr(searcher, "layouts", ())
    if not nets or arch not in layouts:
        return net
    values: Any = getattr(searcher, "values")  # noqa: B009 - of a balanced mixture alone
    best: nn.Module = nets[int(values[layouts.index(arch)].argmax())]
    return best
