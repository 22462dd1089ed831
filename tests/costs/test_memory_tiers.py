# SPDX-License-Identifier: Apache-2.0
"""Three tiers of memory: fusion against all partitions, and what fusion never makes worse."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import nn

from sartor.costs.memory_tiers import Stage, TieredMemory, chain, intensity, main_bytes
from sartor.workload import trace


def drawn(rng: random.Random) -> tuple[TieredMemory, list[Stage]]:
    """Return a device and a chain of at most 9 operators; now and then one does not read the one before it."""
    sent = [rng.choice([100, 1000, 4000]) for _ in range(rng.randint(1, 9) + 1)]
    stages = [
        Stage(rng.choice([0, 1e4, 1e6]), a if rng.random() < 0.9 else 0, b, rng.choice([0, 500, 5000]))
        for a, b in itertools.pairwise(sent)
    ]
    device = TieredMemory(
        rng.choice([0.1, 1, 10]), rng.choice([0.01, 0.1, 1]), rng.choice([1000, 5000, 20000]),
        chip_gbytes_per_s=rng.choice([1, 10, math.inf]), main_bytes=rng.choice([2000, math.inf]),
        last_gbytes_per_s=0.01, utilisation=rng.choice([0.5, 1]), call_ms=rng.choice([0, 0.001]),
        stage_ms=rng.choice([0, 0.01]),
    )  # fmt: skip
    return device, stages


def excess(device: TieredMemory, stages: list[Stage]) -> float:
    total = sum(stage.other for stage in stages)
    return max(0.0, 1 - device.main_bytes / total) if total else 0.0


def partitions(count: int) -> list[tuple[int, ...]]:
    """All ways to cut a chain, as the ends of the groups."""
    return [(*cuts, count) for size in range(count) for cuts in itertools.combinations(range(1, count), size)]


def groups(stages: list[Stage], ends: tuple[int, ...]) -> list[list[Stage]]:
    return [stages[first:end] for first, end in zip((0, *ends[:-1]), ends, strict=True)]


@pytest.mark.parametrize("seed", range(200))
def test_the_plan_is_the_best_of_all_partitions(seed: int) -> None:
    device, stages = drawn(random.Random(seed))
    lost = excess(device, stages)
    times = [
        math.fsum(device.group_ms(group, lost) for group in groups(stages, ends))
        for ends in partitions(len(stages))
        if all(map(device.fits, groups(stages, ends)))
    ]
    ms, ends = device.planned(stages)
    assert ms == pytest.approx(min(times))
    assert math.fsum(device.group_ms(group, lost) for group in groups(stages, ends)) == pytest.approx(ms)


@pytest.mark.parametrize("seed", range(50))
def test_the_plan_is_not_worse_than_no_or_greedy_fusion(seed: int) -> None:
    device, stages = drawn(random.Random(seed))
    greedy: list[list[Stage]] = []
    for stage in stages:
        if greedy and device.fits([*greedy[-1], stage]):
            greedy[-1].append(stage)
        else:
            greedy.append([stage])
    ms, ends = device.planned(stages)
    lost = excess(device, stages)
    assert ms <= math.fsum(device.group_ms(group, lost) for group in greedy) * (1 + 1e-12)
    assert ms <= device.unfused_ms(stages) * (1 + 1e-12)
    fused, apart = groups(stages, ends), [[stage] for stage in stages]
    assert sum(map(main_bytes, fused)) <= sum(map(main_bytes, apart))
    assert intensity(stages, ends) >= intensity(stages, tuple(range(1, len(stages) + 1)))
    compulsory = stages[0].received + stages[-1].sent
    assert ms >= compulsory / device.gbytes_per_s / 1e6


def test_a_traced_network_becomes_a_chain() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    stages = chain(trace(net, torch.zeros(1, 3, 16, 16)))
    assert stages[0] == Stage(16 * 16 * 8 * 27, 4 * 3 * 256, 4 * 8 * 256, 4 * 8 * 27)
    assert stages[1] == Stage(0, 4 * 8 * 256, 4 * 8 * 256, 0)
    assert stages[2] == Stage(0, 4 * 8 * 256, 4 * 8, 0)
    device = TieredMemory(1e3, 1, 1e6)
    assert device.planned(stages)[1] == (3,)
    assert device(trace(net, torch.zeros(1, 3, 16, 16))) < device.unfused_ms(stages)
    assert device(()) == 0.0


def test_fusion_gains_most_where_there_is_little_arithmetic() -> None:
    device = TieredMemory(100, 1, 1e9)
    light, heavy = ([Stage(work, 1e6, 1e6, 0)] * 5 for work in (1e3, 1e9))
    gains = [device.unfused_ms(stages) / device.planned(stages)[0] for stages in (light, heavy)]
    assert gains == [pytest.approx(5), pytest.approx(1)]


def test_weights_beyond_main_memory_come_from_the_last_tier() -> None:
    stages = [Stage(0, 0, 0, 1e6), Stage(0, 1, 0, 1e6)]
    device = TieredMemory(1, 1, 1, main_bytes=1e6, last_gbytes_per_s=0.1)
    assert device.unfused_ms(stages) == pytest.approx(2 * 5.0)  # half of 1 MB each, at 0.1 GB/s


@pytest.mark.parametrize(
    "wrong", [{"gmacs_per_s": 0}, {"chip_bytes": 0}, {"utilisation": 1.5}, {"call_ms": -1.0}, {"main_bytes": 0}]
)
def test_numbers_out_of_range(wrong: dict[str, float]) -> None:
    arguments = {"gmacs_per_s": 1.0, "gbytes_per_s": 1.0, "chip_bytes": 1.0, **wrong}
    with pytest.raises(ValueError, match="must be above 0"):
        TieredMemory(**arguments)
