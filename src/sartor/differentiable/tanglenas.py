# SPDX-License-Identifier: Apache-2.0
"""TangleNAS: gradient-based search where small options are slices of the largest one.

Sukthanker, Krishnakumar, Safari and Hutter, "Weight-Entanglement Meets Gradient-Based Neural Architecture Search",
AutoML 2024, arXiv:2312.10440. The default sampler is that of Chen et al., "DrNAS", ICLR 2021.

The idea: options that are slices of one weight are mixed in the space of weights. Their slices, padded with zeros and
weighed, add up to one weight, so that a layer runs once and a mixture has the memory of the largest network. Any way to
make weights of logits then searches such a space in a single stage, with weights that the network found inherits.

Differs from the paper:
- The superposition is that of `sartor.nn` under soft weights: kernels as the expectation of their centred crops, widths
  by the chance that a channel is kept, where it is read and hence behind its batch norm. One-hot weights so give the
  sliced network exactly. `sartor.nn.superposed` has the paper's own, in front of the norm.
- Hard samplers run the largest weight under a mask of zeros; each slice's weight so has its gradient, where the
  authors' code multiplies the chosen slice by its weight alone. Depth exits that were not drawn are not run.
- Weights and architecture parameters step once for each pair of batches, the latter first, as in DARTS's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.distributions import Dirichlet, kl_divergence

from sartor.architecture import Architecture
from sartor.differentiable import relaxations
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, total_loss
from sartor.differentiable.penalties import Penalty, add
from sartor.differentiable.readout import derived
from sartor.space import SearchSpace

__all__ = ["RECIPE", "SAMPLERS", "Sampler", "TangleNAS"]

Sampler = Literal["drnas", "darts", "gdas", "spos"]
Draw = Callable[[Tensor, float, Generator], Tensor]
"""(C, K) logits, how much of the training is done, the step's draws -> (C, K) weights."""

RECIPE = Recipe()  # of the authors' configuration for NAS-Bench-201: 0.025 to 0.001, 3e-4; Adam 3e-4 (0.5, 0.999), 1e-3


def drnas(logits: Tensor, _part: float, generator: Generator) -> Tensor:
    """Return a draw from Dirichlet(elu(logits) + 1)."""
    return relaxations.dirichlet(logits, generator)


def darts(logits: Tensor, _part: float, _generator: Generator) -> Tensor:
    """Return the softmax."""
    return relaxations.softmax(logits)


def gdas(logits: Tensor, part: float, generator: Generator) -> Tensor:
    """Return a hard Gumbel draw whose temperature falls from 10 to 0.1."""
    return relaxations.straight_through(logits, relaxations.linear_between(10.0, 0.1, part), generator)


def spos(logits: Tensor, _part: float, generator: Generator) -> Tensor:
    """Return one option of each choice, drawn uniformly: no gradient."""
    uniform = torch.zeros_like(logits).masked_fill(logits == -torch.inf, -torch.inf)
    return relaxations.one_hot(relaxations.sample(uniform, generator), uniform)


SAMPLERS: Mapping[Sampler, Draw] = {"drnas": drnas, "darts": darts, "gdas": gdas, "spos": spos}


class TangleNAS:
    """The learner of TangleNAS: a single stage, on pairs of batches of the training and the validation part.

    The paper keeps 0.8 of the images of macro spaces for the weights, and 0.5 of those of cells.

    Args:
        net: a network with choices, entangled where they are sizes of elastic layers.
        space: the options allowed, `search_space(net)` or a restriction of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the training, which learning rate and temperature follow.
        sampler: how logits become weights. "spos" learns no logits: it is the first of the two stages of other methods.
        seed: of the initial logits and of all draws.
        cost, penalty: of an assignment, and how it joins the loss of the logits. The paper has none, and by default the
            cost is told and nothing else.
        regularisation: factor of the divergence of the Dirichlet from the uniform one (DrNAS's 1e-3).
        recipe: how weights and logits descend.
    """

    needs = "pairs"

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        sampler: Sampler = "drnas",
        seed: int = 0,
        cost: Cost | None = None,
        penalty: Penalty = add(0.0),  # noqa: B008 - frozen
        regularisation: float = 1e-3,
        recipe: Recipe = RECIPE,
    ) -> None:
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler is {sampler!r}: give one of {', '.join(SAMPLERS)}")
        self.net, self.space, self.loss = net, space, loss
        self.seed, self.sampler = seed, sampler
        self.cost, self.penalty, self.regularisation = cost, penalty, regularisation
        self.alphas = Alphas(net, space, seed=seed)
        self.descent = Descent(net, self.alphas, steps=steps, recipe=recipe)

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Take one step on the logits, on the validation batch, then one on the weights, on the training batch."""
        training, validation = batch
        generator = relaxations.draws(self.seed, self.descent.done)
        found = {}
        if self.sampler != "spos":
            assignment = self.alphas.assignment(self.weights(generator))
            loss, cost = total_loss(self.net, assignment, validation, self.loss, self.cost, self.penalty)
            found["architecture_loss"] = self.descent.architecture(loss + self.divergence())
            found |= {"cost": cost} if self.cost else {}
        with torch.no_grad():
            weights = self.weights(generator)
        uniform = self.sampler == "spos"  # and hard: slices are run, not masks
        assignment = self.alphas.hard(weights.argmax(1)) if uniform else self.alphas.assignment(weights)
        loss, _ = total_loss(self.net, assignment, training, self.loss)
        rate = self.descent.learning_rate
        value = self.descent.weights(loss)
        self.descent.done += 1
        return {"loss": value, "learning_rate": rate, "entropy": float(self.alphas.entropy().detach()), **found}

    def weights(self, generator: Generator) -> Tensor:
        """Return the (C, K) weights of a step, by the sampler."""
        return SAMPLERS[self.sampler](self.alphas.logits, self.descent.part, generator)

    def divergence(self) -> Tensor:
        """Return the regulariser: with "drnas" the divergence of each Dirichlet from the uniform one, else 0."""
        if self.sampler != "drnas" or not self.regularisation:
            return self.alphas.table.new_zeros(())
        rows = (row[row.isfinite()] for row in self.alphas.logits)
        concentrations = [(F.elu(row) + 1.0).clamp_min(relaxations.LEAST_CONCENTRATION) for row in rows]
        terms = [kl_divergence(Dirichlet(c), Dirichlet(torch.ones_like(c))) for c in concentrations if len(c) > 1]
        return self.regularisation * torch.stack(terms).sum() if terms else self.alphas.table.new_zeros(())

    def architecture(self) -> Architecture:
        """Return the most probable option of each choice, of a cell's node the two strongest edges.

        `sartor.supernet.extract` then inherits the weights. Raises ValueError after uniform sampling, which prefers
        none: select by validation instead.
        """
        if self.sampler == "spos":
            raise ValueError("uniform sampling learns no logits: choose by `sartor.differentiable.diagnostics.score`")
        return derived(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, logits, both optimisers' state and the number of steps done."""
        return self.descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)
