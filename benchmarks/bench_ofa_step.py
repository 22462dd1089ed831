# SPDX-License-Identifier: Apache-2.0
"""Steps and extraction of Once-for-All's networks, beside the `ofa` package: CPU milliseconds, one thread.

The same MobileNetV3 with the same weights and kernel transforms, and the same architectures on both sides, 8 images of
64x64. A step is the forward and the backward pass of a sub-network, gradients forgotten before, as each library takes
it: ours in channels-last layout, in which our training lays out networks and images, theirs in torch's own layout, as
its training does. Two more rows compare in equal layouts: both in torch's, and theirs given channels-last images.
Extraction is `extract`, and `get_active_subnet(preserve_weight=True)`. All are taken in turns, each library in a
process of its own.

Before that, the outputs of several sub-networks of each of the three networks are compared in eval mode: ours with the
weights of theirs (the largest difference over the largest output), and the extracted sub-network's with those in place
(the largest difference).

`benchmarks/peers/setup ofa` makes the environment. The counts in tests/golden/ofa.json are written anew by

    PYTHONPATH=benchmarks python -c "import bench_ofa_step; bench_ofa_step.write_golden()"
"""

from __future__ import annotations

import copy
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ofa_networks import SPACES, asked, weights
from peer import HERE, Library, Process
from sartor.architecture import Architecture
from sartor.nn import channels_last
from sartor.supernet import activated, extract, search_space

Row = Mapping[str, str | float | int | None]
OFA = Library("ofa 0.1.0", "ofa", "ofa_step.py")
GOLDEN = HERE.parent / "tests" / "golden" / "ofa.json"
BATCH, SIDE = 8, 64
STEP_GOAL, EXTRACTION_GOAL, TOLERANCE = 0.8, 0.5, 1e-5


def rows(quick: bool) -> Iterator[Row]:
    """Outputs of the three networks, then the two times."""
    torch.set_num_threads(1)
    for name in SPACES:
        yield from _outputs(name, 2 if quick else 4)
    yield from _times(2 if quick else 4, 2 if quick else 7)


def _outputs(name: str, architectures: int) -> Iterator[Row]:
    """How far apart the two libraries are, and each from its extracted sub-networks."""
    with tempfile.TemporaryDirectory() as folder:
        with Process(OFA, {"network": name, "batch": 2, "side": SIDE, "folder": folder}) as peer:
            network, images, _ = _ours(name, folder)
            apart = extracted = theirs = 0.0
            for arch in _architectures(network, architectures):
                theirs = max(theirs, peer.answer({"do": "outputs", "arch": asked(name, arch)}))
                expected = torch.load(f"{folder}/outputs.pt")
                found, difference = _in_place(network.eval(), arch, images)
                apart = max(apart, float((found - expected).abs().max() / expected.abs().max()))
                extracted = max(extracted, difference)
    ranges = {"ours, range": "", "ofa, range": ""}
    error = {"ours": apart, "ofa": None, "ratio or error": apart, "goal": TOLERANCE}
    yield {"what": f"{name}: ours from theirs", **error, **ranges}
    in_place = {"ours": extracted, "ofa": theirs, "ratio or error": extracted, "goal": 0.0}
    yield {"what": f"{name}: extracted from in place", **in_place, **ranges}


def _in_place(network: nn.Module, arch: Architecture, images: Tensor) -> tuple[Tensor, float]:
    """The outputs of an activated sub-network, and how far those of the extracted one are from them at most."""
    with torch.no_grad():
        with activated(network, arch):
            found: Tensor = network(images)
        return found, float((extract(network, arch)(images) - found).abs().max())


def _times(architectures: int, repeats: int) -> Iterator[Row]:
    """A step and an extraction, beside theirs."""
    with tempfile.TemporaryDirectory() as folder:
        with Process(OFA, {"network": "mobilenetv3", "batch": BATCH, "side": SIDE, "folder": folder}) as peer:
            network, images, labels = _ours("mobilenetv3", folder)
            laid_out, x = channels_last(copy.deepcopy(network)), channels_last(images)
            calls: dict[str, Callable[[Architecture], float]] = {
                "step, ofa": lambda arch: peer.answer({"do": "step", "arch": asked("mobilenetv3", arch)}),
                "step": lambda arch: _step(laid_out, arch, x, labels),
                "torch's layout": lambda arch: _step(network, arch, images, labels),
                "ofa, channels last": lambda arch: peer.answer(
                    {"do": "step", "arch": asked("mobilenetv3", arch), "last": True}
                ),
                "extraction, ofa": lambda arch: peer.answer({"do": "extract", "arch": asked("mobilenetv3", arch)}),
                "extraction": lambda arch: _extraction(network, arch),
            }
            times = _in_turns(calls, _architectures(network, architectures)[2:], repeats)
    compared = (
        ("step, as each is trained", "step", "step, ofa", STEP_GOAL),
        ("step, both in torch's layout", "torch's layout", "step, ofa", None),
        ("step, both channels last", "step", "ofa, channels last", None),
        ("extraction", "extraction", "extraction, ofa", EXTRACTION_GOAL),
    )
    for what, name, other, goal in compared:
        own, beside = times[name], times[other]
        yield {
            "what": f"{what}, CPU ms",
            "ours": round(statistics.median(own), 1),
            "ofa": round(statistics.median(beside), 1),
            "ratio or error": round(statistics.median(own) / statistics.median(beside), 3),
            "goal": goal,
            "ours, range": f"{min(own):.0f}-{max(own):.0f}",
            "ofa, range": f"{min(beside):.0f}-{max(beside):.0f}",
        }


def _in_turns(
    calls: Mapping[str, Callable[[Architecture], float]], archs: list[Architecture], repeats: int
) -> dict[str, list[float]]:
    """CPU milliseconds of each call with each architecture, the first turn unmeasured."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for arch in archs:
            for name, call in calls.items():
                milliseconds = 1e3 * call(arch)
                if turn:
                    times[name].append(milliseconds)
    return times


def _step(network: nn.Module, arch: Architecture, images: Tensor, labels: Tensor) -> float:
    start = time.process_time()
    network.zero_grad(set_to_none=True)
    with activated(network, arch):
        nn.functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
    return time.process_time() - start


def _extraction(network: nn.Module, arch: Architecture) -> float:
    start = time.process_time()
    extract(network, arch)
    return time.process_time() - start


def _ours(name: str, folder: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Our network with their weights, in training, and their batch."""
    network = SPACES[name](dropout=0.0).train()
    network.load_state_dict(weights(name, torch.load(f"{folder}/weights.pt")))
    images, labels = torch.load(f"{folder}/batch.pt")
    return network, images, labels


def _architectures(network: nn.Module, count: int) -> list[Architecture]:
    """The largest, the smallest, and random ones."""
    space, rng = search_space(network), random.Random(0)
    return [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(count))]


def write_golden() -> None:
    """Keep the counts of the package's networks at 224 pixels, by our names of the architectures."""
    found: list[dict[str, Any]] = []
    for name, width in (("mobilenetv3", 1.0), ("mobilenetv3", 1.2), ("proxylessnas", 1.3), ("resnet50", None)):
        with tempfile.TemporaryDirectory() as folder:
            request = {"network": name, "batch": 1, "side": 224, "folder": folder}
            with Process(OFA, {**request, "width": width}) as peer, torch.device("meta"):
                ghost = SPACES[name]() if width is None else SPACES[name](width=width)
                for arch in _architectures(ghost, 3):
                    counts = peer.answer({"do": "count", "arch": asked(name, arch)})
                    kept = {key: option for key, option in arch.items() if key != "resolution"}
                    found.append({"network": f"ofa_{name}", "width": width, **counts, "arch": kept})
    lines = ",\n".join(map(json.dumps, found))
    Path(GOLDEN).write_text(f"[\n{lines}\n]\n")
