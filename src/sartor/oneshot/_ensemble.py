# SPDX-License-Identifier: Apache-2.0
"""Ensembles of the sub-networks of one supernet: a shared trunk, and k heads that share the supernet's weights.

`ensemble(net, k)` takes any sequential supernet. *Sequential*: its forward is one chain of calls, x -> x -> ... ->
logits, each of a module or of a function with constants, as torch.fx sees it with what is inside `nn.Sequential` as
separate calls. A skip inside a module is part of that module; one around modules of the chain is refused. A *block* is
a call whose module holds choices that no earlier call holds; the chain can be split in front of each block. A module
of the chain must not write into its input.

The output is the mean of the members' logits, in search and in deployment.
"""

from __future__ import annotations

import copy
import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from sartor.architecture import Option
from sartor.choice import Choice, Size
from sartor.nn import Elastic
from sartor.nn.gradients import divide_gradient
from sartor.oneshot._ensemble_encoding import APART, Encoding, name_in_head
from sartor.oneshot._twin import twin
from sartor.supernet import extract, named_choices, search_space

__all__ = ["Ensemble", "JoinedNetwork", "ensemble"]


def ensemble(net: nn.Module, members: int = 2) -> Ensemble:
    """Return the elastic module of all ensembles of a supernet; it shares the supernet's parameters and buffers.

    `search_space` of it is the space of ensembles; `net` keeps its own choices. Raises ValueError for a network that is
    not sequential, for one without choices, and for fewer than two members.
    """
    return Ensemble(net, members)


class Call(nn.Module):
    """A function, or a method of the tensor by name, between the modules of a chain: x -> function(x, *constants)."""

    def __init__(self, function: Callable[..., Any] | str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, tuple(args), kwargs

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the function takes and gives."""
        function = self.function
        if isinstance(function, str):
            out: Tensor = getattr(x, function)(*self.args, **self.kwargs)
        else:
            out = function(x, *self.args, **self.kwargs)
        return out


Step = str | Call
"""The path of a module, or a call between modules."""


class _Members(nn.Module):
    """What elastic and plain ensembles share: the mean of the members' logits, or in training each of them."""

    _elastic_separate = False

    @abstractmethod
    def member_logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, k, K), the logits of each member; k is 1 where all is shared."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K)."""
        logits = self.member_logits(x)
        return logits if self._elastic_separate else logits.mean(1)

    @contextmanager
    def separated(self) -> Iterator[None]:
        """Let `forward` return `member_logits` in the block: training has a loss for each member."""
        self._elastic_separate = True
        try:
            yield
        finally:
            self._elastic_separate = False


class Ensemble(_Members, Elastic):
    """(N, C, H, W) -> (N, K), the mean of the logits of the members in force.

    The supernet is `net`: its choices are those of the trunk and of the first member. `apart` says how many of the last
    blocks each member has for itself. The trunk runs once, and its gradient is divided by the members.
    """

    resolution: Any  # a Size, where the supernet has one

    def __init__(self, net: nn.Module, members: int = 2) -> None:
        super().__init__()
        space, self.net = search_space(net), twin(net)
        self._elastic_steps = _chain(self.net)
        steps_of = _first_steps(self.net, self._elastic_steps)
        self._elastic_starts = sorted({step for step in steps_of.values() if step >= 0})
        block_of = {name: self._elastic_starts.index(step) if step >= 0 else -1 for name, step in steps_of.items()}
        self.encoding = Encoding(space, block_of, len(self._elastic_starts), members)
        self.apart = Choice(range(self.encoding.blocks + 1), name=APART)
        if isinstance(getattr(self.net, "resolution", None), Size):
            self.resolution = self.net.resolution
        self._add_heads()

    def _add_heads(self) -> None:
        """Make the choices of the further members, each held where its gate says that it matters."""
        of_net, names = named_choices(self.net), self.encoding.own
        heads = range(1, self.encoding.members)
        own = [{name: Choice(of_net[name].options, name=name_in_head(head, name)) for name in names} for head in heads]
        self._elastic_own = [
            [(self.encoding.block_of[name], of_net[name], one) for name, one in head.items()] for head in own
        ]
        known = {APART: self.apart, **of_net, **{str(c.name): c for head in own for c in head.values()}}
        self._elastic_gates: list[tuple[str, Size, tuple[Option, ...]]] = []
        self.held = nn.ModuleList()
        gates = self.encoding.ensembles.gates
        for name, alternative in ((str(c.name), a) for head in own for c in head.values() for a in gates[str(c.name)]):
            self.held.append(holder := nn.Module())
            path = f"held.{len(self.held) - 1}"
            for place, (other, options) in enumerate(alternative):  # one module inside the other: all must hold
                if place:
                    path, inner = f"{path}.inner", nn.Module()
                    holder.add_module("inner", inner)
                    holder = inner
                self._elastic_gates.append((path, known[other], options))
            vars(holder)["choice"] = known[name]

    def gates(self) -> list[tuple[str, Size, tuple[Option, ...]]]:
        """Where the choices of the further members matter."""
        return self._elastic_gates

    def member_logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, k, K), the logits of each member; k is 1 where all is shared."""
        apart, last = int(self.apart), len(self._elastic_steps)
        trunk = self._run(x, 0, self._first_apart(apart))
        if not apart:
            return trunk.unsqueeze(1)
        trunk, logits = divide_gradient(trunk, self.encoding.members), []
        for member in range(self.encoding.members):
            with self._in_force(member, apart):
                logits.append(self._run(trunk, self._first_apart(apart), last))
        return torch.stack(logits, 1)

    def extract(self) -> JoinedNetwork:
        """The trunk and heads in force, which share nothing any more."""
        apart, last = int(self.apart), len(self._elastic_steps)
        first, heads = self._first_apart(apart), []
        for member in range(self.encoding.members if apart else 0):
            with self._in_force(member, apart):
                heads.append(self._plain(first, last))
        resolution = int(self.resolution) if hasattr(self, "resolution") else None
        return JoinedNetwork(self._plain(0, first), heads, resolution).train(self.training)

    def _first_apart(self, apart: int) -> int:
        """The step at which the heads begin."""
        return self._elastic_starts[self.encoding.blocks - apart] if apart else len(self._elastic_steps)

    def _run(self, x: Tensor, first: int, last: int) -> Tensor:
        for step in self._elastic_steps[first:last]:
            x = step(x) if isinstance(step, Call) else self.net.get_submodule(step)(x)
        return x

    def _plain(self, first: int, last: int) -> nn.Sequential:
        steps = self._elastic_steps[first:last]
        return nn.Sequential(
            *(
                copy.copy(step) if isinstance(step, Call) else extract(self.net.get_submodule(step), {})
                for step in steps
            )
        )

    @contextmanager
    def _in_force(self, member: int, apart: int) -> Iterator[None]:
        """Let the blocks that are apart hold the options of a member; the supernet's own are those of the first."""
        pairs = [
            (shared, own)
            for block, shared, own in (self._elastic_own[member - 1] if member else ())
            if block >= self.encoding.blocks - apart
        ]
        before = [shared.state for shared, _ in pairs]
        try:
            for shared, own in pairs:
                shared.state = own.state
            yield
        finally:
            for (shared, _), state in zip(pairs, before, strict=True):
                shared.state = state


class JoinedNetwork(_Members):
    """A plain ensemble: a trunk, and heads whose logits are averaged; without heads the trunk is all.

    (N, C, H, W) -> (N, K).
    """

    def __init__(self, trunk: nn.Sequential, heads: Sequence[nn.Module], resolution: int | None = None) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, nn.ModuleList(heads)
        if resolution is not None:
            self.resolution = resolution

    def member_logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, k, K), the logits of each member; k is 1 without heads."""
        x = self.trunk(x)
        if not self.heads:
            return x.unsqueeze(1)
        if self.training:
            x = divide_gradient(x, len(self.heads))
        return torch.stack([head(x) for head in self.heads], 1)


class _Blocks(fx.Tracer):
    """Sees through the network itself and its Sequentials."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Elastic) or not isinstance(m, nn.Sequential)


def _chain(net: nn.Module) -> list[Step]:
    """The calls of a forward, in order; ValueError where they are not one chain."""
    try:
        nodes = list(_Blocks().trace(net).nodes)
    except Exception as error:  # whatever a forward does that cannot be traced
        raise ValueError(f"{type(net).__name__} is not sequential, its forward cannot be traced: {error}") from error
    for before, node in itertools.pairwise(nodes):
        arguments = [*node.args[1:], *node.kwargs.values()]
        alone = list(before.users) == [node] and node.args[:1] == (before,) and not _nodes_in(arguments)
        if not alone or node.op not in ("call_module", "call_function", "call_method", "output"):
            raise ValueError(
                f"{type(net).__name__} is not sequential: {node.name!r} does not follow from {before.name!r} alone; "
                "put modules with a skip around them in one module"
            )
    return [_step(node) for node in nodes[1:-1]]


def _step(node: fx.Node) -> Step:
    if node.op == "call_module":
        return str(node.target)
    return Call(node.target, _constant(list(node.args[1:])), {key: _constant(v) for key, v in node.kwargs.items()})


def _nodes_in(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_nodes_in, value))
    return isinstance(value, fx.Node)


def _constant(value: Any) -> Any:
    """An argument in ordinary lists and tuples, instead of those of fx."""
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(map(_constant, value))
    return value


def _first_steps(net: nn.Module, steps: Sequence[Step]) -> dict[str, int]:
    """Each choice's first step, by name: -1 where it is the network's own and no module of the chain holds it."""
    first: dict[int, int] = {}
    for number, step in enumerate(steps):
        for choice in () if isinstance(step, Call) else named_choices(net.get_submodule(step)).values():
            first.setdefault(id(choice), number)
    return {name: first.get(id(choice), -1) for name, choice in named_choices(net).items()}
