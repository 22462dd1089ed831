# SPDX-License-Identifier: Apache-2.0
"""Operations of cells: shapes, what computing them together must not change, and drop-path."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracts.layer_contract import distance
from sartor.choice import Kept
from sartor.nn import Inputs, Zero, graph, mixtures
from sartor.spaces import cell_operations
from sartor.spaces.cell_operations import OPERATIONS, DropPath, FactorizedReduce, Pool, ReLUConvBN, set_progress
from sartor.spaces.darts import DartsNetwork
from sartor.spaces.nasbench201 import NASBench201
from sartor.supernet import activated, named_choices

torch.set_num_threads(1)

TOGETHER = [kind for kind in vars(cell_operations).values() if isinstance(kind, type) and hasattr(kind, "together")]


@pytest.mark.parametrize("searching", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_keep_the_width_and_divide_the_sides(name: str, searching: bool) -> None:
    for size in ((8, 8), (7, 6), (2, 3), (1, 1)):
        for stride in (1, 2):
            operation = OPERATIONS[name](6, stride, searching).eval()
            out = operation(torch.randn(2, 6, *size))
            assert out.shape == (2, 6, -(-size[0] // stride), -(-size[1] // stride))


def test_factorized_reduce_sees_every_second_pixel_of_both_parities() -> None:
    reduce = FactorizedReduce(1, 2, affine=False).eval()
    nn.init.ones_(reduce.conv_1.weight)
    nn.init.ones_(reduce.conv_2.weight)
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    even, odd = reduce(x)[0] * (1 + reduce.norm.eps) ** 0.5
    torch.testing.assert_close(even, torch.tensor([[1.0, 3.0], [9.0, 11.0]]))
    torch.testing.assert_close(odd, torch.tensor([[6.0, 8.0], [14.0, 16.0]]))


# ---- together: as apart ---------------------------------------------------------------------------------------


def trained(
    network: nn.Module, assignment: Callable[[], dict[str, Tensor | Kept]], inputs: Sequence[Tensor]
) -> list[Tensor]:
    """Output, gradients and buffers of two batches."""
    weights = assignment()
    soft = [w.weights if isinstance(w, Kept) else w for w in weights.values()]
    leaves = [*soft, *network.parameters(), *inputs]
    found = []
    with activated(network, weights):
        for scale in (1.0, 2.0):
            out = network(*(x * scale for x in inputs))
            found.append(out)
            found += torch.autograd.grad(
                (out.movedim(1, -1) * torch.arange(out.shape[1])).square().sum(), leaves, allow_unused=True
            )
    return [*(torch.zeros(1) if t is None else t.detach() for t in found), *network.buffers()]


def soft(network: nn.Module, hot: bool) -> Callable[[], dict[str, Tensor | Kept]]:
    """Weights for every choice: of all operations, or of one each, with a zero among the edges."""

    def drawn() -> dict[str, Tensor | Kept]:
        generator = torch.Generator().manual_seed(2)
        found: dict[str, Tensor | Kept] = {}
        for name, choice in named_choices(network).items():
            count = choice.extent if "inputs" in name else len(choice.options)
            weights = torch.rand(count, generator=generator, dtype=torch.float64)
            if hot and "inputs" not in name:
                weights = torch.eye(count, dtype=torch.float64)[int(weights.argmax())]
            if hot and count > 2 and "inputs" in name:
                weights[0] = 0.0
            weights.requires_grad_()
            found[name] = Kept(weights) if "inputs" in name else weights
        return found

    return drawn


def cell(network: nn.Module, place: int) -> nn.Module:
    found: Any = getattr(network, "cells", None) or network.layers
    one: nn.Module = found[place]
    return one


def small_darts(**arguments: Any) -> DartsNetwork:
    return DartsNetwork(3, 1, (8, 8), width=2, cells=3, **arguments)


CELLS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "darts": (lambda: cell(small_darts(), 0), ((3, 6, 4, 6), (3, 6, 4, 6))),
    "darts-reduction": (lambda: cell(small_darts(), 1), ((3, 6, 4, 6), (3, 8, 4, 6))),
    "darts-odd": (lambda: cell(small_darts(), 1), ((3, 6, 5, 4), (3, 8, 5, 4))),
    "darts-evaluation": (lambda: cell(small_darts(form="evaluation"), 0), ((3, 6, 4, 6), (3, 6, 4, 6))),
    "nasbench201-search": (
        lambda: cell(NASBench201(3, 1, (8, 8), width=2, cells=1, affine=False, track_running_stats=False), 0),
        ((3, 2, 6, 5),),
    ),
    "nasbench201": (lambda: cell(NASBench201(3, 1, (8, 8), width=2, cells=1), 0), ((3, 2, 6, 5),)),
}


@pytest.mark.parametrize(("training", "hot"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("case", CELLS)
def test_together_is_as_apart(case: str, training: bool, hot: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    build, shapes = CELLS[case]
    network = build().double().train(training)
    for buffer in network.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5)
    twin = copy.deepcopy(network)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    together = trained(network, soft(network, hot), inputs)
    for kind in TOGETHER:
        monkeypatch.delattr(kind, "together")
    apart = trained(twin, soft(twin, hot), inputs)
    assert len(together) == len(apart)
    for one, other in zip(together, apart, strict=True):
        assert distance(one.double(), other.double()) <= 1e-9 or float(other.abs().max()) < 1e-9


def test_nodes_together_are_as_one_after_the_other() -> None:
    torch.manual_seed(0)
    cell: Any = DartsNetwork(3, 1, (8, 8), width=2, cells=3).double().cells[0]
    states = [torch.randn(2, 2, 8, 8, dtype=torch.float64) for _ in range(2)]
    with activated(cell, soft(cell, hot=False)()):
        found = graph(list(cell.nodes), states)
        for node in cell.nodes:
            assert isinstance(node, Inputs)
            states.append(node(*states))
    for one, other in zip(found, states, strict=True):
        torch.testing.assert_close(one, other)


def test_a_pool_of_several_edges_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    pools: list[Any] = [Pool("max", 3, 2, searching=True) for _ in range(4)]
    for pool in pools:
        pool[0].register_forward_hook(lambda *_: calls.append(1))
    weight = torch.tensor(0.5)
    outputs = mixtures([[("pool", pool, weight)] for pool in pools], torch.randn(3, 2, 4, 4))
    assert len(outputs) == 4 and len(calls) == 1
    assert all(torch.equal(pool[1].running_mean, pools[0][1].running_mean) for pool in pools)
    assert [int(pool[1].num_batches_tracked) for pool in pools] == [1] * 4


def test_none_does_not_run_beside_others() -> None:
    zero, calls = Zero(), []
    zero.register_forward_hook(lambda *_: calls.append(1))
    x, weights = torch.randn(1, 2, 3, 3), torch.tensor([0.4, 0.6], requires_grad=True)
    (out,) = mixtures([[("none", zero, weights[0]), ("skip", nn.Identity(), weights[1])]], x)
    torch.testing.assert_close(out, 0.6 * x)
    assert torch.autograd.grad(out.sum(), weights)[0][0] == 0.0
    (out,) = mixtures([[("none", zero, weights[0])]], x)
    assert not out.any() and len(calls) == 1


def test_a_search_norm_has_no_scale() -> None:
    norm: Any = ReLUConvBN(2, 2, 3, affine=False, track_running_stats=False)[2]
    assert norm.weight is None and norm.running_mean is None


# ---- drop-path -----------------------------------------------------------------------------------------------


def test_drop_path_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    path, x = DropPath(0.3), torch.ones(20_000, 1, 1, 1)
    assert torch.equal(path(x), x)  # at the start, nothing is dropped
    set_progress(path, 1.0)
    out = path(x)
    assert sorted(out.unique().tolist()) == pytest.approx([0.0, 1 / 0.7])
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    set_progress(path, 0.5)
    assert float((path(x) == 0).float().mean()) == pytest.approx(0.15, abs=0.02)
    assert torch.equal(path.eval()(x), x)
    with pytest.raises(ValueError, match="below 1"):
        DropPath(1.0)


def test_drop_path_drops_whole_images() -> None:
    torch.manual_seed(0)
    path = DropPath(0.5)
    set_progress(path, 1.0)
    out = path(torch.ones(64, 2, 3, 3)).flatten(1)
    assert all(len(row.unique()) == 1 for row in out)
