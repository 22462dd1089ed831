# SPDX-License-Identifier: Apache-2.0
"""Three tiers of memory, and fusion of operators so that less crosses them.

Prabhakar et al., "SambaNova SN40L: Scaling the AI Memory Wall with Dataflow and Composition of Experts", MICRO 2024,
arXiv:2405.07518.

On-chip memory is fast and small, main memory slower and larger, and a last tier holds what neither does. Operators
that run as one keep what they pass to each other on the chip, so that only the inputs, outputs and weights of the group
cross to main memory. Which neighbours to fuse is found by dynamic programming over the chain of operators.

Differs from the paper:
- A network is a chain. A tensor that is read again later (a residual connection) is counted where it is read, as coming
  from main memory, and not a second time where it was written.
- A group fits if its intermediates and weights fit into the on-chip memory together; a single operator always runs, in
  tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sartor.costs.gemm import bytes_per_element, elements, macs

if TYPE_CHECKING:
    from sartor.workload import Workload

__all__ = ["Stage", "TieredMemory", "chain"]


@dataclass(frozen=True, slots=True)
class Stage:
    """An operator of a chain: its multiply-accumulates, and bytes.

    received: what it reads of the stage before it, or of the network's input; `sent`: what it writes; `other`: all
        else that it reads. A stage that receives nothing is not fused with the one before it.
    """

    macs: float
    received: float
    sent: float
    other: float


@dataclass(frozen=True)
class TieredMemory:
    """A cost in milliseconds of a device with on-chip memory, main memory and a last tier.

    gmacs_per_s: 1e9 multiply-accumulates per second; `utilisation` is the share of them that is reached.
    chip_bytes, chip_gbytes_per_s: size of the on-chip memory, and 1e9 bytes per second between it and the arithmetic.
    gbytes_per_s: of the main memory.
    main_bytes: its size. Of weights beyond it, each run reads the excess from the last tier.
    last_gbytes_per_s: of the last tier.
    call_ms: for each group that is launched.
    stage_ms: to fill a pipeline by one more operator.
    Raises ValueError for a number that is not above 0 (times may be 0), and a utilisation beyond 1.
    """

    gmacs_per_s: float
    gbytes_per_s: float
    chip_bytes: float
    chip_gbytes_per_s: float = math.inf
    main_bytes: float = math.inf
    last_gbytes_per_s: float = math.inf
    utilisation: float = 1.0
    call_ms: float = 0.0
    stage_ms: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        rates = (self.gmacs_per_s, self.gbytes_per_s, self.chip_gbytes_per_s, self.last_gbytes_per_s)
        if not all(value > 0 for value in (*rates, self.chip_bytes, self.main_bytes)):
            raise ValueError(f"{self}: rates and sizes must be above 0; use math.inf for no limit")
        if not (0 < self.utilisation <= 1 and self.call_ms >= 0 and self.stage_ms >= 0):
            raise ValueError(f"{self}: utilisation must be above 0 and at most 1, and times 0 or more")

    def __call__(self, workload: Workload) -> float:
        """Return the milliseconds of a network whose operators are fused in the best way."""
        return self.planned(chain(workload))[0]

    def planned(self, stages: Sequence[Stage]) -> tuple[float, tuple[int, ...]]:
        """Return the least milliseconds, and the groups that take them, as where each one ends.

        best[j] = min over i of best[i] + t(i..j), over the groups that fit on the chip.
        """
        excess = self._excess(stages)
        best, start = [0.0], [0]
        for end in range(1, len(stages) + 1):
            best.append(math.inf)
            start.append(0)
            for first in range(end - 1, -1, -1):
                group = stages[first:end]
                if not self.fits(group):
                    break  # a longer group needs no less
                ms = best[first] + self.group_ms(group, excess)
                if ms < best[end]:
                    best[end], start[end] = ms, first
        ends = []
        place = len(stages)
        while place:
            ends.append(place)
            place = start[place]
        return best[-1], tuple(reversed(ends))

    def unfused_ms(self, stages: Sequence[Stage]) -> float:
        """Return the milliseconds where every operator is a group of its own."""
        excess = self._excess(stages)
        return math.fsum(self.group_ms([stage], excess) for stage in stages)

    def fits(self, group: Sequence[Stage]) -> bool:
        """Tell whether the group runs as one: its intermediates and weights fit on the chip, or it is one operator."""
        if len(group) == 1:
            return True
        held = sum(stage.sent for stage in group[:-1]) + sum(stage.other for stage in group)
        return held <= self.chip_bytes and all(stage.received for stage in group[1:])

    def group_ms(self, group: Sequence[Stage], excess: float = 0.0) -> float:
        """Return the milliseconds of a group: of its arithmetic or the slowest of its tiers, and of starting it.

        excess: the share of what it reads besides its chain that the main memory has no room for.
        """
        other = sum(stage.other for stage in group)
        on_chip = sum(stage.received + stage.sent + stage.other for stage in group)
        slowest = max(
            sum(stage.macs for stage in group) / (self.gmacs_per_s * self.utilisation),
            main_bytes(group) / self.gbytes_per_s,
            on_chip / self.chip_gbytes_per_s,
            excess * other / self.last_gbytes_per_s,
        )
        return slowest / 1e6 + self.call_ms + self.stage_ms * (len(group) - 1)

    def _excess(self, stages: Sequence[Stage]) -> float:
        total = sum(stage.other for stage in stages)
        return max(0.0, 1.0 - self.main_bytes / total) if total else 0.0


def main_bytes(group: Sequence[Stage]) -> float:
    """Return the bytes between chip and main memory: the group's first input, its last output, all other operands."""
    return group[0].received + group[-1].sent + sum(stage.other for stage in group)


def intensity(stages: Sequence[Stage], ends: Sequence[int]) -> float:
    """Return the multiply-accumulates per byte of main memory for groups that end at `ends`."""
    starts = (0, *ends[:-1])
    moved = sum(main_bytes(stages[first:end]) for first, end in zip(starts, ends, strict=True))
    return sum(stage.macs for stage in stages) / moved if moved else math.inf


def chain(workload: Workload) -> list[Stage]:
    """Return the stages of a traced network.

    An operator receives the output of the one before it where it reads a tensor of that shape; there is no telling two
    tensors of one shape apart.
    """
    stages: list[Stage] = []
    previous: tuple[int, ...] | None = None
    for op in workload:
        size = bytes_per_element(op.dtype)
        sent = math.prod(op.output) * size
        read = elements(op) * size - sent
        given = op.inputs[-1 if op.kind == "embedding" else 0] if op.inputs else None  # ids come behind their table
        source = given if previous is None else previous
        received = min(read, math.prod(source) * size) if source is not None and source in op.inputs else 0
        stages.append(Stage(macs(op), received, sent, read - received))
        previous = op.output
    return stages
