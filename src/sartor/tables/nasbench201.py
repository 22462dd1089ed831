# SPDX-License-Identifier: Apache-2.0
"""NAS-Bench-201 as a table: accuracies, costs on six devices of HW-NAS-Bench, latencies on 27 of HELP.

Dong & Yang, ICLR 2020, arXiv:2001.00326 (accuracies); Li et al., "HW-NAS-Bench", ICLR 2021, arXiv:2103.10584
(device costs); Lee et al., "HELP", NeurIPS 2021, arXiv:2106.08630 (latencies). Rows are in the order of the
official index. See docs/tables.md for the columns and where each comes from.
"""

from __future__ import annotations

from pathlib import Path

from sartor.spaces import nasbench201_cell
from sartor.tables.files import Columns, read
from sartor.tables.table import Table

__all__ = ["table"]

_FILES = ("accuracy", "cifar10", "cifar100", "imagenet16", "gpu", "cpu")
# HELP took the latencies of these four from HW-NAS-Bench; they are equal to the last bit.
_COPIES = {f"help_{device}_ms": f"cifar10_{device}_latency_ms" for device in ("raspi4", "pixel3", "eyeriss", "fpga")}


def table(folder: Path) -> Table:
    """Return the table of 15,625 cells from the files in `folder`."""
    paths = [folder / f"nasbench201_{part}.npz" for part in _FILES]
    codes = read(paths[0], ".codes")
    return Table("nasbench201", nasbench201_cell.space(), Columns(paths, len(codes), _COPIES), codes)
