# SPDX-License-Identifier: Apache-2.0
"""Energy of an accelerator: each access to a level of its memory has a price, and so has arithmetic.

Chen, Krishna, Emer and Sze, "Eyeriss: An Energy-Efficient Reconfigurable Accelerator for Deep Convolutional Neural
Networks", IEEE Journal of Solid-State Circuits 52(1), 2017. Horowitz, "Computing's Energy Problem (and what we can do
about it)", ISSCC 2014, for the energies of arithmetic.

The energy of a layer is its multiply-accumulates and its accesses to registers, neighbouring units, the buffer on the
chip and memory, each times its energy. In units of one multiply-accumulate these cost 1, 2, 6 and 200. Which level
serves how many accesses follows from the dataflow of a systolic array.

Differs from the papers: the accesses are those of a systolic array (`sartor.costs.systolic`), not of the row-stationary
dataflow of Eyeriss. All is analytical: ratios and ranks mean something, joules as much as the energies that are put in.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Self

from sartor.costs.gemm import Gemm, gemms
from sartor.costs.systolic import SystolicArray

if TYPE_CHECKING:
    from sartor.workload import Op, Workload

__all__ = ["MAC_PJ", "AcceleratorEnergy", "AccessEnergy", "Accesses"]

MAC_PJ = {"int8": 0.2 + 0.1, "float16": 1.1 + 0.4, "float32": 3.7 + 0.9}
"""Picojoules of a product and a sum at 45 nm and 0.9 V (Horowitz); products of int8 are summed in 32 bits."""


@dataclass(frozen=True)
class Accesses:
    """How often arithmetic is done, and a number is read or written at each level."""

    macs: float = 0.0
    registers: float = 0.0
    neighbours: float = 0.0
    buffer: float = 0.0
    memory: float = 0.0

    def __add__(self, other: Accesses) -> Accesses:
        """Add level by level."""
        return Accesses(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class AccessEnergy:
    """Picojoules of a multiply-accumulate, and of one access to each level; ValueError for a negative one."""

    mac: float
    register: float
    neighbour: float
    buffer: float
    memory: float

    def __post_init__(self) -> None:
        """Check the fields."""
        if not all(0 <= energy < math.inf for energy in astuple(self)):
            raise ValueError(f"{self}: every energy must be 0 or more picojoules")

    @classmethod
    def eyeriss(cls, mac: float = 1.0, bits: int = 16) -> Self:
        """Return the ratios of Eyeriss to a multiply-accumulate of 16 bits that takes `mac` picojoules.

        With other `bits`, energies of accesses are proportional to them, and that of a product to their square.
        """
        share = bits / 16
        return cls(mac * share**2, mac * share, 2 * mac * share, 6 * mac * share, 200 * mac * share)

    def __call__(self, accesses: Accesses) -> float:
        """Return picojoules."""
        return math.fsum(count * energy for count, energy in zip(astuple(accesses), astuple(self), strict=True))


@dataclass(frozen=True)
class AcceleratorEnergy:
    """A cost in millijoules of a network on a systolic array; `op` gives those of one operator."""

    array: SystolicArray
    energy: AccessEnergy

    def op(self, op: Op) -> float:
        """Return the millijoules of one operator."""
        return 1e-9 * math.fsum(self.energy(self.accesses(gemm)) for gemm in gemms(op))

    def __call__(self, workload: Workload) -> float:
        """Return the millijoules of a network: the sum over its operators."""
        return math.fsum(map(self.op, workload))

    def accesses(self, gemm: Gemm) -> Accesses:
        """Return the accesses of a matrix product.

        Per multiply-accumulate: two operands are read from registers and a sum is written, and the two operands that
        are not stationary come from a neighbour. The buffer serves what enters and leaves the array at its edges.
        """
        return Accesses(
            macs=gemm.macs,
            registers=3 * gemm.macs,
            neighbours=2 * gemm.macs,
            buffer=gemm.count * self._edges(gemm),
            memory=self.array.traffic(gemm),
        )

    def _edges(self, gemm: Gemm) -> int:
        """Return the numbers that pass the edges of the array: the stationary operand once, the others each fold."""
        m, n, k, rows, columns = gemm.m, gemm.n, gemm.k, self.array.rows, self.array.columns
        if self.array.dataflow == "os":
            return m * k * math.ceil(n / columns) + k * n * math.ceil(m / rows) + m * n
        sums = m * n * (2 * math.ceil(k / rows) - 1)  # partial sums leave the array, and all but the first come back
        if self.array.dataflow == "ws":
            return k * n + m * k * math.ceil(n / columns) + sums
        return m * k + k * n * math.ceil(m / columns) + sums
