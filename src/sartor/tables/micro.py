# SPDX-License-Identifier: Apache-2.0
"""The micro space as a table: 64 networks on the built-in digits, trained three times each.

Made by `scripts/make_micro.py` with the network `sartor.spaces.micro.Micro`; rows are in the order of the options,
the last slot running fastest. `digits_val` and `digits_test` are accuracies in %, means of three trainings.
"""

from __future__ import annotations

from pathlib import Path

from sartor.spaces import micro_slots
from sartor.tables.files import Columns, read
from sartor.tables.table import Table

__all__ = ["table"]


def table(folder: Path) -> Table:
    """Return the table of 64 networks from the file in `folder`."""
    path = folder / "micro.npz"
    codes = read(path, ".codes")
    return Table("micro", micro_slots.space(), Columns([path], len(codes)), codes)
