# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulates of sub-networks, counted thousands of times a second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from sartor.architecture import Architecture, Option
from sartor.choice import Choice, Size
from sartor.gates import key
from sartor.nn import resized
from sartor.nn.elastic import Elastic
from sartor.supernet import activated, named_choices
from sartor.workload import macs, trace

__all__ = ["Macs"]

_CHECKED = 32  # architectures that are traced whatever is known
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


class Macs:
    """The multiply-accumulates of one image's way through a sub-network: exactly what tracing it gives.

    What a layer costs is remembered by the options that it hangs on: its own sizes', those of the containers around it,
    and the resolution. Where traced networks contradict that, as when one choice moves the resolution of a layer far
    from it, or where other operators than convolutions and linear layers multiply, every network is traced.

    net: the supernet, on any device. shape: (channels, height, width) of an image.
    """

    def __init__(self, net: nn.Module, shape: tuple[int, int, int]) -> None:
        self.net, self.image = net, torch.empty((1, *shape), device="meta")
        self.layers = {name: module for name, module in net.named_modules() if isinstance(module, _LAYERS)}
        self.separable = True
        self._names = {name: tuple(_names(net, name)) for name in self.layers}
        self._known: dict[str, dict[tuple[object, ...], float]] = {name: {} for name in self.layers}
        self._traced = 0

    def __call__(self, arch: Architecture) -> float:
        """Return the MACs of the architecture."""
        if self.separable and self._traced >= _CHECKED:
            found = [self._known[name].get(place) for name, place in self._places(arch)]
            if None not in found:
                return float(sum(found))  # type: ignore[arg-type]
        return self._trace(arch)

    def _places(self, arch: Mapping[str, Option]) -> Iterator[tuple[str, tuple[object, ...]]]:
        for name, names in self._names.items():
            yield name, tuple([key(arch[one]) for one in names])

    def _trace(self, arch: Architecture) -> float:
        """Count by tracing, and note what each layer has cost."""
        called: list[str] = []
        hooks = [
            layer.register_forward_hook(partial(_note, called.append, name)) for name, layer in self.layers.items()
        ]
        try:
            with activated(self.net, arch):
                workload = trace(self.net, resized(self.image, self.net))
        finally:
            for hook in hooks:
                hook.remove()
        costs = [cost for op in workload if (cost := macs((op,)))]
        self._traced += 1
        self.separable = self.separable and len(costs) == len(called) and self._notes(arch, called, costs)
        return float(sum(costs))

    def _notes(self, arch: Architecture, called: list[str], costs: list[float]) -> bool:
        """Remember what each layer has cost; return whether that agrees with what was known."""
        spent = dict.fromkeys(self.layers, 0.0)
        for name, cost in zip(called, costs, strict=True):
            spent[name] += cost
        return all(
            self._known[name].setdefault(place, spent[name]) == spent[name] for name, place in self._places(arch)
        )


def _note(note: Any, name: str, *_: object) -> None:
    note(name)


def _names(net: nn.Module, path: str) -> list[str]:
    """Return the choices that a layer hangs on."""
    parts = path.split(".")
    around = [net.get_submodule(".".join(parts[:count])) for count in range(len(parts) + 1)]
    holders = [module for module in around if isinstance(module, Elastic)]
    sizes = [value for module in holders for value in vars(module).values() if isinstance(value, Size)]
    sizes += [value for value in [getattr(net, "resolution", None)] if isinstance(value, Size)]
    roots = {id(root) for size in sizes for root in size.roots}
    choices: Mapping[str, Choice] = named_choices(net)
    return [name for name, choice in choices.items() if id(choice) in roots]
