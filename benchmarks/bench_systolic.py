# SPDX-License-Identifier: Apache-2.0
"""Cycles of the systolic model beside SCALE-Sim's, per array and dataflow.

Layers: random matrix products, and convolutions as they are in networks. `equal` counts the layers whose
cycles are the same number; `apart` is the largest difference. Strides divide what is left of the input: where they do
not, SCALE-Sim rounds the output up, which no framework does. `benchmarks/peers/setup scalesim` makes the environment.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sartor.costs.gemm import gemms
from sartor.costs.systolic import Dataflow, SystolicArray
from sartor.workload import Op

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".peers" / "scalesim" / "bin" / "python"
ARRAYS = ((32, 32), (16, 24), (12, 14))  # the last is that of Eyeriss
FLOWS: tuple[Dataflow, ...] = ("os", "ws", "is")
# Height and width with padding, kernel, channels, filters, stride: kinds of layers that networks have, small.
CONVOLUTIONS = (
    (18, 18, 3, 3, 16, 1), (11, 11, 3, 16, 32, 2), (10, 10, 5, 8, 24, 1), (15, 15, 7, 3, 20, 2), (8, 8, 1, 48, 96, 1),
    (9, 9, 1, 40, 17, 2), (10, 10, 3, 1, 1, 1), (4, 4, 3, 64, 64, 1), (3, 3, 3, 100, 70, 1), (7, 12, 3, 10, 33, 1),
)  # fmt: skip

Row = Mapping[str, str | int]
Layer = tuple[int, ...]


def rows(quick: bool) -> Iterator[Row]:
    """A row per kind of layers, array and dataflow."""
    kinds: dict[str, Sequence[Layer]] = {
        "products": products(12 if quick else 20),
        "convolutions": CONVOLUTIONS[: 8 if quick else None],
    }
    for kind, layers in kinds.items():
        for height, width in ARRAYS[: 1 if quick else None]:
            for flow in FLOWS:
                yield compared(kind, layers, SystolicArray(height, width, flow))


def compared(kind: str, layers: Sequence[Layer], array: SystolicArray) -> Row:
    """Return how many layers have the same cycles here and there."""
    version, theirs = simulated(layers, array)
    ours = [array.cycles(gemms(operator(layer))[0]) for layer in layers]
    apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return {
        "layers": len(layers),
        "kind": kind,
        "array": f"{array.rows}x{array.columns}",
        "dataflow": array.dataflow,
        "scalesim": version,
        "equal": apart.count(0),
        "apart": max(apart),
        "least cycles": min(ours),
        "most cycles": max(ours),
    }


def simulated(layers: Sequence[Layer], array: SystolicArray) -> tuple[str, list[int]]:
    """Return the version of the simulator and the cycles that it reports."""
    if not PYTHON.exists():
        raise FileNotFoundError("SCALE-Sim is not set up: run benchmarks/peers/setup scalesim")
    request = {"rows": array.rows, "columns": array.columns, "dataflow": array.dataflow, "layers": layers}
    done = subprocess.run(
        [PYTHON, HERE / "peers" / "scalesim_cycles.py"],
        input=json.dumps(request), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"SCALE-Sim failed: {done.stderr.strip().splitlines()[-1:]}")
    answer = json.loads(done.stdout)
    return answer["version"], answer["cycles"]


def operator(layer: Layer) -> Op:
    """Return the operator of a layer."""
    if len(layer) == 3:
        m, n, k = layer
        return Op("matmul", ((m, k), (k, n)), (m, n), (), "int8")
    height, width, kernel, channels, filters, stride = layer
    output = ((height - kernel) // stride + 1, (width - kernel) // stride + 1)
    inputs = ((1, channels, height, width), (filters, channels, kernel, kernel))
    return Op("conv", inputs, (1, filters, *output), (("stride", stride), ("groups", 1)), "int8")


def products(count: int) -> list[Layer]:
    """Return random matrix products, of 1 to 150 a side."""
    rng = random.Random(0)
    return [tuple(rng.randint(1, 150) for _ in range(3)) for _ in range(count)]
