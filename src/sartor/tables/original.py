# SPDX-License-Identifier: Apache-2.0
"""Read the original file of a benchmark that is not shipped, from the user's own copy of it.

    table = read_original("nats_bench", Path("NATS-tss-v1_0-3ffb9-simple"), save=Path("nats.npz"))
    table = open_table(Path("nats.npz"))  # from then on

Most of these files are pickles, and a pickle can run any program when it is read. Here none is: a converter in a
process of its own, isolated from the environment and limited in time and memory, understands plain data only
(see `_restricted_pickle.py`) and refuses everything else in one line. What it hands back are numbers.

| kind | file | space |
|---|---|---|
| nasbench101 | `nasbench_only108.tfrecord` or `nasbench_full.tfrecord` | `spaces.nasbench101_cell` |
| nasbench201 | `NAS-Bench-201-v1_*.pth` | `spaces.nasbench201_cell` |
| nats_bench | `NATS-*.pickle.pbz2`, or the folder `NATS-*-simple` | the same, or five widths |
| nasbench301 | the folder of `results_*.json` | DARTS cells |
| hw_nas_bench | `HW-NAS-Bench-v1_0.pickle` | `spaces.nasbench201_cell` |
| transnas_micro, transnas_macro | `transnas-bench_v*.pth` | 4,096 cells; 4 to 6 modules |

Where a file holds a part of its space only (NAS-Bench-301 holds some 60,000 of 10^18), the table's space is
limited to that part. Drawing from so small a part fails; such a table is for fitting and judging predictors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sartor.atomic import write_bytes
from sartor.tables.files import open_table
from sartor.tables.table import Table

__all__ = ["KINDS", "open_table", "read_original"]

KINDS = (
    "nasbench101",
    "nasbench201",
    "nats_bench",
    "nasbench301",
    "hw_nas_bench",
    "transnas_micro",
    "transnas_macro",
)
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sartor.tables._child import main; "
_START += "sys.exit(main(sys.argv[2:]))"


def read_original(
    kind: str,
    path: Path | str,
    *,
    save: Path | str | None = None,
    time_limit_s: int = 7200,
    memory_limit_mb: int = 32_000,
) -> Table:
    """Return the table in an original file.

    kind: what the file is, of KINDS.
    path: the file, or the folder where the benchmark comes as one.
    save: where to keep the table, as an `.npz` file that `open_table` reads in milliseconds.
    time_limit_s, memory_limit_mb: of the converting process: processor seconds, and 10^6 bytes (not on Windows).

    Raises FileNotFoundError for a path where nothing is, and ValueError, in one line, for another kind and for a
    file that is damaged, laid out otherwise, or asks for anything but plain data.
    """
    path = Path(path).absolute()
    if kind not in KINDS:
        raise ValueError(f"no kind of original file is named {kind!r}: there is {', '.join(KINDS)}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}: give the path of your copy of {kind}")
    if save is not None and not Path(save).absolute().parent.is_dir():
        raise FileNotFoundError(f"the table cannot be saved to {save}: the folder does not exist")
    with tempfile.TemporaryDirectory(prefix="sartor-") as folder:
        out = Path(folder) / "table.npz"
        _convert(kind, path, out, time_limit_s, memory_limit_mb)
        table = open_table(out, keep=True)
        if save is not None:
            write_bytes(Path(save), out.read_bytes())
    return table


def _convert(kind: str, path: Path, out: Path, seconds: int, megabytes: int) -> None:
    places = json.dumps([place for place in sys.path if place])
    argv = [sys.executable, "-I", "-c", _START, places, kind, str(path), str(out), str(seconds), str(megabytes)]
    needed = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}  # without which Windows fails
    try:
        done = subprocess.run(
            argv, env=needed, stdin=subprocess.DEVNULL, capture_output=True, timeout=4 * seconds + 60, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{path} cannot be read as {kind}: it took more than {4 * seconds + 60} seconds") from None
    if done.returncode:
        raise ValueError(f"{path} cannot be read as {kind}: {_reason(done, seconds, megabytes)}")


def _reason(done: subprocess.CompletedProcess[bytes], seconds: int, megabytes: int) -> str:
    last = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
    try:
        return str(json.loads(last)["refused"])
    except (ValueError, KeyError, TypeError):
        pass
    if done.returncode == 3:
        return "it tried to reach beyond its own data, and was stopped"
    if done.returncode < 0:
        return f"the converter was stopped at its limits of {seconds} s and {megabytes} MB: raise them, or copy it anew"
    return f"the converter failed ({last[:200] or done.returncode})"
