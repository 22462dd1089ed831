"""What hardware sees of a network: the sequence of its operators with their shapes.

`trace` runs a network on the meta device, which computes shapes and no values, so that it costs no memory and
works for a supernet of any size. Every hardware cost is a function of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["KINDS", "Cost", "Op", "Workload", "kind_of", "macs", "parameters", "trace", "weight_bytes"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Op:
    """One operator as it ran.

    Attributes:
        kind: "conv", "conv_transpose", "matmul", "batch_norm", ..., or ATen's name of any other operator.
        inputs: shapes of the tensors it read, weights included, in the operator's order.
        output: shape of the (first) tensor it wrote.
        attributes: named ints that the cost depends on: kernel (of a pool), stride, padding, dilation, groups, and
            `parameters`, the number of parameters that this operator is the first to read.
        dtype: of the output, as "float32".
    """

    kind: str
    inputs: tuple[Shape, ...]
    output: Shape
    attributes: tuple[tuple[str, int], ...]
    dtype: str

    def attribute(self, name: str, default: int = 0) -> int:
        """The attribute's value, `default` where the operator has none of that name."""
        return dict(self.attributes).get(name, default)


Workload = tuple[Op, ...]
Cost = Callable[[Workload], float]

_KINDS = {
    "convolution": "conv",
    "addmm": "matmul",
    "mm": "matmul",
    "bmm": "matmul",
    "baddbmm": "matmul",
    "mv": "matmul",
    "addmv": "matmul",
    "dot": "matmul",
    "_native_batch_norm_legit": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "native_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm",
    "_fused_rms_norm": "rms_norm",
    "native_group_norm": "group_norm",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "_scaled_dot_product_efficient_attention": "attention",
    "_scaled_dot_product_flash_attention": "attention",
    "_scaled_dot_product_attention_math_for_mps": "attention",
    "_scaled_dot_product_cudnn_attention": "attention",
    "_scaled_dot_product_fused_attention_overrideable": "attention",
}
# They move no data: a deployed network does not spend time in them.
_FREE = frozenset(
    "view _unsafe_view reshape t transpose permute expand slice select unsqueeze squeeze alias detach "
    "split split_with_sizes unbind as_strided lift_fresh empty zeros ones full arange "
    "sym_size sym_numel sym_stride is_same_size _reshape_alias unflatten narrow".split()
)


def trace(model: nn.Module, *example: Tensor, live: bool = False) -> Workload:
    """The operators of `model(*example)` in eval mode, in order; the model is left as it was.

    `live` leaves out operators that no output depends on. A runtime that compiles the network does not run them.

    `example` gives shapes and dtypes, its values are not read. A model on a real device is traced through a
    shadow on the meta device that shares no memory with it. An elastic model is traced at the choices in
    force, and gives what its extracted network gives: selecting from a weight is no operator of that.
    Raises whatever the forward raises on meta tensors (a network whose shape depends on values cannot be
    traced).
    """
    parameters = {name: _shadow(p) for name, p in model.named_parameters()}
    shadows = {**parameters, **{name: _shadow(b) for name, b in model.named_buffers()}}
    modes = {module: module.training for module in model.modules()}
    recorder = _Recorder(list(parameters.values()))
    ghosts = tuple(map(_shadow, example))
    try:
        model.eval()
        with torch.no_grad(), recorder:
            result = torch.func.functional_call(model, shadows, ghosts)
    finally:
        for module, training in modes.items():
            module.training = training
    return recorder.live_ops(_leaves(result)) if live else tuple(recorder.ops)


def _shadow(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down each operator that reaches the dispatcher."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self.parameter_of = {id(p): p for p in parameters}  # of a parameter or a view of one
        self.unread = {id(p): p.numel() for p in parameters}
        self.regions: set[tuple[int, int, int]] = set()  # of parameters that were read
        self.views: list[Tensor] = []  # kept, so that no other tensor gets their ids
        self.flows: list[tuple[list[Tensor], list[Tensor]]] = []  # what each operator read and wrote

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _run(func, args, kwargs or {})
        name = func.overloadpacket.__name__.rstrip("_")
        read = list(_tensors(args))
        written = list(_tensors((result,)))
        parameter = self.parameter_of.get(id(read[0])) if read else None
        if parameter is not None and (name in _FREE or name == "index_select"):
            self.parameter_of.update((id(view), parameter) for view in written)
            self.views += written
        elif name not in _FREE and written:
            attributes = _GEOMETRY[name](args) if name in _GEOMETRY else ()
            if new := sum(map(self._first_read, read)):
                attributes += (("parameters", new),)
            kind = "conv_transpose" if name == "convolution" and args[6] else _KINDS.get(name, name)
            shapes = tuple(tuple(tensor.shape) for tensor in read)
            dtype = str(written[0].dtype).removeprefix("torch.")
            self.ops.append(Op(kind, shapes, tuple(written[0].shape), attributes, dtype))
            self.flows.append((read, written))
        return result

    def live_ops(self, outputs: Iterator[Tensor]) -> Workload:
        """The operators that the outputs depend on; a tensor and its views are one, as they share their storage."""
        needed, found = set(map(_storage, outputs)), list[Op]()
        for op, (read, written) in zip(reversed(self.ops), reversed(self.flows), strict=True):
            if needed.intersection(map(_storage, written)):
                needed.update(map(_storage, read))
                found.append(op)
        return tuple(reversed(found))

    def _first_read(self, tensor: Tensor) -> int:
        """How many entries of parameters are read here for the first time."""
        parameter = self.parameter_of.get(id(tensor))
        if parameter is None:
            return 0
        region = id(parameter), int(tensor.storage_offset()), tensor.numel()
        if region in self.regions:
            return 0
        self.regions.add(region)
        new = min(tensor.numel(), self.unread[id(parameter)])
        self.unread[id(parameter)] -= new
        return new


_META = torch.device("meta")


class _Spec(NamedTuple):
    """All that the meta device knows of a tensor."""

    shape: Shape
    stride: Shape
    dtype: torch.dtype


class _Number(NamedTuple):
    """A number that does not equal one of another type, as 1 equals 1.0 and True."""

    kind: type
    value: float


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """What `func` returns, remembered where possible: torch infers most shapes in slow Python code."""
    read = list(_tensors((args, tuple(kwargs.values()))))
    elsewhere = kwargs.get("device") not in (None, _META) or not all(tensor.is_meta for tensor in read)
    if not read or elsewhere or not _is_pure(func):
        return func(*args, **kwargs)
    return _decoded(_inferred(func, _encoded(args), tuple((k, _encoded(v)) for k, v in kwargs.items())))


@lru_cache(maxsize=1 << 16)
def _inferred(func: Any, args: Any, kwargs: Any) -> Any:
    return _encoded(func(*_decoded(args), **{key: _decoded(value) for key, value in kwargs}))


@cache
def _is_pure(func: Any) -> bool:
    """Whether an operator's results are new tensors, none of them a view or an argument."""
    schema = func._schema
    return not schema.is_mutable and not any(value.alias_info for value in (*schema.arguments, *schema.returns))


def _encoded(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Spec(tuple(value.shape), value.stride(), value.dtype)
    if type(value) in (float, bool):
        return _Number(type(value), value)
    return tuple(map(_encoded, value)) if isinstance(value, (list, tuple)) else value


def _decoded(value: Any) -> Any:
    if isinstance(value, _Spec):
        return torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device="meta")
    if isinstance(value, _Number):
        return value.value
    return tuple(map(_decoded, value)) if isinstance(value, tuple) else value


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _leaves(value: Any) -> Iterator[Tensor]:
    """All tensors in what a network returned."""
    yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _convolution(args: Any) -> tuple[tuple[str, int], ...]:
    """Geometry, from (input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)."""
    _, _, _, stride, padding, dilation, _, _, groups = args
    return ("stride", stride[0]), ("padding", padding[0]), ("dilation", dilation[0]), ("groups", groups)


def _pool(args: Any) -> tuple[tuple[str, int], ...]:
    """Geometry, from (input, kernel, stride, padding, ...); without a stride, it is the kernel."""
    kernel, stride, padding = [*args[1:4], [], []][:3]
    return ("kernel", kernel[0]), ("stride", (stride or kernel)[0]), ("padding", padding[0] if padding else 0)


_GEOMETRY = {"convolution": _convolution, "avg_pool2d": _pool, "max_pool2d_with_indices": _pool}


KINDS = ("pointwise", "depthwise", "convolution", "product", "other")
"""What `kind_of` tells apart: operators of one kind take time in proportion to their arithmetic and traffic, about."""


def kind_of(op: Op) -> str:
    """The one of `KINDS` that an operator belongs to."""
    if op.kind in ("matmul", "attention"):
        return "product"
    if op.kind not in ("conv", "conv_transpose"):
        return "other"
    if op.attribute("groups", 1) > 1:
        return "depthwise"
    return "pointwise" if math.prod(op.inputs[1][2:]) == 1 else "convolution"


def macs(workload: Workload) -> float:
    """Multiply-accumulates of convolutions, matrix products and attention; everything else counts nothing."""
    return float(sum(_op_macs(op) for op in workload))


def _op_macs(op: Op) -> int:
    if op.kind == "conv":
        return math.prod(op.output) * math.prod(op.inputs[1][1:])
    if op.kind == "conv_transpose":
        return math.prod(op.inputs[0]) * math.prod(op.inputs[1][1:])
    if op.kind == "matmul":
        return math.prod(op.output) * op.inputs[-2][-1]
    if op.kind == "attention":  # scores (N, heads, T, S), then the mixture (N, heads, T, head_dim)
        query, key = op.inputs[0], op.inputs[1]
        return (math.prod(query) + math.prod(op.output)) * key[-2]
    return 0


def parameters(workload: Workload) -> float:
    """Trainable parameters that the operators read, each counted once."""
    return float(sum(op.attribute("parameters") for op in workload))


def weight_bytes(workload: Workload) -> float:
    """Bytes of those parameters in the operators' dtypes."""
    return float(
        sum(
            op.attribute("parameters") * torch.empty(0, dtype=getattr(torch, op.dtype)).element_size()
            for op in workload
        )
    )
