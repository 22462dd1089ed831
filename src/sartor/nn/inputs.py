# SPDX-License-Identifier: Apache-2.0
"""A node of a searched graph: which of its edges are kept, and their sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sartor.architecture import Option
from sartor.choice import Size, indices
from sartor.nn.containers import OneOf
from sartor.nn.elastic import Elastic
from sartor.nn.mixing import mixtures, summed

__all__ = ["InputSum", "Inputs", "graph", "read_together"]


class InputSum(torch.nn.ModuleDict):
    """The sum of edges, each a named module that reads one of the inputs: the plain form of `Inputs`.

    positions: for each edge, which of the inputs it reads.
    """

    def __init__(self, edges: Mapping[str, torch.nn.Module], positions: Sequence[int]) -> None:
        super().__init__(edges)
        self.positions = tuple(positions)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Tensors of any shapes that the edges bring to one shape -> the sum of the edges that are here."""
        terms = [edge(inputs[i]) for i, edge in zip(self.positions, self.values(), strict=True)]
        return summed(terms)


class Inputs(Elastic, torch.nn.ModuleDict):
    """The sum of those edges that a choice of index lists keeps: a node of a graph whose inputs are searched.

    Args:
        edges: a named module for each input, in the order of the inputs.
        kept: options are increasing tuples of positions of edges.

    Soft, every edge counts with the chance that it is kept, or with its weight under `Kept`; an edge whose weight is
    exactly zero is not run.
    Raises ValueError for an option that keeps an edge which is not there.
    """

    def __init__(self, edges: Mapping[str, torch.nn.Module], kept: Size) -> None:
        super().__init__(edges)
        self.kept = kept
        if kept.extent > len(edges):
            raise ValueError(f"{kept!r} needs {kept.extent} edges, got {len(edges)}")

    def gates(self) -> list[tuple[str, Size, tuple[Option, ...]]]:
        """Edge, choice and the options under which the edge is part of the network."""
        kept = {option: set(indices(option)) for option in self.kept.options}
        return [(key, self.kept, tuple(o for o in self.kept.options if i in kept[o])) for i, key in enumerate(self)]

    def forward(self, *inputs: Tensor) -> Tensor:
        """A tensor for each edge -> the sum of the edges in force. Raises ValueError for another number of them."""
        if len(inputs) != len(self):
            raise ValueError(f"got {len(inputs)} inputs for {len(self)} edges: give one for each")
        terms = {i: _edge(edge, inputs[i], weight) for i, (edge, weight) in self.running(inputs[0]).items()}
        return summed([terms[i] for i in sorted(terms)])

    def running(self, like: Tensor) -> dict[int, tuple[torch.nn.Module, Tensor | None]]:
        """By position, the edges in force and their weights, None for 1; ValueError where all weights are zero."""
        edges = list(self.values())
        if (value := self.kept.hard) is not None:
            return {i: (edges[i], None) for i in indices(value)}
        mask = self.kept.mask(like)
        chances = enumerate(zip(mask.unbind(), mask.tolist(), strict=True))
        found = {
            i: (edges[i], None if chance == 1.0 and not mask.requires_grad else weight)
            for i, (weight, chance) in chances
            if chance != 0.0
        }
        if not found:
            raise ValueError(f"all weights of {self.kept!r} are zero; at least one edge must run")
        return found

    def extract(self) -> InputSum:
        """The kept edges, under the names that they have here."""
        positions = indices(self.kept.value)
        items = list(self.items())
        return InputSum({items[i][0]: items[i][1] for i in positions}, positions)


def graph(nodes: Sequence[torch.nn.Module], states: Sequence[Tensor]) -> list[Tensor]:
    """Return the states, followed by the outputs of nodes, of which each reads all that is before it.

    The same as calling one node after the other. Mixed operations that read one state are computed together (see
    `sartor.nn.mixing`), so that this is faster where nodes are `Inputs` over soft `OneOf`s.
    """
    states = list(states)
    if not all(isinstance(node, Inputs) and len(node) == len(states) + i for i, node in enumerate(nodes)):
        for node in nodes:
            states.append(node(*states))
        return states
    ready = len(states)
    running = [node.running(states[0]) for node in nodes if isinstance(node, Inputs)]
    totals: list[Tensor | None] = [None for _ in nodes]
    for position in range(ready + len(nodes) - 1):
        readers = [(i, *edges[position]) for i, edges in enumerate(running) if position in edges]
        outputs = read_together([(edge, weight) for _, edge, weight in readers], states[position])
        for (i, _, _), output in zip(readers, outputs, strict=True):
            total = totals[i]
            totals[i] = output if total is None else total + output
        if position >= ready - 1:
            last = totals[position - ready + 1]
            assert last is not None
            states.append(last)
    return states


def read_together(edges: Sequence[tuple[torch.nn.Module, Tensor | None]], x: Tensor) -> list[Tensor]:
    """Return the outputs of edges that read one input, times their weights, of which None is 1.

    Soft mixed operations are computed together; see `sartor.nn.mixing`.
    """
    found: dict[int, Tensor] = {}
    soft = {}
    for i, (edge, weight) in enumerate(edges):
        if type(edge) is OneOf and isinstance(chances := edge.choice.soft, Tensor):
            soft[i] = edge.mixture(chances if weight is None else chances * weight)
        else:
            found[i] = _edge(edge, x, weight)
    found.update(zip(soft, mixtures(list(soft.values()), x), strict=True))
    return [found[i] for i in range(len(edges))]


def _edge(edge: torch.nn.Module, x: Tensor, weight: Tensor | None) -> Tensor:
    output: Tensor = edge(x)
    return output if weight is None else weight * output
