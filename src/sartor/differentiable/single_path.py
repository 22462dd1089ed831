# SPDX-License-Identifier: Apache-2.0
"""Single-Path NAS: superkernels whose parts switch themselves off by the norm of their weights.

Stamoulis et al., "Single-Path NAS: Designing Hardware-Efficient ConvNets in less than 4 Hours", ECML-PKDD 2019,
arXiv:1904.02877.

The idea: a 3x3 kernel lies within a 5x5 one, and a block of expansion 3 within one of expansion 6, so that one
over-sized superkernel holds all candidates of a layer. A part of it is in force if the norm of its weights exceeds a
threshold; the step is passed backward as a sigmoid, and thresholds are trained among the weights, on training images.
The logarithm of the runtime, a function of the same indicators, is added to the loss.

Differs from the paper:
- The norm is L2, as in the authors' code; the paper writes its square. It is told in units of its value at the start:
  in `sartor.spaces.SinglePath` norms start at 6 to 27, where the sigmoid has no gradient left, and only many steps of
  weight decay bring them down to where it has. `relative=False` is the code's.
- Indicators become weights over the options of a layer's choices. They scale channels where these are read, behind
  their batch norm, and so the supernet, at 0 and 1, equals the network that is read out.
- A runtime is any cost of assignments. `Corners` goes through all measured values of a layer; the paper's formula has
  one ratio of 3x3 to 5x5 for both expansions, and misses a corner where there are two.
- lambda stands in front of the logarithm as it is; the code multiplies it by 1000. In relative units 20 would switch
  everything off, and the code's number, 0.020, is the default without the factor.
- No running mean of the weights is kept (0.9999 in the code).
- Learning rate and warm-up follow the length of the training, and the learning rate the size of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sartor.architecture import Architecture, Option
from sartor.differentiable import relaxations
from sartor.differentiable._superkernels import superkernels
from sartor.differentiable.alphas import Assignment
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, total_loss
from sartor.differentiable.penalties import Penalty, add_log
from sartor.gates import key
from sartor.optimizers import RMSProp
from sartor.space import SearchSpace
from sartor.supernet import named_choices

__all__ = ["RECIPE", "SinglePathNAS"]

# The authors' code: 8 epochs, of which the first 5 warm up; the learning rate is for 256 images.
RECIPE = Recipe(lr=0.016, momentum=0.9, weight_decay=1e-5, clip=math.inf, bounded=True)  # of RMSProp
EPOCHS, WARM_UP, DECAY, DECAY_EPOCHS = 8.0, 5.0, 0.97, 2.4


class SinglePathNAS:
    """The learner of Single-Path NAS: a single level, on training batches alone.

    Args:
        net: a network whose searched choices all belong to superkernels, such as `sartor.spaces.SinglePath`.
        space: the options allowed, `search_space(net)` or a restriction of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the training, which the learning rate and the warm-up follow.
        seed: of the indicators' dropout.
        cost, penalty: the runtime of an assignment, in force after the warm-up, and how it joins the loss.
        keep: chance that an indicator is kept while warming up, so that smaller kernels are trained.
        relative: whether norms are in units of their values at the start.
        recipe: `lr` is for 256 images; of the others momentum, weight decay and clipping count.

    Raises ValueError for a choice that belongs to no superkernel.
    """

    needs = "single"

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = partial(F.cross_entropy, label_smoothing=0.1),  # noqa: B008 - has no state
        *,
        steps: int,
        seed: int = 0,
        cost: Cost | None = None,
        penalty: Penalty = add_log(0.020),  # noqa: B008 - frozen
        keep: float = 0.6,
        relative: bool = True,
        recipe: Recipe = RECIPE,
    ) -> None:
        self.net, self.space, self.loss, self.seed = net, space, loss, seed
        self.cost, self.penalty, self.keep, self.recipe = cost, penalty, keep, recipe
        self.superkernels = superkernels(net, space)
        count = sum(len(options) - 1 for one in self.superkernels for _, options in one.choices)
        # Thresholds start at 0, so the search at the largest network. They are weights: one optimiser has both.
        self.thresholds = Thresholds(count).to(next(net.parameters()).device)
        both = nn.ModuleDict({"net": net, "thresholds": self.thresholds})
        optimizer = RMSProp(list(both.parameters()), momentum=recipe.momentum)
        schedule = self.learning_rate
        self.descent = Descent(
            both, nn.Module(), steps=steps, recipe=recipe, weight_optimizer=optimizer, learning_rate=schedule
        )
        self.images = 256
        self.decayed = [*(p for p in net.parameters() if p.dim() > 1), self.thresholds.table]
        if relative:
            norms = self.relaxed()[1].detach()
            self.thresholds.unit.copy_(torch.where(norms > 0.0, norms, 1.0))

    def step(self, batch: Batch) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,): weights and thresholds, down one loss."""
        warms_up = self.descent.part < WARM_UP / EPOCHS
        generator = relaxations.draws(self.seed, self.descent.done)
        assignment, margins = self.relaxed(generator if warms_up else None)
        cost = None if self.cost is None else self.cost(assignment)
        loss, _ = total_loss(self.net, assignment, batch, self.loss)
        if cost is not None and not warms_up:  # the paper's lambda is 0 in the warm-up
            loss = self.penalty(loss, cost)
        self.images = len(batch[1])
        rate = self.descent.learning_rate
        value = self.descent.weights(loss + self.decay())
        self.descent.done += 1
        chance = margins.detach().sigmoid()
        entropy = torch.special.entr(torch.stack([chance, 1.0 - chance])).sum()
        on = (margins.detach() >= 0.0).float().mean()
        found = {"loss": value, "learning_rate": rate, "entropy": float(entropy), "on": float(on)}
        return found if cost is None else {**found, "cost": float(cost.detach())}

    def relaxed(self, generator: Generator | None = None) -> tuple[Assignment, Tensor]:
        """Return the weights of all choices, and the (T,) margins by which norms exceed their thresholds.

        generator: of the indicators' dropout; None for none, and weights of exactly 0 and 1.
        """
        margins: list[Tensor] = []

        def on(part: Tensor) -> Tensor:
            margins.append(self.thresholds.margin(part, len(margins)))
            found = relaxations.indicator(margins[-1])
            if generator is None:
                return found
            kept = float(torch.rand((), generator=generator)) < self.keep
            return found * (kept / self.keep)

        choices = named_choices(self.net)
        assignment: Assignment = {name: options[0] for name, options in self.space.choices.items()}
        for superkernel in self.superkernels:
            weights = superkernel.weights(on)
            for name, options in superkernel.choices:
                places = [list(map(key, choices[name].options)).index(key(option)) for option in options]
                row = weights[name].new_zeros(len(choices[name].options))
                assignment[name] = row.index_add(0, torch.tensor(places, device=row.device), weights[name])
        return assignment, torch.stack(margins)

    def decay(self) -> Tensor:
        """Return the weight decay times half the squared norm of the weights: all but biases and norms."""
        squares = torch.stack([norm.square() for norm in torch._foreach_norm(list[Tensor](self.decayed))])
        return self.recipe.weight_decay / 2.0 * squares.sum()

    def learning_rate(self, done: int, steps: int) -> float:
        """Return the learning rate after `done` of `steps` steps: in stairs, in proportion to the batch."""
        stairs = math.floor(EPOCHS * done / max(steps, 1) / DECAY_EPOCHS)
        return self.recipe.lr * self.images / 256 * DECAY**stairs

    @torch.no_grad()
    def architecture(self) -> Architecture:
        """Return the network that the indicators say now."""
        assignment, _ = self.relaxed()
        choices = named_choices(self.net)
        found: dict[str, Option] = {
            name: choices[name].options[int(value.argmax())] if isinstance(value, Tensor) else value  # type: ignore[misc]
            for name, value in assignment.items()
        }
        return self.space.canonical(found)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, thresholds, the optimiser's state and the number of steps done."""
        return self.descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)


class Thresholds(nn.Module):
    """A threshold for each indicator, from 0, and the (T,) units of the norms."""

    unit: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(count))
        self.register_buffer("unit", torch.ones(count))

    def margin(self, part: Tensor, place: int) -> Tensor:
        """Return by how much the norm of a part of a weight exceeds its threshold."""
        norm: Tensor = torch.linalg.vector_norm(part)
        return norm / self.unit[place] - self.table[place]
