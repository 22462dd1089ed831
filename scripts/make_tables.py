#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make the tables of src/sartor/tables/data from the published ones: `scripts/make_tables.py SOURCE_FOLDER`.

SOURCE_FOLDER holds `nb201/`, `nb_macro/` and `nb_graph/` with the parquet files whose columns are named below;
src/sartor/tables/data/NOTICE.md says which repositories and commits they were read from. Numbers are kept as
they are, to the last bit. The same input gives the same bytes with the same numpy and zlib. Needs pandas.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sartor.spaces import nasbench201_cell, nasbench_graph, nasbench_macro_layers
from sartor.tables import DATA
from sartor.tables.files import packed

DATASETS = ("cifar10", "cifar100", "imagenet16")
ACCURACY = {
    **{f"acc200_test_{dataset}": dataset for dataset in DATASETS},
    **{f"acc12_{split}_{dataset}": f"{dataset}_{split}12" for dataset in DATASETS for split in ("val", "test")},
    "acc_val_cifar10_naslib": "cifar10_val",
    "acc_val_imagenet16_naslib_unique": "imagenet16_val",
    "cost12_cifar10_s": "cifar10_cost12_s",
    "params_cifar10_M": "params_m",
    "flops_cifar10_M": "flops_m",
}
DEVICES = ("edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss", "fpga")
UNITS = {"latency": "_ms", "energy": "_mj", "arithmetic_intensity": ""}
GPUS = [f"{gpu}_{batch}" for gpu in ("1080ti", "2080ti", "titan_rtx", "titanx", "titanxp") for batch in (1, 32, 256)]
OTHERS = ["gold_6226", "gold_6240", "silver_4114", "silver_4210r", "pixel2", "samsung_a50", "samsung_s7"]
OTHERS.append("essential_ph_1")


def main() -> None:
    """Write every table, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE_FOLDER")
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to (default: the package's)")
    arguments = parser.parse_args()
    files = {
        **nasbench201(arguments.source / "nb201"),
        **nasbench_macro(arguments.source / "nb_macro"),
        **nasbench_graph_(arguments.source / "nb_graph"),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, arrays in files.items():
        path = arguments.out / f"{name}.npz"
        path.write_bytes(packed(arrays))
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size:,} bytes")


def nasbench201(folder: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the files of NAS-Bench-201, rows in the order of the official index."""
    accuracy, hardware, helped = (
        pd.read_parquet(folder / f"nb201_{name}.parquet").set_index("index").sort_index()
        for name in ("accuracy", "hwnasbench", "help_latency")
    )
    archs = [nasbench201_cell.from_string(text) for text in accuracy["arch"]]
    assert list(accuracy.index) == list(range(15_625))
    assert (accuracy["arch"] == hardware["arch"]).all() and (accuracy["arch"] == helped["arch"]).all()
    codes = coded(archs, nasbench201_cell.space().choices)
    connected = np.array([nasbench201_cell.is_connected(arch) for arch in archs])
    first = {".codes": codes, "connected": connected}
    files = {"nasbench201_accuracy": {**first, **{new: numbers(accuracy[old]) for old, new in ACCURACY.items()}}}
    for dataset in DATASETS:
        columns = {}
        for device in DEVICES:
            for quantity, unit in UNITS.items():
                if f"{dataset}_{device}_{quantity}" in hardware:
                    columns[f"{dataset}_{device}_{quantity}{unit}"] = numbers(
                        hardware[f"{dataset}_{device}_{quantity}"]
                    )
        files[f"nasbench201_{dataset}"] = columns
    for copy in ("raspi4", "pixel3", "eyeriss", "fpga"):
        assert (helped[copy] == hardware[f"cifar10_{copy}_latency"]).all()
    files["nasbench201_gpu"] = {f"help_{device}_ms": numbers(helped[device]) for device in GPUS}
    files["nasbench201_cpu"] = {f"help_{device}_ms": numbers(helped[device]) for device in OTHERS}
    return files


def nasbench_macro(folder: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the file of NAS-Bench-Macro, rows in the order of the architecture strings."""
    frame = pd.read_parquet(folder / "nb_macro_cifar10.parquet").sort_values("arch")
    archs = [nasbench_macro_layers.from_string(text) for text in frame["arch"]]
    columns = {"accuracy": "mean_acc", "accuracy_std": "std", **{f"accuracy_{i}": f"acc_seed{i}" for i in range(3)}}
    return {
        "nasbench_macro": {
            ".codes": coded(archs, nasbench_macro_layers.space().choices),
            **{new: numbers(frame[old]) for new, old in columns.items()},
            "params_m": frame["params"].to_numpy() / 1e6,
            "flops_m": frame["flops"].to_numpy() / 1e6,
        }
    }


def nasbench_graph_(folder: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Return a file for each data set of NAS-Bench-Graph, rows in the order of the hashes."""
    frame = pd.read_parquet(folder / "nb_graph_light.parquet").sort_values("hash")
    files = {}
    for dataset, part in frame.groupby("dataset"):
        archs = [nasbench_graph.from_hash(number) for number in part["hash"].tolist()]
        files[f"nasbench_graph_{dataset}"] = {
            ".codes": coded(archs, nasbench_graph.space(str(dataset)).choices),
            "valid": numbers(part["valid_perf"]),
            "test": numbers(part["perf"]),
            "latency_s": numbers(part["latency"]),
            "params_m": numbers(part["para"]),
        }
    return files


def coded(archs: list[Any], choices: Mapping[str, tuple[Any, ...]]) -> NDArray[np.uint8]:
    """Return the (rows, choices) positions of the options."""
    rows = [[options.index(arch[name]) for name, options in choices.items()] for arch in archs]
    return np.array(rows, dtype=np.uint8)


def numbers(column: Any) -> NDArray[Any]:
    """Return a column in the smallest of uint8, float32 and float64 that holds it to the last bit."""
    values: NDArray[Any] = column.to_numpy()
    if ((values >= 0) & (values < 256) & (values % 1 == 0)).all():
        return values.astype(np.uint8)
    short = values.astype(np.float32)
    return short if np.array_equal(short.astype(np.float64), values, equal_nan=True) else values


if __name__ == "__main__":
    main()
