# SPDX-License-Identifier: Apache-2.0
"""Networks of one or two operators, so that any target that measures networks measures operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.costs.operators import key
from sartor.workload import Op, trace

__all__ = ["little_network"]

_UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "hardtanh": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "zeros_like": torch.zeros_like,
}
_BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
}


class _Function(nn.Module):
    """A function without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.function(x)


class _WithConstant(nn.Module):
    """A function of the input and of a constant."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("constant", torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        assert isinstance(self.constant, Tensor)
        return self.function(x, self.constant)


def little_network(*ops: Op) -> tuple[nn.Module, Tensor] | None:
    """Return a network that runs just `ops`, one after the other, and an input for it.

    None where there is no such network: the operator is not known here, its trace does not tell all of its geometry,
    or the second cannot read what the first writes. Weights are random. Only float32 is made.
    """
    made = [_module(op) if op.dtype == "float32" else None for op in ops]
    modules = [module for module in made if module is not None]
    if len(modules) < len(ops):
        return None
    network = (modules[0] if len(modules) == 1 else nn.Sequential(*modules)).eval()
    example = torch.randn(_input_shape(ops[0]), generator=torch.Generator().manual_seed(0))
    try:
        traced = trace(network, example)
    except (RuntimeError, ValueError, IndexError):  # shapes that do not go together
        return None
    return (network, example) if [*map(key, traced)] == [*map(key, ops)] else None


def _input_shape(op: Op) -> tuple[int, ...]:
    """Return the shape of what an operator reads from its predecessor; a product with bias reads that first."""
    return op.inputs[-2] if op.kind == "matmul" else op.inputs[0]


def _module(op: Op) -> nn.Module | None:
    if not op.inputs:
        return None
    if op.kind in _UNARY and len(op.inputs) == 1:
        return _Function(_UNARY[op.kind])
    if op.kind in _BINARY and len(op.inputs) == 2:
        return _WithConstant(_BINARY[op.kind], op.inputs[1])
    makers = {
        "conv": _conv,
        "conv_transpose": _transposed,
        "matmul": _product,
        "batch_norm": _batch_norm,
        "layer_norm": _layer_norm,
        "mean": _mean,
        "avg_pool2d": _average,
        "max_pool2d_with_indices": _maximum,
        "_softmax": lambda op: nn.Softmax(-1),
        "cat": _concatenation,
    }
    return makers[op.kind](op) if op.kind in makers else None


def _conv(op: Op) -> nn.Module | None:
    layers: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    out, per_group, *kernel = op.inputs[1]
    if len(op.inputs[0]) not in layers:
        return None
    sizes = (op.attribute("groups", 1) * per_group, out, tuple(kernel))
    layer: nn.Module = layers[len(op.inputs[0])](*sizes, bias=len(op.inputs) > 2, **_geometry(op))
    return layer


def _transposed(op: Op) -> nn.Module | None:
    if len(op.inputs[0]) != 4:
        return None
    layer: Any = nn.ConvTranspose2d
    channels, per_group, *kernel = op.inputs[1]
    sizes = (channels, op.attribute("groups", 1) * per_group, tuple(kernel))
    made: nn.Module = layer(*sizes, bias=len(op.inputs) > 2, **_geometry(op))
    return made


def _geometry(op: Op) -> dict[str, int]:
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    return {name: op.attribute(name, default) for name, default in defaults.items()}


def _product(op: Op) -> nn.Module | None:
    rows, columns = op.inputs[-2], op.inputs[-1]
    if len(rows) == 2 and len(columns) == 2:
        return nn.Linear(columns[0], columns[1], bias=len(op.inputs) > 2)
    return _WithConstant(torch.matmul, columns)


def _batch_norm(op: Op) -> nn.Module | None:
    layers = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    kind = layers.get(len(op.inputs[0]))
    return kind(op.inputs[0][1]) if kind else None


def _layer_norm(op: Op) -> nn.Module | None:
    return nn.LayerNorm(list(op.inputs[1])) if len(op.inputs) == 3 else None


def _mean(op: Op) -> nn.Module | None:
    """The mean over the last dimensions, which the output lacks or holds as 1."""
    shape, kept = op.inputs[0], len(op.output) == len(op.inputs[0])
    gone = [place for place, size in enumerate(op.output) if size != shape[place]] if kept else None
    dims = gone or [*range(len(op.output), len(shape))] or [*range(2, len(shape))]
    return _Function(lambda x: x.mean(dims, keepdim=kept))


def _average(op: Op) -> nn.Module | None:
    """An average pool as the built-in spaces have it; the cost of another way at the edges is the same."""
    kernel, stride, padding = (op.attribute(name) for name in ("kernel", "stride", "padding"))
    return nn.AvgPool2d(kernel, stride, padding, ceil_mode=_ceils(op), count_include_pad=False)


def _maximum(op: Op) -> nn.Module | None:
    kernel, stride, padding = (op.attribute(name) for name in ("kernel", "stride", "padding"))
    return nn.MaxPool2d(kernel, stride, padding, ceil_mode=_ceils(op))


def _ceils(op: Op) -> bool:
    """Say whether a pool rounds its output's size up."""
    kernel, stride, padding = (op.attribute(name) for name in ("kernel", "stride", "padding"))
    exact = (op.inputs[0][-1] + 2 * padding - kernel) / stride + 1
    return op.output[-1] > math.floor(exact)


def _concatenation(op: Op) -> nn.Module | None:
    first, *others = op.inputs
    places = [place for place, size in enumerate(op.output) if size != first[place]]
    if len(others) != 1 or len(places) != 1:
        return None
    return _WithConstant(lambda x, y: torch.cat([x, y], places[0]), others[0])
