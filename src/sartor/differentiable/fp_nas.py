# SPDX-License-Identifier: Apache-2.0
"""FP-NAS: as many samples as the distribution is uncertain, first independent over choices, then joint over layers.

Yan, Dai, Zhang, Tian, Wu and Feiszli, "FP-NAS: Fast Probabilistic Neural Architecture Search", CVPR 2021,
arXiv:2011.10949. No official code of the search.

The idea: PARSEC draws the same number of samples at all times, and joint tables of all variables of a layer are large.
FP-NAS draws in proportion to the entropy, and keeps the variables of a layer independent until the distribution is
sharp; then it goes over to one joint table a layer, exactly. A hinge in the log-weights holds the cost of each sampled
network under a target.

Differs from the paper:
- The log-likelihood is the mean over images divided by a temperature, as in our PARSEC.
- The joint distribution starts at half of the steps; the weights alone train in the first tenth.
- The variables of a layer are the choices whose names differ only behind the last point, unless layers are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.descent import Batch, Descent, Loss, Recipe, total_loss
from sartor.differentiable.fp_nas_layers import CoarseToFine, layers_by_name
from sartor.differentiable.importance import negative_evidence, weighted_gradients
from sartor.differentiable.penalties import Penalty, add
from sartor.differentiable.readout import strongest_edges
from sartor.differentiable.relaxations import draws
from sartor.space import SearchSpace

__all__ = ["FPNAS", "adaptive_samples"]

RECIPE = Recipe(alpha_lr=0.016, alpha_betas=(0.9, 0.999), alpha_weight_decay=0.0)


def adaptive_samples(entropy: float, per_nat: float, least: int) -> int:
    """Return K = max(least, round(per_nat * entropy)), for an entropy in nats."""
    return max(least, round(per_nat * entropy))


class FPNAS:
    """The learner of FP-NAS: its batches are pairs, of the weights' data and of the distribution's.

    Args:
        net: a network with choices.
        space: the options allowed, `search_space(net)` or a restriction of it.
        loss: mean negative log-likelihood of predictions (N, K) and labels (N,).
        steps: length of the search.
        seed: of the draws of each step.
        cost: of one architecture, exact: it may depend on neighbouring choices. A `sartor.costs.CostTable` is one, too.
        penalty: how the cost joins a sample's loss, the paper's being `penalties.hinge(beta, target)`.
        recipe: see `Recipe`.
        per_nat, least: samples for each nat of entropy, and the fewest.
        temperature: the mean log-likelihoods are divided by it.
        warm_up: part of the search in which the distribution does not move.
        joint_from: part of the search after which the distribution is joint.
        layers: names of the choices of each layer.

    Raises ValueError for fewer than two samples, with which a sample would only confirm itself.
    """

    needs = "pairs"

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        seed: int = 0,
        cost: Callable[[Architecture], Tensor | float] | None = None,
        penalty: Penalty = add(1.0),  # noqa: B008 - frozen
        recipe: Recipe = RECIPE,
        per_nat: float = 0.25,
        least: int = 2,
        temperature: float = 0.1,
        warm_up: float = 0.1,
        joint_from: float = 0.5,
        layers: Sequence[Sequence[str]] | None = None,
    ) -> None:
        if least < 2 or temperature <= 0.0:
            raise ValueError(f"{least} samples at temperature {temperature}: give at least 2, and one above 0")
        self.net, self.loss, self.seed = net, loss, seed
        self.cost, self.penalty = cost, penalty
        self.per_nat, self.least, self.temperature = per_nat, least, temperature
        self.warm_up, self.joint_from = warm_up, joint_from
        self.alphas = Alphas(net, space, scale=0.0, seed=seed)
        self.distribution = CoarseToFine(self.alphas, layers or layers_by_name(list(self.alphas.options)))
        self.descent = Descent(net, self.distribution, steps=steps, recipe=recipe)

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Take a step of the weights on the first batch, then one of the distribution on the second.

        Returns the weighted loss of the samples, learning rate, entropy, the number of samples and, with a cost, the
        samples' mean cost.
        """
        train, validation = batch
        descent, rate = self.descent, self.descent.learning_rate
        if descent.part >= self.joint_from:
            self.distribution.join()
        entropy = float(self.distribution.entropy().detach())
        count = adaptive_samples(entropy, self.per_nat, self.least)  # K_t follows the entropy
        gradients, value = weighted_gradients(self.losses(train, count), descent.weight_parameters)
        descent.step_weights(gradients)
        cost = self.move(validation, count) if descent.part >= self.warm_up else self.mean_cost(count)
        descent.done += 1
        told = {"loss": float(value), "learning_rate": rate, "entropy": entropy, "samples": float(count)}
        return told | ({"cost": cost} if self.cost else {})

    def drawn(self, purpose: str, count: int) -> list[Tensor]:
        """Return the (C,) positions of some samples of the distribution."""
        generator = draws(self.seed, self.descent.done, f"fp-nas {purpose}")
        return [self.distribution.sample(generator) for _ in range(count)]

    def losses(self, batch: Batch, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (log weight, loss) of each sample for the weights: grad_v is the sum of omega_k * grad_v log p."""
        for positions in self.drawn("weights", count):
            loss = total_loss(self.net, self.alphas.hard(positions), batch, self.loss)[0]
            self.descent.finite(loss, "weights")
            log_likelihood = -loss.detach() / self.temperature
            yield self.log_weights(log_likelihood, loss.new_tensor(self.cost_of(positions))), loss

    def move(self, batch: Batch, count: int) -> float:
        """Move the distribution by the sum of omega_k * grad log p(a_k); return the mean cost."""
        several = self.drawn("distribution", count)
        costs = torch.tensor([self.cost_of(one) for one in several])
        with torch.no_grad():
            losses = [total_loss(self.net, self.alphas.hard(one), batch, self.loss)[0] for one in several]
        log_likelihoods = -torch.stack(losses) / self.temperature
        log_weights = self.log_weights(log_likelihoods, costs.to(log_likelihoods))
        logs = torch.stack([self.distribution.log_probability(one) for one in several])
        self.descent.finite(log_weights.sum(), "distribution")
        self.descent.architecture(negative_evidence(logs, log_weights))
        return float(costs.mean())

    def log_weights(self, log_likelihoods: Tensor, costs: Tensor) -> Tensor:
        """Return log p(y | X, v, a_k) - beta * C(a_k): of K samples, or of one."""
        return -self.penalty(-log_likelihoods, costs) if self.cost else log_likelihoods

    def cost_of(self, positions: Tensor) -> float:
        """Return the cost of one architecture, 0 without a cost."""
        return float(self.cost(self.alphas.architecture(positions))) if self.cost else 0.0

    def mean_cost(self, count: int) -> float:
        """Return the mean cost of samples."""
        return sum(map(self.cost_of, self.drawn("distribution", count))) / count

    def architecture(self) -> Architecture:
        """Return the most probable architecture; of a cell's node the two strongest edges."""
        if self.alphas.inputs:
            return strongest_edges(self.alphas, self.net, self.distribution.probabilities())
        return self.alphas.architecture(self.distribution.mode())

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        return self.descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)
