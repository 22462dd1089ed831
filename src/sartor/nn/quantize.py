# SPDX-License-Identifier: Apache-2.0
"""Fake quantisers with straight-through gradients, whose bits may be searched: of weights and of activations.

Zhao, Wang, Bates, Mullins, Jamnik and Lio, "Learned Low Precision Graph Neural Networks", 2020, arXiv:2009.09232;
Bengio, Leonard and Courville, arXiv:1308.3432 (straight-through); Li, Zhang and Liu, "Ternary Weight Networks",
arXiv:1605.04711 (threshold and scale).

    bits = Choice([1, 2, 4, 8, 32], name="weight_bits")
    layer = quantized(nn.Linear(8, 4), bits)  # its weight
    net = nn.Sequential(layer, nn.ReLU(), Quantize(Choice([4, 8, 16])))  # an activation

32 bits and more are the float itself. Between 3 and 31 a number is in fixed point with i bits before the point and f
behind it, bits = i + f,

    q(x) = clip(round(x 2^f) / 2^f, -2^(i-1), 2^(i-1) - 2^-f),

half of them each unless `integer` says otherwise. 2 bits are ternary, s sign(x) where |x| > t, with t = 0.7 mean |x|
and s the mean of |x| beyond t; 1 bit is binary, sign(x) mean |x|. The gradient is 1 inside of the range (that of the
clip; [-1, 1] of the latter two) and 0 outside.

A soft choice gives the expectation over the options, of which those of weight 0 are not computed.

`Int8` is no fake: it stores 8 bits for each entry, for weights that are not trained any more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sartor.choice import Size
from sartor.nn.elastic import Elastic

__all__ = ["FLOAT", "FakeQuantize", "Int8", "Quantize", "quantized", "rounded"]

FLOAT = 32
_TERNARY = 0.7


def rounded(x: Tensor, bits: int, integer: int | None = None) -> Tensor:
    """Return `x` in `bits` bits, of x's shape and dtype, with straight-through gradients; see the module."""
    if bits >= FLOAT:
        return x
    if bits == 1:
        magnitude = x.detach().abs().mean()
        return _straight_through(torch.where(x >= 0, magnitude, -magnitude), x.clamp(-1, 1))
    if bits == 2:
        size = x.detach().abs()
        beyond = (size > _TERNARY * size.mean()).to(x.dtype)
        scale = (size * beyond).sum() / beyond.sum().clamp_min(1)
        return _straight_through(scale * beyond * x.sign(), x.clamp(-1, 1))
    before = (bits + 1) // 2 if integer is None else integer
    step, half = 2.0 ** (before - bits), 2.0 ** (before - 1)
    inside = x.clamp(-half, half - step)
    return _straight_through((inside / step).round() * step, inside)


def _straight_through(value: Tensor, passed: Tensor) -> Tensor:
    """Exactly `value`, with the gradient of `passed`."""
    return value.detach() + (passed - passed.detach())


class FakeQuantize(nn.Module):
    """x -> x in a constant number of bits, any shape; a layer, or a parametrization of one."""

    def __init__(self, bits: int, *, integer: int | None = None) -> None:
        super().__init__()
        _check(bits)
        self.bits, self.integer = bits, integer

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return rounded(x, self.bits, self.integer)

    def right_inverse(self, value: Tensor) -> Tensor:
        """Return what a tensor that is assigned is computed from: itself."""
        return value

    def extra_repr(self) -> str:
        """Return the bits."""
        return f"bits={self.bits}" + ("" if self.integer is None else f", integer={self.integer}")


class Quantize(Elastic):
    """x -> x in a searched number of bits, any shape; a layer, or a parametrization of one.

    Args:
        bits: in all, at least 1; a size searches them.
        integer: bits before the point, sign included, in fixed point; None is half of them.

    Raises ValueError for bits that are no positive ints.
    """

    def __init__(self, bits: int | Size, *, integer: int | None = None) -> None:
        super().__init__()
        for option in bits.options if isinstance(bits, Size) else (bits,):
            _check(option)
        self.bits, self.integer = bits, integer

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        bits = self.bits
        if not (isinstance(bits, Size) and bits.is_soft):
            return rounded(x, int(bits), self.integer)
        weights = bits.probabilities(x)
        total: Tensor | None = None
        for weight, option, chance in zip(weights, bits.options, weights.tolist(), strict=True):
            if chance != 0.0:
                term = weight * rounded(x, int(str(option)), self.integer)
                total = term if total is None else total + term
        if total is None:
            raise ValueError(f"all weights of {bits!r} are zero; at least one must be in force")
        return total

    def right_inverse(self, value: Tensor) -> Tensor:
        """Return what a tensor that is assigned is computed from: itself."""
        return value

    def expected_bits(self, like: Tensor) -> Tensor:
        """Return the expected number of bits under the choice in force, a scalar in `like`'s dtype and device."""
        if not isinstance(self.bits, Size):
            return like.new_tensor(float(self.bits))
        options = like.new_tensor([float(str(option)) for option in self.bits.options])
        return self.bits.probabilities(like) @ options

    def extract(self) -> FakeQuantize:
        """The quantiser of the bits in force."""
        return FakeQuantize(int(self.bits), integer=self.integer).train(self.training)


class Int8(nn.Module):
    """A parametrization that stores a tensor (R, ...) as int8 and a float scale (R, 1, ...), the absmax of a row / 127.

    Symmetric and by rows, which are the outputs of a linear layer; x is read as q s, and is off by s / 2 at most.
    """

    def forward(self, values: Tensor, scale: Tensor) -> Tensor:
        """int8 (R, ...) and its scale -> the tensor, in the scale's dtype."""
        return values.to(scale.dtype) * scale

    def right_inverse(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is stored of a tensor. A row of zeros has the scale 1."""
        largest = tensor.detach().abs().flatten(1).amax(1).view(-1, *[1] * (tensor.dim() - 1))
        scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        return (tensor.detach() / scale).round().to(torch.int8), scale


def quantized(layer: nn.Module, bits: int | Size, name: str = "weight", *, integer: int | None = None) -> nn.Module:
    """Quantise a parameter of a layer, in place; return the layer. Several layers may share a choice."""
    return parametrize.register_parametrization(layer, name, Quantize(bits, integer=integer))


def _check(bits: object) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool) or bits < 1:
        raise ValueError(f"a tensor cannot have {bits!r} bits: give a positive int, {FLOAT} for floating point")
