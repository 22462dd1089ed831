# SPDX-License-Identifier: Apache-2.0
"""Learned sparsity: each weight has a score, and the weights of the largest scores are kept.

Mousavi, Loni, Alibeigi and Daneshtalab, "DASS: Differentiable Architecture Search for Sparse Neural Networks", ACM TECS
22(5s), 2023, arXiv:2207.06968; Sehwag, Wang, Mittal and Jana, "HYDRA: Pruning Adversarially Robust Neural Networks",
NeurIPS 2020, arXiv:2002.10509 (scores, their initial values and the straight-through gradient).

    layer = sparsified(nn.Linear(64, 10), 0.05)  # its weight, of which 5 % are kept
    train([one.score for _, one, _ in parametrizations(net, TopK)])  # prune: which weights to keep
    train(originals(net))  # fine-tune: what they are

Of n weights exactly ceil(keep * n) are kept, those of the largest |score|; of equal ones the first. The forward pass
multiplies by the mask M; backward, dL/d|score| is dL/dM, so that scores of weights that are gone have a gradient and
can return. Scores begin as the weight times sqrt(6 / fan_in) / max |weight|. At keep = 1 the weight is passed on as it
is, and scores have no gradient.

`Masked` is the mask that others decide, see `sartor.nn.pruning`.

The share kept may be searched; a soft choice gives the expectation over the masks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sartor.choice import Size
from sartor.nn.elastic import Elastic, plain

__all__ = ["Masked", "Sparsify", "TopK", "mask_of", "sparsified"]


def mask_of(score: Tensor, keep: float) -> Tensor:
    """Return the mask of the ceil(keep * n) largest |score|, 0 or 1 in score's shape and dtype, with its gradient."""
    size = score.abs()
    flat = size.detach().flatten()
    count = _count(keep, flat.numel())
    threshold = flat.kthvalue(flat.numel() - count + 1).values
    above, equal = flat > threshold, flat == threshold
    kept = above | (equal & (equal.cumsum(0) <= count - above.sum()))
    return kept.view_as(score).to(score.dtype) + (size - size.detach())


class TopK(nn.Module):
    """weight -> weight where its score is among the largest, and 0 elsewhere: a parametrization.

    Args:
        weight: what it is for, (out, in, ...); it decides the shape and first values of the scores.
        keep: share of the weights, above 0 and at most 1.

    Raises ValueError for another share.
    """

    keep: float | Size
    score: nn.Parameter

    def __init__(self, weight: Tensor, keep: float) -> None:
        super().__init__()
        _check(keep)
        self.keep = keep
        self.score = nn.Parameter(_scaled(weight.detach()))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight's shape -> the same shape."""
        return _masked(weight, self.score, _number(self.keep))

    def right_inverse(self, value: Tensor) -> Tensor:
        """Return what a tensor that is assigned is computed from: itself."""
        return value

    def mask(self) -> Tensor:
        """The mask in force, 0 or 1 in the weight's shape, without a gradient. Raises ValueError when it is soft."""
        keep = self.keep.value if isinstance(self.keep, Size) else self.keep
        return mask_of(self.score.detach(), _number(keep))

    def extra_repr(self) -> str:
        """Return the share."""
        return f"keep={self.keep}"


class Masked(nn.Module):
    """weight -> weight where the mask is 1, and 0 elsewhere: a mask that is set, not learned; ones at first.

    Weights that are masked have no gradient, but keep their values, which can return.
    """

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, requires_grad=False))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight's shape -> the same shape."""
        return weight * self.mask

    def right_inverse(self, value: Tensor) -> Tensor:
        """Return what a tensor that is assigned is computed from: itself."""
        return value


class Sparsify(Elastic, TopK):
    """`TopK` whose share may be searched: `keep` is a float or a size of floats."""

    def __init__(self, weight: Tensor, keep: float | Size) -> None:
        nn.Module.__init__(self)
        for option in keep.options if isinstance(keep, Size) else (keep,):
            _check(option)
        self.keep = keep
        self.score = nn.Parameter(_scaled(weight.detach()))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight's shape -> the same shape."""
        keep = self.keep
        if not isinstance(keep, Size):
            return _masked(weight, self.score, keep)
        if not keep.is_soft:
            return _masked(weight, self.score, _number(keep.value))
        weights = keep.probabilities(weight)
        parts = zip(weights, keep.options, weights.tolist(), strict=True)
        terms = [w * _masked(weight, self.score, _number(option)) for w, option, chance in parts if chance != 0.0]
        if not terms:
            raise ValueError(f"all weights of {keep!r} are zero; at least one must be in force")
        return torch.stack(terms).sum(0)

    def extract(self) -> nn.Module:
        """The mask of the share in force, with a copy of the scores."""
        keep = self.keep.value if isinstance(self.keep, Size) else self.keep
        return plain(self, TopK, {"score": self.score}, keep=keep)


def sparsified(layer: nn.Module, keep: float | Size, name: str = "weight") -> nn.Module:
    """Mask a parameter of a layer, in place; return the layer. Several layers may share a choice."""
    weight = getattr(layer, name)
    return parametrize.register_parametrization(layer, name, Sparsify(weight, keep))


def _masked(weight: Tensor, score: Tensor, keep: float) -> Tensor:
    return weight if keep == 1 else weight * mask_of(score, keep)


def _count(keep: float, total: int) -> int:
    """ceil(keep * total), not one more where the product of floats is a hair above a whole number."""
    return min(total, max(1, math.ceil(keep * total - 1e-9 * total)))


def _scaled(weight: Tensor) -> Tensor:
    """HYDRA's first scores, proportional to the weights and as large as He's uniform weights."""
    fan_in = weight[0].numel() if weight.dim() > 1 else weight.numel()
    return weight * (math.sqrt(6 / fan_in) / weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny))


def _check(keep: object) -> None:
    if not isinstance(keep, (int, float)) or isinstance(keep, bool) or not 0 < keep <= 1:
        raise ValueError(f"a share of {keep!r} of the weights cannot be kept: give more than 0 and at most 1")


def _number(keep: object) -> float:
    assert isinstance(keep, (int, float))
    return float(keep)
