# SPDX-License-Identifier: Apache-2.0
"""Weights mixed from experts by the architecture in force: a parametrization of elastic layers.

Jawahar, Yang, Xiong, Liu, Wang, Sun, Li, Pappu, Oguz, Abdul-Mageed, Lakshmanan, Krishnamoorthi and Chandra,
"Mixture-of-Supernets: Improving Weight-Sharing Supernet Training with Architecture-Routed Mixture-of-Experts", Findings
of ACL 2024, arXiv:2306.04845.

    route(layer, Encoding(named_choices(net).values()), experts=2)  # its weight and bias

A layer keeps m tensors W_j where it had one, and uses sum_j alpha_j(a) W_j. A router sees the architecture a, and
nothing else: alpha = softmax(V relu(U enc(a))) holds m numbers, or m for each output of the layer. The encoding is read
from the choices themselves in each pass, so that it is never that of another architecture. What is extracted is a
slice of the mixed tensor: an ordinary layer, without experts or router.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sartor.architecture import Option
from sartor.choice import Choice
from sartor.nn.conv import Conv1d, Conv2d, Conv3d
from sartor.nn.linear import Linear

__all__ = ["Encoding", "Routed", "Router", "Routing", "route"]

Routing = Literal["layer", "neuron"]
HIDDEN = 128


class Encoding:
    """The choices in force as (size,) numbers: numbers scaled to [0, 1] over their options, all else one-hot.

    A soft choice is encoded by the expectation over its options. An index list counts as its length. It holds nothing
    but the choices, and a constant table of their options.
    Raises ValueError for no choices.
    """

    def __init__(self, choices: Iterable[Choice]) -> None:
        self.choices = tuple(choices)
        if not self.choices:
            raise ValueError("there is no choice to encode: a router needs a network with searched choices")
        columns = [_columns(choice.options) for choice in self.choices]
        self.table: Tensor = torch.block_diag(*columns)  # type: ignore[no-untyped-call]
        self.size = self.table.shape[1]

    def __call__(self, like: Tensor) -> Tensor:
        """Return (size,) what is in force, as `like`. Raises ValueError under `Kept` and `PerSample`."""
        self.table = table = self.table.to(like)
        if any(choice.soft is not None for choice in self.choices):
            return torch.cat([choice.probabilities(like) for choice in self.choices]) @ table
        rows, first = [], 0
        for choice in self.choices:
            rows.append(first + choice.position)
            first += len(choice.options)
        return table[rows].sum(0)


class Router(nn.Module):
    """() -> (outputs, experts) weights of the experts, each row of sum 1: a perceptron of the encoding.

    Args:
        encoding: of the network's choices; all routers of a network share it.
        experts: m.
        outputs: rows, 1 for a layer-wise router.
        generator: of the initial weights, those of `torch.nn.Linear`.
    """

    def __init__(self, encoding: Encoding, experts: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.encoding, self.experts = encoding, experts
        self.hidden = _linear(HIDDEN, encoding.size, generator)
        self.last = _linear(outputs * experts, HIDDEN, generator)

    def forward(self) -> Tensor:
        """Return (outputs, experts)."""
        with torch.autocast(self.hidden.weight.device.type, enabled=False):
            logits: Tensor = self.last(F.relu(self.hidden(self.encoding(self.hidden.weight))))
            return logits.view(-1, self.experts).softmax(1)


class Routed(nn.Module):
    """The parametrization: experts of shape (o, ...) each -> their mixture (o, ...).

    Args:
        router: of the layer; its weight and its bias share one.
        owns: whether the router is part of this module; it must be part of one.
    """

    def __init__(self, router: Router, *, owns: bool) -> None:
        super().__init__()
        self._elastic_router = (router,)  # in a tuple, torch does not take it for a part
        if owns:
            self.router = router

    def forward(self, *experts: Tensor) -> Tensor:
        """sum_j alpha_j W_j, with alpha of the architecture in force."""
        shape = (-1, *[1] * (experts[0].dim() - 1))
        alpha = self._elastic_router[0]().to(experts[0].dtype).unbind(1)
        mixed: Tensor = alpha[0].view(shape) * experts[0]
        for weight, expert in zip(alpha[1:], experts[1:], strict=True):
            mixed = mixed + weight.view(shape) * expert
        return mixed

    def right_inverse(self, value: Tensor) -> Sequence[Tensor]:
        """Return what a tensor that is assigned is computed from: equal experts."""
        return [value.clone() for _ in range(self._elastic_router[0].experts)]


def route(
    layer: nn.Module,
    encoding: Encoding,
    *,
    experts: int = 2,
    routing: Routing = "layer",
    noise: float = 0.01,
    generator: torch.Generator | None = None,
) -> Router:
    """Give an elastic linear layer or convolution experts and a router, in place; return the router.

    routing: "layer", the same m numbers for the whole weight and bias, or "neuron", m for each output.
    noise: standard deviation that is added to all experts but the first, as a share of the tensor's own; at 0 experts
        are equal, and the router has no gradient until they differ.
    generator: of all that is drawn (default: seeded with 0).

    Raises ValueError for fewer than one expert, another routing, another layer, and one that is parametrized already.
    """
    if experts < 1 or routing not in ("layer", "neuron"):
        raise ValueError(f"experts={experts}, routing={routing!r}: give at least 1, and 'layer' or 'neuron'")
    if not isinstance(layer, Linear | Conv1d | Conv2d | Conv3d) or parametrize.is_parametrized(layer):
        raise ValueError(f"{layer!r} cannot be routed: give an elastic linear layer or convolution, once")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    weight = layer.weight
    router = Router(encoding, experts, weight.shape[0] if routing == "neuron" else 1, generator)
    router.to(weight.device, weight.dtype)
    for name in ("weight", "bias") if layer.bias is not None else ("weight",):
        deviation = noise * float(getattr(layer, name).detach().std(correction=0)) if noise else 0.0
        parametrize.register_parametrization(layer, name, Routed(router, owns=name == "weight"))
        chain = layer.parametrizations[name]  # type: ignore[index]
        for j in range(1, experts):
            _perturb(getattr(chain, f"original{j}"), deviation, generator)
    return router


def _perturb(expert: Tensor, deviation: float, generator: torch.Generator) -> None:
    """Add normal noise, in place, drawn on the processor: the same on every device."""
    if deviation:
        with torch.no_grad():
            expert.add_(torch.empty(expert.shape, device="cpu").normal_(0.0, deviation, generator=generator).to(expert))


def _columns(options: Sequence[Option]) -> Tensor:
    """(options, d) the encoding of each option: one scaled column for numbers, else one column for each option."""
    values = [len(option) if isinstance(option, tuple) else option for option in options]
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    if len(numbers) < len(options) or len(set(numbers)) < len(numbers):
        return torch.eye(len(options), device="cpu")
    low, high = min(numbers), max(numbers)
    return torch.tensor([[(number - low) / (high - low or 1.0)] for number in numbers], device="cpu")


def _linear(outputs: int, inputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer initialised as torch does, from a generator of its own."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    for tensor in (layer.weight, layer.bias):
        nn.init.uniform_(tensor, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
    return layer
