# SPDX-License-Identifier: Apache-2.0
"""A device from its datasheet: one line gives latency, energy and memory of any network, before the device exists.

    Datasheet("npu", gmacs_per_s=2000, gbytes_per_s=8.5, call_ms=0.02, pj_per_mac=0.5, pj_per_byte=80)
    Datasheet.from_text("npu: 4 TOPS, 8.5 GB/s, 20 us, 0.5 pJ/MAC, 80 pJ/B, int8")

The numbers of a vendor are peaks. What follows from them ranks networks and says what limits them; it is no
measurement, and is never shown as one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from sartor.architecture import Architecture
from sartor.costs.expected import OfWorkload
from sartor.costs.gemm import bytes_per_element, elements, gemms, macs, moved_bytes
from sartor.costs.memory_tiers import TieredMemory, chain, main_bytes
from sartor.costs.roofline import Roofline
from sartor.costs.systolic import SystolicArray
from sartor.objective import Objective

if TYPE_CHECKING:
    from sartor.workload import Workload

__all__ = ["COSTS", "Datasheet"]

COSTS = ("latency_ms", "energy_mj", "memory_bytes", "size_bytes", "macs", "params")
"""What a datasheet knows of a network."""


@dataclass(frozen=True)
class Datasheet:
    """A device in numbers; infinity is no limit, None is not known.

    gmacs_per_s: 1e9 multiply-accumulates per second; a multiply-accumulate is two of the operations of "TOPS".
    gbytes_per_s: 1e9 bytes per second of the main memory.
    call_ms: milliseconds for each operator, or group of fused ones, that is started.
    chip_bytes: on-chip memory. With more than 0, operators are fused as far as it allows.
    array: the systolic array that computes matrix products, if there is one; its limits replace all but `call_ms`.
    pj_per_mac, pj_per_byte: picojoules of a multiply-accumulate and of a byte of main memory.
    watts: drawn all the time.
    dtype: of the deployed network, as "int8"; None for that of the traced one.
    Raises ValueError for a number out of range.
    """

    name: str
    gmacs_per_s: float = math.inf
    gbytes_per_s: float = math.inf
    call_ms: float = 0.0
    chip_bytes: float = 0.0
    array: SystolicArray | None = None
    pj_per_mac: float | None = None
    pj_per_byte: float | None = None
    watts: float = 0.0
    dtype: str | None = None

    def __post_init__(self) -> None:
        """Check the fields; the models check their own."""
        if not self.name:
            raise ValueError("a datasheet needs the name of its device, as in Datasheet('npu', ...)")
        known = [value for value in (self.pj_per_mac, self.pj_per_byte, self.watts) if value is not None]
        if not all(0 <= value < math.inf for value in (*known, self.chip_bytes)):
            raise ValueError(f"{self.name}: energies, watts and bytes on the chip must be 0 or more")
        if self.dtype is not None:
            bytes_per_element(self.dtype)
        _ = self._model

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read "NAME: NUMBER UNIT, ...", in any order.

        Units: TOPS, GOPS, TFLOPS, GFLOPS, GMAC/s; TB/s, GB/s, MB/s; us, ms (for each call); kB, MB (on the chip);
        pJ/MAC, pJ/B, W; a dtype; and "32x32 os 200 MHz" for an array, whose two operands share the chip's memory.
        ValueError names the part that is not understood.
        """
        name, found, body = text.partition(":")
        if not found:
            raise ValueError(f"datasheet {text!r} has no name: write it as 'npu: 4 TOPS, 8.5 GB/s'")
        fields: dict[str, Any] = {}
        for part in filter(None, map(str.strip, body.split(","))):
            field, value = _read(part)
            if field in fields:
                raise ValueError(f"datasheet {name.strip()!r} states {field} twice: {part!r} is the second")
            fields[field] = value
        if (array := fields.get("array")) is not None:
            fields["array"] = replace(
                array,
                gbytes_per_s=fields.get("gbytes_per_s", math.inf),
                buffer_kb=fields.pop("chip_bytes", math.inf) / 2e3,
                word_bytes=float(bytes_per_element(fields.get("dtype", "float32"))),
            )
        return cls(name.strip(), **fields)

    def latency_ms(self, workload: Workload) -> float:
        """Return the milliseconds of a network."""
        deployed = self._deployed(workload)
        if self.array is None:
            return self._model(deployed)
        return self._model(deployed) + self.call_ms * sum(bool(gemms(op)) for op in deployed)

    def energy_mj(self, workload: Workload) -> float | None:
        """Return the millijoules of a network, None where the datasheet has no energies."""
        if self.pj_per_mac is None or self.pj_per_byte is None:
            return None
        deployed = self._deployed(workload)
        arithmetic = self.pj_per_mac * sum(map(macs, deployed))
        traffic = self.pj_per_byte * self._moved(deployed)
        return 1e-9 * (arithmetic + traffic) + self.watts * self.latency_ms(workload)

    def memory_bytes(self, workload: Workload) -> float:
        """Return the bytes of all weights and of the operator whose inputs and output need most besides."""
        deployed = self._deployed(workload)
        passing = ((elements(op) - op.attribute("parameters")) * bytes_per_element(op.dtype) for op in deployed)
        return self.size_bytes(workload) + max(passing, default=0)

    def size_bytes(self, workload: Workload) -> float:
        """Return the bytes of all weights."""
        return float(sum(op.attribute("parameters") * bytes_per_element(op.dtype) for op in self._deployed(workload)))

    def costs(self, workload: Workload) -> dict[str, float]:
        """Return all of `COSTS` that are known, by name."""
        found = {name: self.cost(name)(workload) for name in COSTS if name != "energy_mj"}
        energy = self.energy_mj(workload)
        return found if energy is None else {**found, "energy_mj": energy}

    def cost(self, name: str) -> Callable[[Workload], float]:
        """Return one of `COSTS` as a function of workloads; ValueError for another name or an unknown energy."""
        if name == "energy_mj" and self.energy_mj(()) is None:
            raise ValueError(f"{self.name} has no energies: give its datasheet pj_per_mac and pj_per_byte")
        if name not in COSTS:
            raise ValueError(f"no cost is named {name!r}: use {', '.join(COSTS)}")
        if name in ("macs", "params"):
            return _macs if name == "macs" else _params
        cost: Callable[[Workload], float] = getattr(self, name)
        return cost

    def objective(
        self, name: str, workload: Callable[[Architecture], Workload], *, at_most: float | None = None
    ) -> Objective:
        """Return one of `COSTS` as an objective of a search, named "DEVICE.COST", perhaps with a limit."""
        return Objective(f"{self.name}.{name}", OfWorkload(self.cost(name), workload), at_most=at_most, cheap=True)

    @property
    def _model(self) -> Roofline | TieredMemory | SystolicArray:
        if self.array is not None:
            return self.array
        if self.chip_bytes:
            return TieredMemory(self.gmacs_per_s, self.gbytes_per_s, self.chip_bytes, call_ms=self.call_ms)
        return Roofline(self.gmacs_per_s, self.gbytes_per_s, self.call_ms)

    def _moved(self, deployed: Workload) -> float:
        """Return the bytes that cross to main memory."""
        model = self._model
        if isinstance(model, SystolicArray):
            return model.word_bytes * sum(model.traffic(gemm) for op in deployed for gemm in gemms(op))
        if isinstance(model, Roofline):
            return float(sum(map(moved_bytes, deployed)))
        stages = chain(deployed)
        ends = model.planned(stages)[1]
        return sum(main_bytes(stages[first:end]) for first, end in zip((0, *ends[:-1]), ends, strict=True))

    def _deployed(self, workload: Workload) -> Workload:
        if self.dtype is None:
            return workload
        return tuple(replace(op, dtype=self.dtype) for op in workload)


_UNITS: dict[str, tuple[str, float]] = {
    "tops": ("gmacs_per_s", 500.0),
    "gops": ("gmacs_per_s", 0.5),
    "tflops": ("gmacs_per_s", 500.0),
    "gflops": ("gmacs_per_s", 0.5),
    "gmac/s": ("gmacs_per_s", 1.0),
    "tb/s": ("gbytes_per_s", 1000.0),
    "gb/s": ("gbytes_per_s", 1.0),
    "mb/s": ("gbytes_per_s", 1e-3),
    "us": ("call_ms", 1e-3),
    "ms": ("call_ms", 1.0),
    "kb": ("chip_bytes", 1e3),
    "mb": ("chip_bytes", 1e6),
    "pj/mac": ("pj_per_mac", 1.0),
    "pj/b": ("pj_per_byte", 1.0),
    "w": ("watts", 1.0),
}
_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_QUANTITY = re.compile(rf"({_NUMBER})\s*([a-z/]+)", re.IGNORECASE)
_ARRAY = re.compile(rf"(\d+)x(\d+)\s+(os|ws|is)\s+({_NUMBER})\s*MHz", re.IGNORECASE)
_DTYPE = re.compile(r"(?:u?int|b?float)\d+", re.IGNORECASE)


def _read(part: str) -> tuple[str, Any]:
    """Return the field that a part of a datasheet's text sets, and its value."""
    if array := _ARRAY.fullmatch(part):
        flow: Any = array[3].lower()
        return "array", SystolicArray(int(array[1]), int(array[2]), flow, mhz=float(array[4]))
    if _DTYPE.fullmatch(part):
        return "dtype", part.lower()
    quantity = _QUANTITY.fullmatch(part)
    if quantity is None or quantity[2].lower() not in _UNITS:
        units = "TOPS, GMAC/s, GB/s, us, kB, pJ/MAC, pJ/B or W"
        raise ValueError(
            f"{part!r} is not understood: write a number and one of {units}, a dtype, or '32x32 os 200 MHz'"
        )
    field, scale = _UNITS[quantity[2].lower()]
    return field, float(quantity[1]) * scale


def _macs(workload: Workload) -> float:
    return float(sum(map(macs, workload)))


def _params(workload: Workload) -> float:
    return float(sum(op.attribute("parameters") for op in workload))
