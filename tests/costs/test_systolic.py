# SPDX-License-Identifier: Apache-2.0
"""The systolic array: SCALE-Sim's cycles, memory traffic against enumeration, invariants."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.costs.gemm import Gemm, gemms
from sartor.costs.systolic import Dataflow, SystolicArray
from sartor.workload import Op

FLOWS: tuple[Dataflow, ...] = ("os", "ws", "is")
SIZES = st.integers(1, 300)
ROOT = Path(__file__).parents[2]
PEER = ROOT / ".peers" / "scalesim" / "bin" / "python"


@pytest.mark.parametrize(("m", "n", "k", "cycles"), [(100, 60, 50, (895, 775, 1231)), (32, 32, 64, (125, 251, 251))])
def test_cycles_that_scale_sim_reports(m: int, n: int, k: int, cycles: tuple[int, ...]) -> None:
    assert tuple(SystolicArray(32, 32, flow).cycles(Gemm.plain(m, n, k)) for flow in FLOWS) == cycles


def test_mapping_efficiency_of_stationary_outputs() -> None:
    """M * N / (R * C * folds): 100 x 60 outputs in 4 x 2 folds of 32 x 32 units."""
    assert SystolicArray(32, 32).mapping_efficiency(Gemm.plain(100, 60, 50)) == 6000 / (1024 * 8)


@given(SIZES, SIZES, SIZES, st.integers(1, 64), st.integers(1, 64), st.sampled_from(FLOWS), st.integers(1, 8))
def test_units_do_one_product_a_cycle_at_most(
    m: int, n: int, k: int, rows: int, columns: int, flow: Dataflow, count: int
) -> None:
    array, gemm = SystolicArray(rows, columns, flow), Gemm.plain(m, n, k, count)
    assert 0 < array.utilisation(gemm) <= 1
    assert 0 < array.mapping_efficiency(gemm) <= 1
    assert array.cycles(gemm) + 1 == count * (array.cycles(Gemm.plain(m, n, k)) + 1)


@given(SIZES, SIZES, st.integers(1, 200), st.integers(1, 64))
def test_a_larger_array_is_not_slower_where_folds_divide(m: int, n: int, k: int, half: int) -> None:
    small, large = SystolicArray(half, half), SystolicArray(2 * half, 2 * half)
    gemm = Gemm.plain(2 * half * math.ceil(m / (2 * half)), 2 * half * math.ceil(n / (2 * half)), k)
    # Four folds of the small array against one of the large: less, unless filling and draining is most of the time.
    assert large.cycles(gemm) <= small.cycles(gemm) or k == 1


def test_depthwise_convolutions_use_one_column() -> None:
    depthwise = Op("conv", ((1, 64, 16, 16), (64, 1, 3, 3)), (1, 64, 16, 16), (("groups", 64),), "int8")
    dense = Op("conv", ((1, 64, 16, 16), (64, 64, 3, 3)), (1, 64, 16, 16), (("groups", 1),), "int8")
    array = SystolicArray(32, 32, "ws")
    shares = [array.utilisation(gemms(op)[0]) for op in (depthwise, dense)]
    assert shares[0] < 1 / 32 < 0.5 < shares[1]
    assert array.op(depthwise) > array.op(dense) / 9  # with 64 times fewer multiply-accumulates


def enumerated(inputs: int, weights: int, outputs: int, half: int) -> int:
    """The least traffic of all tiles that fit and both orders of loops, counted fetch by fetch."""
    best = None
    for outer, inner in ((inputs, weights), (weights, inputs)):
        for tile in range(1, min(outer, half) + 1):
            fetched = sum(min(tile, outer - start) + inner for start in range(0, outer, tile))
            best = fetched if best is None else min(best, fetched)
    assert best is not None
    return best + outputs


@pytest.mark.parametrize("half", [1, 3, 8, 20, 64, 500])
def test_traffic_is_the_least_of_all_tilings(half: int) -> None:
    array = SystolicArray(8, 8, buffer_kb=2 * half / 1000)
    for m, n, k in itertools.product((1, 4, 9), (1, 5, 8), (2, 7)):
        assert array.traffic(Gemm.plain(m, n, k)) == enumerated(m * k, n * k, m * n, half)


@given(SIZES, SIZES, SIZES, st.floats(0.01, 100), st.floats(0.01, 100))
def test_time_keeps_to_the_limits(m: int, n: int, k: int, buffer: float, bandwidth: float) -> None:
    array = SystolicArray(16, 16, mhz=100, buffer_kb=buffer, gbytes_per_s=bandwidth)
    gemm = Gemm.plain(m, n, k)
    op = Op("matmul", ((m, k), (k, n)), (m, n), (), "int8")
    compulsory = m * k + k * n + m * n
    assert array.traffic(gemm) >= compulsory
    assert array.op(op) >= gemm.macs / 256 / 1e5 * 0.999
    assert array.op(op) >= compulsory / bandwidth / 1e6 * 0.999
    better = SystolicArray(16, 16, mhz=100, buffer_kb=2 * buffer, gbytes_per_s=2 * bandwidth)
    assert better.op(op) <= array.op(op)


def test_networks_add_up_and_the_rest_is_free() -> None:
    op = Op("matmul", ((100, 50), (50, 60)), (100, 60), (), "int8")
    relu = Op("relu", ((100, 60),), (100, 60), (), "int8")
    assert SystolicArray(32, 32, mhz=1)((op, relu, op)) == pytest.approx(2 * 896 / 1000)


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"mhz": -1.0}, {"dataflow": "rs"}, {"buffer_kb": 0.0}])
def test_sizes_out_of_range(wrong: dict[str, object]) -> None:
    arguments: dict[str, object] = {"rows": 4, "columns": 4, **wrong}
    with pytest.raises(ValueError, match=r"above 0|dataflow is"):
        SystolicArray(**arguments)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(not PEER.exists(), reason="benchmarks/peers/setup scalesim was not run")
def test_equal_to_the_simulator() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import bench_systolic, json; print(json.dumps(list(bench_systolic.rows(True))))"],
        cwd=ROOT / "benchmarks", capture_output=True, text=True, timeout=250, check=True,
    )  # fmt: skip
    assert all(row["equal"] == row["layers"] for row in json.loads(done.stdout))
