# SPDX-License-Identifier: Apache-2.0
"""Balanced mixture of supernets: several sets of weights, and which of them trains which architecture is learned.

Javan, Toews and Pedersoli, "Balanced Mixture of SuperNets for Learning the CNN Pooling Architecture", AutoML 2023,
arXiv:2306.11982.

The idea: where a network pools decides how good it is, but one set of shared weights ranks layouts almost at random, as
they disturb one another. M sets of weights share the layouts out by their validation accuracy: a layout trains mostly
the set that serves it best. All sets are used equally often, kept so by Sinkhorn's balance, else one takes all.

Differs from the paper:
- The balance is computed with logarithms, as exp(100 V) leaves nothing to balance, and for at most `iterations`.
- Epochs are shares of the training: the balance is computed anew at each of `epochs` equal parts.
- All architectures of any small space count as layouts, not only poolings.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.differentiable import relaxations
from sartor.differentiable.descent import Batch, Descent, Loss, Recipe, total_loss
from sartor.nn import at_resolution, channels_last
from sartor.space import SearchSpace
from sartor.supernet import activated

__all__ = ["RECIPE", "BalancedMixture", "architectures", "assignment", "balance"]

RECIPE = Recipe(lr=0.1, lr_min=0.001, momentum=0.9, weight_decay=0.0, clip=math.inf)
_MOST = 10_000


def balance(values: Tensor, temperature: float, *, tolerance: float = 1e-4, iterations: int = 1000) -> Tensor:
    """Return the (I, M) logarithms of marginals that, divided out one after the other, balance the use of M models.

    values: (A, M). Before each of the I divisions, P(m|a) has rows of sum 1; they stop once p(m), the mean of the rows,
    has a divergence from the uniform one below the tolerance.
    """
    found = []
    table = (temperature * values.double()).log_softmax(1)
    for _ in range(iterations):
        marginal = table.logsumexp(0) - math.log(len(table))  # p(m) = mean over a of P(m|a)
        if float((marginal.exp() * (marginal + math.log(values.shape[1]))).sum()) < tolerance:
            break
        found.append(marginal)
        table = (table - marginal).log_softmax(1)  # P <- P / p(m), and rows of sum 1 again
    return torch.stack(found) if found else table.new_zeros(0, values.shape[1])


def assignment(values: Tensor, temperature: float, marginals: Tensor) -> Tensor:
    """Return the (A, M) probabilities P(m|a) of values under marginals that `balance` found: rows of sum 1.

    To divide and normalise in turns is to divide by all marginals and to normalise once.
    """
    return (temperature * values.double() - marginals.sum(0)).softmax(1)


def architectures(space: SearchSpace) -> list[Architecture]:
    """Return all architectures of a small space, each once. Raises ValueError for more than 10,000 combinations."""
    if math.prod(map(len, space.choices.values())) > _MOST:
        raise ValueError(f"the space has {space.size} architectures: restrict it, {_MOST} combinations are the most")
    every = itertools.product(*space.choices.values())
    found = dict.fromkeys(space.canonical(dict(zip(space.choices, one, strict=True))) for one in every)
    return [arch for arch in found if arch in space]


class BalancedMixture:
    """The learner of the balanced mixture, on pairs of batches of the training and the validation part (half each).

    Args:
        net: a network with choices, of which `models` - 1 copies are made and initialised anew.
        space: the layouts, `search_space(net)` or a restriction of it; small, since all are counted.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the training, which learning rate and temperature follow.
        models: sets of weights, M; 1 is one supernet under uniform sampling.
        balanced: whether all sets are used equally often.
        temperature: of the choice of a set, at the first epoch and at the last.
        momentum: part of its old value that an entry of V keeps.
        epochs: how often in the training the balance is computed.
        seed: of the initial weights of the copies and of all draws.
        recipe: how weights descend; each set has an optimiser of its own.
    """

    needs = "pairs"

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        models: int = 4,
        balanced: bool = True,
        temperature: tuple[float, float] = (1.0, 100.0),
        momentum: float = 0.9,
        epochs: int = 100,
        seed: int = 0,
        recipe: Recipe = RECIPE,
    ) -> None:
        if models < 1 or epochs < 1:
            raise ValueError(f"models is {models} and epochs {epochs}: give at least 1 of each")
        self.net, self.space, self.loss, self.steps, self.seed = net, space, loss, steps, seed
        self.balanced, self.temperatures, self.momentum, self.epochs = balanced, temperature, momentum, epochs
        self.layouts = architectures(space)
        self.nets = [net, *(_anew(net, seed, model) for model in range(1, models))]
        self.descents = [Descent(one, nn.Module(), steps=steps, recipe=recipe) for one in self.nets]
        self.values = torch.ones(len(self.layouts), models, device="cpu")  # V starts at 1
        self.used = torch.zeros(len(self.layouts), models, dtype=torch.int64, device="cpu")
        self.marginals = torch.zeros(0, models, dtype=torch.float64, device="cpu")
        self.done = 0

    @property
    def epoch(self) -> int:
        """The number of the epoch, from 0."""
        return min(self.done * self.epochs // max(self.steps, 1), self.epochs - 1)

    @property
    def temperature(self) -> float:
        """What V is multiplied with: rises linearly from epoch to epoch."""
        return relaxations.linear_between(*self.temperatures, self.epoch / max(self.epochs - 1, 1))

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Train one set of weights on a layout, and note how well it does on the validation batch."""
        training, (images, labels) = batch
        starts = self.done == 0 or self.epoch != (self.done - 1) * self.epochs // max(self.steps, 1)
        if self.balanced and starts:
            self.marginals = balance(self.values, self.temperature)
        chances = assignment(self.values, self.temperature, self.marginals)
        generator = relaxations.draws(self.seed, self.done)
        layout = int(torch.randint(len(self.layouts), (), generator=generator))  # a ~ uniform
        model = int(torch.multinomial(chances[layout], 1, generator=generator))  # m ~ P(.|a)
        net, descent = self.nets[model], self.descents[model]
        descent.done = self.done  # all follow one schedule
        loss, _ = total_loss(net, self.layouts[layout], training, self.loss)
        value, rate = descent.weights(loss), descent.learning_rate
        correct = accuracy(net, self.layouts[layout], images, labels)
        old = float(self.values[layout, model])
        self.values[layout, model] = self.momentum * old + (1.0 - self.momentum) * correct
        self.used[layout, model] += 1
        self.done += 1
        entropy = float(torch.special.entr(chances).sum(1).mean())
        use = float(torch.special.entr(chances.mean(0)).sum())
        return {"loss": value, "learning_rate": rate, "entropy": entropy, "use": use, "accuracy": correct}

    def architecture(self) -> Architecture:
        """Return the layout of the best noted accuracy of those that were trained; `evaluated` is the paper's way."""
        tried = self.values.masked_fill((self.used == 0) & bool(self.used.any()), -1.0)
        return self.layouts[int(tried.max(1).values.argmax())]

    def evaluated(self, batches: Iterable[Batch]) -> Tensor:
        """Return the (A, M) validation accuracies of every layout with every set of weights.

        The best row's layout, `layouts[row]`, is retrained alone, or inherits the weights of `nets[column]`.
        """
        held = list(batches)
        count = sum(len(labels) for _, labels in held)
        if not count:
            raise ValueError("there is no batch to evaluate the layouts on: give the validation part")
        found = torch.zeros(self.values.shape, device="cpu")
        for row, column in itertools.product(range(len(self.layouts)), range(len(self.nets))):
            pairs = ((accuracy(self.nets[column], self.layouts[row], *one), len(one[1])) for one in held)
            found[row, column] = sum(share * size for share, size in pairs) / count
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return all weights and optimisers' states, V, the balance and the number of steps done."""
        state = {"values": self.values, "used": self.used, "marginals": self.marginals, "done": self.done}
        return {**state, "models": [descent.state_dict() for descent in self.descents]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for descent, one in zip(self.descents, state["models"], strict=True):
            descent.load_state_dict(one)
        self.values, self.used = state["values"].clone(), state["used"].clone()
        self.marginals, self.done = state["marginals"].clone(), state["done"]


@torch.no_grad()
def accuracy(net: nn.Module, arch: Mapping[str, Any], images: Tensor, labels: Tensor) -> float:
    """Return the share of images (N, C, H, W) that an architecture gets right, by the norms' running statistics."""
    net.eval()
    with activated(net, arch):
        logits = at_resolution(net, channels_last(images))
    return float((logits.argmax(1) == labels).float().mean())


def _anew(net: nn.Module, seed: int, model: int) -> nn.Module:
    """A copy with weights of its own, where the network's `reset_parameters` says how to draw them."""
    other = copy.deepcopy(net)
    reset = getattr(other, "reset_parameters", None)
    if callable(reset):
        with torch.random.fork_rng():
            torch.manual_seed(seed * 1000 + model)
            reset()
    return other
