# SPDX-License-Identifier: Apache-2.0
"""Small files of exactly the layouts in which the benchmarks were published, with made-up numbers."""

from __future__ import annotations

import base64
import bz2
import json
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sartor.tables._tfrecord import masked_crc

CELLS = [
    "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|",
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
]
SIZES = ["8:8:8:8:8", "8:8:8:8:16", "64:64:64:64:64"]


# ---- NAS-Bench-201 and NATS-Bench ---------------------------------------------------------------------------


def trial(splits: dict[str, float], epochs: int) -> dict[str, Any]:
    """Return the state of one training, as `ResultsCount.state_dict` gives it."""
    every = [(split, epoch) for split in splits for epoch in range(epochs)]
    return {
        "name": "infer",
        "net_state_dict": None,
        "train_acc1es": {epoch: 50.0 for epoch in range(epochs)},
        "train_acc5es": None,
        "train_losses": {epoch: 1.0 for epoch in range(epochs)},
        "train_times": OrderedDict((epoch, 2.0) for epoch in range(epochs)),
        "arch_config": {"channel": 16, "num_cells": 5, "class_num": 10},
        "params": np.float64(0.25),
        "flop": np.float64(12.5),
        "seed": "0777",
        "epochs": epochs,
        "latency": [0.013],
        "eval_names": [*splits],
        "eval_acc1es": {f"{split}@{epoch}": splits[split] - (epochs - 1 - epoch) for split, epoch in every},
        "eval_times": {f"{split}@{epoch}": 0.5 for split, epoch in every},
        "eval_losses": {f"{split}@{epoch}": 1.0 for split, epoch in every},
    }


def results(index: int, text: str, epochs: int, accuracy: float) -> dict[str, Any]:
    """Return the state of an architecture, as `ArchResults.state_dict` gives it: two seeds of cifar10-valid."""
    three = {"x-valid": accuracy - 1, "x-test": accuracy, "ori-test": accuracy}
    runs = {
        ("cifar10-valid", 777): trial({"x-valid": accuracy - 2, "ori-test": accuracy}, epochs),
        ("cifar10-valid", 888): trial({"x-valid": accuracy - 4, "ori-test": accuracy}, epochs),
        ("cifar10", 777): trial({"ori-test": accuracy}, epochs),
        ("cifar100", 777): trial(three, epochs),
        ("ImageNet16-120", 777): trial(three, epochs),
    }
    seeds: dict[str, list[int]] = {}
    for dataset, seed in runs:
        seeds.setdefault(dataset, []).append(seed)
    state = {"arch_index": index, "arch_str": text, "all_results": runs, "dataset_seed": seeds, "clear_net_done": True}
    return state


def nats_dictionary(strings: list[str], keys: tuple[str, str], accuracies: list[float]) -> dict[str, Any]:
    infos = {
        index: OrderedDict(
            (key, results(index, strings[index], epochs, accuracy - 10 * (epochs < 20)))
            for key, epochs in zip(keys, (12, 20), strict=True)
        )
        for index, accuracy in enumerate(accuracies)
    }
    whole = {"meta_archs": strings, "total_archs": len(strings), "arch2infos": infos}
    return {**whole, "evaluated_indexes": set(infos)}


def write_nats_file(path: Path, strings: list[str] = CELLS, accuracies: tuple[float, ...] = (80.0, 90.0)) -> Path:
    whole = nats_dictionary(strings, ("12", "200"), [*accuracies])
    path.write_bytes(bz2.compress(pickle.dumps(whole, protocol=4)))
    return path


def write_nats_folder(path: Path, strings: list[str] = SIZES) -> Path:
    path.mkdir()
    whole = nats_dictionary(strings, ("12", "90"), [80.0, 90.0])
    meta = {**whole, "arch2infos": None, "evaluated_indexes": set()}
    (path / "meta.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps(meta, protocol=4)))
    for index, info in whole["arch2infos"].items():
        (path / f"{index:06d}.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps(info, protocol=4)))
    return path


def write_nasbench201(path: Path, *, legacy: bool) -> Path:
    """Write a `.pth` file; the published one is in torch's old format."""
    whole = nats_dictionary(CELLS, ("less", "full"), [80.0, 90.0])
    whole["arch2infos"][0]["full"]["all_results"]["cifar10", 777]["net_state_dict"] = {"w": torch.ones(2)}
    torch.save(whole, path, _use_new_zipfile_serialization=not legacy)
    return path


# ---- HW-NAS-Bench -------------------------------------------------------------------------------------------


def write_hardware(path: Path) -> Path:
    config = [{"name": "infer.tiny", "C": 16, "N": 5, "arch_str": text, "num_classes": 10} for text in CELLS]
    metrics = {
        "edgegpu_latency": [5.8, 6.5, 6.4],
        "edgegpu_energy": np.array([24.2, 29.9, 29.4]),
        "edgetpu_latency": [0.95, 1.4, -1],
        "eyeriss_arithmetic_intensity": [np.float64(6.2), 20.0, 9.8],
    }
    whole = {
        "nasbench201": {name: {"config": config, **metrics} for name in ("cifar10", "cifar100", "ImageNet16-120")},
        "fbnet": {"edgegpu_latency": {"ConvNorm_H32_W32_Cin3_Cout16_kernel3_stride1_group1": 0.1}},
    }
    path.write_bytes(pickle.dumps(whole, protocol=4))
    return path


# ---- NAS-Bench-101 ------------------------------------------------------------------------------------------


def record(content: bytes) -> bytes:
    head = struct.pack("<Q", len(content))
    return head + struct.pack("<I", masked_crc(head)) + content + struct.pack("<I", masked_crc(content))


def evaluation(values: tuple[float, float, float, float, float]) -> bytes:
    return b"".join(bytes([number << 3 | 1]) + struct.pack("<d", one) for number, one in enumerate(values, start=1))


def metrics(seconds: float, valid: float, test: float, parameters: int) -> str:
    message = b""
    for share in (0.0, 0.5, 1.0):
        part = evaluation((108 * share, seconds * share, 1.0, valid * share, test * share))
        part += b"\x32" + bytes([4]) + b"path"
        message += b"\x0a" + bytes([len(part)]) + part
    number, varint = parameters, b""
    while number > 127:
        varint, number = varint + bytes([number & 127 | 128]), number >> 7
    message += b"\x10" + varint + bytes([number]) + b"\x19" + struct.pack("<d", 2 * seconds)
    return base64.b64encode(message).decode()


CELLS_101 = [
    ("a", "010001000", "input,conv3x3-bn-relu,output"),
    ("b", "0110001100010000", "input,maxpool3x3,conv1x1-bn-relu,output"),
]


def nasbench101_rows() -> list[Any]:
    rows: list[Any] = []
    for place, (key, matrix, operations) in enumerate(CELLS_101):
        for epochs in (4, 108):
            for repeat in range(3):
                valid = 0.9 + 0.01 * place + 0.001 * repeat - (0.2 if epochs == 4 else 0)
                rows.append([key, epochs, matrix, operations, metrics(10.0 * epochs, valid, valid - 0.005, 2_694_282)])
    return rows


def write_nasbench101(path: Path, rows: list[Any] | None = None) -> Path:
    rows = nasbench101_rows() if rows is None else rows
    path.write_bytes(b"".join(record(json.dumps(row).encode()) for row in rows))
    return path


# ---- NAS-Bench-301 ------------------------------------------------------------------------------------------

_PREFIX = "NetworkSelectorDatasetInfo:darts:"


def nasbench301_run(operation: str = "sep_conv_3x3", *, layers: int = 8, valid: float = 93.0) -> dict[str, Any]:
    """Return one `results_*.json`; a node reads the two inputs of the cell."""
    config: dict[str, Any] = {f"{_PREFIX}layers": layers, f"{_PREFIX}init_channels": 32}
    config["SimpleLearningrateSchedulerSelector:cosine_annealing:T_max"] = 100
    for cell in ("normal", "reduce"):
        for first, node in ((0, 2), (2, 3), (5, 4), (9, 5)):
            config[f"{_PREFIX}edge_{cell}_{first}"] = operation
            config[f"{_PREFIX}edge_{cell}_{first + 1}"] = "skip_connect"
            if node > 2:
                config[f"{_PREFIX}inputs_node_{cell}_{node}"] = "0_1"
    info = [{"val_accuracy": valid, "train_accuracy": 99.0}]
    return {"optimized_hyperparamater_config": config, "info": info, "test_accuracy": valid - 1, "runtime": 5000.0}


def write_nasbench301(path: Path, runs: list[dict[str, Any]]) -> Path:
    for number, run in enumerate(runs):
        folder = path / "random_search" / "run_1" / "results_fidelity_0"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"results_{number}.json").write_text(json.dumps(run), encoding="utf-8")
    return path


# ---- TransNAS-Bench-101 -------------------------------------------------------------------------------------


def write_transnas(path: Path) -> Path:
    def result(value: float) -> dict[str, Any]:
        lists = {"train_top1": [1.0, 2.0], "valid_top1": [value - 1, value], "test_top1": [value, value - 0.5]}
        return {
            "total_epochs": 2,
            "model_info": {"inference_time": 0.02, "encoder_params": 300_000, "model_FLOPs": 1e7},
            "metrics": lists,
        }

    data = {
        "macro": {
            text: {"class_scene": result(50.0 + i)} for i, text in enumerate(("64-4111-basic", "64-123412-basic"))
        },
        "micro": {
            "64-41414-1_02_333": {"class_scene": result(60.0)},
            "64-41414-0_00_000": {"class_scene": result(5.0)},
        },
    }
    names = ["train_top1", "valid_top1", "test_top1"]
    whole = {"data": data, "metrics_dict": {"class_scene": names}, "info_names": ["inference_time"]}
    torch.save({**whole, "task_list": ["class_scene"]}, path)
    return path
