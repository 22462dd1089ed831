# SPDX-License-Identifier: Apache-2.0
"""Ask SCALE-Sim for cycles: a request as JSON on standard input, the answer as JSON on standard output.

Request: {"rows": 32, "columns": 32, "dataflow": "os", "layers": [...]}; a layer is the (M, N, K) of a product of
matrices, or the (height, width, kernel, channels, filters, stride) of a convolution of an input that is padded already.
Answer: {"version": "3.0.0", "cycles": [...]}, the cycles without stalls of each layer.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from scalesim.scale_sim import scalesim  # type: ignore[import-not-found]

CONFIG = """[general]
run_name = asked
[architecture_presets]
ArrayHeight = {rows}
ArrayWidth = {columns}
IfmapSramSzkB = 65536
FilterSramSzkB = 65536
OfmapSramSzkB = 65536
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = {dataflow}
ReadRequestBuffer = 512
WriteRequestBuffer = 512
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""


def topology(layers: list[list[int]]) -> str:
    """Return the table of layers that SCALE-Sim reads; every line ends in a comma."""
    if len(layers[0]) == 3:
        lines = ["Layer, M, N, K,", *(f"layer{i}, {m}, {n}, {k}," for i, (m, n, k) in enumerate(layers))]
    else:
        lines = ["Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,"]
        for i, (height, width, kernel, channels, filters, stride) in enumerate(layers):
            lines.append(f"layer{i}, {height}, {width}, {kernel}, {kernel}, {channels}, {filters}, {stride},")
    return "\n".join(lines) + "\n"


def layout(layers: list[list[int]]) -> str:
    """Return the table of memory layouts that version 3 will not start without; it is not used here."""
    return "\n".join(["Layer,", *(f"layer{i}, " + "1, " * 20 for i in range(len(layers)))]) + "\n"


def cycles(request: dict[str, object], folder: Path) -> list[int]:
    """Run the simulator once for all layers."""
    layers: list[list[int]] = request["layers"]  # type: ignore[assignment]
    texts = {"asked.cfg": CONFIG.format(**request), "layers.csv": topology(layers), "layout.csv": layout(layers)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    simulation = scalesim(
        save_disk_space=True,
        verbose=False,
        config=str(folder / "asked.cfg"),
        topology=str(folder / "layers.csv"),
        layout=str(folder / "layout.csv"),
        input_type_gemm=len(layers[0]) == 3,
    )
    simulation.run_scale(top_path=str(folder))
    return [int(layer.get_compute_report_items()[1]) for layer in simulation.runner.single_layer_sim_object_list]


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        found = cycles(request, Path(folder))
    json.dump({"version": metadata.version("scalesim"), "cycles": found}, sys.stdout)


if __name__ == "__main__":
    main()
