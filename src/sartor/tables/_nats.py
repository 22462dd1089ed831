# SPDX-License-Identifier: Apache-2.0
"""The original files of NAS-Bench-201 and NATS-Bench, topology and size: one layout in four packings.

`NAS-Bench-201-v1_*.pth` and `NATS-*.pickle.pbz2` hold all: `meta_archs`, the architecture strings in the order
of the index, and `arch2infos`, results by index and then by number of epochs ("less" and "full" stand for 12 and
200 in the older file). The folders `NATS-*-simple` and `-full` hold `meta.pickle.pbz2` and one file for each
index. The result of an architecture: `all_results`, by (data set, seed), with accuracies by "set@epoch".

Columns are means over the seeds, at the last epoch: `cifar10` (test), `cifar10_val`, and the same of cifar100
and imagenet16, for the longest training; `cifar10_test12`, `cifar10_val12` for one of 12 epochs;
`cifar10_cost_s`, `cifar10_cost12_s`: seconds of training, and of one validation after it; `params_m`,
`flops_m` (as the API counts them) and `cifar10_gpu_latency_ms` (batches of 256).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sartor.architecture import Architecture
from sartor.space import SearchSpace
from sartor.spaces import nasbench201_cell
from sartor.tables._converted import Converted, entry, mean, number, stacked
from sartor.tables._restricted_pickle import Refused, read_pickle

__all__ = ["read", "size_space"]

# Our name: data set and split of the test accuracy, data set and split of the validation accuracy.
_SPLITS = {
    "cifar10": ("cifar10", "ori-test", "cifar10-valid", "x-valid"),
    "cifar100": ("cifar100", "x-test", "cifar100", "x-valid"),
    "imagenet16": ("ImageNet16-120", "x-test", "ImageNet16-120", "x-valid"),
}
_EPOCHS = {"less": "12", "full": "200"}
_CHANNELS = tuple(range(8, 65, 8))
_WIDTHS = tuple(f"width_{i}" for i in range(5))


def size_space() -> SearchSpace:
    """Return the size space of NATS-Bench: five numbers of channels, 8 to 64."""
    return SearchSpace(dict.fromkeys(_WIDTHS, _CHANNELS))


def read(path: Path) -> Converted:
    """Return the table in a file or folder; Refused where it is laid out otherwise."""
    whole = read_pickle(path / "meta.pickle.pbz2" if path.is_dir() else path)
    strings = entry(whole, "meta_archs")
    if not isinstance(strings, list) or not strings or not all(isinstance(text, str) for text in strings):
        raise Refused("its meta_archs are no list of architecture strings")
    is_size = re.fullmatch(r"\d+(:\d+){4}", strings[0]) is not None
    parse: Callable[[str], Architecture] = _widths if is_size else nasbench201_cell.from_string
    archs = [parse(text) for text in strings]
    rows: list[dict[str, float]] = [{} for _ in archs]
    for index, info in _in_folder(path) if path.is_dir() else entry(whole, "arch2infos").items():
        if not isinstance(index, int) or not 0 <= index < len(archs):
            raise Refused(f"it has results of architecture {str(index)[:20]}, of {len(archs)}")
        rows[index] = _row(info, strings[index])
    columns = stacked(rows)
    if not any(np.isfinite(columns[name]).any() for name in _SPLITS if name in columns):
        raise Refused("it holds no accuracy: give the file or folder of results, not only that of the architectures")
    space = size_space() if is_size else nasbench201_cell.space()
    return Converted("nats_bench_size" if is_size else "nats_bench_topology", space, archs, columns)


def _in_folder(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield index and results, one file after the other, as together they would take tens of gigabytes."""
    for file in sorted(path.glob("*.pickle.pbz2")):
        if file.name.split(".")[0].isdigit():
            yield int(file.name.split(".")[0]), read_pickle(file)


def _row(info: Any, text: str) -> dict[str, float]:
    """Return the columns of one architecture."""
    if not isinstance(info, Mapping) or not info:
        raise Refused("the results of an architecture are not by number of epochs")
    by_epochs = {_EPOCHS.get(str(key), str(key)): result for key, result in info.items()}
    if not all(key.isdigit() for key in by_epochs):
        raise Refused(f"it has results of {', '.join(by_epochs)[:60]}, where numbers of epochs should be")
    longest = max(by_epochs, key=int)
    row: dict[str, float] = {}
    for epochs, result in by_epochs.items():
        if entry(result, "arch_str") != text:
            raise Refused(f"results are filed under {text}, but are those of {str(entry(result, 'arch_str'))[:120]}")
        row |= _columns(result, "" if epochs == longest else epochs)
    return row


def _columns(result: Any, epochs: str) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, (tested, test, validated, valid) in _SPLITS.items():
        tests, valids = _seeds(result, tested), _seeds(result, validated)
        row[f"{name}_test{epochs}" if epochs else name] = mean(_accuracy(one, test) for one in tests)
        row[f"{name}_val{epochs}"] = mean(_accuracy(one, valid) for one in valids)
        row[f"{name}_cost{epochs}_s"] = mean(_seconds(one, valid) for one in valids)
        if not epochs:
            row[f"{name}_gpu_latency_ms"] = mean(map(_latency_ms, tests))
    for name, key in (("params_m", "params"), ("flops_m", "flop")) if not epochs else ():
        row[name] = mean(entry(one, key) for one in _seeds(result, "cifar10")[:1])
    return row


def _seeds(result: Any, dataset: str) -> list[dict[str, Any]]:
    return [one for key, one in entry(result, "all_results").items() if isinstance(key, tuple) and key[0] == dataset]


def _accuracy(one: Mapping[str, Any], split: str) -> float:
    """Return the accuracy at the last epoch, NaN where the split was not evaluated."""
    last = int(number(entry(one, "epochs"))) - 1
    return number(entry(one, "eval_acc1es").get(f"{split}@{last}"))


def _latency_ms(one: Mapping[str, Any]) -> float:
    return 1000 * mean(seconds for seconds in one.get("latency") or () if number(seconds) > 0)


def _seconds(one: Mapping[str, Any], split: str) -> float:
    """Return the seconds of all training epochs and of one validation, NaN where they were not kept."""
    training, times = one.get("train_times"), one.get("eval_times")
    if not training or not times:
        return float("nan")
    return sum(map(number, training.values())) + mean(t for key, t in times.items() if key.startswith(f"{split}@"))


def _widths(text: str) -> Architecture:
    widths = [int(part) for part in text.split(":")]
    if len(widths) != len(_WIDTHS) or not set(widths) <= set(_CHANNELS):
        raise Refused(f"{text!r} is no architecture of the size space: five multiples of 8 up to 64")
    return Architecture(dict(zip(_WIDTHS, widths, strict=True)))
