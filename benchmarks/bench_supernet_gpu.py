# SPDX-License-Identifier: Apache-2.0
"""Samples per second of a supernet's step beside plain networks', by precision and parts of a batch, on a GPU.

A step is BigNAS's sandwich of four sub-networks, the same at every step, channels last; beside it the steps of those
four networks, extracted and trained alone. The last rows are the forward pass of the largest one, extracted, and beside
it compiled. Without a GPU a smaller network is measured on the processor, in CPU time, and the rows say so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sartor.evaluation import compiled
from sartor.nn import channels_last
from sartor.oneshot import BigNAS, Means, Supervised
from sartor.spaces.mobilenet import MobileNet
from sartor.supernet import extract, search_space
from timing import compared

ON_GPU, ON_PROCESSOR = (1000, 224, 128), (10, 32, 32)  # classes, pixels, batch
MEANS = (Means(), Means(precision="bfloat16"), Means(precision="float16"), Means(precision="bfloat16", accumulate=4))
STEPS = 10_000


def rows(quick: bool) -> Iterator[Mapping[str, str | float]]:
    """A row per precision and number of parts of a batch, and two of inference."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    classes, pixels, batch = ON_GPU if gpu else ON_PROCESSOR
    repeats = 3 if quick else 30 if gpu else 7
    images = torch.randn(batch, 3, pixels, pixels, device=device)
    labels = torch.randint(classes, (batch,), device=device)
    for means in MEANS:
        if gpu or means.precision != "float16":  # which processors compute by float32, slower than that itself
            nets = _networks(classes, pixels, device)
            yield {"of": _name(means), **_sandwich(*nets, (images, labels), means, repeats), **_place(device, batch)}
    for precision in () if quick else ("float32", "bfloat16"):  # a minute of compiling
        net = nets[1][0].eval()
        yield {"of": f"inference, {precision}", **_inference(net, images, precision, repeats), **_place(device, batch)}


def _name(means: Means) -> str:
    return f"step, {means.precision}" + (f", {means.accumulate} parts" if means.accumulate > 1 else "")


def _place(device: torch.device, batch: int) -> dict[str, str | float]:
    gpu = device.type == "cuda"
    return {"batch": batch, "on": torch.cuda.get_device_name(device) if gpu else "processor: no GPU here"}


def _networks(classes: int, pixels: int, device: torch.device) -> tuple[nn.Module, list[nn.Module], BigNAS]:
    """Return a supernet, four networks extracted from it, and the learner that names them."""
    torch.manual_seed(0)
    supernet = MobileNet(classes, 3, (pixels, pixels)).to(device)
    learner = BigNAS(supernet, search_space(supernet), steps=STEPS, batch_size=1)
    archs = [learner.largest, *learner.others()]
    return supernet, [channels_last(extract(supernet, arch)) for arch in archs], learner


def _sandwich(
    supernet: nn.Module,
    alone: Sequence[nn.Module],
    named: BigNAS,
    batch: tuple[Tensor, Tensor],
    means: Means,
    repeats: int,
) -> dict[str, float]:
    size, others = len(batch[1]), named.others()
    learner = BigNAS(supernet, named.space, steps=STEPS, batch_size=size, means=means)
    learner.others = lambda: others  # type: ignore[method-assign]  # the same at every step
    plain = [Supervised(net, steps=STEPS, batch_size=size, means=means) for net in alone]
    calls = [lambda: learner.step(batch), lambda: [one.step(batch) for one in plain]]
    ours, theirs = _seconds(calls, batch[0].device, repeats)
    return {"samples/s": size / ours, "beside": size / theirs, "ratio": theirs / ours}


def _inference(net: nn.Module, images: Tensor, precision: str, repeats: int) -> dict[str, float]:
    images = channels_last(images)
    fast = compiled(net, images)

    def run(one: nn.Module) -> None:
        enabled = precision != "float32"
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=enabled):
            one(images)

    eager, after = _seconds([lambda: run(net), lambda: run(fast)], images.device, repeats)
    return {"samples/s": len(images) / eager, "beside": len(images) / after, "ratio": eager / after}


def _seconds(calls: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
    """Return the median time of each call: of a GPU until it is done, of a processor its own time."""
    if device.type == "cpu":
        return [one.median / 1e3 for one in compared(calls, repeats)]
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 3):  # the first three choose and compile kernels
        for call, own in zip(calls, times, strict=True):
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            call()
            torch.cuda.synchronize(device)
            own.append(time.perf_counter() - start)
            own[:] = own if turn >= 3 else []
    return [statistics.median(own) for own in times]
