"""Which devices, rows and samples HELP is tried with, and what ten measurements give without it.

The split of the paper: nine device settings to learn from, four that decide when to stop, six that nothing has seen.
Networks whose output does not depend on the input are left out, as some runtimes drop their whole body. What is ranked
are rows 900 to 1899, less the fastest and slowest tenth on each device; none of them is learnt from on any device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.predictors import HELP
from sartor.tables import load

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

_PHONES = ("samsung_a50", "pixel3", "essential_ph_1", "samsung_s7")
SOURCES = ("1080ti_1", "1080ti_32", "1080ti_256", "silver_4114", "silver_4210r", *_PHONES)
VALIDATION = ("titanx_1", "titanx_32", "titanx_256", "gold_6240")
UNSEEN = ("titan_rtx_256", "gold_6226", "pixel2", "raspi4", "eyeriss", "fpga")
REFERENCES = (11982, 431, 55, 9, 14451, 8636, 9881, 13479, 6196, 1462)
"""Of the paper, by row."""
LINKS = (("op_01", "op_12"), ("op_01", "op_13"), ("op_02", "op_23"), ("op_12", "op_23"))
POOL, ASKED = range(900), range(900, 1900)
"""Rows that samples are drawn from, and rows that are ranked."""


@dataclass(frozen=True)
class Cells:
    """The cells of NAS-Bench-201, what each takes on the 27 device settings, and which are networks at all."""

    archs: list[Architecture]
    devices: Mapping[str, Floats]
    flops: Floats
    connected: NDArray[np.bool_]

    def rows(self, among: Sequence[int]) -> Rows:
        """Return the connected ones of these rows."""
        rows = np.array(among, dtype=np.intp)
        return rows[self.connected[rows]]

    def asked(self, device: str) -> Rows:
        """Return what is ranked on a device: the middle four fifths."""
        rows = self.rows(ASKED)
        order = rows[np.argsort(self.devices[device][rows], kind="stable")]
        return order[len(order) // 10 : -(len(order) // 10)]


def cells() -> Cells:
    """Return the table."""
    table = load("nasbench201")
    archs = table.architectures()
    names = [name for name in table.columns if name.startswith("help_")]
    devices = {name.removeprefix("help_").removesuffix("_ms"): table.values(name, archs) for name in names}
    connected = np.asarray(table.values("connected", archs), dtype=bool)
    return Cells(archs, devices, table.values("flops_m", archs), connected)


def learnt(cells: Cells, help: HELP, sources: Sequence[str] = SOURCES, validation: Sequence[str] = VALIDATION) -> HELP:
    """Return HELP after it learnt from all connected rows but those that are ranked; its references are kept."""
    kept = np.setdiff1d(np.arange(len(cells.archs)), np.array(ASKED))
    if help.references:
        kept = np.union1d(kept, np.array(REFERENCES))
    return learnt_from(cells, help, cells.rows(kept.tolist()), sources, validation)


def learnt_from(
    cells: Cells, help: HELP, rows: Rows, sources: Sequence[str] = SOURCES, validation: Sequence[str] = ()
) -> HELP:
    """Return HELP after it learnt from these rows."""
    archs = [cells.archs[row] for row in rows]
    return help.meta_fit(
        archs,
        {name: cells.devices[name][rows] for name in sources},
        {name: cells.devices[name][rows] for name in validation},
    )


# ---- what ten measurements give without it ----------------------------------------------------------------


def ridge(columns: Floats, rows: Rows, ms: Floats, asked: Rows, alpha: float = 1.0) -> Floats:
    """Return scores of `asked` by ridge regression on (N, K) columns, of standardised latencies."""
    mean = columns[rows].mean(axis=0)
    x = columns[rows] - mean
    y = (ms - ms.mean()) / (ms.std() or 1.0)
    weights: Floats = np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T @ y)
    return np.asarray((columns[asked] - mean) @ weights)


def mixed(sources: Floats, rows: Rows, ms: Floats, asked: Rows) -> Floats:
    """Return scores by the non-negative mix of (D, N) source devices that is closest on the samples."""
    from scipy.optimize import nnls

    scaled = sources / sources.mean(axis=1, keepdims=True)
    weights, _ = nnls(scaled[:, rows].T, ms)
    return np.asarray(scaled[:, asked].T @ weights)


def nearest(sources: Floats, rows: Rows, ms: Floats, asked: Rows) -> Floats:
    """Return the latencies of the source device that ranks the samples most alike."""
    from sartor.ranking import spearman

    return np.asarray(sources[int(np.argmax([spearman(one[rows], ms) for one in sources])), asked])
