# SPDX-License-Identifier: Apache-2.0
"""Traces: counts against hand counts and torch's own, and what tracing leaves alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sartor.nn as elastic
from sartor.choice import Choice
from sartor.spaces.mobilenet import MobileNet
from sartor.supernet import activated, extract, search_space
from sartor.workload import Op, macs, parameters, trace, weight_bytes

torch.set_num_threads(1)


class Bilinear(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nij,nkj->nik", x, x)


class CrossAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x[:, :, :3], x[:, :, :3])


IMAGE, ROWS = (2, 8, 10, 10), (2, 7, 8)
BY_HAND: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "conv": (lambda: nn.Conv2d(8, 6, 3), IMAGE, 2 * 6 * 8 * 8 * (8 * 9)),
    "conv-strided": (lambda: nn.Conv2d(8, 6, (3, 1), stride=2, padding=1), IMAGE, 2 * 6 * 5 * 6 * (8 * 3)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 5, padding=2, groups=8), IMAGE, 2 * 8 * 100 * 25),
    "grouped": (lambda: nn.Conv2d(8, 4, 3, groups=4, dilation=2), IMAGE, 2 * 4 * 36 * (2 * 9)),
    "conv1d": (lambda: nn.Conv1d(7, 5, 3), ROWS, 2 * 5 * 6 * 7 * 3),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 1, 4, 4, 4), 2 * 27 * 8),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2), IMAGE, 2 * 8 * 100 * 6 * 9),
    "transposed-grouped": (lambda: nn.ConvTranspose2d(8, 6, 3, groups=2), IMAGE, 2 * 8 * 100 * 3 * 9),
    "linear": (lambda: nn.Linear(8, 5), ROWS, 2 * 7 * 8 * 5),
    "linear-no-bias": (lambda: nn.Linear(8, 5, bias=False), ROWS, 2 * 7 * 8 * 5),
    "bilinear": (Bilinear, ROWS, 2 * 7 * 7 * 8),
    "attention": (CrossAttention, (2, 4, 7, 8), 2 * 2 * 4 * 7 * 3 * 8),
    "self-attention": (lambda: elastic.MultiheadAttention(8, 3, 4), ROWS, 2 * 7 * 8 * 12 * 4 + 2 * 2 * 3 * 7 * 7 * 4),
    "grouped-query": (
        lambda: elastic.MultiheadAttention(8, 2, 4, queries_per_head=3),
        ROWS,
        2 * 7 * 8 * (24 + 8 + 8 + 24) + 2 * 2 * 6 * 7 * 7 * 4,
    ),
    "free": (lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()), IMAGE, 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_macs_by_hand(name: str) -> None:
    build, shape, expected = BY_HAND[name]
    assert macs(trace(build(), torch.randn(shape))) == expected


@pytest.mark.parametrize("name", [name for name in BY_HAND if name != "free"])
def test_macs_are_half_of_torchs_flops(name: str) -> None:
    build, shape, _ = BY_HAND[name]
    model, counter = build().eval(), FlopCounterMode(display=False)
    with counter, torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.randn(shape))
    assert macs(trace(model, torch.randn(shape))) * 2 == counter.get_total_flops()


def test_macs_of_a_whole_network_agree_with_torch() -> None:
    model, counter = extract(MobileNet(10, 3, (64, 48)), {}).eval(), FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.randn(2, 3, 64, 48))
    assert macs(trace(model, torch.randn(2, 3, 64, 48))) * 2 == counter.get_total_flops()


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", BY_HAND)
def test_parameters_are_counted_once(name: str) -> None:
    build, shape, _ = BY_HAND[name]
    model = build()
    workload = trace(nn.Sequential(model), torch.randn(shape))
    assert parameters(workload) == count(model)
    assert weight_bytes(workload) == 4 * count(model)


class Reuse(nn.Module):
    """A fused projection read in three parts, a table read twice, a layer that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Parameter(torch.randn(6, 4))
        self.table = nn.Embedding(5, 4)
        self.unused = nn.Linear(100, 100)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        q, k, v = (F.linear(x, part) for part in self.fused.chunk(3))
        mixed = torch.cat((q * k, v), -1)
        return F.linear(mixed, self.table.weight)


def test_parts_and_repeated_reads_of_parameters() -> None:
    model = Reuse()
    workload = trace(model, torch.zeros(2, 3, dtype=torch.long))
    assert parameters(workload) == 24 + 20
    assert [op.attribute("parameters") for op in workload if op.kind == "matmul"] == [8, 8, 8, 0]


def test_shared_layers_count_once() -> None:
    layer = nn.Linear(4, 4)
    workload = trace(nn.Sequential(layer, layer), torch.zeros(2, 4))
    assert parameters(workload) == 20 and macs(workload) == 2 * 2 * 16


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (64, 64)])
def test_a_supernet_in_force_is_its_extracted_network(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = MobileNet(10, 3, size)
    space, rng = search_space(network), random.Random(0)
    x = torch.empty(1, 3, *size)
    for arch in [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(3))]:
        small = extract(network, arch)
        with activated(network, arch):
            workload = trace(network, x)
        assert workload == trace(small, x)
        assert parameters(workload) == count(small)


def test_index_lists_in_force_are_no_operators() -> None:
    width = Choice([(0, 2), (0, 1, 2, 3)])
    network = nn.Sequential(elastic.Linear(3, width), nn.Tanh(), elastic.Linear(width, 2))
    with activated(network, {"0.out_features": (0, 2)}):
        workload = trace(network, torch.zeros(1, 3))
    small = extract(network, {"0.out_features": (0, 2)})
    assert workload == trace(small, torch.zeros(1, 3)) and parameters(workload) == count(small)


def test_an_operator_tells_its_geometry() -> None:
    model = nn.Sequential(nn.Conv2d(8, 6, 3, stride=2, padding=1, dilation=1, groups=2), nn.BatchNorm2d(6))
    conv, norm = trace(model, torch.randn(1, 8, 6, 6))
    assert conv == Op(
        "conv",
        ((1, 8, 6, 6), (6, 4, 3, 3), (6,)),
        (1, 6, 3, 3),
        (("stride", 2), ("padding", 1), ("dilation", 1), ("groups", 2), ("parameters", 6 * 4 * 9 + 6)),
        "float32",
    )
    assert norm.kind == "batch_norm" and norm.attribute("parameters") == 12
    assert conv.attribute("groups") == 2 and conv.attribute("unknown", -1) == -1
    assert len({conv, norm}) == 2, "operators are keys of look-up tables"


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.LayerNorm(8), "layer_norm"),
        (nn.GroupNorm(7, 7), "group_norm"),
        (nn.ReLU(), "relu"),
        (nn.Hardsigmoid(), "hardsigmoid"),
        (nn.Softmax(-1), "_softmax"),
    ],
)
def test_kinds(module: nn.Module, kind: str) -> None:
    assert [op.kind for op in trace(module, torch.randn(ROWS))] == [kind]


def test_what_does_nothing_in_inference_does_not_appear() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.Flatten(), nn.Unflatten(1, (7, 8)), nn.AlphaDropout(0.5))
    assert trace(model, torch.randn(ROWS)) == ()


def test_dtypes() -> None:
    assert [op.dtype for op in trace(nn.Linear(8, 2).bfloat16(), torch.randn(ROWS).bfloat16())] == ["bfloat16"]
    assert weight_bytes(trace(nn.Linear(8, 2).double(), torch.randn(ROWS).double())) == 8 * 18


def test_numbers_of_different_types_are_told_apart() -> None:
    """A remembered operator must not answer for one that differs in the type of a number only."""

    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    x = torch.ones(2, dtype=torch.int64)
    assert [trace(Scaled(factor), x)[0].dtype for factor in (1, 1.0, True, 1)] == ["int64", "float32", "int64", "int64"]


def test_constants_of_other_devices_stay_there() -> None:
    class Constants(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not torch.zeros(2, device="cpu").is_meta
            assert not torch.zeros_like(x, device="cpu").is_meta
            return x + torch.zeros(8, device="meta") + torch.tensor(1.0)

    assert [op.kind for op in trace(Constants(), torch.randn(ROWS))] == ["zeros_like", "add", "add"]


def test_a_mixture_can_be_traced_and_used() -> None:
    width = Choice([2, 4])
    network = nn.Sequential(elastic.Linear(3, width), elastic.Linear(width, 2))
    with activated(network, {"0.out_features": torch.tensor([0.5, 0.5])}):
        assert parameters(trace(network, torch.zeros(1, 3))) == 16 + 10
        assert network(torch.ones(1, 3)).isfinite().all()


def test_repeated_traces_are_equal() -> None:
    model = MobileNet(10, 1, (8, 8))
    x = torch.randn(1, 1, 8, 8)
    assert trace(model, x) == trace(model, x) != trace(model, torch.randn(2, 1, 8, 8))


def test_in_place_operators() -> None:
    model = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(inplace=True))
    assert [op.kind for op in trace(model, torch.randn(IMAGE))] == ["conv", "relu"]


def test_the_model_is_left_as_it_was() -> None:
    model = extract(MobileNet(10, 1, (8, 8)), {}).train()
    first: Any = next(model.children())
    first.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    trace(model, torch.randn(4, 1, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None and not p.is_meta for p in model.parameters())


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    class Reading(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.Linear(8, 8), Reading()).train()
    with pytest.raises(Exception, match=r"meta|data-dependent"):
        trace(model, torch.randn(ROWS))
    assert model.training and not next(model.parameters()).is_meta


def test_a_terabyte_takes_no_memory() -> None:
    with torch.device("meta"):
        model = nn.Linear(1 << 19, 1 << 19)
    x = torch.empty(1, 1 << 19, device="meta")
    assert parameters(trace(model, x)) == (1 << 38) + (1 << 19)
    assert macs(trace(model, x)) == 1 << 38


def test_costs_of_nothing() -> None:
    assert macs(()) == parameters(()) == weight_bytes(()) == 0
    assert math.isfinite(macs(trace(nn.Identity(), torch.ones(1))))
