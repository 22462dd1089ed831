# SPDX-License-Identifier: Apache-2.0
"""RMSProp as TensorFlow has it, which MnasNet and its successors train with; LARS; any optimiser restored exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sartor.distributed import scattered

__all__ = ["LARS", "RMSProp", "restore"]


class RMSProp(torch.optim.Optimizer):
    """RMSProp as TensorFlow has it, and so the papers that were trained with it.

    Unlike torch's, the running mean of squares starts at 1, so that the first steps are small instead of
    large; eps is added under the root; and the learning rate is inside the momentum.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        *,
        lr: float = 0.0,
        momentum: float = 0.9,
        rho: float = 0.9,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "rho": rho, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient. A closure is not supported, as no learner has one."""
        if closure is not None:
            raise ValueError("RMSProp takes no closure: compute the gradients before the step")
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients = [p.grad for p in weights]
            squares = [self._of(p, "square", 1.0) for p in weights]
            velocities = [self._of(p, "velocity", 0.0) for p in weights]
            torch._foreach_mul_(squares, group["rho"])
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - group["rho"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_addcdiv_(velocities, gradients, roots, value=group["lr"])
            torch._foreach_sub_(weights, velocities)

    def _of(self, parameter: Tensor, name: str, start: float) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.full_like(parameter, start)
        return state[name]  # type: ignore[no-any-return]


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step, in each weight, is a share of the weight's own size.

    You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv:1708.03888. The learning
    rate is times `trust` x norm of the weight / norm of its gradient, weight decay included; but not for biases and
    norms, which are plain SGD.
    """

    def __init__(
        self, parameters: list[nn.Parameter], *, lr: float = 0.0, momentum: float = 0.9, trust: float = 1e-3
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient. A closure is not supported, as no learner has one."""
        if closure is not None:
            raise ValueError("LARS takes no closure: compute the gradients before the step")
        for group in self.param_groups:
            for weight in (p for p in group["params"] if p.grad is not None):
                state = self.state[weight]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(weight)
                rate = group["lr"] * self._trusted(weight, weight.grad, group["trust"])
                weight -= state["velocity"].mul_(group["momentum"]).add_(rate * weight.grad)

    @staticmethod
    def _trusted(weight: Tensor, gradient: Tensor, trust: float) -> Tensor:
        """A scalar: 1 for biases and norms, and where a norm is 0."""
        if weight.dim() == 1:
            return weight.new_ones(())
        ratio = trust * weight.norm() / gradient.norm()
        return torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0)


def restore(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimiser the state of `state_dict`, moments in the layout of the weights: the last bit depends on it."""
    optimizer.load_state_dict(dict(state))
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(scattered(value, parameter))
