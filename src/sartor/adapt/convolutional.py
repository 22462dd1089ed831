# SPDX-License-Identifier: Apache-2.0
"""Convolutional networks of blocks: ResNet, MobileNet, ConvNeXt and their like, as torchvision and timm write them.

Nothing tells the family of such a network but its modules, so rules are read off these. A block is a module in a list
that holds a chain of layers, in the order in which they are declared, each reading as many channels as the one before
makes: convolutions and linear layers mix channels, norms and depthwise convolutions treat each alone, squeeze-and-
excitation gates them. From that follow

- `width` (`mlp` in blocks without batch norm, as of ConvNeXt): the channels inside a block, one choice for each block;
- `depth`: how many blocks of a stage run, the first of them always, where it changes the shape;
- `hidden`: the channels between the blocks of a stage, which all of its blocks read and add to.

Names of modules serve for one thing only: what lies beside the chain (`SHORTCUTS`). A network whose forward does not
follow its declarations, layer by layer, needs rules of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from torch import nn

from sartor.adapt.rules import Depth, Rule, Width
from sartor.nn.adopted import length

__all__ = ["SHORTCUTS", "Block", "blocks_of", "rules_of"]

SHORTCUTS = ("downsample", "shortcut", "skip")
"""Children of a block that its input goes through on its way past the chain."""

Layer = tuple[str, nn.Module]

_NO_FAULTS = ("they are the inputs", "they are the outputs")
_LISTS = nn.Sequential | nn.ModuleList
_MIXING = nn.Conv2d | nn.Linear
_NORMS = nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm


@dataclass
class _Channels:
    """Channels on their way through the network: the paths of what meets them; `fault` says what cannot be cut."""

    count: int
    makes: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    follows: list[str] = field(default_factory=list)
    gates: list[str] = field(default_factory=list)
    fault: str | None = None

    def join(self, other: _Channels) -> None:
        """Take over what meets the other side of a residual sum: these are the same channels."""
        self.makes += other.makes
        self.reads += other.reads
        self.follows += other.follows
        self.gates += other.gates
        self.fault = self.fault or other.fault

    def rule(self, role: str, within: str) -> Width:
        """The rule of these channels; paths are from the network."""
        makes, reads, follows, gates = (
            tuple(f"/{path}" for path in paths) for paths in (self.makes, self.reads, self.follows, self.gates)
        )
        return Width(role, f"/{within}", makes=makes, reads=reads, follows=follows, gates=gates)


@dataclass
class Block:
    """A block by its path: the chain of its layers, what lies beside it, and the scales of its output."""

    path: str
    chain: list[Layer]
    shortcut: list[Layer]
    scales: list[str]

    @property
    def mixing(self) -> list[nn.Conv2d | nn.Linear]:
        """The convolutions and linear layers of the chain."""
        return [layer for _, layer in self.chain if isinstance(layer, _MIXING)]

    @property
    def keeps(self) -> bool:
        """Whether what comes out has the shape of what goes in, so that the block can be left out."""
        strides = {side for layer in self.mixing if isinstance(layer, nn.Conv2d) for side in layer.stride}
        same = _ends(self.mixing[0])[0] == _ends(self.mixing[-1])[1] and strides <= {1}
        return same and not any(isinstance(layer, _MIXING) for _, layer in self.shortcut)

    @property
    def role(self) -> str:
        """What its inner channels are called."""
        return "width" if any(isinstance(layer, nn.BatchNorm2d) for _, layer in self.chain) else "mlp"


def blocks_of(model: nn.Module) -> list[Block]:
    """The blocks of a network, in order: the innermost modules in lists that hold a chain of layers.

    It has a norm and a convolution: of linear layers alone, as in a transformer, order does not tell what reads what.
    """
    found = []
    for path, listed in model.named_modules():
        for name, module in listed.named_children() if path and isinstance(listed, _LISTS) else ():
            if not isinstance(module, _LISTS) and (block := _block(f"{path}.{name}", module)):
                found.append(block)
    chains = [one for one in found if len(one.mixing) > 1]
    inner = [one for one in chains if not any(other.path.startswith(f"{one.path}.") for other in chains)]
    single = [one for one in found if one not in chains and not any(_nested(one.path, other.path) for other in inner)]
    return [one for one in found if one in inner or one in single]


def rules_of(model: nn.Module, roles: Collection[str] = ()) -> list[Rule]:
    """The rules of a network of blocks.

    Raises ValueError, with what is in the way, where one of the roles, or without roles all, cannot be searched.
    """
    blocks = blocks_of(model)
    inner, between = _channels(model, blocks)
    rules: list[Rule] = [*_depths(model, blocks)]
    rules += [one.rule(block.role, block.path) for block, one in inner if not one.fault]
    lists = [path.rpartition(".")[0] for path, _ in between]
    for (path, one), listed in zip(between, lists, strict=True):
        if not one.fault:
            rules.append(one.rule("hidden", listed if lists.count(listed) == 1 else path))
    known = {rule.role for rule in rules}
    missing = [role for role in roles if role not in known]
    if missing or not rules:
        faults = dict.fromkeys(one.fault for _, one in (*inner, *between) if one.fault and one.fault not in _NO_FAULTS)
        what = f"no rule finds {missing[0]!r} in" if missing else "no rule fits"
        there = f"; what can be searched: {', '.join(sorted(known))}" if known else ""
        raise ValueError(f"{what} {type(model).__name__}: {'; '.join(map(str, faults)) or 'no such block'}{there}")
    return rules


def _nested(path: str, other: str) -> bool:
    return path.startswith(f"{other}.") or other.startswith(f"{path}.")


def _block(path: str, module: nn.Module) -> Block | None:
    beside = tuple(f"{path}.{name}" for name in SHORTCUTS)
    layers = [(at, layer) for at, layer in _layers(path, module) if layer is not module]
    chain = [(at, layer) for at, layer in layers if not at.startswith(beside)]
    shortcut = [(at, layer) for at, layer in layers if at.startswith(beside)]
    scales = [f"{path}.{name}" for name, one in module._parameters.items() if one is not None and one.numel() > 1]
    block = Block(path, chain, shortcut, scales)
    fits = all(_ends(one)[1] == _ends(other)[0] for one, other in itertools.pairwise(block.mixing))
    normed = any(isinstance(layer, _NORMS) for _, layer in chain)
    convolves = any(isinstance(layer, nn.Conv2d) for layer in block.mixing)
    return block if fits and normed and convolves else None


def _layers(path: str, module: nn.Module) -> Iterator[Layer]:
    """What has parameters or statistics of its own, in the order of declaration; a gate is one layer."""
    if _gate(module) is not None or any(
        one is not None for one in (*module._parameters.values(), *module._buffers.values())
    ):
        yield path, module
    for name, child in module.named_children() if _gate(module) is None else ():
        yield from _layers(f"{path}.{name}" if path else name, child)


def _gate(module: nn.Module) -> tuple[str, str] | None:
    """The names of the layers of a squeeze-and-excitation that read and make its channels; None for other modules."""
    mixing = [(name, one) for name, one in module.named_modules() if isinstance(one, _MIXING)]
    normed = any(isinstance(one, _NORMS) for one in module.modules())
    if isinstance(module, _LISTS) or len(mixing) != 2 or normed:
        return None
    (reduce, first), (expand, last) = mixing
    return (reduce, expand) if _ends(first) == _ends(last)[::-1] and _ends(first)[1] < _ends(first)[0] else None


def _ends(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


def _channels(
    model: nn.Module, blocks: list[Block]
) -> tuple[list[tuple[Block, _Channels]], list[tuple[str, _Channels]]]:
    """The channels inside each block, and those between blocks, by the path of the first that makes them."""
    inner: list[tuple[Block, _Channels]] = []
    between: dict[int, tuple[str, _Channels]] = {}
    known = {block.path: block for block in blocks}
    now: _Channels | None = None
    lost: str | None = None  # where the network first does not follow its declarations: nothing is known behind it
    for path, layer in _walk("", model, known):
        block = known.get(path)
        if now is None:
            first = next(
                (one for _, one in (block.chain if block else [(path, layer)]) if isinstance(one, _MIXING)), None
            )
            now = _Channels(0 if first is None else _ends(first)[0], fault=_NO_FAULTS[0])
        if fault := _mismatch(now, *(block.chain[0] if block else (path, layer))):
            lost = lost or fault
            for _, before in between.values():  # it may be any of them that is read
                before.fault = before.fault or fault
        if block is None:
            now = _step(now, path, layer)
        else:
            now, mine = _through(block, now)
            inner += [(block, one) for one in mine]
            between.setdefault(id(now), (path, now))
        now.fault = now.fault or lost
    if now is not None:
        now.fault = now.fault or _NO_FAULTS[1]
    return inner, list(between.values())


def _walk(path: str, module: nn.Module, blocks: dict[str, Block]) -> Iterator[Layer]:
    """The layers of the network in the order of declaration; a block is one, and so is a gate."""
    if path in blocks or _gate(module) is not None:
        yield path, module
        return
    if any(one is not None for one in (*module._parameters.values(), *module._buffers.values())):
        yield path, module
    for name, child in module.named_children():
        yield from _walk(f"{path}.{name}" if path else name, child, blocks)


def _through(block: Block, now: _Channels) -> tuple[_Channels, list[_Channels]]:
    """The channels behind a block, and those inside of it."""
    links = [now]
    for path, layer in block.chain:
        after = _step(links[-1], path, layer)
        links += [] if after is links[-1] else [after]
    side, out = now, links[-1]
    for path, layer in block.shortcut:
        side = _step(side, path, layer)
    out.makes += block.scales
    if side is not now:
        out.join(side)
    elif out is not now and out.count == now.count:
        now.join(out)
        out = now
    inner = links[1:-1]
    for other in inner[1:]:
        if other.count == inner[0].count:
            inner[0].join(other)
    return out, inner[:1]


def _step(now: _Channels, path: str, layer: nn.Module) -> _Channels:
    """The channels behind a layer."""
    fault = _fault(path, layer)
    now.fault = now.fault or fault or _mismatch(now, path, layer)
    gate = _gate(layer)
    if gate is not None:
        now.gates.append(f"{path}.{gate[0]}")
        now.makes.append(f"{path}.{gate[1]}")
    elif isinstance(layer, _MIXING) and not _is_depthwise(layer):
        now.reads.append(path)
        return _Channels(_ends(layer)[1], makes=[path], fault=fault)
    else:
        now.follows.append(path)
    return now


def _fault(path: str, layer: nn.Module) -> str | None:
    """Why the channels on both sides of a layer cannot be cut, if so."""
    kind = f"{path}, a {type(layer).__name__},"
    if isinstance(layer, _MIXING) and type(layer) not in (nn.Conv2d, nn.Linear):
        return f"{kind} is of a class of its own"
    grouped = isinstance(layer, nn.Conv2d) and not _is_depthwise(layer) and layer.groups != 1
    if grouped or (isinstance(layer, nn.GroupNorm) and layer.num_groups != 1):
        return f"{kind} has {layer.groups if isinstance(layer, nn.Conv2d) else layer.num_groups} groups"
    return None


def _mismatch(now: _Channels, path: str, layer: nn.Module) -> str | None:
    """Why a layer is not the next one that the channels meet, if so."""
    kind = f"{path}, a {type(layer).__name__},"
    if (gate := _gate(layer)) is not None:
        layer = layer.get_submodule(gate[0])
    try:
        found = _ends(layer)[0] if isinstance(layer, _MIXING) else length(layer, "follows")
    except ValueError:
        return f"{kind} has weights of an unknown form"
    return None if found == now.count else f"{kind} has {found} channels where {now.count} are declared before it"


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1


def _depths(model: nn.Module, blocks: list[Block]) -> Iterator[Depth]:
    """A depth for each stretch of blocks behind one another of which all but the first keep the shape."""
    known = {block.path: block for block in blocks}
    for path in dict.fromkeys(block.path.rpartition(".")[0] for block in blocks):
        names = [name for name, _ in model.get_submodule(path).named_children()]
        if names != [str(i) for i in range(len(names))]:
            continue
        runs: list[list[int]] = []
        for i in range(len(names)):
            block = known.get(f"{path}.{i}")
            if block is not None and block.keeps and runs and runs[-1][-1] == i - 1:
                runs[-1].append(i)
            elif block is not None:
                runs.append([i])
        for run in runs:
            whole = len(run) == len(names)
            always = () if known[f"{path}.{run[0]}"].keeps else (0,)
            if len(run) > 1:
                yield Depth("depth", f"/{path}", always=always, span=None if whole else (run[0], run[-1] + 1))
