# SPDX-License-Identifier: Apache-2.0
"""NAS-Bench-Macro as a table: 6,561 networks on CIFAR-10, trained three times each.

Su et al., "Prioritized Architecture Sampling with Monto-Carlo Tree Search", CVPR 2021, arXiv:2103.11922. Rows
are in the order of the strings. Networks that differ only in where a stage's identities stand were trained
once (3,969 of them) and share their values.
"""

from __future__ import annotations

from pathlib import Path

from sartor.spaces import nasbench_macro_layers
from sartor.tables.files import Columns, read
from sartor.tables.table import Table

__all__ = ["table"]


def table(folder: Path) -> Table:
    """Return the table of 6,561 networks from the file in `folder`."""
    path = folder / "nasbench_macro.npz"
    codes = read(path, ".codes")
    return Table("nasbench_macro", nasbench_macro_layers.space(), Columns([path], len(codes)), codes)
