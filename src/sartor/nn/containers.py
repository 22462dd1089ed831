"""Containers whose structure is searched: one operation of several, and how many (or which) blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from sartor.architecture import Option
from sartor.choice import Choice, Mixed, Size, indices
from sartor.nn.elastic import Elastic
from sartor.nn.mixing import Mixture, mixtures

__all__ = ["OneOf", "Repeat", "Stages"]


class OneOf(Elastic, torch.nn.ModuleDict):
    """A mixed operation: one of several named modules, or under soft weights the weighted sum of their
    outputs.

    A module whose weight is exactly zero is not run, so that a sampled path costs no more than itself.
    """

    def __init__(self, operations: Mapping[str, torch.nn.Module], *, name: str | None = None) -> None:
        super().__init__(operations)
        self.choice = Choice(tuple(operations), name=name)

    def gates(self) -> list[tuple[str, Size, tuple[Option, ...]]]:
        """Child, choice and the options under which the child is part of the network."""
        return [(key, self.choice, (key,)) for key in self]

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """What the chosen operation returns for the same arguments."""
        if isinstance(self.choice.soft, Mixed):
            return self.choice.soft.mix(self.choice.soft.weights, list(self.values()), *inputs)
        weights = self.choice.weights
        if weights is None:
            return self[str(self.choice.value)](*inputs, **keywords)
        mixture = self.mixture(weights)
        if len(inputs) == 1 and not keywords:
            return mixtures([mixture], inputs[0])[0]
        return sum(weight * operation(*inputs, **keywords) for _, operation, weight in mixture)

    def mixture(self, weights: Tensor) -> Mixture:
        """The operations that run under soft weights; ValueError where all are zero."""
        active = [
            (key, operation, weight)
            for (key, operation), weight, value in zip(self.items(), weights.unbind(), weights.tolist(), strict=True)
            if value != 0.0
        ]
        if not active:
            raise ValueError(f"all weights of {self.choice!r} are zero; at least one operation must run")
        return active

    def extract(self) -> torch.nn.Module:
        """The chosen operation."""
        return self[str(self.choice.value)]


class Repeat(Elastic):
    """Blocks of which the first `depth` run, or those that an index list names, in order: x -> x. 0 runs none.

    Iterating, indexing by slice and calling follow the choice in force, so it stands in for a `Sequential` as
    well as for a list that a model loops over. Under soft depths the output is the expectation over the
    exits; such a mixture can be called but not iterated.
    """

    def __init__(self, *blocks: torch.nn.Module, depth: int | Size) -> None:
        super().__init__()
        self.depth = depth
        for i, block in enumerate(blocks):
            self.add_module(str(i), block)
        options = depth.options if isinstance(depth, Size) else (depth,)
        longest = max(max(_path(option), default=-1) + 1 for option in options)
        if longest > len(blocks):
            raise ValueError(f"depth {depth!r} needs {longest} blocks, got {len(blocks)}")

    def gates(self) -> list[tuple[str, Size, tuple[Option, ...]]]:
        """Child, choice and the options under which the child is part of the network."""
        depth = self.depth
        if not isinstance(depth, Size):
            return []
        kept = {option: set(_path(option)) for option in depth.options}
        return [(str(i), depth, tuple(o for o in depth.options if i in kept[o])) for i in range(len(self._modules))]

    def _blocks(self) -> list[torch.nn.Module]:
        return [block for block in self._modules.values() if block is not None]

    def active(self) -> list[torch.nn.Module]:
        """The blocks in force; ValueError when the depth is soft."""
        blocks = self._blocks()
        value = self.depth.value if isinstance(self.depth, Size) else self.depth
        return [blocks[i] for i in _path(value)]

    def forward(self, x: Tensor) -> Tensor:
        """The blocks in force, one after the other."""
        if isinstance(self.depth, Size) and self.depth.is_soft:
            return _expectation(self._blocks(), self.depth, x)
        for block in self.active():
            x = block(x)
        return x

    def extract(self) -> torch.nn.Sequential:
        """The blocks in force; a Sequential, which can be iterated, indexed and called as this can."""
        return torch.nn.Sequential(*self.active())

    def __iter__(self) -> Iterator[torch.nn.Module]:
        return iter(self.active())

    @overload
    def __getitem__(self, index: int) -> torch.nn.Module: ...
    @overload
    def __getitem__(self, index: slice) -> list[torch.nn.Module]: ...
    def __getitem__(self, index: int | slice) -> torch.nn.Module | list[torch.nn.Module]:
        """A block by its place among the active ones, or a list of them; as many as `len` says."""
        return self.active()[index]

    def __len__(self) -> int:
        if isinstance(self.depth, Size) and self.depth.is_soft:
            return len(self._modules)
        return len(self.active())


class Stages(Elastic):
    """Blocks in one flat list, stretches of which are stages: of these the first `depth` run, all else always does.

    stages: (start, stop, depth) of each, in any order, none over another.
    """

    def __init__(self, *blocks: torch.nn.Module, stages: Sequence[tuple[int, int, Size]] = ()) -> None:
        super().__init__()
        self.stages: list[tuple[int, int, Size]] = []
        for i, block in enumerate(blocks):
            self.add_module(str(i), block)
        for start, stop, depth in stages:
            self.add_stage(start, stop, depth)

    def add_stage(self, start: int, stop: int, depth: Size) -> None:
        """Let the blocks from `start` to before `stop` have a depth; ValueError if they cannot."""
        if not 0 <= start < stop <= len(self._modules) or depth.extent > stop - start:
            raise ValueError(f"{depth!r} is no depth of the blocks {start} to {stop} of {len(self._modules)}")
        if any(start < other_stop and other_start < stop for other_start, other_stop, _ in self.stages):
            raise ValueError(f"a block between {start} and {stop} is in a stage already: one depth for each block")
        self.stages = sorted([*self.stages, (start, stop, depth)], key=lambda stage: stage[0])

    def gates(self) -> list[tuple[str, Size, tuple[Option, ...]]]:
        """Child, choice and the options under which the child is part of the network."""
        return [
            (str(i), depth, tuple(option for option in depth.options if i - start in _path(option)))
            for start, stop, depth in self.stages
            for i in range(start, stop)
        ]

    def _parts(self) -> Iterator[tuple[list[torch.nn.Module], Size | None]]:
        blocks = [block for block in self._modules.values() if block is not None]
        at = 0
        for start, stop, depth in self.stages:
            yield blocks[at:start], None
            yield blocks[start:stop], depth
            at = stop
        yield blocks[at:], None

    def active(self) -> list[torch.nn.Module]:
        """The blocks in force; ValueError when a depth is soft."""
        found = []
        for blocks, depth in self._parts():
            found += blocks if depth is None else [blocks[i] for i in _path(depth.value)]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The blocks in force, one after the other; of a stage of soft depth the expectation over its exits."""
        for blocks, depth in self._parts():
            if depth is not None and depth.is_soft:
                x = _expectation(blocks, depth, x)
                continue
            for block in blocks if depth is None else [blocks[i] for i in _path(depth.value)]:
                x = block(x)
        return x

    def extract(self) -> torch.nn.Sequential:
        """The blocks in force."""
        return torch.nn.Sequential(*self.active())

    def __iter__(self) -> Iterator[torch.nn.Module]:
        return iter(self.active())

    def __len__(self) -> int:
        return len(self.active())


def _path(depth: Option) -> Sequence[int]:
    """The blocks that run at a depth, in order."""
    return () if type(depth) is int and depth == 0 else indices(depth)


def _expectation(blocks: list[torch.nn.Module], depth: Size, x: Tensor) -> Tensor:
    """Sum over the depths of probability times output; runs that start alike are computed once."""
    weights = depth.probabilities(x)
    outputs: dict[tuple[int, ...], Tensor] = {(): x}
    total: Tensor | None = None
    for weight, option, chance in zip(weights, depth.options, weights.tolist(), strict=True):
        if chance == 0.0:
            continue
        path = tuple(_path(option))
        for i in range(len(path)):
            if path[: i + 1] not in outputs:
                outputs[path[: i + 1]] = blocks[path[i]](outputs[path[:i]])
        term = weight * outputs[path]
        total = term if total is None else total + term
    if total is None:
        raise ValueError(f"all weights of {depth!r} are zero; at least one depth must run")
    return total
