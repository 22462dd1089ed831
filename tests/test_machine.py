# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from sartor.targets import machine
from sartor.targets.machine import Neighbours, growth, processor


def test_the_processor_is_described_without_names_of_hosts_or_paths() -> None:
    found = processor()
    assert found == processor()
    assert found["processor"]
    assert found["cores"] == str(os.cpu_count())
    assert found["virtualised"] in ("yes", "no", "unknown")
    assert not any("/" in value or value == os.uname().nodename for value in found.values())


def watched(
    monkeypatch: pytest.MonkeyPatch, load: float, books: list[tuple[float, float, float, float] | None]
) -> Neighbours:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(machine, "_books", lambda: books.pop(0))
    with Neighbours() as others:
        pass
    return others


def test_our_own_past_load_is_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    others = watched(monkeypatch, 4.0, [(0, 0, 0, 0), (10, 11, 0, 10)])
    assert others.others == pytest.approx(0.1)
    assert others.notes(threads=1) == ()


def test_neighbours_beyond_the_spare_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    others = watched(monkeypatch, 0.0, [(0, 0, 0, 0), (10, 45, 4, 10)])
    assert others.notes(threads=1) == (
        "other processes used 3.5 cores where 3 were spare",
        "the hypervisor took 10% of the time",
    )


def test_the_load_average_decides_where_nothing_else_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(monkeypatch, 3.5, [None, None]).notes(1) == ("1-minute load 3.5 on 3 spare cores",)
    assert watched(monkeypatch, 2.5, [None, None]).notes(1) == ()


def test_memory_growth_is_seen_at_its_peak() -> None:
    with growth() as grown:
        block = torch.ones(12_500_000)  # 50 MB, more than an allocator ever takes from pages that it holds
        del block
    if grown.mb is not None:
        assert 45 < grown.mb < 80


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: "")
    with growth() as grown:
        pass
    assert grown.mb is None
    assert processor()["virtualised"] == "unknown"
    assert machine._books() is None


def test_missing_files_read_as_nothing(tmp_path: Path) -> None:
    assert machine._read(str(tmp_path / "none")) == ""
