# SPDX-License-Identifier: Apache-2.0
"""A datasheet as a target: a search for a device that is not there; its latencies are computed and say so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.costs.datasheet import Datasheet
from sartor.protocols import Artefact, Measurement

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sartor.workload import Workload

__all__ = ["DatasheetTarget", "from_text"]

WORKLOAD = "workload.json"


class DatasheetTarget:
    """A `Target` that computes what its datasheet says of a network.

    Its file holds the operators of the network, of which latency, energy, memory and size are computed; the accuracy is
    that of the weights in torch, as there is nothing that would run the file. On the command line it is
    `datasheet:TEXT`; one of your own is a class with a `datasheet`, named there as `path.py:Class`:

        class Npu(DatasheetTarget):
            datasheet = Datasheet.from_text("npu: 4 TOPS, 8.5 GB/s, 20 us, int8")
    """

    datasheet: Datasheet
    file_name = WORKLOAD

    def __init__(self, datasheet: Datasheet | None = None, *, threads: int = 1) -> None:
        """Take the datasheet, that of the class if None; threads mean nothing to it."""
        if datasheet is not None:
            self.datasheet = datasheet
        self.name = self.datasheet.name

    def fingerprint(self) -> dict[str, str]:
        """Return the datasheet, word for word."""
        return {"runtime": "computed", "device": self.datasheet.name, "datasheet": repr(self.datasheet)}

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        """Write `workload.json` into the folder `path`; calibration samples are not needed."""
        from sartor.targets.artefacts import ids_below, one_example
        from sartor.workload import trace

        inputs, file = one_example(example), path / self.file_name
        path.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_written(trace(model, inputs, live=True))), encoding="utf-8")
        return Artefact(file, tuple(inputs.shape), (file,), ids_below(inputs))

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Compute latency and size of each; ValueError for a file that `prepare` did not write."""
        return [self._computed(artefact) for artefact in artefacts]

    def _computed(self, artefact: Artefact) -> Measurement:
        from sartor.targets.fingerprint import of_artefact

        path = artefact.path
        try:
            workload = _read(json.loads(path.read_text(encoding="utf-8")))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no operators ({error!r}): prepare the network again") from None
        ms = self.datasheet.latency_ms(workload)
        return Measurement(
            latency_ms=ms,
            p10=ms,
            p90=ms,
            p95=ms,
            p99=ms,
            minimum=ms,
            ci_low=ms,
            ci_high=ms,
            runs=0,
            rounds=0,
            cv=0.0,
            noisy=False,
            notes=(f"computed from the datasheet of {self.datasheet.name}, not measured",),
            size_mb=self.datasheet.size_bytes(workload) / 1e6,
            memory_mb=self.datasheet.memory_bytes(workload) / 1e6,
            energy_mj=self.datasheet.energy_mj(workload),
            fingerprint=of_artefact(self.fingerprint(), artefact),
        )


def from_text(text: str) -> DatasheetTarget:
    """Return the target of a datasheet in a line, such as "npu: 4 TOPS, 8.5 GB/s, 20 us"; ValueError as there."""
    return DatasheetTarget(Datasheet.from_text(text))


def _written(workload: Workload) -> list[dict[str, Any]]:
    return [
        {
            "kind": op.kind,
            "inputs": op.inputs,
            "output": op.output,
            "attributes": dict(op.attributes),
            "dtype": op.dtype,
        }
        for op in workload
    ]


def _read(values: Sequence[Mapping[str, Any]]) -> Workload:
    from sartor.workload import Op

    return tuple(
        Op(
            str(one["kind"]),
            tuple(tuple(map(int, shape)) for shape in one["inputs"]),
            tuple(map(int, one["output"])),
            tuple((str(name), int(value)) for name, value in one["attributes"].items()),
            str(one["dtype"]),
        )
        for one in values
    )
