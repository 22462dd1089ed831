"""Elastic normalisation. Statistics are those of the active slice, never of a zero-padded whole.

A batch norm treats each channel alone, so a soft width passes through it whole and is masked by the layer
that reads it. The others mix their channels: under a soft width they give, for each channel, the expectation
of their output over the options that keep it, so that the reader's mask (the chance that it is kept)
completes the expectation. Under `PerSample`, the statistics of a batch for a channel are those of the samples that keep
it: over all of them, zeros or channels that nobody reads would shift the mean and change the variance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sartor.choice import Size, extent, indices
from sartor.nn.elastic import Elastic, kept, plain
from sartor.nn.groups import lengths, width_of_groups

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "LayerNorm", "RMSNorm"]


class _BatchNorm(Elastic, torch.nn.modules.batchnorm._BatchNorm):
    """Batch norm over (N, num_features, ...): affine and running statistics of the active channels."""

    _elastic_kind: type[torch.nn.modules.batchnorm._BatchNorm]
    num_features: Any  # int | Size, where torch declares an int

    def __init__(
        self,
        num_features: int | Size,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(extent(num_features), eps, momentum, affine, track_running_stats, device, dtype)
        self.num_features = num_features

    def active(self) -> dict[str, Tensor | None]:
        """The active slice (num_features,) of each parameter and statistic; views for a prefix."""
        names = ("running_mean", "running_var", "weight", "bias")
        tensors = self.running_mean, self.running_var, self.weight, self.bias
        return dict(zip(names, kept(self.num_features, *tensors), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_features, ...) -> the same shape."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        momentum = self.momentum or 0.0
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        active = self.active()
        mean, var = active["running_mean"], active["running_var"]
        size = self.num_features
        if (self.training or mean is None) and isinstance(size, Size) and size.rows is not None:
            return self._over_those_that_keep(x, size.mask(x), momentum)
        out = F.batch_norm(x, **active, training=self.training or mean is None, momentum=momentum, eps=self.eps)
        if self.training and mean is not None and var is not None:
            self._write_back(mean, var)
        return out

    def _over_those_that_keep(self, x: Tensor, keeps: Tensor, momentum: float) -> Tensor:
        """Normalise (N, C, ...) by the statistics, per channel, of the samples for which `keeps` (N, C) is 1."""
        shape, dims = [1, -1, *[1] * (x.dim() - 2)], [0, *range(2, x.dim())]
        wide, mask = x.to(torch.promote_types(x.dtype, torch.float32)), keeps.view(*keeps.shape, *shape[2:])
        found = keeps.sum(0).to(wide) * (x[0, 0].numel())
        count = found.clamp_min(1)
        mean = (wide * mask).sum(dims) / count
        centred = wide - mean.view(shape)
        var = (centred.square() * mask).sum(dims) / count
        if self.training and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                step = momentum * (found > 0).to(self.running_mean)
                self.running_mean.lerp_(mean.to(self.running_mean), step)
                unbiased = var * count / (count - 1).clamp_min(1)
                self.running_var.lerp_(unbiased.to(self.running_var), step)
        scale = torch.where(found > 0, var + self.eps, 1.0).rsqrt()  # a channel that no sample keeps is read by none
        weight, bias = kept(self.num_features, self.weight, self.bias)
        out = centred * (scale if weight is None else scale * weight).view(shape)
        return (out if bias is None else out + bias.view(shape)).to(x.dtype)

    def _write_back(self, mean: Tensor, var: Tensor) -> None:
        """An index list selects copies; what the batch did to them goes back to the shared buffers."""
        value = self.num_features.hard if isinstance(self.num_features, Size) else None
        if isinstance(value, tuple) and self.running_mean is not mean:
            index = torch.tensor(indices(value), device=mean.device)
            for shared, selected in ((self.running_mean, mean), (self.running_var, var)):
                if shared is not None:
                    shared.index_copy_(0, index, selected)

    def extract(self) -> torch.nn.Module:
        """The plain layer over the active channels, statistics included."""
        tensors = {**self.active(), "num_batches_tracked": self.num_batches_tracked}
        return plain(self, self._elastic_kind, tensors, num_features=int(self.num_features))


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` whose `num_features` may be searched."""

    _elastic_kind = torch.nn.BatchNorm1d


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose `num_features` may be searched."""

    _elastic_kind = torch.nn.BatchNorm2d


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` whose `num_features` may be searched."""

    _elastic_kind = torch.nn.BatchNorm3d


def _mixed(size: Size, x: Tensor, dim: int, norm: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Per channel, the expectation of `norm(active channels, their indices)` over the options that keep the
    channel.

    `x` holds all channels along `dim`; each option's output is put back at its indices. Under `PerSample` each sample
    has that of its own option.
    """
    rows = size.rows
    weights = size.probabilities(x) if rows is None else _one_hot(rows, len(size.options), x)
    total = torch.zeros_like(x)
    for weight, option in zip(weights, size.options, strict=True):
        index = torch.tensor(size.kept_by(option), device=x.device)
        total = total.index_add(dim, index, weight * norm(x.index_select(dim, index), index))
    if rows is not None:
        return total
    chance = size.mask(x)
    shape = [1] * x.dim()
    shape[dim] = -1
    return total / torch.where(chance > 0, chance, 1.0).view(shape)


def _one_hot(rows: Tensor, options: int, like: Tensor) -> Tensor:
    """(options, N, 1, ...) whether each sample has each option, to be multiplied with `like`, (N, ...)."""
    return F.one_hot(rows, options).T.to(like).view(options, -1, *[1] * (like.dim() - 1))


class LayerNorm(Elastic, torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last dimension, whose size may be searched: (..., normalized_shape)."""

    normalized_shape: Any  # int | Size, where torch declares a tuple

    def __init__(
        self,
        normalized_shape: int | Size,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(extent(normalized_shape), eps, elementwise_affine, bias, device, dtype)
        self.normalized_shape = normalized_shape

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> the same shape, normalised over the active size."""
        size = self.normalized_shape
        if isinstance(size, Size) and size.is_soft:

            def norm(active: Tensor, index: Tensor) -> Tensor:
                weight, bias = _at(self.weight, index), _at(self.bias, index)
                return F.layer_norm(active, active.shape[-1:], weight, bias, self.eps)

            return _mixed(size, x, x.dim() - 1, norm)
        weight, bias = kept(size, self.weight, self.bias)
        return F.layer_norm(x, (int(size),), weight, bias, self.eps)

    def extract(self) -> torch.nn.LayerNorm:
        """The plain layer over the active size."""
        size = self.normalized_shape
        tensors = dict(zip(("weight", "bias"), kept(size, self.weight, self.bias), strict=True))
        return plain(self, torch.nn.LayerNorm, tensors, normalized_shape=(int(size),))


class RMSNorm(Elastic, torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last dimension, whose size may be searched: (..., normalized_shape)."""

    normalized_shape: Any  # int | Size, where torch declares a tuple

    def __init__(
        self,
        normalized_shape: int | Size,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(extent(normalized_shape), eps, elementwise_affine, device, dtype)
        self.normalized_shape = normalized_shape

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> the same shape, normalised over the active size."""
        size = self.normalized_shape
        if isinstance(size, Size) and size.is_soft:

            def norm(active: Tensor, index: Tensor) -> Tensor:
                return F.rms_norm(active, active.shape[-1:], _at(self.weight, index), self.eps)

            return _mixed(size, x, x.dim() - 1, norm)
        (weight,) = kept(size, self.weight)
        return F.rms_norm(x, (int(size),), weight, self.eps)

    def extract(self) -> torch.nn.RMSNorm:
        """The plain layer over the active size."""
        size = self.normalized_shape
        (weight,) = kept(size, self.weight)
        return plain(self, torch.nn.RMSNorm, {"weight": weight}, normalized_shape=(int(size),))


class GroupNorm(Elastic, torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` over (N, num_channels, ...): the channels, the number of groups, or both are
    searched.

    With an int `num_groups`, the active channels are divided into so many groups; with a size, groups of a
    constant width come and go whole. Raises ValueError when a combination of options does not divide.
    """

    num_groups: Any  # int | Size, where torch declares an int
    num_channels: Any

    def __init__(
        self,
        num_groups: int | Size,
        num_channels: int | Size,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(num_groups, Size):
            width_of_groups(num_channels, num_groups, "num_channels")
        for channels, groups in lengths(num_channels, num_groups):
            if channels % groups:
                raise ValueError(f"{channels} channels do not divide into {groups} groups; change the options")
        super().__init__(extent(num_groups), extent(num_channels), eps, affine, device, dtype)
        self.num_groups, self.num_channels = num_groups, num_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_channels, ...) -> the same shape, normalised in each active group."""
        size, groups = self.num_channels, self.num_groups
        if isinstance(groups, Size) and groups.is_soft:  # whole groups come and go: each keeps its statistics
            return F.group_norm(x, groups.extent, self.weight, self.bias, self.eps)
        if isinstance(size, Size) and size.is_soft:

            def norm(active: Tensor, index: Tensor) -> Tensor:
                return F.group_norm(active, int(groups), _at(self.weight, index), _at(self.bias, index), self.eps)

            return _mixed(size, x, 1, norm)
        weight, bias = kept(size, self.weight, self.bias)
        return F.group_norm(x, int(groups), weight, bias, self.eps)

    def extract(self) -> torch.nn.GroupNorm:
        """The plain layer over the active channels and groups."""
        size = self.num_channels
        tensors = dict(zip(("weight", "bias"), kept(size, self.weight, self.bias), strict=True))
        counts = {"num_groups": int(self.num_groups), "num_channels": int(size)}
        return plain(self, torch.nn.GroupNorm, tensors, **counts)


def _at(parameter: Tensor | None, index: Tensor) -> Tensor | None:
    return None if parameter is None else parameter[index]
