# SPDX-License-Identifier: Apache-2.0
"""Self-attention relations: how the tokens of a text are related by the queries, keys and values of a layer.

Wang, Bao, Huang, Dong and Wei, "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
Transformers", Findings of ACL 2021, arXiv:2012.15828; as AutoDistil uses them. A relation is a matrix over tokens, so
that networks of any widths can be compared by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.adapt.layers import layers_of
from sartor.adapt.rules import Rule

__all__ = ["Form", "Projections", "relation_loss", "relations", "scores"]

Form = Literal["kl", "mse"]
"""How relations are compared: "kl", the paper's divergence of softmax rows; "mse", the code's squared difference of raw
scores."""

_HIDDEN = -1e4
"""The score of a key that is a pad: its exponential is 0, and a difference of two of them as well."""


class Projections:
    """The queries, keys and values of the last self-attention that runs in a pass of a network.

    Where a depth is searched that is the last block in force, as blocks run in order. Found by the rules of the
    network's family (`adapt.layers_of`), or by others. Raises ValueError for a network in which they find none.
    """

    def __init__(self, model: nn.Module, rules: Sequence[Rule] | None = None) -> None:
        self.blocks: list[list[nn.Module]] = []
        for one in layers_of(model, "heads", rules):
            makers = [model.get_submodule(path) for path in one.makes]
            linear = [layer for layer in makers if not isinstance(layer, nn.Embedding)]
            if one.fused == 3 or len(linear) >= 3:
                self.blocks.append(linear[: 1 if one.fused == 3 else 3])
                self.heads = one.count or 1
        if not self.blocks:
            raise ValueError(f"{type(model).__name__} has no queries, keys and values that a rule finds: give rules=")

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """A list that after a pass in the block holds Q, K and V, (N, T, D) each. No hook stays behind."""
        made: list[Tensor] = []

        def keep(place: int) -> Any:
            def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
                parts = list(output.chunk(3, -1)) if len(self.blocks[0]) == 1 else [output]
                made[place : place + len(parts)] = parts  # of a later block: in the place of an earlier one's

            return hook

        hooks = [layer.register_forward_hook(keep(i)) for block in self.blocks for i, layer in enumerate(block)]
        try:
            yield made
        finally:
            for hook in hooks:
                hook.remove()


def scores(x: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """(N, heads, T, T) x x^T / sqrt(d) of the d entries of each relation head, in float32.

    x: (N, T, D), the heads of a layer one behind the other, which are split anew into `heads` parts. Of D entries that
    do not divide, the first heads have one more. mask: (N, T), False where a token is a pad: as a key it scores -1e4.
    Raises ValueError for fewer entries than heads.
    """
    each, more = divmod(x.shape[-1], heads)
    if not each:
        raise ValueError(f"{x.shape[-1]} entries cannot be split into {heads} relation heads: give fewer heads")
    x, cut, (samples, tokens) = x.float(), more * (each + 1), x.shape[:2]
    longer = x[..., :cut].reshape(samples, tokens, more, each + 1).transpose(1, 2)
    others = x[..., cut:].reshape(samples, tokens, heads - more, each).transpose(1, 2)
    products = [part @ part.mT / math.sqrt(part.shape[-1]) for part in (longer, others) if part.shape[1]]
    found = torch.cat(products, 1) if len(products) > 1 else products[0]
    return found if mask is None else found.masked_fill(~mask[:, None, None, :], _HIDDEN)


def relations(x: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """(N, heads, T, T) R = softmax(x x^T / sqrt(d)), each row of sum 1; arguments and errors as of `scores`."""
    return scores(x, heads, mask).softmax(-1)


def relation_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], heads: int, mask: Tensor | None = None, form: Form = "kl"
) -> Tensor:
    """How far the relations of a student are from its teacher's, summed over Q, K and V, each of weight 1.

    "kl": 1 / (heads * tokens) times the sum over heads and tokens of KL(R_teacher || R_student), in nats, pads not
    counted. "mse": the mean squared difference of the scores of all pairs, those of a key that is a pad being 0.

    student, teacher: Q, K, V of (N, T, D), the widths of any size. Raises ValueError as `scores`.
    """
    total = torch.zeros((), device=student[0].device)
    for own, other in zip(student, teacher, strict=True):
        s, t = scores(own, heads, mask), scores(other.detach(), heads, mask)
        if form == "mse":
            total = total + F.mse_loss(s, t)
            continue
        rows = F.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="none", log_target=True).sum(-1).mean(1)
        total = total + (rows.mean() if mask is None else rows[mask].mean())
    return total
