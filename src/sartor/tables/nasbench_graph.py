# SPDX-License-Identifier: Apache-2.0
"""NAS-Bench-Graph as tables, one for each of nine data sets: 26,206 graph neural networks (2,021 on proteins).

Qin et al., "NAS-Bench-Graph: Benchmarking Graph Neural Architecture Search", NeurIPS 2022 Datasets and
Benchmarks, arXiv:2206.09166. Rows are in the order of the benchmark's hash numbers. Several architectures of
the space are the same network; they share a row.
"""

from __future__ import annotations

from pathlib import Path

from sartor.spaces import nasbench_graph
from sartor.spaces.nasbench_graph import DATASETS
from sartor.tables.files import Columns, read
from sartor.tables.table import Table

__all__ = ["DATASETS", "table"]


def table(folder: Path, dataset: str) -> Table:
    """Return the table of a data set from its file in `folder`; ValueError for an unknown data set."""
    space = nasbench_graph.space(dataset)
    path = folder / f"nasbench_graph_{dataset}.npz"
    codes = read(path, ".codes")
    name = f"nasbench_graph:{dataset}"
    return Table(name, space, Columns([path], len(codes)), codes, nasbench_graph.canonical)
