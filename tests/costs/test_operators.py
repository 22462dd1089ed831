# SPDX-License-Identifier: Apache-2.0
"""Operators: keys, the table and its roofline, fusion, and the little networks that measure them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sartor.costs.little import little_network
from sartor.costs.operators import CALL, OperatorTable, fused, key, pair_key, pairs, parse
from sartor.nn import resized
from sartor.spaces.mobilenet import MobileNet
from sartor.spaces.nasbench201 import NASBench201
from sartor.supernet import extract, search_space
from sartor.workload import Op, Workload, trace
from simulated_device import CALL_MS, network_ms, op_ms

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
operators = st.builds(
    Op,
    st.sampled_from(["conv", "relu", "_softmax", "max_pool2d_with_indices"]),
    st.lists(shapes, max_size=3).map(tuple),
    shapes,
    st.dictionaries(st.sampled_from(["stride", "padding", "groups"]), st.integers(0, 9)).map(
        lambda d: tuple(d.items())
    ),
    st.sampled_from(["float32", "int64"]),
)


def conv(channels: int, *, side: int = 8, parameters: int = 0) -> Op:
    shape = (1, channels, side, side)
    geometry = (("stride", 1), ("padding", 1), ("dilation", 1), ("groups", 1))
    extra = (("parameters", parameters),) if parameters else ()
    return Op("conv", (shape, (channels, channels, 3, 3)), shape, geometry + extra, "float32")


def plain(kind: str, channels: int, *, side: int = 8) -> Op:
    shape = (1, channels, side, side)
    inputs = (shape, *[(channels,)] * 4) if kind == "batch_norm" else (shape,)
    return Op(kind, inputs, shape, (), "float32")


def workloads(network: nn.Module, image: tuple[int, int, int], count: int) -> list[Workload]:
    space, rng = search_space(network), random.Random(0)
    found = []
    for _ in range(count):
        plain = extract(network, space.sample(rng))
        found.append(trace(plain, resized(torch.zeros(1, *image), plain), live=True))
    return found


def measured(ops: list[Op], tested: list[tuple[Op, Op]]) -> dict[str, float | None]:
    alone: dict[str, float | None] = {key(op): CALL_MS + op_ms(op) for op in ops}
    return {key(CALL): CALL_MS, **alone, **{pair_key(*pair): network_ms(pair) for pair in tested}}


@given(operators)
def test_a_key_tells_all_but_who_reads_a_parameter_first(op: Op) -> None:
    assert parse(key(op)) == op
    first = Op(op.kind, op.inputs, op.output, (*op.attributes, ("parameters", 5)), op.dtype)
    assert key(first) == key(op)


@given(operators, operators)
def test_different_operators_have_different_keys(a: Op, b: Op) -> None:
    assert (key(a) == key(b)) == (a == b)


@pytest.mark.parametrize("text", ["", "conv", "conv|1x|1|a=1|float32", "conv|1|1|a|float32", "conv|1|1|a=b|float32"])
def test_text_that_is_no_key(text: str) -> None:
    with pytest.raises(ValueError, match="is no key"):
        parse(text)


def test_a_table_sums_operators_and_takes_the_call_once() -> None:
    ops = [conv(4), conv(8), plain("relu", 4)]
    table = OperatorTable.of(measured(ops, []))
    assert table.call_ms == CALL_MS
    assert table(tuple(ops)) == pytest.approx(CALL_MS + sum(map(op_ms, ops)))
    assert table(tuple(ops) + tuple(ops)) - CALL_MS == pytest.approx(2 * (table(tuple(ops)) - CALL_MS))
    assert table((conv(4, parameters=144),)) == table((conv(4),))


def test_an_operator_that_is_missing_comes_from_the_roofline_and_is_counted() -> None:
    ops = [conv(channels) for channels in (4, 8, 16, 32, 64)] + [plain("relu", channels) for channels in (4, 16, 64)]
    table = OperatorTable.of(measured([op for op in ops if op != conv(32)], []))
    asked = (conv(4), conv(32), conv(32))
    assert table.missing(asked) == 2
    assert table.op(conv(32)) == pytest.approx(op_ms(conv(32)), rel=0.25)
    found = table.coverage([asked, (plain("relu", 4),)])
    assert (found["operators"], found["missing"], found["kinds_missing"]) == (4, 2, 1)
    assert found["share_of_operators"] == 0.5
    assert 0 < found["share_of_time"] < 0.5
    assert table.coverage([])["share_of_operators"] == 1.0


def test_a_table_of_what_was_refused_or_takes_no_time() -> None:
    table = OperatorTable.of({key(conv(4)): 0.01, key(conv(8)): None, pair_key(conv(4), conv(8)): None})
    assert table.call_ms == 0.01  # the fastest stands for a call that was not measured
    assert table.missing((conv(8),)) == 1
    assert table.op(conv(8)) > 0
    with pytest.raises(ValueError, match="none of the operators"):
        OperatorTable.of({key(CALL): 0.01, key(conv(4)): None})


def test_fusion_is_found_and_what_is_fused_becomes_part_of_its_neighbour() -> None:
    ops = [conv(8), plain("batch_norm", 8), plain("relu", 8)]
    network = (*ops, conv(8), plain("relu", 8))
    tested = pairs([network])
    assert {(a.kind, b.kind) for a, b in tested} == {
        ("conv", "batch_norm"), ("conv", "relu"), ("batch_norm", "relu"), ("relu", "conv"),
    }  # fmt: skip
    table = OperatorTable.of(measured(ops, tested))
    assert table.savings[("conv", "batch_norm")] == pytest.approx(1.0)
    assert table.savings[("conv", "relu")] == pytest.approx(1.0)
    assert table.savings[("relu", "conv")] == pytest.approx(0.0, abs=1e-9)
    assert [round(left, 9) for _, left in fused(network, table.savings)] == [1, 0, 0, 1, 0]
    total = CALL_MS + sum(left * table.op(op) for op, left in fused(network, table.savings))
    assert total == pytest.approx(network_ms(network))


def test_operators_that_do_not_read_each_other_are_no_pair() -> None:
    assert pairs([(conv(4), conv(8))]) == []
    assert [left for _, left in fused((conv(4), plain("relu", 8)), {("conv", "relu"): 1.0})] == [1, 1]


def test_of_many_shapes_of_a_pair_three_are_tested() -> None:
    found = pairs([(conv(channels), plain("relu", channels)) for channels in (2, 3, 4, 5, 6, 7)])
    assert [first.output[1] for first, _ in found] == [2, 4, 7]


SPACES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "mobilenet": (lambda: MobileNet(10, 1, (8, 8)), (1, 8, 8)),
    "mobilenet-31": (lambda: MobileNet(10, 3, (31, 31)), (3, 31, 31)),
    "nasbench201": (lambda: NASBench201(10, 3, (9, 9), cells=1), (3, 9, 9)),
}


@pytest.mark.parametrize("name", SPACES)
def test_every_operator_of_the_built_in_spaces_is_a_little_network(name: str) -> None:
    make, image = SPACES[name]
    with torch.device("meta"):
        network = make()
    ops = {key(op): op for workload in workloads(network, image, 6) for op in workload}
    for text, op in ops.items():
        made = little_network(parse(text))
        assert made is not None, op
        little, example = made
        assert [key(one) for one in trace(little, example)] == [text]


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.softmax(x, -1), x * 2.0], 1)


OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2), (1, 3, 9), 0),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), (1, 4, 5, 5), 0),
    "linear": (lambda: nn.Linear(5, 7), (1, 5), 0),
    "bmm": (lambda: nn.Linear(5, 7, bias=False), (1, 3, 5), 0),
    "layer_norm": (lambda: nn.LayerNorm(5), (1, 3, 5), 0),
    "softmax": (Softmax, (1, 3, 5), 0),
    "max_pool": (lambda: nn.MaxPool2d(3, 2, 1), (1, 3, 9, 9), 0),
    "hardswish": (nn.Hardswish, (1, 3, 9, 9), 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_operators_are_little_networks_too(name: str) -> None:
    make, shape, place = OTHERS[name]
    op = trace(make(), torch.zeros(shape))[place]
    made = little_network(op)
    assert made is not None
    assert made[0](made[1]).shape == op.output


UNKNOWN = [
    Op("fft", ((1, 8),), (1, 8), (), "float32"),
    Op("relu", (), (1, 8), (), "float32"),
    Op("relu", ((1, 8),), (1, 9), (), "float32"),
    Op("conv", ((1, 2), (2, 2)), (1, 2), (), "float32"),
    Op("conv", ((1, 3, 8, 8), (4, 3, 3, 1)), (1, 4, 8, 8), (("stride", 1), ("padding", 1)), "float32"),
    Op("relu", ((1, 8),), (1, 8), (), "int64"),
    Op("cat", ((1, 2), (1, 2), (1, 2)), (1, 6), (), "float32"),
]


@pytest.mark.parametrize("op", UNKNOWN)
def test_what_a_trace_does_not_tell_is_not_guessed(op: Op) -> None:
    assert little_network(op) is None


def test_a_pair_runs_one_after_the_other_or_is_none() -> None:
    made = little_network(conv(4), plain("relu", 4))
    assert made is not None
    assert [op.kind for op in trace(*made)] == ["conv", "relu"]
    assert little_network(conv(4), conv(8)) is None


def test_what_no_output_depends_on_is_not_deployed() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 9)

        def forward(self, x: Tensor) -> Tensor:
            self.idle(torch.relu(x))
            y = self.used(x)
            return F.relu(y, inplace=True).view(-1)

    network, x = Idle(), torch.zeros(1, 4)
    assert [op.kind for op in trace(network, x)] == ["relu", "matmul", "matmul", "relu"]
    assert [op.kind for op in trace(network, x, live=True)] == ["matmul", "relu"]
