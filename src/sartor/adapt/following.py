# SPDX-License-Identifier: Apache-2.0
"""What a configuration says of each block, following a searched depth.

A decoder may look up by the place of a block in its list what kind of attention the block has, and so does its
key-value cache. Where blocks are left out, both must find the kinds of those that run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex, cast

from torch import nn

from sartor.choice import Size, indices

__all__ = ["Following", "follow"]


class Following(list[Any]):
    """A list of which only the entries of the blocks in force are seen; written to a file, it is the whole list."""

    def __init__(self, whole: Sequence[Any], depth: Size) -> None:
        super().__init__(whole)
        self.depth = depth

    def _here(self) -> list[Any]:
        return [list.__getitem__(self, i) for i in indices(self.depth.value)]

    def __getitem__(self, place: SupportsIndex | slice) -> Any:
        return self._here()[place]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._here())

    def __len__(self) -> int:
        return len(self._here())

    def __contains__(self, entry: object) -> bool:
        return entry in self._here()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _copied, ([list.__getitem__(self, i) for i in range(list.__len__(self))], self.depth)


def follow(network: nn.Module, owner: nn.Module, name: str, depth: Size) -> None:
    """Let a list of the configuration of `owner` follow a depth, if it has one; others that share it keep theirs."""
    config = getattr(owner, "config", None)
    whole = getattr(config, name, None)
    if not isinstance(whole, list) or len(whole) != depth.extent:
        return
    new = copy.copy(config)
    setattr(new, name, Following(whole, depth))
    for module in network.modules():
        if vars(module).get("config") is config:
            module.config = cast(Any, new)


def _copied(whole: list[Any], depth: object) -> list[Any]:
    """A copy; of an extracted network, in which the depth is a value, the plain list of what is left."""
    if isinstance(depth, Size):
        return Following(whole, depth)
    return [whole[i] for i in indices(cast(Any, depth))]
