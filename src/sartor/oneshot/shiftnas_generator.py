# SPDX-License-Identifier: Apache-2.0
"""ShiftNAS's generator of architectures of a wanted cost, and the network that makes any cost differentiable for it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator as Randomness
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.encodings import architectures
from sartor.space import SearchSpace

__all__ = ["CostNetwork", "Generator", "cost_loss", "learn_from_cost", "relative_error", "seeded", "straight_through"]

Weights = Mapping[str, Tensor]
"""By choice, in the order of the space: (B, options) weights of the options."""

BATCH = 256  # of a step of the cost network
LR = 4e-3  # of Adam at the start, for generator and cost network; it falls to 0
LEAN = 0.5  # chance that a choice leans, in half of what the cost network learns from


class Generator(nn.Module):
    """An LSTM that emits the options of one choice after another, for a wanted cost.

    A step reads the option emitted last, the wanted cost, and what is left of it by a table of what options add to its
    logarithm. Its state feeds a layer of the choice's own. Choices that add much come first, so that the others make up
    for the rest.

    space: of the architectures. hidden: units of the LSTM (64). seed: of the weights.
    """

    scale: Tensor
    adds: Tensor

    def __init__(self, space: SearchSpace, *, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.space, self.sizes = space, [len(options) for options in space.choices.values()]
        self.cell, self.wanted = nn.LSTMCell(hidden, hidden), nn.Linear(1, hidden)
        self.left = nn.Linear(1, hidden, bias=False)
        self.read = nn.ModuleList(nn.Linear(size, hidden, bias=False) for size in self.sizes)
        self.emit = nn.ModuleList(nn.Linear(hidden, size) for size in self.sizes)
        self.register_buffer("scale", torch.tensor([0.0, 1.0], dtype=torch.float64))
        self.register_buffer("adds", torch.zeros(sum(self.sizes)))
        _initialise(self, seed)

    def know(self, inputs: Tensor, logarithms: Tensor) -> None:
        """Take in (M, D) options of architectures and the (M,) logarithms of their costs, for scale and table."""
        self.scale.copy_(torch.stack([logarithms.mean(), logarithms.std().clamp_min(1e-6)]))
        wanted = ((logarithms - self.scale[0]) / self.scale[1])[:, None]
        ridge = 1e-2 * torch.eye(inputs.shape[1], dtype=torch.float64)
        system = torch.cat([inputs.double(), ridge])
        found = torch.linalg.lstsq(system, torch.cat([wanted, torch.zeros_like(ridge[:, :1])])).solution
        self.adds.copy_(found.squeeze(1).round(decimals=4))  # its last bits depend on where memory lies

    def forward(self, costs: Tensor, randomness: Randomness | None = None, temperature: float = 1.0) -> Weights:
        """Return one-hot rows for the (B,) wanted costs: in value 0 and 1, with the gradient of a softmax.

        With randomness, options are drawn with their softmax probabilities (Gumbel's draw, straight through; the
        temperature is that of the gradient). Without, the likeliest is taken.
        """
        left = ((costs.log() - self.scale[0]) / self.scale[1]).to(self.adds)[:, None]
        read = wanted = self.wanted(left)
        state, chosen = (torch.zeros_like(wanted), torch.zeros_like(wanted)), {}
        adds = torch.split(self.adds, self.sizes)
        for place in self._order:
            state = self.cell(read + self.left(left), state)
            chosen[place] = straight_through(self.emit[place](state[0]), randomness, temperature)
            left = left - (chosen[place] @ adds[place])[:, None]
            read = wanted + self.read[place](chosen[place])
        return {name: chosen[place] for place, name in enumerate(self.space.choices)}

    @property
    def _order(self) -> list[int]:
        adds = torch.split(self.adds, self.sizes)
        spreads = [float(add.max() - add.min()) for add in adds]
        return sorted(range(len(spreads)), key=lambda place: -spreads[place])

    def architectures(self, chosen: Weights) -> list[Architecture]:
        """Return the B architectures of one-hot rows."""
        table = torch.stack([weights.detach().argmax(1) for weights in chosen.values()], 1)
        return architectures(self.space, table.cpu().numpy())


def straight_through(logits: Tensor, randomness: Randomness | None, temperature: float = 1.0) -> Tensor:
    """Return (B, options) one-hot rows, drawn or the likeliest, with the gradient of the (perturbed) softmax."""
    if randomness is not None:
        uniform = torch.rand(logits.shape, generator=randomness, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        logits = logits - (-uniform.log()).log().to(logits)
    soft = (logits / temperature).softmax(1)
    hard = F.one_hot(logits.argmax(1), logits.shape[1]).to(soft)
    return hard + (soft - soft.detach())


class CostNetwork(nn.Module):
    """The cost of architectures as a perceptron of their options, differentiable in the options' weights.

    It reads the options of all choices, those switched off included, whose weights it learns to pass over.
    """

    scale: Tensor

    def __init__(self, space: SearchSpace, *, hidden: int = 128, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        inputs = sum(map(len, space.choices.values()))
        layers = (nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))
        self.layers = nn.Sequential(*layers)
        self.register_buffer("scale", torch.tensor([0.0, 1.0], dtype=torch.float64))
        _initialise(self, seed)

    def forward(self, weights: Weights) -> Tensor:
        """(B, options) weights of each choice -> (B,) logarithms of costs."""
        return self._logarithms(torch.cat([*weights.values()], 1))

    def _logarithms(self, codes: Tensor) -> Tensor:
        found: Tensor = self.layers(codes).squeeze(1).double() * self.scale[1] + self.scale[0]
        return found

    def fit(
        self, cost: Callable[[Architecture], float], *, samples: int, steps: int, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Learn the cost of random architectures, half of which lean to small or to large options.

        Returns their (samples, D) options and the (samples,) logarithms of their costs. Raises ValueError for a cost
        that is not above 0.
        """
        rng = np.random.default_rng(seed)
        inputs, logarithms = self._examples(cost, samples, rng)
        self.scale.copy_(torch.stack([logarithms.mean(), logarithms.std().clamp_min(1e-6)]))
        optimizer = torch.optim.Adam(self.parameters(), foreach=True)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LR * (1 - step / steps)
            rows = torch.from_numpy(rng.integers(samples, size=BATCH))
            error = (self._logarithms(inputs[rows]) - logarithms[rows]) / self.scale[1]
            optimizer.zero_grad()
            error.square().mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return inputs, logarithms

    def _examples(
        self, cost: Callable[[Architecture], float], samples: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        level, leaning = rng.random(samples), rng.random(samples) < 0.5
        columns = []
        for options in self.space.choices.values():
            common = np.rint(level * (len(options) - 1)).astype(np.intp)
            leans = leaning & (rng.random(samples) < LEAN)
            columns.append(np.where(leans, common, rng.integers(len(options), size=samples)))
        costs = torch.tensor([cost(arch) for arch in architectures(self.space, np.stack(columns, 1))]).double()
        if not bool((costs > 0).all()):
            raise ValueError(f"the least cost is {float(costs.min())}: the generator needs costs above 0")
        sizes = map(len, self.space.choices.values())
        codes = [F.one_hot(torch.from_numpy(column), size) for column, size in zip(columns, sizes, strict=True)]
        return torch.cat(codes, 1).float(), costs.log()


def cost_loss(predicted: Tensor, wanted: Tensor, true: Tensor | None = None) -> Tensor:
    """Return L_RC: the mean squared error of (B,) logarithms of costs, from those of the wanted costs.

    With the true ones, these are in force, and the gradient is that of the predicted ones: straight through.
    """
    costs = predicted if true is None else predicted + (true - predicted).detach()
    return (costs - wanted).square().mean()


def relative_error(costs: Tensor, wanted: Tensor) -> Tensor:
    """Return (B,) how far costs are from those wanted, as a share of these."""
    return ((costs - wanted) / wanted).abs()


def learn_from_cost(
    generator: Generator,
    network: CostNetwork,
    cost: Callable[[Architecture], float],
    wanted: Callable[[random.Random], Tensor],
    *,
    steps: int,
    rng: random.Random,
) -> None:
    """Train a generator by L_RC alone; `wanted` draws the (B,) costs of a step. The network is left as it is."""
    network.requires_grad_(False)
    optimizer = torch.optim.Adam(generator.parameters(), foreach=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / steps)
        asked = wanted(rng)
        chosen = generator(asked, seeded(rng))
        true = torch.tensor([cost(arch) for arch in generator.architectures(chosen)], dtype=torch.float64)
        optimizer.zero_grad()
        cost_loss(network(chosen), asked.log(), true.log()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    generator.zero_grad(set_to_none=True)


def seeded(rng: random.Random) -> Randomness:
    """Return torch's randomness of a draw."""
    return Randomness().manual_seed(rng.getrandbits(63))


def _initialise(module: nn.Module, seed: int) -> None:
    """Draw all weights from the seed alone: uniform, by the root of what a layer reads, as torch does."""
    randomness = Randomness().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            bound = 1 / math.sqrt(parameter.shape[-1])
            parameter.uniform_(-bound, bound, generator=randomness)
