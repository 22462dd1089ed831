"""Published latencies of three spaces: FBNet, Once-for-all's MobileNetV3, and HAT's transformers.

SARTOR_LATENCIES names the folder that holds `fbnet/fbnet_help_latency.parquet`, `ofa/ofa_mbv3_help_latency.parquet`
(5,000 networks each, from the code of HELP, arXiv:2106.08630) and `hat_latency/hat_transformer_latency.parquet` (2,000
networks for each task and device, from the code of HAT, arXiv:2005.14187).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.space import SearchSpace

Floats = NDArray[np.float64]

# Of a block: kernel, expansion, groups of its two 1x1 convolutions.
BLOCKS = {
    **{f"k{kernel}_e{expand}": (kernel, expand, 1) for kernel in (3, 5) for expand in (1, 3, 6)},
    **{f"k{kernel}_e1_g2": (kernel, 1, 2) for kernel in (3, 5)},
}
ORDER = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")
STAGES = ((16, 1, 1), (24, 4, 1), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1))
"""Channels, layers and stride of each stage of FBNet for images of 32x32; the stem has 16 channels, and stride 1."""


GPUS = ("1080ti", "2080ti", "titan_rtx", "titanx", "titanxp", "titan_xp", "v100")


@dataclass(frozen=True)
class Latencies:
    """Networks of a space, (N,) milliseconds on devices (NaN: not measured there), and FLOPs and features if known."""

    space: SearchSpace
    archs: list[Architecture]
    devices: dict[str, Floats]
    flops: Floats | None = None
    features: Floats | None = None


def fbnet() -> Latencies:
    """Read 5,000 networks of 22 layers, each of 9 blocks, on 27 device settings."""
    columns = read("fbnet/fbnet_help_latency.parquet")
    space = SearchSpace({f"block{layer:02d}": ORDER for layer in range(22)})
    codes = [[int(code) for code in text.split(",")] for text in columns.pop("arch")]
    archs = [Architecture(dict(zip(space.choices, (ORDER[code] for code in row), strict=True))) for row in codes]
    return Latencies(space, archs, numbers(columns), np.array([fbnet_macs(row) for row in codes]))


def fbnet_macs(codes: list[int], size: int = 32) -> float:
    """Return the multiply-accumulates of the 22 blocks, in millions, for square images of this size."""
    total, channels, side, rest = 0.0, 16, size, iter(codes)
    for width, layers, stride in STAGES:
        for layer in range(layers):
            step = stride if layer == 0 else 1
            name, out = ORDER[next(rest)], -(-side // step)
            if name == "skip":  # a 1x1 convolution where the shapes differ
                total += 0 if step == 1 and channels == width else out * out * channels * width
            else:
                kernel, expand, groups = BLOCKS[name]
                middle = channels * expand
                total += side * side * channels * middle / groups + out * out * middle * (kernel**2 + width / groups)
            channels, side = width, out
    return total / 1e6


def ofa() -> Latencies:
    """Read 5,000 networks of Once-for-all: kernels and expansions of 20 blocks, 5 depths, a resolution; 12 settings."""
    columns = read("ofa/ofa_mbv3_help_latency.parquet")
    blocks = [(stage, block) for stage in range(5) for block in range(4)]
    choices: dict[str, Any] = {f"depth{stage}": (2, 3, 4) for stage in range(5)}
    choices |= {f"kernel{stage}{block}": (3, 5, 7) for stage, block in blocks}
    # As texts, so that expansion 3 is another option than kernel 3 and depth 3.
    choices |= {f"expand{stage}{block}": ("e3", "e4", "e6") for stage, block in blocks}
    sizes = columns.pop("r")
    choices["resolution"] = tuple(sorted({int(size) for size in sizes}))
    gates = {
        f"{kind}{stage}{block}": (((f"depth{stage}", tuple(range(block + 1, 5))),),)
        for stage, block in blocks
        if block > 1
        for kind in ("kernel", "expand")
    }
    space = SearchSpace(choices, gates)
    rows = zip(*(columns.pop(name) for name in ("ks", "e", "d")), sizes, strict=True)
    archs = [space.canonical(ofa_architecture(blocks, *row)) for row in rows]
    return Latencies(space, archs, numbers(columns))


def ofa_architecture(blocks: list[tuple[int, int]], kernels: str, expands: str, depths: str, size: int) -> Architecture:
    """Return the architecture of a row."""
    values: dict[str, Any] = {f"depth{stage}": int(depth) for stage, depth in enumerate(depths.split(","))}
    for (stage, block), kernel, expand in zip(blocks, kernels.split(","), expands.split(","), strict=True):
        values |= {f"kernel{stage}{block}": int(kernel), f"expand{stage}{block}": f"e{expand}"}
    return Architecture({**values, "resolution": int(size)})


def hat_table(task: str) -> Latencies:
    """Read 2,000 transformers of a translation task on three devices, encoder and decoder together.

    What is known of each are ten numbers, most of them means over layers; the space has eight levels of each.
    """
    columns = read("hat_latency/hat_transformer_latency.parquet")
    names = list(columns)[2:12]
    here, devices = np.array(columns["task"]) == task, np.array(columns["device"])
    table = np.stack([np.array(columns[name], dtype=np.float64) for name in names], axis=1)
    total = np.array(columns["latency_mean_encoder"]) + np.array(columns["latency_mean_decoder"])
    # Each device has networks of its own: those of another are missing there.
    rows = np.flatnonzero(here)
    low, high = table[rows].min(axis=0), table[rows].max(axis=0)
    places = np.round(7 * (table[rows] - low) / np.where(high > low, high - low, 1)).astype(int)
    choices = {name: tuple(sorted(set(column))) for name, column in zip(names, places.T.tolist(), strict=True)}
    archs = [Architecture(dict(zip(names, row, strict=True))) for row in places.tolist()]
    of = {str(one): np.where(devices[rows] == one, total[rows], np.nan) for one in sorted(set(devices[rows].tolist()))}
    return Latencies(SearchSpace(choices), archs, of, np.array([hat_macs(*row) for row in table[rows]]), table[rows])


def hat_macs(
    encoder: float,
    layers: float,
    encoder_ffn: float,
    _encoder_heads: float,
    decoder: float,
    decoder_layers: float,
    decoder_ffn: float,
    *_: float,
) -> float:
    """Return the multiply-accumulates with weights for a token each, in millions: attention of 512, and two layers."""
    inner = 512
    of_encoder = layers * (4 * encoder * inner + 2 * encoder * encoder_ffn)
    of_decoder = decoder_layers * (6 * decoder * inner + 2 * encoder * inner + 2 * decoder * decoder_ffn)
    return (of_encoder + of_decoder) / 1e6


def family(device: str) -> str:
    """Return the device of a setting: GPUs were measured with several batch sizes."""
    start = device.rpartition("_")[0]
    return start if start in GPUS else device


def read(name: str) -> dict[str, list[Any]]:
    """Return the columns of a file in the folder; ValueError says how to name the folder."""
    import pyarrow.parquet

    folder = os.environ.get("SARTOR_LATENCIES")
    if not folder or not (path := Path(folder) / name).is_file():
        raise ValueError(f"set SARTOR_LATENCIES to the folder that holds {name}")
    columns: dict[str, list[Any]] = pyarrow.parquet.read_table(path).to_pydict()
    return columns


def numbers(columns: dict[str, list[Any]]) -> dict[str, Floats]:
    """Return the columns as arrays."""
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}
