# SPDX-License-Identifier: Apache-2.0
"""Networks of the `ofa` package and ours: the names of weights, and how each side writes an architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sartor.architecture import Option
from sartor.spaces.ofa_mobilenetv3 import OFAMobileNetV3
from sartor.spaces.ofa_proxylessnas import OFAProxylessNAS
from sartor.spaces.ofa_resnet50 import OFAResNet50

SPACES = {"mobilenetv3": OFAMobileNetV3, "proxylessnas": OFAProxylessNAS, "resnet50": OFAResNet50}
LAYERS = {"mobilenetv3": (4,) * 5, "proxylessnas": (4,) * 5 + (1,), "resnet50": (4, 4, 6, 4)}
"""Blocks of each stage, at most."""

WIDTHS = {
    "stem.inner.width": (24, 24, 32),
    "stem.width": (40, 48, 64),
    "stages.0.width": (168, 208, 256),
    "stages.1.width": (336, 408, 512),
    "stages.2.width": (664, 816, 1024),
    "stages.3.width": (1328, 1640, 2048),
}
"""Of the ResNet, in the order in which they are asked for, by the multipliers' positions."""

# A pattern in a name of theirs, and what stands there in ours; the first that fits is taken. Blocks come before.
BLOCK = (
    (r"conv\.inverted_bottleneck\.conv\.conv", "expand_conv"),
    (r"conv\.inverted_bottleneck\.bn\.bn", "expand_norm"),
    (r"conv\.depth_conv\.conv\.\dto(\d)_matrix", r"depth_conv.transforms.to\1"),
    (r"conv\.depth_conv\.conv(\.conv)?", "depth_conv"),
    (r"conv\.depth_conv\.bn(\.bn)?", "depth_norm"),
    (r"conv\.depth_conv\.se\.fc", "squeeze"),
    (r"conv\.point_linear\.conv(\.conv)?", "project_conv"),
    (r"conv\.point_linear\.bn(\.bn)?", "project_norm"),
    (r"conv1\.conv\.conv", "reduce.conv"),
    (r"conv1\.bn\.bn", "reduce.norm"),
    (r"conv2\.conv\.conv", "conv.conv"),
    (r"conv2\.bn\.bn", "conv.norm"),
    (r"conv3\.conv\.conv", "project_conv"),
    (r"conv3\.bn\.bn", "project_norm"),
    (r"downsample\.conv\.conv", "skip.{at}"),
    (r"downsample\.bn\.bn", "skip.{behind}"),
)
AROUND = (
    (r"first_conv\.conv", "stem.0.conv"),
    (r"first_conv\.bn", "stem.0.norm"),
    (r"(?:final_expand_layer|feature_mix_layer)\.conv", "head.conv"),
    (r"(?:final_expand_layer|feature_mix_layer)\.bn", "head.norm"),
    (r"input_stem\.1\.conv\.conv\.conv", "stem.1.0.branch.conv"),
    (r"input_stem\.1\.conv\.bn\.bn", "stem.1.0.branch.norm"),
    (r"input_stem\.(\d)\.conv\.conv", r"stem.\1.conv"),
    (r"input_stem\.(\d)\.bn\.bn", r"stem.\1.norm"),
    (r"classifier\.linear(\.linear)?", "classifier"),
)


def weights(name: str, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return their weights under our names."""
    ours = {}
    for key, tensor in theirs.items():
        if name == "mobilenetv3" and key.startswith("feature_mix_layer"):
            ours["mix.0.weight"] = tensor.flatten(1)  # a 1x1 convolution of a 1x1 map
        elif block := re.match(r"blocks\.(\d+)\.", key):
            place = _place(name, int(block[1]))
            at = 0 if place.startswith("stages.0.") else 1  # behind the average pool of a skip that halves
            rest = _renamed(key[block.end() :], BLOCK).format(at=at, behind=at + 1)
            ours[f"{place}.{rest}"] = tensor
        else:
            ours[_renamed(key, AROUND)] = tensor
    return ours


def _renamed(key: str, names: Sequence[tuple[str, str]]) -> str:
    for pattern, text in names:
        new, times = re.subn(f"^{pattern}(?![a-z0-9])", text, key)
        if times:
            return new
    raise ValueError(f"no weight of ours is {key!r}")


def _place(name: str, block: int) -> str:
    """Where their block stands in ours: they count all of them, the first of a mobile network included."""
    if name != "resnet50":
        if block == 0:
            return "stem.1"
        block -= 1
    for stage, layers in enumerate(LAYERS[name]):
        if block < layers:
            return f"stages.{stage}.{block}"
        block -= layers
    raise ValueError(f"{name} has no block {block}")


def asked(name: str, arch: Mapping[str, Option]) -> dict[str, Any]:
    """Return our architecture in the words of `set_active_subnet`."""
    blocks = [f"stages.{i}.{j}" for i, layers in enumerate(LAYERS[name]) for j in range(layers)]
    expands = [arch[f"{block}.expand"] for block in blocks]
    if name != "resnet50":
        depths = [arch.get(f"stages.{i}.depth", 1) for i in range(len(LAYERS[name]))]
        return {"ks": [arch[f"{block}.kernel"] for block in blocks], "e": expands, "d": depths}
    depths = [2 * _int(arch["stem.depth"])]
    depths += [_int(arch[f"stages.{i}.depth"]) - layers + 2 for i, layers in enumerate(LAYERS[name])]
    return {"d": depths, "e": expands, "w": [options.index(_int(arch[key])) for key, options in WIDTHS.items()]}


def _int(value: Option) -> int:
    assert isinstance(value, int)
    return value
