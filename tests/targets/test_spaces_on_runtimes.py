# SPDX-License-Identifier: Apache-2.0
"""The networks of the package's spaces run everywhere, and compute the same."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from sartor.deploy.parity import compare, outputs
from sartor.spaces.mobilenet import MobileNet
from sartor.spaces.nasbench201 import NASBench201
from sartor.supernet import extract, search_space
from sartor.targets import load_target
from sartor.targets.fingerprint import require_comparable

pytestmark = pytest.mark.slow

TOLERANCE = {"openvino:int8": 0.05, "onnxruntime:int8": 0.05}
SPACES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobilenet": (partial(MobileNet, classes=10, channels=1, size=(8, 8)), (1, 8, 8)),
    "nasbench201": (partial(NASBench201, classes=10, channels=3, size=(16, 16)), (3, 16, 16)),
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime:int8", "openvino", "openvino:int8", "ncnn", "mnn"])
def test_sampled_networks_are_prepared_compared_and_measured(name: str, space: str, tmp_path: Path) -> None:
    library = {"mnn": "MNN"}.get(name, name.partition(":")[0])
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"no {library}")
    make, shape = SPACES[space]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        supernet = make()
    target, rng = load_target(name), random.Random(0)
    target.seconds = 0.05  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(8, *shape, generator=generator)
    artefacts = []
    for index in range(2):
        net = extract(supernet, search_space(supernet).sample(rng)).eval()
        artefact = target.prepare(net, (samples[:1],), [samples], tmp_path / str(index))
        parity = compare(target.runner(artefact), outputs(net, samples), samples)  # type: ignore[attr-defined]
        assert parity.max_rel_error <= TOLERANCE.get(name, 1e-4)
        artefacts.append(artefact)
    measured = target.measure(artefacts)
    require_comparable(measured)
    assert all(one.latency_ms > 0 for one in measured)
