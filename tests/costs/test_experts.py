# SPDX-License-Identifier: Apache-2.0
"""Experts in two memories: the hit rate against a simulated cache, and the paper's switching time."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from numpy.typing import NDArray

from sartor.costs.experts import ExpertMemory, lru_hit_rate


def zipf(count: int, exponent: float) -> NDArray[np.float64]:
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize(("count", "slots", "exponent"), [(150, 32, 1.0), (150, 5, 0.6), (40, 30, 1.3)])
def test_hit_rate_is_that_of_a_simulated_cache(count: int, slots: int, exponent: float) -> None:
    popularity = zipf(count, exponent)
    cache: OrderedDict[int, None] = OrderedDict()
    hits, requests = 0, np.random.default_rng(0).choice(count, size=60_000, p=popularity)
    for expert in requests.tolist():
        hits += expert in cache
        cache[expert] = None
        cache.move_to_end(expert)
        if len(cache) > slots:
            cache.popitem(last=False)
    assert lru_hit_rate(popularity, slots) == pytest.approx(hits / len(requests), abs=0.01)


def test_switching_and_the_expected_latency() -> None:
    """14 GB of a 7B expert in bf16 at 8 sockets of 0.1 to 0.2 TB/s: 9 to 18 ms."""
    expert = 14e9
    assert ExpertMemory(8 * 64e9, 8 * 100).switch_ms(expert) == pytest.approx(17.5)
    assert ExpertMemory(8 * 64e9, 8 * 200).switch_ms(expert) == pytest.approx(8.75)
    memory = ExpertMemory(8 * 64e9, 800)
    assert memory.slots(expert) == 36
    few, many = (memory.expected_ms(1.0, 5.0, expert, np.full(n, 1 / n)) for n in (36, 72))
    assert few == pytest.approx(6.0)
    assert many == pytest.approx(6.0 + 0.5 * 17.5, rel=0.01)


def test_edges_and_mistakes() -> None:
    assert lru_hit_rate([0.5, 0.5], 0) == 0.0
    assert lru_hit_rate([1.0, 0.0], 1) == 1.0
    with pytest.raises(ValueError, match="probabilities sum to"):
        lru_hit_rate([0.5, 0.6], 1)
    with pytest.raises(ValueError, match="above 0"):
        ExpertMemory(0, 1)
