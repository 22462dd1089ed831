# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from sartor.protocols import Artefact
from sartor.targets.artefacts import Conditions, TargetError, in_batches, measure_artefacts
from sartor.targets.energy import MeterError
from sartor.targets.machine import Growth
from sartor.targets.native import listening


class Device:
    """A device with a clock of its own; a call takes what it is told to."""

    source, window_s = "simulated", 0.01

    def __init__(self) -> None:
        self.seconds, self.launches = 0.0, 0

    def load(self, artefact: Artefact) -> Callable[[], None]:
        taken = float(artefact.path.read_text())

        def call() -> None:
            self.launches += 1
            self.seconds += taken

        return call

    def kernel(self) -> Callable[[], None]:
        return lambda: setattr(self, "seconds", self.seconds + 0.001)

    def joules(self) -> float:
        return 5.0 * self.seconds

    @contextmanager
    def memory(self) -> Any:
        grown = Growth()
        yield grown
        grown.mb = 7.0

    def conditions(self, **changed: Any) -> Conditions:
        usual: dict[str, Any] = {
            "clock": lambda: self.seconds, "kernel": self.kernel, "launches": 20, "runs": 5, "memory": self.memory,
            "meter": lambda: None,
        }  # fmt: skip
        return Conditions(**{**usual, **changed})


def files(folder: Path, *contents: str) -> list[Artefact]:
    paths = [folder / str(index) for index in range(len(contents))]
    for path, text in zip(paths, contents, strict=True):
        path.write_text(text)
    return [Artefact(path, (2, 3, 4), (path,)) for path in paths]


def measured(device: Device, artefacts: list[Artefact], **changed: Any) -> Any:
    return measure_artefacts(
        artefacts, device.load, threads=1, seconds=0.05, seed=0, fingerprint={"device": "simulated"},
        conditions=device.conditions(**changed),
    )  # fmt: skip


def test_launches_are_timed_in_batches_and_told_per_call(tmp_path: Path) -> None:
    device = Device()
    fast, slow = measured(device, files(tmp_path, "0.001", "0.004"))
    assert fast.latency_ms == pytest.approx(1.0)
    assert slow.latency_ms == pytest.approx(4.0)
    assert fast.runs == 5 * fast.rounds
    assert any("runs of 20 calls" in note for note in fast.notes)
    assert fast.memory_mb == 7.0
    assert fast.fingerprint == {"device": "simulated", "batch": "2", "shape": "3x4"}


def test_a_meter_that_fails_leaves_the_latency_and_a_note(tmp_path: Path) -> None:
    def broken() -> None:
        raise MeterError("root only")

    (one,) = measured(Device(), files(tmp_path, "0.001"), meter=broken)
    assert one.energy_mj is None
    assert one.notes[-1] == "energy not measured: root only"
    assert one.latency_ms == pytest.approx(1.0)


def test_no_more_than_idling_is_no_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr("sartor.targets.energy.time.sleep", lambda _: None)
    monkeypatch.setattr("sartor.targets.energy._idle_power", lambda *_: 5.0)
    (one,) = measured(device, files(tmp_path, "0.001"), meter=lambda: device)
    assert one.energy_mj is None


def test_energy_is_measured_where_there_is_a_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr("sartor.targets.energy._idle_power", lambda *_: 1.0)
    (one,) = measured(device, files(tmp_path, "0.001"), meter=lambda: device)
    assert one.energy_mj == pytest.approx(4.0)  # 5 W less 1 W, for a millisecond
    assert "energy by simulated" in one.notes[-1]


def test_refusals_do_not_disturb_the_others(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="could not convert string") as caught:
        measured(Device(), files(tmp_path, "no", "0.002", "no"))
    assert set(caught.value.reasons) == {0, 2}
    assert [one and round(one.latency_ms, 6) for one in caught.value.measurements] == [None, 2.0, None]


def test_a_runtime_that_is_missing_is_no_refusal(tmp_path: Path) -> None:
    def load(artefact: Artefact) -> Callable[[], None]:
        raise ImportError("it is missing")

    with pytest.raises(ImportError, match="it is missing"):
        measure_artefacts(files(tmp_path, "0"), load, threads=1, seconds=0.1, seed=0, fingerprint={})


@given(arrays(np.float32, st.tuples(st.integers(1, 9), st.just(2)), elements=st.floats(-9, 9, width=32)),
       st.integers(1, 5))  # fmt: skip
def test_fixed_batches_serve_any_number_of_samples(inputs: NDArray[np.float32], size: int) -> None:
    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        assert batch.shape == (size, 2)
        return batch * 2

    assert np.array_equal(in_batches(run, size)(inputs), inputs * 2)


def test_measuring_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import sartor.targets.artefacts"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_libraries_print_is_caught_whichever_way(capfd: pytest.CaptureFixture[str]) -> None:
    print("before", flush=True)
    with listening() as said:
        os.write(2, b"\nfrom below\n")
        os.write(1, b"and more\n")
    print("after", flush=True)
    assert said.first("nothing") == "from below"
    assert said.text.endswith("and more\n")
    assert capfd.readouterr().out == "before\nafter\n"
    with listening() as silence:
        pass
    assert silence.first("nothing") == "nothing"


def test_what_is_printed_comes_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), listening():
        raise ValueError("broken")
    print("after", flush=True)
    assert capfd.readouterr().out == "after\n"
