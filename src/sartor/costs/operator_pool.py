# SPDX-License-Identifier: Apache-2.0
"""Which operators suit a device: ranked layer by layer, and the space cut down to the best (HURRICANE).

Zhang, Yang, Jiang, Zhu and Liu, "Fast Hardware-Aware Neural Architecture Search", CVPR Workshops 2020,
arXiv:1910.11609.

The same operator has a very different latency on a DSP, a VPU and a CPU, so that one space for all is good for none. On
each device the operators of each layer are profiled, scored by the capacity that they give for their time, S = FLOPs *
parameters / latency, and the best few of each layer make the space that is searched.

Differs from the paper:
- The operators are the options of any choice: of a `OneOf`, each profiled alone at the shapes of its layer, or of any
  other choice, profiled within the largest network.
- The score loves what is heavy, and is 0 for pooling and a skip connection. The fastest operator of a layer therefore
  always stays, or no network might meet a limit.
- The search in two stages, later layers first, is left to whoever searches: fix the others by `space.restrict`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sartor.architecture import Architecture, Option
from sartor.costs.expected import having
from sartor.encodings import indices
from sartor.nn import OneOf
from sartor.protocols import Artefact, Measurement, Target
from sartor.ranking import kendall_tau
from sartor.space import SearchSpace
from sartor.supernet import activated, extract, named_choices, search_space
from sartor.targets.artefacts import TargetError
from sartor.workload import Cost, Shape, Workload, macs, parameters, trace

__all__ = ["Operator", "OperatorStudy", "agreement", "study_layers", "study_networks", "study_on_target"]


class Operator(NamedTuple):
    """What an option of a layer takes on a device, over all places that the layer has in the network."""

    macs: float
    parameters: float
    ms: float

    @property
    def score(self) -> float:
        """Capacity for time: multiply-accumulates times parameters, over milliseconds; 0 for what has none."""
        capacity = self.macs * self.parameters
        return capacity / self.ms if capacity else 0.0


@dataclass(frozen=True)
class OperatorStudy:
    """The operators of the layers of a space on one device.

    layers: for each layer (a choice), its operators in the order of the choice's options.
    """

    space: SearchSpace
    layers: Mapping[str, tuple[Operator, ...]]

    def scores(self, layer: str) -> NDArray[np.float64]:
        """Return the scores of a layer's options as shares of the best one."""
        scores = np.array([operator.score for operator in self.layers[layer]])
        return scores / (scores.max() or 1.0)

    def ranking(self, layer: str) -> tuple[Option, ...]:
        """Return the options of a layer, best first; the faster comes first among equals."""
        return tuple(self.space.choices[layer][place] for place in self._order(layer))

    def pool(self, size: int = 5, *, fastest: bool = True) -> dict[str, tuple[Option, ...]]:
        """Return the `size` best options of each layer (4 to 5 in the paper), all of a layer that has no more.

        fastest: whether the fastest operator of a layer stays, if need be instead of the last of these. What the device
        refuses is in no pool. Raises ValueError for a size below 1, or a layer of which everything is refused.
        """
        if size < 1:
            raise ValueError(f"size is {size}: keep at least 1 operator of each layer")
        return {layer: self._best(layer, size, fastest) for layer in self.layers}

    def restricted(self, size: int = 5, *, fastest: bool = True) -> SearchSpace:
        """Return the space of the device: that of the pool."""
        pool = {layer: list(options) for layer, options in self.pool(size, fastest=fastest).items()}
        return self.space.restrict(pool)

    def ms(self, arch: Architecture) -> float:
        """Return the sum of the milliseconds of the operators of an architecture, for operators profiled alone."""
        places = dict(zip(self.space.choices, indices(self.space, [arch])[0], strict=True))
        active = (layer for layer in self.layers if self.space.is_active(layer, arch))
        return math.fsum(self.layers[layer][places[layer]].ms for layer in active)

    def _order(self, layer: str) -> list[int]:
        operators = self.layers[layer]
        return sorted(range(len(operators)), key=lambda place: (-operators[place].score, operators[place].ms))

    def _best(self, layer: str, size: int, fastest: bool) -> tuple[Option, ...]:
        operators = self.layers[layer]
        order = [place for place in self._order(layer) if math.isfinite(operators[place].ms)]
        if not order:
            raise ValueError(f"the device refuses every operator of {layer}: give it others")
        kept = order[:size]
        quick = min(order, key=lambda place: operators[place].ms)
        if fastest and quick not in kept:
            kept[-1] = quick
        return tuple(self.space.choices[layer][place] for place in sorted(kept))


def agreement(first: OperatorStudy, second: OperatorStudy) -> float:
    """Return Kendall's tau of the scores of two devices, the mean over layers; NaN where no layer has a ranking."""
    taus = [kendall_tau(first.scores(layer), second.scores(layer)) for layer in first.layers]
    known = [tau for tau in taus if not math.isnan(tau)]
    return float(np.mean(known)) if known else math.nan


def study_networks(
    space: SearchSpace, workload: Callable[[Architecture], Workload], ms: Callable[[Architecture], float]
) -> OperatorStudy:
    """Return the study of every choice, each option within the largest network, by what the whole network takes.

    workload: the operators of an architecture; ms: its milliseconds, by a cost, a predictor, or measured.
    """
    layers = {}
    for name, options in space.choices.items():
        near = having(space, space.largest(), name)
        archs = [space.canonical({**near, name: option}) for option in options]
        layers[name] = tuple(
            Operator(macs(workload(arch)), parameters(workload(arch)), float(ms(arch))) for arch in archs
        )
    return OperatorStudy(space, layers)


def study_layers(model: nn.Module, example: Tensor, cost: Cost) -> OperatorStudy:
    """Return the study of every `OneOf` of a supernet: each operation alone, its milliseconds by a cost of workloads.

    example: an input of the supernet, of which the shape alone is read. Raises ValueError for a supernet without a
    `OneOf`.
    """
    return _study(model, _placed(model, example), lambda placed: [cost(one.workload) for one in placed])


def study_on_target(model: nn.Module, example: Tensor, target: Target, folder: Path) -> OperatorStudy:
    """Return the study of every `OneOf` of a supernet, each operation measured alone on a target.

    Equal operations of several places are measured once, all of them in the same rounds; the 10th percentile counts,
    which other work on the machine disturbs least. What the runtime refuses takes for ever, and so is in no pool. Files
    are written below `folder`. The supernet holds weights, which may be random. Raises TargetError where everything is
    refused, and ValueError for a supernet without a `OneOf` and an operation with several inputs.
    """

    def measured(placed: Sequence[_Placed]) -> list[float]:
        different = {one.workload: one for one in placed}
        artefacts: dict[Workload, Artefact] = {}
        for number, (work, one) in enumerate(different.items()):
            with suppress(RuntimeError):  # an export that is refused
                path = _made(folder / str(number))
                artefacts[work] = target.prepare(one.module, (one.input(),), [one.input()], path)
        measurements: Sequence[Measurement | None]
        try:
            measurements = target.measure([*artefacts.values()])
        except TargetError as error:
            if not any(error.measurements):
                raise
            measurements = error.measurements
        pairs = zip(artefacts, measurements, strict=True)
        found = {work: math.inf if one is None else one.p10 for work, one in pairs}
        return [found.get(one.workload, math.inf) for one in placed]

    return _study(model, _placed(model, example), measured)


class _Placed(NamedTuple):
    """An operation as a plain module at one place of the network."""

    module: nn.Module
    inputs: tuple[Shape, ...]
    workload: Workload

    def input(self) -> Tensor:
        """Return an example of what it reads."""
        if len(self.inputs) != 1:
            raise ValueError(
                f"an operation reads tensors of {self.inputs}: only one that reads a single one is measured"
            )
        return torch.randn(self.inputs[0], generator=torch.Generator().manual_seed(0))


Layers = Mapping[str, Sequence[Sequence[_Placed]]]


def _study(model: nn.Module, layers: Layers, price: Callable[[Sequence[_Placed]], Sequence[float]]) -> OperatorStudy:
    """Price all operations that compute anything at once; the others take no time."""
    working = [one for options in layers.values() for places in options for one in places if one.workload]
    ms = dict(zip(map(id, working), price(working) if working else [], strict=True))
    return OperatorStudy(
        search_space(model),
        {
            name: tuple(
                Operator(
                    sum(macs(one.workload) for one in places),
                    sum(parameters(one.workload) for one in places),
                    math.fsum(ms.get(id(one), 0.0) for one in places),
                )
                for places in options
            )
            for name, options in layers.items()
        },
    )


def _placed(model: nn.Module, example: Tensor) -> dict[str, list[list[_Placed]]]:
    """Return for each `OneOf`'s choice and each of its options the places where the option runs."""
    space, name_of = search_space(model), {id(choice): name for name, choice in named_choices(model).items()}
    mixed = [module for module in model.modules() if isinstance(module, OneOf)]
    if not mixed:
        raise ValueError("the network has no OneOf, whose operations could be ranked: use study_networks")
    layers: dict[str, list[list[_Placed]]] = {}
    for name in dict.fromkeys(name_of[id(one.choice)] for one in mixed):
        near = having(space, space.largest(), name)
        holders = [one for one in mixed if name_of[id(one.choice)] == name]
        layers[name] = [
            _running(model, example, space.canonical({**near, name: option}), holders) for option in space.choices[name]
        ]
    return layers


def _running(model: nn.Module, example: Tensor, arch: Architecture, holders: Sequence[OneOf]) -> list[_Placed]:
    with activated(model, arch):
        with _recorded(holders) as calls:
            trace(model, example)
        found = []
        for holder, shapes in calls:
            plain = extract(holder, {})
            ghosts = [torch.empty(shape, device="meta") for shape in shapes]
            found.append(_Placed(plain, shapes, trace(plain, *ghosts)))
    return found


@contextmanager
def _recorded(holders: Sequence[OneOf]) -> Iterator[list[tuple[OneOf, tuple[Shape, ...]]]]:
    """Note which of the holders run, and the shapes of what they read."""
    calls: list[tuple[OneOf, tuple[Shape, ...]]] = []

    def note(module: nn.Module, inputs: Any) -> None:
        assert isinstance(module, OneOf)
        calls.append((module, tuple(tuple(one.shape) for one in inputs if isinstance(one, Tensor))))

    hooks = [holder.register_forward_pre_hook(note) for holder in holders]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
