# SPDX-License-Identifier: Apache-2.0
"""ONNX files of networks that were cut, in sizes that their configuration can say and in others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

from adapt.families import ALL
from sartor.adapt import elastic, plain
from sartor.adapt.networks import ImageClassifier, LanguageModel, TextClassifier
from sartor.architecture import Architecture
from sartor.deploy.onnx import export_onnx, onnx_runner
from sartor.deploy.parity import compare, outputs, require
from sartor.supernet import search_space

torch.set_num_threads(1)

BY_NAME = {family.name: family for family in ALL}
slow = pytest.mark.slow


def wrapped(name: str) -> nn.Module:
    model = BY_NAME[name].network()
    if name in ("vit", "deit", "swin"):
        return ImageClassifier(model)
    return LanguageModel(model) if BY_NAME[name].generates else TextClassifier(model, 0)


def samples(name: str) -> Tensor:
    """Five inputs, more than the example has; sentences end in padding of several lengths."""
    generator = torch.Generator().manual_seed(2)
    if name in ("vit", "deit", "swin"):
        return torch.randn(5, 3, 16, 16, generator=generator)
    ids = torch.randint(3, 60, (5, 12), generator=generator)
    if not BY_NAME[name].generates:
        for row in range(1, 5):
            ids[row, 12 - row :] = 0
    return ids


@pytest.mark.parametrize(
    "name",
    ["bert", "gpt2", *(pytest.param(one, marks=slow) for one in ("distilbert", "roberta", "vit", "deit", "llama"))],
)
def test_both_forms_compute_what_torch_computes(name: str, tmp_path: Path) -> None:
    whole = elastic(wrapped(name), heads=[0.5], mlp=[0.25, 0.5], depth=[2])
    space = search_space(whole)
    one_block = {path: options[0] for path, options in space.choices.items() if ".1." in path}
    for architecture in (space.smallest(), Architecture({**space.largest(), **one_block})):
        network = plain(whole, architecture)
        inputs = samples(name)
        export_onnx(network, inputs[:1], tmp_path / "model.onnx")
        require(compare(onnx_runner(tmp_path / "model.onnx"), outputs(network, inputs), inputs), name)
