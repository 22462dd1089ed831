# SPDX-License-Identifier: Apache-2.0
"""Which layers of a network play a role, as the rules of its family say: its projections, the layers of its MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from sartor.adapt.huggingface import FAMILIES
from sartor.adapt.paths import found, number
from sartor.adapt.rules import Rule, Width, places

__all__ = ["Layers", "layers_of"]


@dataclass(frozen=True)
class Layers:
    """The layers of a role in one block, by path, in the order of the rule.

    count: how many units the width has, as the number of heads; None where every entry is one. fused: stretches that a
    maker puts one behind the other, as q, k, v.
    """

    block: str
    makes: tuple[str, ...]
    reads: tuple[str, ...]
    count: int | None
    fused: int


def layers_of(model: nn.Module, role: str, rules: Sequence[Rule] | None = None) -> list[Layers]:
    """The layers of a role ("heads", "mlp"), a list of blocks in the order of the network; the network is not changed.

    model: as it stands, elastic or not; elastic, `count` is the number in force. rules: of its family if None.
    Raises ValueError for a network whose family is not known.
    """
    rules = _rules_of(model) if rules is None else rules
    paths = dict(model.named_modules())
    there = []
    for rule in rules:
        for block in places(paths, rule) if isinstance(rule, Width) and rule.role == role else ():
            assert isinstance(rule, Width)
            makes, reads = (
                tuple(
                    path for one in patterns for path, _, tensor in found(paths, block, one.rstrip("?")) if not tensor
                )
                for patterns in (rule.makes, rule.reads)
            )
            if makes:
                count = number(paths, block, rule.count) if rule.count else None
                there.append(Layers(block, makes, reads, count, rule.fused))
    return there


def _rules_of(model: nn.Module) -> tuple[Rule, ...]:
    """Those of the family of transformers that the network, or the first part of it that has one, is of."""
    for module in model.modules():
        kind = getattr(getattr(module, "config", None), "model_type", None)
        if kind in FAMILIES:
            return FAMILIES[str(kind)]
    raise ValueError(
        f"{type(model).__name__} is of no known family of transformers; known are {', '.join(FAMILIES)}; give rules="
    )
