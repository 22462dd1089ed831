# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.targets import energy
from sartor.targets.energy import MeterError, energies, nvml, rapl

RANGE = 262_143_328_850  # microjoules, as processors have it


def domain(root: Path, place: str, name: str, microjoules: int = 0) -> Path:
    """One domain of a powercap tree; those below a package lie beside it in /sys/class, as here."""
    folder = root / place
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return folder / "energy_uj"


def test_packages_and_their_memory_are_added_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    places = {
        "intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0",
    }  # fmt: skip
    files = [domain(tmp_path, place, name, 5) for place, name in places.items()]
    meter = rapl(tmp_path)
    assert meter is not None
    assert meter.joules() == 0
    for position, file in enumerate(files):
        file.write_text(f"{5 + 10 ** (6 + position)}\n")
    assert meter.joules() == 1 + 100 + 1000


@settings(max_examples=25)
@given(st.lists(st.integers(0, RANGE - 1), max_size=6))
def test_joules_are_exact_over_wraps(steps: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = domain(Path(folder), "intel-rapl:0", "package-0", RANGE - 7)
        meter, total = rapl(Path(folder)), 0
        assert meter is not None
        for step in steps:
            total += step
            file.write_text(str((RANGE - 7 + total) % RANGE))
            assert meter.joules() == pytest.approx(total / 1e6, abs=1e-6)


def test_no_counters_are_no_meter(tmp_path: Path) -> None:
    assert rapl(tmp_path / "missing") is None
    domain(tmp_path, "intel-rapl:0:0", "core")
    assert rapl(tmp_path) is None


def test_counters_that_cannot_be_read_are_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = domain(tmp_path, "intel-rapl:0", "package-0")
    read = Path.read_text

    def denied(path: Path, *args: str) -> str:
        if path == file:
            raise PermissionError(13, "Permission denied")
        return read(path, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", denied)  # root may read whatever the mode says
        with pytest.raises(MeterError, match=r"energy_uj cannot be read \(Permission denied\): give this user"):
            rapl(tmp_path)
    file.write_text("nonsense")
    with pytest.raises(MeterError, match="energy_uj cannot be read"):
        rapl(tmp_path)


class Simulated:
    """A machine whose calls take time and power; the meter and the clock read it."""

    source, window_s = "simulated", 0.1

    def __init__(self, idle_w: float = 10.0) -> None:
        self.seconds, self.total, self.idle_w = 0.0, 0.0, idle_w

    def spend(self, seconds: float, watts: float = 0.0) -> None:
        self.seconds += seconds
        self.total += seconds * (self.idle_w + watts)

    def call(self, seconds: float, watts: float) -> Callable[[], None]:
        return lambda: self.spend(seconds, watts)

    def joules(self) -> float:
        return self.total


def test_energy_is_what_a_call_takes_above_idling() -> None:
    machine = Simulated()
    calls = [machine.call(0.002, 30.0), machine.call(0.5, 4.0)]
    small, large = energies(calls, [0.002, 0.5], machine, clock=lambda: machine.seconds, wait=machine.spend)
    assert small is not None
    assert large is not None
    assert small.mj == pytest.approx(60.0)
    assert large.mj == pytest.approx(2000.0)
    assert small.idle_w == pytest.approx(10.0)
    assert small.cv == pytest.approx(0.0, abs=1e-9)
    assert "above 10 W when idle" in small.note()


def test_windows_are_as_long_as_the_counter_needs_and_interleaved() -> None:
    machine, order = Simulated(), list[int]()

    def call(index: int) -> Callable[[], None]:
        def run() -> None:
            order.append(index)
            machine.spend(0.03, 1.0)

        return run

    energies([call(0), call(1)], [0.03, 0.03], machine, clock=lambda: machine.seconds, wait=machine.spend)
    assert [order.count(index) for index in (0, 1)] == [4 * energy.WINDOWS] * 2
    windows = order[::4]
    assert windows != sorted(windows)


def test_a_call_that_takes_no_more_than_idling_has_no_number() -> None:
    machine = Simulated()
    assert energies([machine.call(0.1, 0.0)], [0.1], machine, clock=lambda: machine.seconds, wait=machine.spend) == [
        None
    ]


def test_no_calls_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Simulated()
    assert energies([], [], machine, clock=lambda: machine.seconds, wait=machine.spend) == []


class Refused(Exception):
    pass


def library(**functions: object) -> SimpleNamespace:
    known = {"nvmlInit": lambda: None, "nvmlDeviceGetHandleByUUID": lambda uuid: uuid, "NVMLError": Refused}
    return SimpleNamespace(**{**known, **functions})


def refuse(*_: object) -> None:
    raise Refused("Not Supported")


def test_nvml_counts_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([5000, 7500])
    fake = library(nvmlDeviceGetTotalEnergyConsumption=lambda device: {"GPU-1": counts}[device].__next__())
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    meter = nvml("GPU-1")
    assert meter is not None
    assert meter.joules() == 7.5


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_driver_that_refuses_is_a_meter_error(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library(**{function: refuse}))
    with pytest.raises(MeterError, match="Not Supported"):
        nvml("GPU-1")


def test_without_the_library_there_is_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml("GPU-1") is None
