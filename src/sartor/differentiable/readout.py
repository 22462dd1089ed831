# SPDX-License-Identifier: Apache-2.0
"""From what a search learned to one architecture: the read-outs that need no further training.

The most probable option of each choice is `Alphas.architecture()`. Perturbation, which trains, is in `darts_pt`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Generator, Tensor, nn

from sartor.architecture import Architecture, Option
from sartor.choice import Choice
from sartor.differentiable import relaxations
from sartor.differentiable.alphas import Alphas
from sartor.nn import Inputs
from sartor.supernet import named_choices

__all__ = ["derived", "edges_of", "sample_and_select", "strongest_edges", "strongest_options"]

NONE = ("none",)


def strongest_options(
    alphas: Alphas, weights: Tensor | None = None, exclude: Sequence[Option] = ()
) -> dict[str, Option]:
    """Return the option of each choice with the largest of (C, K) weights, the first of equals.

    weights: the softmax probabilities if None. exclude: options never taken, as DARTS never takes "none". A choice
    that has nothing else keeps them.
    """
    found: dict[str, Option] = {}
    for name, row in alphas.named(alphas.probabilities() if weights is None else weights.detach()).items():
        options = alphas.options[name]
        allowed = alphas.allowed[list(alphas.options).index(name)].tolist()
        able = [i for i in range(len(options)) if allowed[i]]
        kept = [i for i in able if options[i] not in exclude] or able
        found[name] = options[max(kept, key=lambda i: float(row[i]))]
    return found


def strongest_edges(
    alphas: Alphas, net: nn.Module, weights: Tensor | None = None, exclude: Sequence[Option] = NONE
) -> Architecture:
    """Return DARTS's read-out: each node keeps the edges whose strongest operation is strongest, and that operation.

    The strength of an edge is the largest weight of its operations but the excluded ones, times the edge's own weight
    (1 unless edges have logits: PC-DARTS, section 3.3). Of equal edges the first are kept. Choices that belong to no
    node have their strongest option, the excluded ones not counted, too.

    weights: (C, K), the softmax probabilities if None.
    """
    used = alphas.probabilities() if weights is None else weights.detach()
    options = strongest_options(alphas, used, exclude)
    rows, own = alphas.named(used), {node: weights.detach() for node, weights in alphas.edge_weights().items()}
    inputs: dict[str, Option] = {}
    for node, edges in edges_of(net).items():
        strengths = [
            float(rows[edge][alphas.options[edge].index(options[edge])]) * float(own[node][place])
            if edge in rows
            else float(own[node][place])
            for place, edge in enumerate(edges)
        ]
        inputs[node] = _strongest_list(alphas.space.choices[node], strengths)
    return alphas.space.canonical({**options, **inputs})


def derived(alphas: Alphas, net: nn.Module) -> Architecture:
    """Return `strongest_edges` of a network of cells, else the most probable option of each choice, "none" included."""
    return strongest_edges(alphas, net) if alphas.inputs else alphas.architecture()


def edges_of(net: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return for each node, by the name of its choice, the names of the choices of operations on its edges, in order.

    An edge without a choice has the name "". Nodes that several cells share are told once.
    """
    names = {id(choice): name for name, choice in named_choices(net).items()}
    found: dict[str, tuple[str, ...]] = {}
    for module in net.modules():
        if isinstance(module, Inputs) and id(module.kept) in names:
            edges = tuple(names.get(id(_choice(edge)), "") for edge in module.values())
            found.setdefault(names[id(module.kept)], edges)
    return found


def sample_and_select(
    alphas: Alphas, generator: Generator, count: int, score: Callable[[Architecture], float]
) -> Architecture:
    """Draw architectures from the learned distribution and return the one with the largest score (FBNet, section 3).

    The most probable one is among them; equal ones are scored once. Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}: draw at least 1 architecture")
    several = [alphas.architecture()]
    logits = alphas.logits
    several += [alphas.architecture(relaxations.sample(logits, generator)) for _ in range(count)]
    return max(dict.fromkeys(several), key=score)


def _choice(edge: nn.Module) -> Choice | None:
    """The choice of operations that an edge is made around."""
    found = (getattr(module, "choice", None) for module in edge.modules())
    return next((choice for choice in found if isinstance(choice, Choice)), None)


def _strongest_list(options: Sequence[Option], strengths: Sequence[float]) -> Option:
    """The index list whose edges are strongest: the first by the sorted strengths, strongest first."""

    def rank(option: Option) -> tuple[float, ...]:
        assert isinstance(option, tuple)
        return tuple(sorted((strengths[int(i)] for i in option), reverse=True))  # type: ignore[arg-type]

    return max(options, key=rank)
