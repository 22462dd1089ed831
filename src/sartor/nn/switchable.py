# SPDX-License-Identifier: Apache-2.0
"""Batch norms of which each of several sub-networks has its own.

Yu, Yang, Xu, Yang and Huang, "Slimmable Neural Networks", ICLR 2019, arXiv:1812.08928: the mean and the variance of a
feature change with the widths of the layers before it, so that statistics of one width are wrong for another.
"""

from __future__ import annotations

import copy

from torch import nn

from sartor.choice import Choice
from sartor.nn.containers import OneOf

__all__ = ["SwitchableBatchNorm", "with_private_norms"]


class SwitchableBatchNorm(OneOf):
    """(N, C, ...) -> the same shape: a batch norm for each option of a choice, all copies of one at first."""

    def __init__(self, norm: nn.Module, switch: Choice) -> None:
        features = norm.num_features
        super().__init__({str(option): copy.deepcopy(norm, {id(features): features}) for option in switch.options})
        self.choice = switch


def with_private_norms(net: nn.Module, switch: Choice) -> nn.Module:
    """Put a batch norm for each option of a choice in place of every one, in place; return the network.

    switch: its options are strings, each the name of a sub-network; it becomes a choice of the network.
    Raises ValueError for options that cannot be names of modules, and where there is no batch norm.
    """
    if not all(isinstance(option, str) and option and "." not in option for option in switch.options):
        raise ValueError(f"the options {switch.options} name modules: give strings without a dot")
    banks: dict[int, SwitchableBatchNorm] = {}
    for parent in list(net.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                parent._modules[name] = banks.setdefault(id(child), SwitchableBatchNorm(child, switch))
    if not banks:
        raise ValueError("the network has no batch norm: there is nothing to keep for each sub-network")
    return net
