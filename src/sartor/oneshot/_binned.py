# SPDX-License-Identifier: Apache-2.0
"""Sub-networks of a wanted cost: bins of costs, how often uniform sampling meets each, and draws from within one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.encodings import onehot
from sartor.oneshot.sampling import weighted
from sartor.space import SearchSpace

__all__ = ["Bins", "Cost"]

Cost = Callable[[Architecture], float]

REDRAWS = 100  # attempts to meet a bin (AttentiveNAS)
FEW = 30  # uniform draws, below which a bin's marginals are also of leaning ones
LEANING = 0.25  # leaning draws, as a share of the uniform ones
LEAN = 0.75  # chance that a choice of a leaning draw leans


class Bins:
    """The range of a cost in bins, and in each the marginal distribution of every choice, estimated once by sampling.

    Wang, Li, Gong and Chandra, "AttentiveNAS", CVPR 2021, arXiv:2011.09011: a network of a wanted cost is drawn from
    the product of the marginals of its bin, and drawn again until it is in the bin, up to 100 times.

    Uniform draws hardly meet the ends of the range. There, draws that lean to small or to large options add to the
    marginals; to the prior they add nothing.

    Args:
        space: of the architectures.
        cost: of an architecture, in any unit; the latest 65,536 are kept. One with a method `costs(archs)` is asked for
            many at once, as `sartor.costs.CostTable` can be.
        width: of a bin, in the cost's unit: costs are rounded to multiples of it. Or
        count: number of equal bins over the range that was sampled.
        samples: uniform draws.
        seed: of the draws.

    Attributes:
        prior: (bins,) share of uniform draws in each bin.
        met: the bins that any draw met; only from these can be sampled.
        low, high: the least and greatest cost that was drawn.
        codes, costs: the draws: (samples, D) as `sartor.encodings.onehot`, and (samples,).

    Raises ValueError unless one of width and count is given and positive, and for a cost that is not finite.
    """

    def __init__(
        self,
        space: SearchSpace,
        cost: Cost,
        *,
        width: float | None = None,
        count: int | None = None,
        samples: int = 10_000,
        seed: int = 0,
    ) -> None:
        if (width is None) == (count is None) or (width or count or 0) <= 0:
            raise ValueError(f"width is {width} and count {count}: give one of them, above 0")
        if samples < 1:
            raise ValueError(f"samples is {samples}: bins need at least 1")
        self.space = space
        self.cost: Cost = lru_cache(maxsize=1 << 16)(cost)
        rng = random.Random(f"bins/{seed}")
        archs = [space.sample(rng) for _ in range(samples)] + _leaning(space, int(LEANING * samples), rng)
        self.costs, self.codes = _costs(cost, archs), onehot(space, archs)
        self.low, self.high = float(self.costs.min()), float(self.costs.max())
        self._cut(width, count)
        self._estimate(samples)

    def _cut(self, width: float | None, count: int | None) -> None:
        if width is not None:
            first = round(self.low / width)
            self.width, self._start = float(width), (first - 0.5) * width
            self.count = round(self.high / width) - first + 1
        else:
            assert count is not None
            self.width, self._start, self.count = (self.high - self.low) / count or 1.0, self.low, count

    def _estimate(self, samples: int) -> None:
        """Count the uniform draws of each bin, and how often they hold each option where its choice matters."""
        places = np.array([self._bin(cost) for cost in self.costs.tolist()])
        seen = np.bincount(places[:samples], minlength=self.count)
        options = np.zeros((self.count, self.codes.shape[1]))
        np.add.at(options, places[:samples], self.codes[:samples])
        leaning = np.zeros_like(options)
        np.add.at(leaning, places[samples:], self.codes[samples:])
        options += np.where(seen[:, None] < FEW, leaning, 0.0)
        self.prior: NDArray[np.float64] = seen / seen.sum()
        self.met = tuple(np.unique(places).tolist())
        self.marginals = {place: self._marginals(options[place]) for place in self.met}

    def _marginals(self, counts: NDArray[np.float64]) -> dict[str, list[float]]:
        """Return the weights of the options of each choice; uniform for one that never mattered."""
        found, start = {}, 0
        for name, options in self.space.choices.items():
            part = counts[start : start + len(options)].tolist()
            found[name] = part if sum(part) else [1.0] * len(options)
            start += len(options)
        return found

    def _bin(self, cost: float) -> int:
        return min(max(int((cost - self._start) // self.width), 0), self.count - 1)

    def of(self, arch: Architecture) -> int:
        """Return the bin of an architecture, from 0; the first or last for one beyond the range."""
        return self._bin(self.cost(arch))

    def centre(self, place: int) -> float:
        """Return the middle of a bin, in the cost's unit."""
        return self._start + (place + 0.5) * self.width

    def draw(self, rng: random.Random) -> int:
        """Return a bin with its prior probability; for one that is uniform over costs, `rng.choice(bins.met)`."""
        return rng.choices(range(self.count), self.prior.tolist())[0]

    def sample(self, place: int, rng: random.Random) -> Architecture:
        """Return an architecture of a bin; after 100 draws that are not, the last of them.

        Raises ValueError for a bin that no draw met.
        """
        if place not in self.marginals:
            raise ValueError(f"no architecture of bin {place} is known: bins.met has those that can be sampled from")
        for _ in range(REDRAWS):
            arch = weighted(self.space, rng, self.marginals[place])
            if self.of(arch) == place:
                break
        return arch


def _leaning(space: SearchSpace, count: int, rng: random.Random) -> list[Architecture]:
    """Return both extremes, and draws whose choices lean to a common place among their options: first to last."""
    found = [space.smallest(), space.largest()]
    for _ in range(count):
        level = rng.random()
        probabilities = {
            name: [
                (1 - LEAN) / len(options) + LEAN * (i == round(level * (len(options) - 1))) for i in range(len(options))
            ]
            for name, options in space.choices.items()
        }
        found.append(weighted(space, rng, probabilities))
    return [arch for arch in found if space.constraint is None or space.constraint(arch)]


def _costs(cost: Any, archs: Sequence[Architecture]) -> NDArray[np.float64]:
    """Return the (N,) costs, all at once where the cost can; ValueError for one that is not finite."""
    together = getattr(cost, "costs", None)
    found = np.asarray([float(cost(arch)) for arch in archs] if together is None else together(archs), dtype=float)
    if not np.isfinite(found).all():
        worst = archs[int(np.flatnonzero(~np.isfinite(found))[0])]
        raise ValueError(f"the cost of {worst!r} is not finite: bins need a number for each architecture")
    return found
