# SPDX-License-Identifier: Apache-2.0
"""In which order DARTS-PT decides: one choice of each kind of cell in a round, operations before nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from sartor.differentiable import relaxations

__all__ = ["kinds_of_cells", "rounds"]


def kinds_of_cells(names: Sequence[str]) -> list[list[str]]:
    """Group choices by the kind of their cell: `normal_op_02` and `normal_inputs_2` are of one, others are together."""
    found: dict[str, list[str]] = {}
    for name in names:
        kinds = [name.partition(mark)[0] for mark in ("_op_", "_inputs_") if mark in name]
        found.setdefault(kinds[0] if kinds else "", []).append(name)
    return list(found.values())


def rounds(groups: Iterable[Sequence[str]], nodes: set[str], seed: int) -> list[tuple[str, ...]]:
    """Return the choices of each round: one of each group, in an order that is drawn; operations first, then nodes."""
    operations, topology = [], []
    for i, group in enumerate(groups):
        generator = relaxations.draws(seed, i, "projection")
        drawn = [group[place] for place in torch.randperm(len(group), generator=generator).tolist()]
        operations.append([name for name in drawn if name not in nodes])
        topology.append([name for name in drawn if name in nodes])
    return [*_side_by_side(operations), *_side_by_side(topology)]


def _side_by_side(queues: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return [tuple(queue[i] for queue in queues if i < len(queue)) for i in range(max(map(len, queues), default=0))]
