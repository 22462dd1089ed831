"""Run one benchmark: `python benchmarks/run.py NAME [--quick]`; without a name, list what there is.

A benchmark is a file `bench_NAME.py` beside this one. Its docstring says what is compared, and its function
`rows(quick)` returns the table, one mapping of column to value per row, the same columns in each.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
LIBRARIES = ("sartor", "torch", "numpy", "onnxruntime")

Row = Mapping[str, str | int | float | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description="Run one benchmark and keep its table.")
    parser.add_argument("name", nargs="?", choices=sorted(titles()), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a smaller version, which is not kept")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    if arguments.name is None:
        console.print(table("benchmarks", [{"name": name, "": title} for name, title in titles().items()]))
        return 0
    result = run(arguments.name, quick=arguments.quick, threads=arguments.threads)
    console.print(table(result["title"], result["rows"]))
    if not arguments.quick:
        console.print(f"kept in {keep(result)}", soft_wrap=True)
    return 0


def titles() -> dict[str, str]:
    """Return the first line of every benchmark's docstring, by name; nothing is imported."""
    found = {}
    for path in sorted(HERE.glob("bench_*.py")):
        text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        found[path.stem.removeprefix("bench_")] = text.partition("\n")[0]
    return found


def run(name: str, *, quick: bool, threads: int) -> dict[str, Any]:
    """Run a benchmark; return its table and what is needed to read it."""
    import torch

    torch.set_num_threads(threads)
    sys.path.insert(0, str(HERE))  # benchmarks import `timing`
    module = importlib.import_module(f"bench_{name}")
    wall, cpu = time.perf_counter(), time.process_time()
    rows: list[Row] = [dict(row) for row in module.rows(quick)]
    return {
        "name": name,
        "title": titles()[name],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "machine": machine(threads),
        "versions": versions(),
        "rows": rows,
    }


def machine(threads: int) -> dict[str, str]:
    """Return what the numbers depend on; the load says whether other work was going on."""
    from sartor.targets.machine import processor

    load = " ".join(f"{value:.2f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    return {**processor(), "cores": str(os.cpu_count()), "threads": str(threads), "load": load}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries whose speed matters."""
    installed = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    libraries = {name: metadata.version(name) for name in LIBRARIES if name in installed}
    return {"python": platform.python_version(), **libraries}


def keep(result: Mapping[str, Any]) -> Path:
    """Write a result beside the earlier ones, in place of the last of its name."""
    path = HERE / "results" / f"{result['name']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path.relative_to(HERE.parent)


def table(title: str, rows: Sequence[Row]) -> Table:
    """Return rows as a table whose columns are those of the first row."""
    shown = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    columns = [*rows[0]] if rows else []
    for column in columns:
        number = all(isinstance(row.get(column), int | float | None) for row in rows)
        shown.add_column(column, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*(cell(row.get(column)) for column in columns))
    return shown


def cell(value: object) -> str:
    """Return a value as a table shows it: four significant digits are enough for any benchmark."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
