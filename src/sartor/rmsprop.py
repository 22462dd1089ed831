# SPDX-License-Identifier: Apache-2.0
"""RMSProp as TensorFlow has it: the optimiser of the recipes of MnasNet and its successors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RMSProp"]


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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, in the layout of the weights: on that the last bit of a step depends."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            for name, value in state.items():
                state[name] = torch.empty_like(parameter).copy_(value)

    def _of(self, parameter: Tensor, name: str, start: float) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.full_like(parameter, start)
        return state[name]  # type: ignore[no-any-return]
