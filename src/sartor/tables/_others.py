# SPDX-License-Identifier: Apache-2.0
"""The original files of HW-NAS-Bench, NAS-Bench-301 and TransNAS-Bench-101.

- HW-NAS-Bench (`HW-NAS-Bench-v1_0.pickle`): "nasbench201", data set, metric, a value for each index; "config" has
  the architecture strings. -1 stands for not measured. (Its FBNet half prices blocks, not networks.)
- NAS-Bench-301 (a folder of `results_*.json`): one training each, of a cell pair of the DARTS space. Trainings of
  an architecture are averaged, where they share the most frequent channels, layers and epochs of the folder. The
  surrogate models are pickles of code, and not read.
- TransNAS-Bench-101 (`transnas-bench_v10141024.pth`): "data", "micro" or "macro", string, task, with "metrics"
  by epoch, of which the last is kept, and "model_info".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sartor.architecture import Architecture
from sartor.space import SearchSpace
from sartor.spaces import nasbench201_cell
from sartor.tables._converted import Converted, entry, mean, number, stacked
from sartor.tables._restricted_pickle import Refused, read_pickle

__all__ = ["darts_space", "read_hardware", "read_nasbench301", "read_transnas_macro", "read_transnas_micro"]

# ---- HW-NAS-Bench -----------------------------------------------------------------------------------------

_DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "ImageNet16-120": "imagenet16"}
_UNITS = {"latency": "latency_ms", "energy": "energy_mj", "arithmetic_intensity": "arithmetic_intensity"}


def read_hardware(path: Path) -> Converted:
    """Return the NAS-Bench-201 half of HW-NAS-Bench; Refused where the file is laid out otherwise."""
    whole = entry(read_pickle(path), "nasbench201")
    strings = [entry(config, "arch_str") for config in entry(whole, "cifar10", "config")]
    archs = [nasbench201_cell.from_string(str(text)) for text in strings]
    columns = {}
    for dataset, name in _DATASETS.items():
        if [entry(config, "arch_str") for config in entry(whole, dataset, "config")] != strings:
            raise Refused(f"the architectures of {dataset} are not those of cifar10")
        for metric in entry(whole, dataset):
            device, _, quantity = str(metric).partition("_")
            if quantity in _UNITS:
                values = np.array([number(value) for value in entry(whole, dataset, metric)])
                columns[f"{name}_{device}_{_UNITS[quantity]}"] = np.where(values == -1, np.nan, values)
    return Converted("hw_nas_bench", nasbench201_cell.space(), archs, columns)


# ---- NAS-Bench-301 ----------------------------------------------------------------------------------------

_DARTS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
_PREFIX = "NetworkSelectorDatasetInfo:darts:"
_FIDELITY = (
    f"{_PREFIX}init_channels",
    f"{_PREFIX}layers",
    "SimpleLearningrateSchedulerSelector:cosine_annealing:T_max",
)


def darts_space() -> SearchSpace:
    """Return the DARTS cells: nodes 2 to 5 read two earlier ones each, through one of seven operations.

    Choices have the names of the benchmark's configuration: `edge_normal_4` holds an operation, and matters
    where `inputs_node_normal_3` lists the node that it comes from.
    """
    choices: dict[str, tuple[str, ...]] = {}
    gates: dict[str, tuple[tuple[tuple[str, tuple[str, ...]], ...], ...]] = {}
    for cell in ("normal", "reduce"):
        edge = 0
        for node in (2, 3, 4, 5):
            pairs = tuple(f"{a}_{b}" for b in range(node) for a in range(b))
            if node > 2:
                choices[f"inputs_node_{cell}_{node}"] = pairs
            for source in range(node):
                choices[f"edge_{cell}_{edge}"] = _DARTS
                if node > 2:
                    chosen = tuple(pair for pair in pairs if str(source) in pair.split("_"))
                    gates[f"edge_{cell}_{edge}"] = (((f"inputs_node_{cell}_{node}", chosen),),)
                edge += 1
    return SearchSpace(choices, gates)


def read_nasbench301(path: Path) -> Converted:
    """Return the trained architectures below a folder; Refused where there are none, or one is damaged."""
    space = darts_space()
    runs: dict[tuple[object, ...], dict[Architecture, list[dict[str, float]]]] = {}
    for file in sorted(path.rglob("results_*.json")):
        try:
            run = json.loads(file.read_text(encoding="utf-8"))
            config = entry(run, "optimized_hyperparamater_config")
            given = {key.removeprefix(_PREFIX): value for key, value in config.items() if key.startswith(_PREFIX)}
            arch = space.canonical({name: value for name, value in given.items() if name in space.choices})
            row = {
                "valid": number(entry(run, "info", 0, "val_accuracy")),
                "test": number(run.get("test_accuracy")),
                "cost_s": number(run.get("runtime")),
            }
        except (ValueError, AttributeError, RecursionError) as error:
            raise Refused(f"{file.name}: {' '.join(str(error).split())[:160]}") from None
        fidelity = tuple(config.get(key) for key in _FIDELITY)
        runs.setdefault(fidelity, {}).setdefault(arch, []).append(row)
    if not runs:
        raise Refused("there is no results_*.json in it: give the folder of the data set, not of the surrogate models")
    common = Counter({fidelity: sum(map(len, archs.values())) for fidelity, archs in runs.items()}).most_common(1)[0][0]
    rows = [{name: mean(row[name] for row in rows) for name in rows[0]} for rows in runs[common].values()]
    return Converted("nasbench301", space, list(runs[common]), stacked(rows))


# ---- TransNAS-Bench-101 -----------------------------------------------------------------------------------

_MICRO = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3")


def read_transnas_micro(path: Path) -> Converted:
    """Return the 4,096 cells of TransNAS-Bench-101; Refused where the file is laid out otherwise."""
    space = SearchSpace({nasbench201_cell.choice_name(edge): _MICRO for edge in nasbench201_cell.EDGES})
    return _transnas(path, "micro", space)


def read_transnas_macro(path: Path) -> Converted:
    """Return the macro networks of TransNAS-Bench-101; Refused where the file is laid out otherwise.

    `depth` is the number of modules, 4 to 6, and `module_1`... their kinds: 1 plain, 2 twice the channels, 3 half
    the resolution, 4 both.
    """
    modules = {f"module_{i}": (1, 2, 3, 4) for i in range(1, 7)}
    gates = {"module_5": ((("depth", (5, 6)),),), "module_6": ((("depth", (6,)),),)}
    return _transnas(path, "macro", SearchSpace({"depth": (4, 5, 6), **modules}, gates))


def _transnas(path: Path, part: str, space: SearchSpace) -> Converted:
    results = entry(read_pickle(path), "data", part)
    archs, rows = [], []
    for text, by_task in results.items():
        archs.append(_micro(str(text)) if part == "micro" else space.canonical(_macro(str(text))))
        row: dict[str, float] = {}
        for task, result in by_task.items():
            row |= {f"{task}_{name}": number(entry(values, -1)) for name, values in entry(result, "metrics").items()}
            info: Mapping[Any, Any] = result.get("model_info") or {}
            row |= {f"{task}_{name}": number(value) for name, value in info.items()}
        rows.append(row)
    return Converted(f"transnas_{part}", space, archs, stacked(rows))


def _micro(text: str) -> Architecture:
    """Read `64-41414-1_02_333`: the operations into node 1, 2 and 3, each from node 0 on."""
    found = re.fullmatch(r"\d+-\d+-([0-3])_([0-3]{2})_([0-3]{3})", text)
    if found is None:
        raise Refused(f"{text[:60]!r} is no cell of TransNAS-Bench-101")
    digits = "".join(found.groups())
    names = map(nasbench201_cell.choice_name, nasbench201_cell.EDGES)
    return Architecture({name: _MICRO[int(digit)] for name, digit in zip(names, digits, strict=True)})


def _macro(text: str) -> dict[str, int]:
    """Read `64-4111-basic`: a digit for each module."""
    found = re.fullmatch(r"\d+-([1-4]{4,6})-\w+", text)
    if found is None:
        raise Refused(f"{text[:60]!r} is no macro network of TransNAS-Bench-101")
    modules = {f"module_{i}": int(digit) for i, digit in enumerate(found[1], start=1)}
    return {"depth": len(found[1]), **modules}
