# SPDX-License-Identifier: Apache-2.0
"""Making a layer elastic where it stands: the same object, the same parameters, sizes where it had ints."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from sartor.choice import Size
from sartor.nn.conv import Conv1d, Conv2d, Conv3d
from sartor.nn.elastic import Elastic
from sartor.nn.linear import Embedding, Linear
from sartor.nn.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, LayerNorm, RMSNorm
from sartor.nn.sized import Axis, Sized, sized

__all__ = ["Role", "adopt", "is_searched", "length"]

Role = Literal["makes", "reads", "follows", "gates"]
"""What a layer does with a width: make it, read it, treat each of its entries alone (a norm, a depthwise layer), or
read it only to compute gates of the same width."""

_ELASTIC: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear, nn.Embedding: Embedding, nn.LayerNorm: LayerNorm, nn.RMSNorm: RMSNorm,
    nn.Conv1d: Conv1d, nn.Conv2d: Conv2d, nn.Conv3d: Conv3d, nn.GroupNorm: GroupNorm,
    nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d,
}  # fmt: skip
_SIZES: dict[type[nn.Module], dict[Role, tuple[str, ...]]] = {
    Linear: {"makes": ("out_features",), "reads": ("in_features",)},
    Embedding: {"makes": ("embedding_dim",)},
    LayerNorm: {"follows": ("normalized_shape",)},
    RMSNorm: {"follows": ("normalized_shape",)},
    GroupNorm: {"follows": ("num_channels",)},
    **{norm: {"follows": ("num_features",)} for norm in (BatchNorm1d, BatchNorm2d, BatchNorm3d)},
    **{
        conv: {
            "makes": ("out_channels",),
            "reads": ("in_channels",),
            "follows": ("in_channels", "out_channels", "groups"),
        }
        for conv in (Conv1d, Conv2d, Conv3d)
    },
}


def adopt(layer: nn.Module, role: Role, size: Size, tensor: str | None = None) -> nn.Module:
    """Let one side of a layer follow a size, in place; return the layer.

    Layers of `torch.nn` become those of `sartor.nn`; others keep their class and read slices, see `nn.sized`. A layer
    whose other side follows a size already keeps that.

    role: which side. tensor: a parameter of the module's own to slice, instead of the layer's weights: the dimension of
    it that is as long as the size.
    Raises ValueError for a layer that has no such side, or one of another length, and for a grouped convolution.
    """
    if role == "gates":
        adopted = adopt(layer, "reads", size, tensor)
        vars(adopted)["_elastic_gate"] = True
        return adopted
    if tensor is not None:
        return sized(layer, [Axis(tensor, _dimension(layer, tensor, size), size, _axis_role(role))])
    if (found := length(layer, role)) != size.extent:
        raise ValueError(f"{_side(layer, role)} is {found} long, the size {size.extent}")
    kind = _ELASTIC.get(type(layer))
    if kind is not None:
        layer.__class__ = kind
    if type(layer) not in _SIZES:
        return sized(layer, _axes(layer, role, size), _counts(layer, role, size))
    names = _SIZES[type(layer)][role]
    for name in names:
        if isinstance(getattr(layer, name), Size):
            raise ValueError(f"{type(layer).__name__}.{name} follows a size already: one rule for each side")
        setattr(layer, name, size)
    if isinstance(layer, Conv1d | Conv2d | Conv3d):
        _complete(layer, role, size)
    return layer


def length(layer: nn.Module, role: Role) -> int:
    """How long a side of a layer is. Raises ValueError for a layer that has no such side."""
    role = "reads" if role == "gates" else role
    names = _SIZES.get(_ELASTIC.get(type(layer), type(layer)), {}).get(role)
    if names is not None:
        if isinstance(layer, nn.modules.conv._ConvNd):
            _check_groups(layer, role)
        value = getattr(layer, names[0])
        if isinstance(value, Size):
            return value.extent
        return int(value[-1]) if isinstance(value, tuple) else int(value)
    if type(layer) in _ELASTIC.values() or type(layer) in _ELASTIC:
        raise ValueError(f"{_side(layer, role)} is none: a {type(layer).__name__} {_what(layer)} widths")
    tensor, dim = _foreign(layer, role)
    whole = layer.whole(tensor) if isinstance(layer, Sized) else getattr(layer, tensor)
    return int(whole.shape[dim])


def is_searched(layer: nn.Module, role: Role, tensor: str | None = None) -> bool:
    """Whether a side of a layer, or a tensor of its own, follows a size already."""
    role = "reads" if role == "gates" else role
    if tensor is None and type(layer) in _SIZES:
        return any(isinstance(getattr(layer, name), Size) for name in _SIZES[type(layer)].get(role, ()))
    if not isinstance(layer, Sized):
        return False
    name, dim = (tensor, None) if tensor is not None else _foreign(layer, role)
    return any(one.tensor == name and dim in (None, one.dim) for one in layer.axes)


def _check_groups(layer: nn.modules.conv._ConvNd, role: Role) -> None:
    depthwise = layer.groups == layer.in_channels == layer.out_channels
    if role == "follows" and not depthwise:
        raise ValueError("a convolution that is not depthwise mixes channels: it makes or reads a width")
    groups: object = layer.groups  # a size where the layer is elastic
    if role != "follows" and groups != 1:
        raise ValueError(f"a convolution of {layer.groups} groups keeps its channels in their groups: leave it whole")


def _complete(layer: Conv1d | Conv2d | Conv3d, role: Role, size: Size) -> None:
    """Set what elastic convolutions hold beside what torch's do."""
    if role == "follows":
        layer._elastic_inputs = layer._elastic_outputs = 1
    else:
        layer._elastic_inputs, layer._elastic_outputs = layer.in_channels, layer.out_channels


def _foreign(layer: nn.Module, role: Role) -> tuple[str, int]:
    """The tensor of a layer of an unknown class that tells the length of a side, and the dimension."""
    weight = layer._parameters.get("weight")
    if weight is None:
        raise ValueError(f"a {type(layer).__name__} has no weight: name the parameters that follow")
    if weight.dim() == 1 and role == "follows":
        return "weight", 0
    if isinstance(layer, nn.Embedding) and role == "makes":
        return "weight", 1
    if weight.dim() == 2 and role in ("makes", "reads"):
        made = 1 if _is_transposed(layer) else 0
        return "weight", made if role == "makes" else 1 - made
    raise ValueError(f"a {type(layer).__name__} {_what(layer)}: it cannot be said how it {role} a width")


def _axes(layer: nn.Module, role: Role, size: Size) -> list[Axis]:
    tensor, dim = _foreign(layer, role)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # of a class of its own: it treats each channel alone
        names = ("weight", "bias", "running_mean", "running_var")
        held = {**layer._parameters, **layer._buffers}
        return [Axis(name, 0, size, "makes") for name in names if held.get(name) is not None]
    bias = [Axis("bias", 0, size, _axis_role(role))] if layer._parameters.get("bias") is not None else []
    return [Axis(tensor, dim, size, _axis_role(role)), *(bias if role != "reads" else [])]


def _counts(layer: nn.Module, role: Role, size: Size) -> dict[str, Size]:
    """The ints by which layers of unknown classes keep their sizes."""
    made, read = ("nf", "out_features", "embedding_dim"), ("nx", "in_features")
    names = {"makes": made, "reads": read, "follows": ("num_features",)}[role]
    counts = {name: size for name in names if type(vars(layer).get(name)) is int}
    shape = vars(layer).get("normalized_shape") if role == "follows" else None
    return {**counts, "normalized_shape": size} if isinstance(shape, tuple) and len(shape) == 1 else counts


def _is_transposed(layer: nn.Module) -> bool:
    """Whether the weight is (in, out), as in the linear layers of GPT-2."""
    return {"nf", "nx"} <= {*vars(layer)} or (isinstance(layer, Sized) and {"nf", "nx"} <= {*dir(layer)})


def _axis_role(role: Role) -> Literal["makes", "reads", "mixes"]:
    return "mixes" if role == "follows" else "makes" if role == "makes" else "reads"


def _dimension(layer: nn.Module, tensor: str, size: Size) -> int:
    whole = layer.whole(tensor) if isinstance(layer, Sized) else layer._parameters.get(tensor)
    if not isinstance(whole, torch.Tensor):
        raise ValueError(f"a {type(layer).__name__} has no parameter {tensor!r}")
    fitting = [dim for dim, extent in enumerate(whole.shape) if extent == size.extent]
    if not fitting:
        raise ValueError(f"no dimension of {tensor}, {tuple(whole.shape)}, is {size.extent} long, as the size is")
    return fitting[-1]


def _side(layer: nn.Module, role: Role) -> str:
    return f"what {type(layer).__name__} {role}"


def _what(layer: nn.Module) -> str:
    return "is elastic" if isinstance(layer, Elastic) else "has weights of another form"
