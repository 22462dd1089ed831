# SPDX-License-Identifier: Apache-2.0
"""How a cost joins a loss: each published way as a callable (loss, cost) -> what is minimised.

The cost is a scalar tensor, such as the expected latency that `sartor.costs.CostTable` gives for the weights in force,
in any unit; a target is in the same unit. For a reward and for a log-likelihood see `reward_exponent` and `hinge`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sartor.limits import exponent

__all__ = [
    "Penalty", "add", "add_linear", "add_log", "hinge", "mul_log", "mul_log_ratio", "reward_exponent"
]  # fmt: skip

Penalty = Callable[[Tensor, Tensor], Tensor]
Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class add:
    """loss + strength * cost (ProxylessNAS, equation 10; SNAS, section 3; LA-DARTS, equation 3)."""

    strength: float

    def __call__(self, loss: Tensor, cost: Tensor) -> Tensor:
        """Return the sum."""
        return loss + self.strength * cost


@dataclass(frozen=True)
class add_linear:
    """loss + strength * (cost - target) / target (ProxylessNAS's code)."""

    strength: float
    target: float

    def __post_init__(self) -> None:
        """Check the target."""
        _positive(self.target, "target")

    def __call__(self, loss: Tensor, cost: Tensor) -> Tensor:
        """Return the sum; below the target the cost is a reward."""
        return loss + self.strength * (cost - self.target) / self.target


@dataclass(frozen=True)
class add_log:
    """loss + strength * log(cost) (Single-Path NAS, equation 6)."""

    strength: float

    def __call__(self, loss: Tensor, cost: Tensor) -> Tensor:
        """Return the sum. Raises ValueError for a cost that is not positive."""
        _positive(float(cost.detach()), "cost")
        return loss + self.strength * cost.log()


@dataclass(frozen=True)
class mul_log:
    """loss * scale * log(cost)^power (FBNet, equation 2: scale 0.2, power 0.6).

    The logarithm is raised to the power, not its argument. It must be positive: a cost of 1 or less would turn the
    sign of the product or make it not a number, so the unit must be small enough, microseconds instead of
    milliseconds.
    """

    scale: float = 0.2
    power: float = 0.6

    def __call__(self, loss: Tensor, cost: Tensor) -> Tensor:
        """Return the product. Raises ValueError for a cost of 1 or less."""
        if (value := float(cost.detach())) <= 1.0:
            raise ValueError(f"the cost is {value:.4g} and its logarithm not positive: give it in a smaller unit")
        return loss * (self.scale * cost.log() ** self.power)


@dataclass(frozen=True)
class mul_log_ratio:
    """loss * scale * (log(cost) / log(target))^power (ProxylessNAS's code: scale 0.2, power 0.3).

    Raises ValueError for a target of 1 or less, and when called for such a cost: see `mul_log`.
    """

    target: float
    scale: float = 0.2
    power: float = 0.3

    def __post_init__(self) -> None:
        """Check the target."""
        if self.target <= 1.0:
            raise ValueError(f"target is {self.target} and its logarithm not positive: give it in a smaller unit")

    def __call__(self, loss: Tensor, cost: Tensor) -> Tensor:
        """Return the product."""
        return mul_log(self.scale / math.log(self.target) ** self.power, self.power)(loss, cost)


@dataclass(frozen=True)
class hinge:
    """strength * max(0, cost / target - 1): taken from a log-likelihood, it is a factor of its weight (FP-NAS)."""

    strength: float
    target: float

    def __post_init__(self) -> None:
        """Check the target."""
        _positive(self.target, "target")

    def __call__(self, loss: Tensor, cost: Tensor) -> Tensor:
        """Return loss plus the hinge: with the negative log-likelihood as the loss, minus what is weighed."""
        return loss + self.strength * (cost / self.target - 1.0).clamp_min(0.0)


@dataclass(frozen=True)
class reward_exponent:
    """reward * (target / cost)^power (MnasNet; ProxylessNAS's REINFORCE: power 0.1)."""

    target: float
    power: float = 0.1

    def __post_init__(self) -> None:
        """Check the target."""
        _positive(self.target, "target")

    def __call__(self, reward: Number, cost: Number) -> Number:
        """Return the reward, to be maximised. Raises ValueError for a cost that is not positive."""
        _positive(float(torch.as_tensor(cost).detach()), "cost")
        return exponent(reward, [cost / self.target], -self.power)


def _positive(value: float, what: str) -> None:
    if not value > 0.0:
        raise ValueError(f"{what} is {value}: it must be above 0")
