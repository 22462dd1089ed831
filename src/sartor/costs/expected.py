# SPDX-License-Identifier: Apache-2.0
"""The expected cost of a mixture of architectures, from any cost of architectures.

Cai, Zhu and Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware", ICLR 2019,
arXiv:1812.00332; Wu et al., "FBNet: Hardware-Aware Efficient ConvNet Design via Differentiable Neural Architecture
Search", CVPR 2019, arXiv:1812.03443.

A cost that adds up over choices is a table: what each option of each choice adds. Its expectation under independent
weights of the options is linear in them, E = base + sum over l, j of p_lj T_lj, so that it has a gradient, and that is
the table.

Differs from the papers: what an option adds is found by changing one choice of a reference network at a time, or by
least squares over sampled networks, instead of by measuring operators alone. A choice that a gate switches off adds
nothing; under a soft gate, its part counts with the chance that it matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sartor.architecture import Architecture, Option
from sartor.encodings import onehot
from sartor.gates import key
from sartor.space import SearchSpace

if TYPE_CHECKING:
    from torch import Tensor

    from sartor.choice import Kept, Mixed
    from sartor.relaxation import Relaxation
    from sartor.workload import Workload

__all__ = ["CostTable", "OfWorkload", "cost_table", "having"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OfWorkload:
    """A cost of architectures, from one of workloads: `OfWorkload(Roofline(10, 5), workload)(arch)`.

    workload: gives an architecture's operators, as `sartor.workload.trace` of its extracted network does.
    """

    cost: Callable[[Workload], float]
    workload: Callable[[Architecture], Workload]

    def __call__(self, arch: Architecture) -> float:
        """Return the cost of the architecture's workload."""
        return self.cost(self.workload(arch))


@dataclass(frozen=True)
class CostTable:
    """A cost that adds up over the choices of a space.

    base: the cost of no choice. adds: for each choice, what each of its options adds, in the order of the options.
    Raises ValueError for other choices than those of the space, or another number of values.
    """

    space: SearchSpace
    base: float
    adds: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        """Check that there is one number for each option."""
        wanted = {name: len(options) for name, options in self.space.choices.items()}
        given = {name: len(self.adds[name]) for name in sorted(self.adds)}
        if wanted != given:
            raise ValueError(f"the table has {given} values where the space has {wanted} options: give one for each")

    @classmethod
    def fitted(cls, space: SearchSpace, archs: Sequence[Architecture], values: ArrayLike) -> Self:
        """Return the table closest to (N,) costs of N architectures in squared error, and smallest among equals."""
        costs = np.asarray(values, dtype=np.float64)
        if not len(archs) or costs.shape != (len(archs),) or not np.isfinite(costs).all():
            raise ValueError(
                f"there are {len(archs)} architectures and costs of shape {costs.shape}: give each its own"
            )
        code, centre = onehot(space, archs), float(costs.mean())
        design = np.column_stack([np.ones(len(code)), code])
        solution: Floats = np.asarray(np.linalg.lstsq(design, costs - centre, rcond=None)[0], dtype=np.float64)
        return cls(space, centre + float(solution[0]), _by_choice(space, solution[1:]))

    @property
    def vector(self) -> Floats:
        """What the D options add, in the order of `sartor.encodings.onehot_names`."""
        return np.concatenate([self.adds[name] for name in self.space.choices])

    def costs(self, archs: Sequence[Architecture]) -> Floats:
        """Return the (N,) costs of architectures by the table."""
        return self.base + onehot(self.space, archs) @ self.vector

    def __call__(self, assignment: Mapping[str, Option | Tensor | Kept | Mixed]) -> Tensor:
        """Return the expected cost, a scalar tensor with gradients, of weights for each choice (or an option of it).

        The assignment is what `sartor.supernet.activated` takes. Raises ValueError for a choice that is missing and
        for weights of another length.
        """
        import torch

        code = self._relaxation.code(assignment)
        adds = torch.as_tensor(self.vector, dtype=code.dtype, device=code.device)
        return code @ adds + self.base

    @cached_property
    def _relaxation(self) -> Relaxation:
        from sartor.relaxation import Relaxation

        return Relaxation(self.space)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cache behind."""
        return {"space": self.space, "base": self.base, "adds": dict(self.adds)}


def cost_table(
    space: SearchSpace, cost: Callable[[Architecture], float], reference: Architecture | None = None
) -> CostTable:
    """Return what each option adds to `cost` in the place of the reference's (the largest network's, if None).

    One cost for each option. A choice that the reference's gates switch off is changed in the network that is nearest
    to the reference and has it; where a gate hangs on several choices, these are changed there too. The table is exact
    for a cost that adds up over the choices that matter; on others, compare `CostTable.costs` with the cost before you
    trust it, or use `CostTable.fitted`. Raises ValueError for a choice that matters in no network.
    """
    start = space.largest() if reference is None else space.canonical(reference)
    archs = _changed_once(space, start)
    table = CostTable.fitted(space, archs, [float(cost(arch)) for arch in archs])
    adds, base = dict(table.adds), table.base
    for name in adds.keys() - space.gates.keys():  # the reference's option adds nothing
        zero = adds[name][_place(space, name, start)]
        adds[name], base = tuple(value - zero for value in adds[name]), base + zero
    return CostTable(space, base, adds)


def _changed_once(space: SearchSpace, start: Architecture) -> list[Architecture]:
    """Return the networks one change away from `start`, or from the nearest that has the choice, each once."""
    found = {start: None}
    for name in space.choices:
        near, gate = having(space, start, name), space.gates.get(name, ())
        several = (
            {other for alternative in gate for other, _ in alternative} if max(map(len, (gate, *gate))) > 1 else set()
        )
        for changed in (name, *sorted(several)):
            found.update(dict.fromkeys(space.canonical({**near, changed: o}) for o in space.choices[changed]))
    return list(found)


def _place(space: SearchSpace, name: str, arch: Architecture) -> int:
    return [key(option) for option in space.choices[name]].index(key(arch[name]))


def having(space: SearchSpace, arch: Architecture, name: str) -> Architecture:
    """Return the network nearest to `arch` in which the choice `name` matters: the first way of its gate that works.

    Raises ValueError if none does.
    """
    if space.is_active(name, arch):
        return arch
    for alternative in space.gates[name]:
        near = arch
        for other, allowed in alternative:
            near = having(space, near, other)
            if key(near[other]) not in set(map(key, allowed)):
                near = space.canonical({**near, other: allowed[0]})
        if space.is_active(name, near):
            return near
    raise ValueError(f"the choice {name!r} matters in no network near {arch!r}: give another reference")


def _by_choice(space: SearchSpace, vector: Floats) -> dict[str, tuple[float, ...]]:
    ends = np.cumsum([len(options) for options in space.choices.values()])
    return {
        name: tuple(map(float, part)) for name, part in zip(space.choices, np.split(vector, ends[:-1]), strict=True)
    }
