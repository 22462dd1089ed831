# SPDX-License-Identifier: Apache-2.0
"""A network twice, with one set of weights: to hold other options without another copy of the weights."""

from __future__ import annotations

import copy

from torch import nn

from sartor.supernet import named_choices

__all__ = ["twin"]


def twin(net: nn.Module) -> nn.Module:
    """Return a copy with choices of its own, named as those of `net`, and the same parameters and buffers."""
    found = copy.deepcopy(net, {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())})
    for name, choice in named_choices(found).items():
        choice.name = name
    return found
