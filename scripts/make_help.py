#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make what HELP has learnt from the latencies in the package: `scripts/make_help.py`, about four minutes.

Writes src/sartor/predictors/data/help_nasbench201.safetensors, learnt from all 27 device settings, for users; and
tests/predictors/help_sources.safetensors, learnt from the nine source devices of the paper's split and stopped by its
four validation devices, for the proof on six unseen ones. The same torch on the same processor gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sartor.predictors import HELP
from sartor.spaces import nasbench201_cell

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import help_devices  # noqa: E402  # its folder is on the path from here on


def main() -> None:
    """Learn twice, write twice."""
    cells, space = help_devices.cells(), nasbench201_cell.space()
    proof = help_devices.learnt(cells, HELP(space))
    for episode, rho in proof.history:
        print(f"{episode:5d} episodes: {rho:.4f} on the validation devices")
    proof.save(ROOT / "tests" / "predictors" / "help_sources.safetensors")
    rows = cells.rows(range(len(cells.archs)))
    everything = help_devices.learnt_from(cells, HELP(space), rows, tuple(cells.devices))
    everything.save(ROOT / "src" / "sartor" / "predictors" / "data" / "help_nasbench201.safetensors")


if __name__ == "__main__":
    main()
