# SPDX-License-Identifier: Apache-2.0
"""Architecture parameters: the logits of every choice of a network, and how weights made of them are put in force."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sartor.architecture import Architecture, Option
from sartor.choice import Kept
from sartor.differentiable import relaxations
from sartor.gates import key
from sartor.nn import Inputs
from sartor.space import SearchSpace
from sartor.supernet import named_choices

__all__ = ["Alphas", "Assignment", "node_inputs"]

Assignment = dict[str, Option | Tensor | Kept]
"""What `sartor.supernet.activated` takes."""


class Alphas(nn.Module):
    """One table of logits for all choices of a network, (C, K) with K the most options that a choice has.

    Which inputs a node of a cell keeps is no row of the table: while searching a node sums all its edges with weight 1
    (DARTS), or with weights of their own that `edges` adds (PC-DARTS's edge normalisation).

    Args:
        net: the network with choices; the logits are put on its device, and drawn on the processor.
        space: the options allowed, `search_space(net)` or a restriction of it; the others have weight 0.
        scale: deviation of the initial logits (DARTS: 1e-3 times normal).
        seed: of the initial logits.
        edges: learn a logit for each edge of a node, too.
    """

    table: nn.Parameter
    edges: nn.Parameter | None
    allowed: Tensor

    def __init__(
        self, net: nn.Module, space: SearchSpace, *, scale: float = 1e-3, seed: int = 0, edges: bool = False
    ) -> None:
        super().__init__()
        self.space = space
        self.inputs = node_inputs(net)
        self.options = {
            name: choice.options
            for name, choice in named_choices(net).items()
            if name not in self.inputs and name in space.choices
        }
        if not self.options:
            raise ValueError("the space has no choice but inputs of nodes: a differentiable search needs one")
        width = max(map(len, self.options.values()))
        allowed = torch.zeros(len(self.options), width, dtype=torch.bool, device="cpu")
        for row, (name, options) in zip(allowed, self.options.items(), strict=True):
            kept = set(map(key, space.choices[name]))
            row[: len(options)] = torch.tensor([key(option) in kept for option in options])
        self.register_buffer("allowed", allowed, persistent=False)
        generator = relaxations.draws(seed, 0, "alphas")
        self.table = nn.Parameter(scale * torch.randn(allowed.shape, generator=generator, device="cpu") * allowed)
        self.edges = None
        if edges and self.inputs:
            shape = len(self.inputs), max(self.inputs.values())
            self.edges = nn.Parameter(scale * torch.randn(shape, generator=generator, device="cpu"))
        self.to(next((parameter.device for parameter in net.parameters()), None))

    @property
    def logits(self) -> Tensor:
        """(C, K) logits, -inf where an option is not there or not allowed."""
        return self.table.masked_fill(~self.allowed, -torch.inf)

    def probabilities(self) -> Tensor:
        """Return the (C, K) softmax probabilities, without gradient."""
        return self.logits.detach().softmax(1)

    def entropy(self) -> Tensor:
        """Return the entropy of all choices together in nats."""
        return relaxations.entropy(self.logits)

    def assignment(self, weights: Tensor, edges: Mapping[str, Tensor] | None = None) -> Assignment:
        """Return what `activated` takes: each choice with its row of the (C, K) weights, each node with its edges'.

        edges: (n,) weights of the edges of some nodes; the others have 1 each, or what `edge_weights` says.
        """
        rows = zip(self.options.items(), weights.unbind(), strict=True)
        found: Assignment = {name: row[: len(options)] for (name, options), row in rows}
        nodes = self.edge_weights() | dict(edges or {})
        return found | {name: Kept(weights) for name, weights in nodes.items()}

    def mixture(self, fixed: bool = False) -> Assignment:
        """Return the assignment of DARTS's softmax over all options; `fixed`, without a gradient for the logits."""
        with torch.set_grad_enabled(not fixed):
            return self.assignment(relaxations.softmax(self.logits))

    def hard(self, positions: Tensor) -> Assignment:
        """Return the assignment of one option to each choice, from (C,) positions; only those options run."""
        rows = zip(self.options.items(), positions.tolist(), strict=True)
        found: Assignment = {name: options[place] for (name, options), place in rows}
        return found | {name: Kept(weights) for name, weights in self.edge_weights().items()}

    def edge_weights(self) -> dict[str, Tensor]:
        """Return the (n,) weights of the edges of each node: 1 each, or the softmax of their logits (PC-DARTS)."""
        if self.edges is None:
            return {name: self.table.new_ones(count) for name, count in self.inputs.items()}
        rows = zip(self.inputs.items(), self.edges, strict=True)
        return {name: row[:count].softmax(0) for (name, count), row in rows}

    def named(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the row of each choice in (C, K) weights, as long as it has options."""
        rows = zip(self.options.items(), weights, strict=True)
        return {name: row[: len(options)] for (name, options), row in rows}

    def positions(self, arch: Mapping[str, Option]) -> Tensor:
        """Return the (C,) positions of an architecture's options."""
        return torch.tensor(
            [[key(o) for o in options].index(key(arch[name])) for name, options in self.options.items()],
            device=self.table.device,
        )

    def architecture(self, positions: Tensor | None = None, **inputs: Option) -> Architecture:
        """Return the architecture at (C,) positions, the most probable ones if None.

        inputs: the edges that nodes keep, by the name of the choice; the first option of the others.
        """
        places = self.probabilities().argmax(1) if positions is None else positions
        rows = zip(self.options.items(), places.tolist(), strict=True)
        found: dict[str, Option] = {name: options[place] for (name, options), place in rows}
        kept = {name: self.space.choices[name][0] for name in self.inputs if name in self.space.choices}
        return self.space.canonical(kept | inputs | found)


def node_inputs(net: nn.Module) -> dict[str, int]:
    """Return the choices of which edges a node keeps, by name, each with the number of its edges."""
    nodes: Iterable[Inputs] = (module for module in net.modules() if isinstance(module, Inputs))
    held = {id(node.kept) for node in nodes}
    return {name: choice.extent for name, choice in named_choices(net).items() if id(choice) in held}
