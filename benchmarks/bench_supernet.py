"""What sharing weights costs: steps of a supernet beside those of plain networks, extraction, activation."""

from __future__ import annotations

import copy
import random
import statistics
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.nn import resized
from sartor.oneshot import BigNAS, Supervised
from sartor.spaces.mobilenet import MobileNet
from sartor.supernet import activated, extract, search_space
from timing import compared

BATCH = 32


def rows(quick: bool) -> Iterator[Mapping[str, str | float]]:
    """The four figures of weight sharing, for a small grey and a larger colour image."""
    for channels, size in ((1, 28), (3, 64)):
        yield from _forward_backward(channels, size, 3 if quick else 10, 3 if quick else 15)
        yield _sandwich(channels, size, 3 if quick else 15)
    yield from _extraction(3 if quick else 15)


def _forward_backward(channels: int, size: int, architectures: int, repeats: int) -> Iterator[dict[str, str | float]]:
    """Forward and backward of the supernet under an architecture, against the same network extracted."""
    supernet, x, y = _data(channels, size)
    space, rng = search_space(supernet), random.Random(0)
    figures: list[tuple[float, float, float, float]] = []
    for _ in range(architectures):
        arch = space.sample(rng)
        alone = extract(supernet, arch)

        def shared(arch: Architecture = arch) -> None:
            with activated(supernet, arch):
                _step(supernet, x, y)

        def switch(arch: Architecture = arch) -> None:
            with activated(supernet, arch):
                pass

        a, b, c = (t.median for t in compared([shared, partial(_step, alone, x, y), switch], repeats))
        figures.append((a, b, a / b, c / a))
    name = f"{size}x{size}x{channels}, batch {BATCH}"
    ours, plain, ratio, share = (statistics.median(column) for column in zip(*figures, strict=True))
    yield _row(f"forward+backward, {name}", ours, plain, ratio, 1.05)
    yield _row(f"activated, of a step, {name}", share * ours, ours, share, 0.01)


def _sandwich(channels: int, size: int, repeats: int) -> dict[str, str | float]:
    """A sandwich step against the plain steps (with optimiser) of its four sub-networks, extracted."""
    supernet, x, y = _data(channels, size)
    learner = BigNAS(supernet, search_space(supernet), steps=10_000, batch_size=BATCH)
    archs = [learner.largest, *learner.others()]
    learner.others = lambda: archs[1:]  # type: ignore[method-assign]  # the same four at every step
    alone = [Supervised(extract(supernet, arch), steps=10_000, batch_size=BATCH) for arch in archs]
    calls = [lambda: learner.step((x, y)), lambda: [one.step((x, y)) for one in alone]]
    ours, plain = (t.median for t in compared(calls, repeats))
    return _row(f"sandwich step, {size}x{size}x{channels}, batch {BATCH}", ours, plain, ours / plain, 1.1)


def _extraction(repeats: int) -> Iterator[dict[str, str | float]]:
    """Extraction of the largest network for 224x224 images, in milliseconds; a deep copy beside it."""
    supernet = MobileNet(1000, 3, (224, 224))
    largest = search_space(supernet).largest()
    alone = extract(supernet, largest)
    calls = [lambda: extract(supernet, largest), lambda: copy.deepcopy(alone)]
    ours, copied = (t.median for t in compared(calls, repeats))
    parameters = sum(p.numel() for p in alone.parameters()) / 1e6
    yield _row(
        f"extraction, {parameters:.1f}M parameters (beside: deepcopy of it; goal 30 ms)",
        ours,
        copied,
        ours / 30,
        1.0,
    )


def _data(channels: int, size: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return (
        MobileNet(10, channels, (size, size)),
        torch.randn(BATCH, channels, size, size),
        torch.randint(10, (BATCH,)),
    )


def _step(network: nn.Module, x: Tensor, y: Tensor) -> None:
    network.zero_grad(set_to_none=True)
    loss: Tensor = nn.functional.cross_entropy(network(resized(x, network)), y)
    torch.autograd.backward([loss])


def _row(what: str, ours: float, beside: float, ratio: float, goal: float) -> dict[str, str | float]:
    return {"what": what, "ours, CPU ms": ours, "beside, CPU ms": beside, "ratio": ratio, "goal": goal}
