# SPDX-License-Identifier: Apache-2.0
"""Energy: the ratios of Eyeriss, and the dataflow that suits a shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.costs.energy import MAC_PJ, AcceleratorEnergy, AccessEnergy, Accesses
from sartor.costs.gemm import Gemm
from sartor.costs.systolic import Dataflow, SystolicArray
from sartor.workload import Op

FLOWS: tuple[Dataflow, ...] = ("os", "ws", "is")
EYERISS = AccessEnergy.eyeriss()


def linear(m: int, n: int, k: int) -> Op:
    return Op("matmul", ((m, k), (k, n)), (m, n), (), "int8")


def test_an_operand_from_memory_beside_one_from_registers() -> None:
    """A product costs 1, an access 200 or 1: the ratio is (200 + 1) / (1 + 1)."""
    assert EYERISS(Accesses(macs=10, memory=10)) / EYERISS(Accesses(macs=10, registers=10)) == 201 / 2
    assert EYERISS(Accesses(neighbours=1, buffer=1)) == 2 + 6


@pytest.mark.parametrize(("shape", "best"), [((5000, 16, 16), "ws"), ((16, 5000, 16), "is"), ((16, 16, 5000), "os")])
def test_what_is_large_and_stays_is_read_once(shape: tuple[int, int, int], best: Dataflow) -> None:
    op = linear(*shape)
    energies = {flow: AcceleratorEnergy(SystolicArray(16, 16, flow), EYERISS).op(op) for flow in FLOWS}
    assert min(energies, key=lambda flow: energies[flow]) == best


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 200), st.sampled_from(FLOWS))
def test_accesses_are_at_least_the_operands(m: int, n: int, k: int, flow: Dataflow) -> None:
    cost = AcceleratorEnergy(SystolicArray(8, 8, flow, buffer_kb=1), EYERISS)
    found = cost.accesses(Gemm.plain(m, n, k))
    compulsory = m * k + k * n + m * n
    assert found.macs == m * n * k
    assert found.buffer >= compulsory
    assert found.memory >= compulsory


def test_energies_add_up_and_scale() -> None:
    array = SystolicArray(8, 8)
    one, two = linear(30, 20, 10), linear(7, 8, 9)
    cost = AcceleratorEnergy(array, EYERISS)
    assert cost((one, two)) == pytest.approx(cost.op(one) + cost.op(two))
    assert AcceleratorEnergy(array, AccessEnergy.eyeriss(3.0)).op(one) == pytest.approx(3 * cost.op(one))
    assert cost(()) == 0.0
    assert cost.op(Op("relu", ((1, 8),), (1, 8), (), "int8")) == 0.0
    fewer = AcceleratorEnergy(array, AccessEnergy.eyeriss(bits=8))
    assert fewer.op(one) < cost.op(one)


def test_arithmetic_of_fewer_bits_takes_less() -> None:
    assert MAC_PJ["int8"] < MAC_PJ["float16"] < MAC_PJ["float32"]


def test_negative_energies() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        AccessEnergy(1, 1, 2, -6, 200)
