# SPDX-License-Identifier: Apache-2.0
"""What BossNAS is made of: the blocks of a network and their paths, projections that compare features, and views.

A network is a stem, blocks, and a rest. Blocks are modules from one tensor to the next, each reading what the one
before it gave; the stem is trained with the first. The choices of a block are those whose names begin with its path.
All other choices stay at their largest option: nothing here can rate them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sartor.architecture import Architecture, Option
from sartor.data.augmentation import Augmentation
from sartor.gates import parents_first
from sartor.nn import resized
from sartor.oneshot._training import frozen_statistics
from sartor.space import SearchSpace
from sartor.supernet import activated

__all__ = ["Blocks", "Neck", "Side", "Views", "perceptron"]

MOST_PATHS = 100_000


@dataclass(frozen=True)
class Views:
    """A random view of each image: shifted, of other contrast and brightness, with noise; mirrored if asked for.

    shift: the largest, as a part of the shorter side. contrast: the largest change, relative. brightness: the largest
    change. noise: its standard deviation. These last two are in the unit of normalised images.
    """

    shift: float = 0.125
    contrast: float = 0.4
    brightness: float = 0.2
    noise: float = 0.3
    flip: bool = False

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """(N, C, H, W) -> the same shape, a pure function of images and seed."""
        crop = Augmentation(round(self.shift * min(images.shape[2:])), self.flip, "a view")
        rng = torch.Generator().manual_seed(seed)
        contrast, brightness = 2 * torch.rand(2, len(images), 1, 1, 1, generator=rng) - 1
        noise = self.noise * torch.randn(images.shape, generator=rng) + self.brightness * brightness
        seen: Tensor = crop(images, seed, 0) * (1 + self.contrast * contrast).to(images) + noise.to(images)
        return seen


class Blocks:
    """The blocks of a network, the choices of each, and the paths that it may take.

    paths: of the blocks' modules, in order; None for the children of the network's `blocks`, else of its `stages`.
    Raises ValueError for a network without these, and where no block has a choice.
    """

    def __init__(self, net: nn.Module, space: SearchSpace, paths: Sequence[str] | None = None) -> None:
        self.space = space
        self.paths = _children(net) if paths is None else tuple(paths)
        self.names = [tuple(name for name in space.choices if name.startswith(f"{path}.")) for path in self.paths]
        if not any(self.names):
            raise ValueError(f"no choice is in one of the blocks {', '.join(self.paths)}: give blocks= of the network")
        known = {name for names in self.names for name in names}
        self.outside = {name: option for name, option in space.largest().items() if name not in known}
        active = parents_first(space.gates)
        self._order = [*(name for name in space.choices if name not in space.gates), *active]

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.paths)

    def legal(self, index: int, best: Sequence[Mapping[str, Option]]) -> list[Architecture]:
        """Return an architecture for each legal path of a block, behind the best paths of those before it.

        Raises ValueError where there are more than 100,000.
        """
        found: list[dict[str, Option]] = [self._joined(best)]
        for name in (name for name in self._order if name in self.names[index]):
            options = self.space.choices[name]
            found = [
                {**values, name: option}
                for values in found
                for option in (options if self.space.is_active(name, values) else options[:1])
            ]
            if len(found) > MOST_PATHS:
                many = f"{self.paths[index]} has more than {MOST_PATHS:,} paths"
                raise ValueError(f"{many}: divide the network into smaller blocks, or restrict the space")
        rest = {name: options[0] for name, options in self.space.choices.items()}
        return [self.space.canonical({**rest, **values}) for values in found]

    def path(self, index: int, arch: Mapping[str, Option]) -> Architecture:
        """Return the path of a block in a whole architecture: those of its choices that are active."""
        return Architecture({name: arch[name] for name in self.names[index] if self.space.is_active(name, arch)})

    def whole(self, paths: Sequence[Mapping[str, Option]]) -> Architecture | None:
        """Return the architecture of these paths, one a block; None where they do not follow upon each other."""
        first = {name: options[0] for name, options in self.space.choices.items()}
        arch = self.space.canonical({**first, **self._joined(paths)})
        fits = all(self.path(index, arch) == path for index, path in enumerate(paths))
        return arch if fits and arch in self.space else None

    def _joined(self, paths: Sequence[Mapping[str, Option]]) -> dict[str, Option]:
        joined = dict(self.outside)
        for path in paths:
            joined.update(path)
        return joined

    def features(self, net: nn.Module, index: int, images: Tensor) -> Tensor:
        """Return what a block gives for images, in a network whose choices are in force."""
        return self.through(net, index + 1, self.entrance(net, images))

    def through(self, net: nn.Module, count: int, x: Tensor) -> Tensor:
        """Run the first `count` blocks."""
        for path in self.paths[:count]:
            x = net.get_submodule(path)(x)
        return x

    def entrance(self, net: nn.Module, images: Tensor) -> Tensor:
        """Return what the first block reads: the network runs up to there and no further.

        Raises ValueError if it never gets there.
        """

        def stop(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            raise _Reached(inputs[0])

        hook = net.get_submodule(self.paths[0]).register_forward_pre_hook(stop)
        try:
            net(resized(images, net))
        except _Reached as reached:
            return reached.features
        finally:
            hook.remove()
        raise ValueError(f"the network does not run its block {self.paths[0]!r}: give the modules that follow its stem")


class _Reached(Exception):
    """Ends a forward pass where a block begins."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def _children(net: nn.Module) -> tuple[str, ...]:
    for name in ("blocks", "stages"):
        if isinstance(found := getattr(net, name, None), nn.Sequential):
            return tuple(f"{name}.{child}" for child, _ in found.named_children())
    raise ValueError(f"{type(net).__name__} has no Sequential `blocks` or `stages`: name its blocks with blocks=")


class Prefix(nn.Module):
    """What lies in front of a block: images -> (N, ...) what the block reads."""

    def __init__(self, net: nn.Module, blocks: Blocks, index: int) -> None:
        super().__init__()
        self.net, self.blocks, self.index = net, blocks, index

    def forward(self, images: Tensor) -> Tensor:
        """Run stem and earlier blocks; in front of the first block is nothing, as the stem is trained with it."""
        if self.index == 0:
            return images
        return self.blocks.through(self.net, self.index, self.blocks.entrance(self.net, images))


class Tower(nn.Module):
    """One block, its neck and on the online side its predictor: (N, ...) what the block reads -> (N, features)."""

    def __init__(
        self, net: nn.Module, blocks: Blocks, index: int, neck: nn.Module, predictor: nn.Module | None
    ) -> None:
        super().__init__()
        self.blocks, self.index = blocks, index
        self.source = net if index == 0 else net.get_submodule(blocks.paths[index])
        self.neck, self.predictor = neck, predictor

    def forward(self, x: Tensor) -> Tensor:
        """Images for the first block, which is trained with the stem; features for the others."""
        x = self.source(x) if self.index else self.blocks.features(self.source, 0, x)
        projection: Tensor = self.neck(x)
        return projection if self.predictor is None else self.predictor(projection)


class Side:
    """The online or the target supernet while a block is trained: what is in front of it, and its tower."""

    def __init__(
        self, net: nn.Module, blocks: Blocks, index: int, neck: nn.Module, predictor: nn.Module | None = None
    ) -> None:
        self.net, self.index = net, index
        self.prefix, self.tower = Prefix(net, blocks, index), Tower(net, blocks, index, neck, predictor)
        later = {id(p) for path in blocks.paths[index + 1 :] for p in net.get_submodule(path).parameters()}
        own = [p for p in self.tower.source.parameters() if id(p) not in later]
        self.followed = [*own, *neck.parameters()]
        """The block's weights and the neck's, with the stem's for the first block: what a moving average follows."""
        self.trained = [*self.followed, *(predictor.parameters() if predictor is not None else ())]

    def __call__(self, arch: Mapping[str, Option], images: Tensor) -> Tensor:
        """Return (N, features) in training; no gradient goes beyond the block, and norms in front of it are kept."""
        with activated(self.net, arch):
            with torch.no_grad(), frozen_statistics(self.net):
                x = self.prefix(images)
            outputs: Tensor = self.tower(x).float()
        return outputs

    @torch.no_grad()
    def follow(self, other: Side, momentum: float) -> None:
        """Become momentum x self + (1 - momentum) x other, in the weights of block and neck."""
        own: list[Tensor] = [*self.followed]
        torch._foreach_lerp_(own, [*other.followed], 1 - momentum)

    def state_dict(self) -> dict[str, Any]:
        """Return what is not the network's: the neck and the predictor."""
        predictor = self.tower.predictor
        return {"neck": self.tower.neck.state_dict(), "predictor": predictor.state_dict() if predictor else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.tower.neck.load_state_dict(state["neck"])
        if self.tower.predictor is not None:
            self.tower.predictor.load_state_dict(state["predictor"])


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two layers with a norm between them, as BYOL's projection and predictor: (N, inputs) -> (N, outputs)."""
    norm, last = nn.BatchNorm1d(hidden), nn.Linear(hidden, outputs)
    return nn.Sequential(nn.Linear(inputs, hidden), norm, nn.ReLU(), last)


class Neck(nn.Module):
    """Projects maps of several widths into one space, in which paths are compared: (N, C, H, W) -> (N, features).

    A map is pooled; widths but the largest are first projected to that, each by weights of its own.
    """

    def __init__(self, widths: Sequence[int], hidden: int, features: int) -> None:
        super().__init__()
        largest = max(widths)
        self.widen = nn.ModuleDict(
            {
                str(width): nn.Sequential(nn.Linear(width, largest, bias=False), nn.BatchNorm1d(largest))
                for width in widths
                if width != largest
            }
        )
        self.project = perceptron(largest, hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, features)."""
        x, width = x.mean((2, 3)), str(x.shape[1])
        projection: Tensor = self.project(self.widen[width](x) if width in self.widen else x)
        return projection
