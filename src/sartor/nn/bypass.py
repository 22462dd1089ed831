# SPDX-License-Identifier: Apache-2.0
"""Channel-level bypass: what no filter computes of a layer's output is its input, so that depth is a case of width.

Yang, Liao and Sze, "NetAdaptV2: Efficient Neural Architecture Search with Fast Super-Network Training and Architecture
Optimization", CVPR 2021, arXiv:2104.00031.

    filters = Filters([0, 8, 16, 32])  # M
    branch = nn.Sequential(Conv2d(16, filters, 3, padding="same"), BatchNorm2d(filters), nn.ReLU())
    layer = Bypass(branch, 16, filters)
    head = Conv2d(layer.width, 10, 1)

Output channel k is filter k for k < M, and input channel k for M <= k < C: max(C, M) channels. With M = 0 the layer is
the identity, with M >= C it is the branch. A layer of stride s passes its input on through an average pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Option
from sartor.choice import Choice, Size
from sartor.nn.elastic import Elastic
from sartor.sizes import indices

__all__ = ["Bypass", "Bypassed", "Filters", "Widest"]


class Filters(Choice):
    """A number of filters, of which 0 leaves out the branch of the `Bypass` that it is given to.

    Raises ValueError for what is no int from 0 on, and where 0 is the only option.
    """

    def __init__(self, options: Sequence[int], *, name: str | None = None) -> None:
        super().__init__(options, name=name)
        if not all(type(option) is int and option >= 0 for option in self.options) or not any(self.options):
            raise ValueError(f"filters {self.options} must be ints from 0 on, and not 0 alone")

    def kept_by(self, option: Option) -> Sequence[int]:
        """The indices that an option keeps; none for 0."""
        return () if option == 0 else indices(option)


class Widest(Size):
    """The largest of widths that share no choice: unlike a `Derived`, without a table over all combinations.

    Raises ValueError for a width that is no int, and where two share a choice.
    """

    def __init__(self, *widths: int | Size) -> None:
        self.widths = widths
        self.roots = tuple(root for width in widths if isinstance(width, Size) for root in width.roots)
        if len(set(map(id, self.roots))) < len(self.roots):
            raise ValueError(
                f"{widths} share a choice: only of independent widths is the largest known without a table"
            )
        each = [_numbers(width) for width in widths]
        floor = max(map(min, each))
        self.options = tuple(sorted({number for numbers in each for number in numbers if number >= floor}))

    @property
    def value(self) -> Option:
        """The largest width in force. Raises ValueError when one is soft."""
        if self.is_soft:
            raise ValueError(f"{self!r} is soft: it has weights, no single value")
        return self.hard

    @property
    def hard(self) -> Option:
        """The largest width in force, None when one is soft."""
        found = [width.hard if isinstance(width, Size) else width for width in self.widths]
        return None if any(one is None for one in found) else _largest(*found)

    @property
    def weights(self) -> Tensor | None:
        """(num_options,) probability of each option, from P(all widths <= option); None when all are hard."""
        soft = next((w for one in self.widths if isinstance(one, Size) and (w := one.weights) is not None), None)
        if soft is None:
            return None
        below = soft.new_ones(len(self.options))
        for width in self.widths:
            numbers = soft.new_tensor(_numbers(width))
            chance = width.probabilities(soft) if isinstance(width, Size) else soft.new_ones(1)
            reached = (numbers <= soft.new_tensor(self.options)[:, None]).to(soft)  # (options, options of width)
            below = below * (reached @ chance)
        return torch.cat((below[:1], below[1:] - below[:-1]))

    @property
    def rows(self) -> Tensor | None:
        """(N,) position of each sample's largest width under `PerSample` of any, else None."""
        found = [width.rows if isinstance(width, Size) else None for width in self.widths]
        some = next((rows for rows in found if rows is not None), None)
        if some is None:
            return None
        largest = torch.zeros_like(some)
        for width, rows in zip(self.widths, found, strict=True):
            if rows is None:
                fixed = width.value if isinstance(width, Size) else width
                largest = largest.clamp_min(_largest(fixed))
            else:
                largest = largest.maximum(some.new_tensor(_numbers(width))[rows])
        return torch.searchsorted(some.new_tensor(self.options), largest)

    def evaluate(self, lookup: Callable[[Choice], Option]) -> Option:
        """The largest width when every choice holds `lookup(choice)`."""
        return _largest(*(one.evaluate(lookup) if isinstance(one, Size) else one for one in self.widths))

    def __repr__(self) -> str:
        return f"Widest({' | '.join(map(repr, self.options))})"


class Bypassed(nn.Module):
    """The plain form of a `Bypass`: the channels of `branch`, then those of the input that lie behind them.

    (N, C, H, W) -> (N, max(C, M), H', W'), M the width of the branch.
    """

    def __init__(self, branch: nn.Module, filters: int, stride: int) -> None:
        super().__init__()
        self.branch, self.filters, self.skip = branch, filters, _skip(stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, max(C, M), H', W')."""
        passed = self.skip(x[:, self.filters :])  # pooled: what is passed on, and nothing else
        return torch.cat((self.branch(x), passed), 1)


class Bypass(Elastic):
    """A branch of M filters, and its input where there is no filter: (N, C, H, W) -> (N, `width`, H', W').

    Args:
        branch: (N, C, H, W) -> (N, M, H', W'), elastic layers of stride `stride` that keep the map's size otherwise.
        in_channels: C, an int or a size of ints.
        filters: M, a choice of numbers of filters; with 0 among them, the layer may be left out.
        stride: of the branch; what is passed on is averaged over as many pixels.

    `width` is max(C, M), for whoever reads the layer.
    Raises ValueError where C and M share a choice.
    """

    def __init__(self, branch: nn.Module, in_channels: int | Size, filters: Choice, stride: int = 1) -> None:
        super().__init__()
        self.in_channels, self.filters, self.stride = in_channels, filters, stride
        self.width = Widest(in_channels, filters)
        self.branch, self.skip = branch, _skip(stride)

    def gates(self) -> list[tuple[str, Size, tuple[Option, ...]]]:
        """The branch, and the numbers of filters under which it is part of the network."""
        return [("branch", self.filters, tuple(option for option in self.filters.options if option))]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, max(C, M), H', W')."""
        if self.width.hard is None:
            return self._masked(x)
        filters = int(self.filters)
        if filters == 0:
            return self.skip(x)  # type: ignore[no-any-return]
        if filters < x.shape[1]:
            return torch.cat((self.branch(x), self.skip(x[:, filters:])), 1)
        return self.branch(x)  # type: ignore[no-any-return]

    def _masked(self, x: Tensor) -> Tensor:
        """Under soft sizes: per channel the expectation over the options that keep it, as its reader masks it.

        Filter k is there with chance m_k, and without it input channel k with chance c_k; the reader masks by
        P(max(C, M) > k) = m_k + (1 - m_k) c_k. Per sample, chances are 0 or 1.
        """
        passed = self.skip(x)
        m, c = (_widened(_chances(size, x), self.width.extent) for size in (self.filters, self.in_channels))
        c = (1 - m) * c
        kept = torch.where(m + c > 0, m + c, 1.0)
        shape = (-1, self.width.extent, *[1] * (x.dim() - 2))
        out = _widened(passed, self.width.extent) * (c / kept).view(shape)
        if self.filters.hard == 0:
            return out
        return out + _widened(self.branch(x), self.width.extent) * (m / kept).view(shape)

    def extract(self) -> nn.Module:
        """The pool or identity, the branch, or both, at the sizes in force."""
        filters = int(self.filters)
        if filters == 0:
            return self.skip
        if filters < int(self.in_channels):
            return Bypassed(self.branch, filters, self.stride)
        return self.branch


def _skip(stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 else nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)


def _widened(x: Tensor, channels: int) -> Tensor:
    """(N, C, ...) -> (N, channels, ...), zeros behind."""
    missing = channels - x.shape[1]
    return x if missing == 0 else F.pad(x, [0, 0] * (x.dim() - 2) + [0, missing])


def _chances(size: int | Size, like: Tensor) -> Tensor:
    """(1, C), or (N, C) under `PerSample`: the chance that each channel is there."""
    return size.mask(like).view(-1, size.extent) if isinstance(size, Size) else like.new_ones(1, size)


def _numbers(width: int | Size) -> list[int]:
    return [_largest(option) for option in width.options] if isinstance(width, Size) else [width]


def _largest(*widths: Option) -> int:
    numbers = [width for width in widths if isinstance(width, int)]
    if len(numbers) < len(widths):
        raise ValueError(f"{widths} are not all ints: a bypass keeps the first channels, not a list of them")
    return max(numbers)
