# SPDX-License-Identifier: Apache-2.0
"""How BossNAS rates the paths of a block, and what follows from the ratings of all blocks."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture, Option
from sartor.oneshot.bossnas_part import Blocks, Side
from sartor.supernet import activated, recalibrate_batchnorm

__all__ = ["Ratings", "rate", "regression"]


def regression(predictions: Tensor, goals: Tensor) -> Tensor:
    """Return BYOL's loss, 2 - 2 cos, as a mean over (N, features); from 0 to 4."""
    return 2 - 2 * F.cosine_similarity(predictions, goals, dim=1).mean()


@torch.no_grad()
def rate(online: Side, target: Side, legal: Sequence[Architecture], views: Sequence[Tensor]) -> list[float]:
    """Return the loss of each path against the population centre, of both views together; lower is better.

    views: pairs of views of a batch, one after the other; with the first pair the batch norms are re-estimated for
    each path and in both supernets, on the others paths are rated. What norms have tracked is put back afterwards.
    """
    with _statistics_kept(online), _statistics_kept(target):
        fronts = [_evaluated(side.prefix, side.net, legal[0], views, views[:2]) for side in (online, target)]
        outputs, centre = list[list[Tensor]](), [torch.zeros((), dtype=torch.float64)] * (len(views) - 2)
        for arch in legal:
            predictions, projections = (
                _evaluated(side.tower, side.net, arch, x[2:], x[:2])
                for side, x in zip((online, target), fronts, strict=True)
            )
            outputs.append(predictions)
            centre = [total.to(one.device) + one for total, one in zip(centre, projections, strict=True)]
    goals = [(total / len(legal)).float() for total in centre]
    return [_against(predictions, goals) for predictions in outputs]


def _evaluated(
    module: nn.Module, net: nn.Module, arch: Architecture, inputs: Sequence[Tensor], calibration: Sequence[Tensor]
) -> list[Tensor]:
    """Return outputs in eval mode, with statistics of the calibration inputs."""
    with activated(net, arch):
        recalibrate_batchnorm(module, calibration)
        module.eval()
        outputs = [module(x) for x in inputs]
        module.train()
    return outputs


def _against(predictions: Sequence[Tensor], goals: Sequence[Tensor]) -> float:
    """Return the loss of predictions from one view against the goals of the other; views alternate."""
    losses = [regression(one, goals[place ^ 1]) for place, one in enumerate(predictions)]
    return float(torch.stack(losses).sum()) * 2 / len(losses)


@contextlib.contextmanager
def _statistics_kept(side: Side) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for module in (side.prefix, side.tower) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


class Ratings:
    """The losses of the paths of the blocks that are done, and the best path of each."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.losses: list[dict[Architecture, float]] = []
        self.best: list[Architecture] = []

    def append(self, losses: Mapping[Architecture, float]) -> None:
        """Take in the ratings of the next block; its best path is from now on in front of the others."""
        self.losses.append(dict(losses))
        self.best.append(min(losses, key=losses.__getitem__))

    def score(self, arch: Mapping[str, Option]) -> float:
        """Return the sum of an architecture's block losses; ValueError for a path that was never rated."""
        total = 0.0
        for index, losses in enumerate(self.losses):
            path = self.blocks.path(index, arch)
            if path not in losses:
                where = f"{self.blocks.paths[index]} was never rated with {path.to_json()}"
                raise ValueError(f"{where}: only paths behind the best of the blocks before are")
            total += losses[path]
        return total

    def ranking(self) -> Iterator[tuple[float, Architecture]]:
        """Yield scores and architectures, the best first: all combinations of paths that follow upon each other."""
        lists = []
        for index, losses in enumerate(self.losses):
            before, after = self.best[:index], self.best[index + 1 :]
            fitting = (path for path in losses if self.blocks.whole([*before, path, *after]) is not None)
            lists.append(sorted((losses[path], path.to_json(), path) for path in fitting))
        for score, places in _ascending([[loss for loss, *_ in one] for one in lists]):
            arch = self.blocks.whole([one[place][2] for one, place in zip(lists, places, strict=True)])
            if arch is not None:
                yield score, arch

    def state_dict(self) -> dict[str, Any]:
        """Return best paths and losses as plain values."""
        losses = [[(dict(path), loss) for path, loss in one.items()] for one in self.losses]
        return {"best": [dict(path) for path in self.best], "losses": losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best = [Architecture(path) for path in state["best"]]
        self.losses = [{Architecture(path): loss for path, loss in one} for one in state["losses"]]


def _ascending(lists: Sequence[Sequence[float]]) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Yield all combinations, one entry of each sorted list, as sum and places, by increasing sum."""
    start = (0,) * len(lists)
    heap, seen = [(sum(one[0] for one in lists), start)], {start}
    while heap:
        total, places = heapq.heappop(heap)
        yield total, places
        for which, place in enumerate(places):
            after = (*places[:which], place + 1, *places[which + 1 :])
            if place + 1 < len(lists[which]) and after not in seen:
                seen.add(after)
                heapq.heappush(heap, (sum(one[at] for one, at in zip(lists, after, strict=True)), after))
