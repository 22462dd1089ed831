# SPDX-License-Identifier: Apache-2.0
"""Tabular benchmarks: spaces of which every network was trained and measured, shipped with the package.

table = load("nasbench201")
table.objective("cifar10_val12")  # what a search reads
table.values("cifar10", architectures)  # what is reported
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

from sartor.tables import micro, nasbench201, nasbench_graph, nasbench_macro
from sartor.tables.table import Table

__all__ = ["DATA", "NAMES", "Table", "load"]

DATA = Path(__file__).parent / "data"
_GRAPH = "nasbench_graph:"
NAMES = ("micro", "nasbench201", "nasbench_macro", *(_GRAPH + dataset for dataset in nasbench_graph.DATASETS))
"""The tables that come with the package."""


@cache
def load(name: str) -> Table:
    """Return the table `name` of NAMES, the same object at every call; columns are read when first used.

    Raises ValueError for another name, with the closest ones.
    """
    if name == "micro":
        return micro.table(DATA)
    if name == "nasbench201":
        return nasbench201.table(DATA)
    if name == "nasbench_macro":
        return nasbench_macro.table(DATA)
    if name in NAMES:
        return nasbench_graph.table(DATA, name.removeprefix(_GRAPH))
    close = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.5) or NAMES
    raise ValueError(
        f"no table is named {name!r}: there is {', '.join(close)}; original files are read by sartor.tables.original"
    )
