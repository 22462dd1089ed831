# SPDX-License-Identifier: Apache-2.0
"""A systolic array with output-, weight- or input-stationary dataflow, in closed form.

Samajdar, Joseph, Zhu, Whatmough, Mattina and Krishna, "A Systematic Methodology for Characterizing Scalability of DNN
Accelerators using SCALE-Sim", ISPASS 2020.

A grid of multiply-accumulate units computes a matrix product in folds. One operand stays in the grid for a fold while
the two others pass through, so that a fold takes as many cycles as numbers stream by, and those to fill and drain. The
cycles without stalls equal those that SCALE-Sim reports; traffic of double-buffered memories is overlapped with them.

Differs from the paper:
- It prints 2 R + C + T - 2 cycles a fold for all dataflows. The tool needs R less with stationary outputs, and counts
  from 0, so that one is taken off for a layer. This file follows the tool.
- Groups of a convolution run one after the other. What is no matrix product costs nothing: it is done on the way out.
- Nothing stalls but a layer whose traffic takes longer than its cycles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sartor.costs.gemm import Gemm, gemms

if TYPE_CHECKING:
    from sartor.workload import Op, Workload

__all__ = ["Dataflow", "SystolicArray"]

Dataflow = Literal["os", "ws", "is"]


@dataclass(frozen=True)
class SystolicArray:
    """A cost in milliseconds of an array of `rows` times `columns` units, each with one multiply-accumulate a cycle.

    dataflow: what stays in the array: outputs ("os"), weights ("ws") or inputs ("is").
    mhz: of the clock.
    buffer_kb: kilobytes (1000 bytes) of each of the two operand buffers, of which one half is used while the other is
        filled; infinite by default, so that every number comes from memory once.
    gbytes_per_s: 1e9 bytes per second of the memory behind the buffers, infinite by default.
    word_bytes: bytes of a number.
    Units that pack two small products are two columns.
    Raises ValueError for a size that is not above 0 and an unknown dataflow.
    """

    rows: int
    columns: int
    dataflow: Dataflow = "os"
    mhz: float = 200.0
    buffer_kb: float = math.inf
    gbytes_per_s: float = math.inf
    word_bytes: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.dataflow not in ("os", "ws", "is"):
            raise ValueError(f"dataflow is {self.dataflow!r}: use 'os', 'ws' or 'is'")
        sizes = (self.rows, self.columns, self.mhz, self.buffer_kb, self.gbytes_per_s, self.word_bytes)
        if not all(size > 0 for size in sizes):
            raise ValueError(f"{self}: every number must be above 0")

    def cycles(self, gemm: Gemm) -> int:
        """Return the cycles of a matrix product as SCALE-Sim counts them, from 0."""
        return self._steps(gemm) - 1

    def utilisation(self, gemm: Gemm) -> float:
        """Return the share of units and cycles that do useful work, above 0 and at most 1."""
        return gemm.macs / (self.rows * self.columns * self._steps(gemm))

    def mapping_efficiency(self, gemm: Gemm) -> float:
        """Return the share of units that hold something of the product, over all its folds."""
        down, across, _ = self._mapped(gemm)
        folds = math.ceil(down / self.rows) * math.ceil(across / self.columns)
        return down * across / (self.rows * self.columns * folds)

    def traffic(self, gemm: Gemm) -> float:
        """Return the numbers that cross the memory's interface, in the cheaper order of loops.

        In one order the part of the inputs that half a buffer holds stays, and all weights come by for each such part;
        in the other order the roles are exchanged. Neither is below what is read and written once.
        """
        half = 1000 * self.buffer_kb / self.word_bytes / 2
        inputs, weights = gemm.inputs, gemm.n * gemm.k
        weights_again = weights * _parts(inputs, half) + inputs
        inputs_again = inputs * _parts(weights, half) + weights
        return gemm.count * (min(weights_again, inputs_again) + gemm.outputs)

    def op(self, op: Op) -> float:
        """Return the milliseconds of one operator: those of its cycles or of its traffic, whichever take longer."""
        return math.fsum(map(self._ms, gemms(op)))

    def __call__(self, workload: Workload) -> float:
        """Return the milliseconds of a network, operator after operator."""
        return math.fsum(map(self.op, workload))

    def _ms(self, gemm: Gemm) -> float:
        arithmetic = self._steps(gemm) / (1e3 * self.mhz)
        return max(arithmetic, self.traffic(gemm) * self.word_bytes / (1e6 * self.gbytes_per_s))

    def _steps(self, gemm: Gemm) -> int:
        """Return how many cycles there are: folds times (stream + skew + fill)."""
        down, across, stream = self._mapped(gemm)
        folds = math.ceil(down / self.rows) * math.ceil(across / self.columns)
        fill = 0 if self.dataflow == "os" else self.rows  # what is stationary is shifted in first, but for outputs
        return gemm.count * folds * (stream + self.rows + self.columns - 2 + fill)

    def _mapped(self, gemm: Gemm) -> tuple[int, int, int]:
        """Return the dimensions laid along the rows, along the columns, and along time."""
        if self.dataflow == "os":
            return gemm.m, gemm.n, gemm.k
        if self.dataflow == "ws":
            return gemm.k, gemm.n, gemm.m
        return gemm.k, gemm.m, gemm.n


def _parts(numbers: int, held: float) -> int:
    return 1 if math.isinf(held) else math.ceil(numbers / held)
