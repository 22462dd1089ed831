# SPDX-License-Identifier: Apache-2.0
"""A datasheet is one line: what follows from it, how it is read, and as a target and a limit of a search."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sartor.costs.datasheet import COSTS, Datasheet
from sartor.costs.datasheet_target import WORKLOAD, DatasheetTarget
from sartor.costs.memory_tiers import TieredMemory
from sartor.costs.roofline import Roofline
from sartor.costs.systolic import SystolicArray
from sartor.protocols import Artefact, Target
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies.random_search import RandomSearch
from sartor.targets import load_target
from sartor.workload import Op, Workload, macs, parameters, trace

NET = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Flatten())
EXAMPLE = torch.zeros(1, 3, 12, 12)
NETWORK = trace(NET, EXAMPLE)
FULL = Datasheet("npu", 2000, 8.5, 0.02, pj_per_mac=0.5, pj_per_byte=80, dtype="int8")


def test_text_and_arguments_are_one_device() -> None:
    assert Datasheet.from_text("npu: 4 TOPS, 8.5 GB/s, 20 us, 0.5 pJ/MAC, 80 pJ/B, int8") == FULL
    assert Datasheet.from_text("a: 2 GMAC/s, 1 TB/s, 1 ms, 512 kB, 3 W") == Datasheet("a", 2, 1000, 1, 512e3, watts=3)
    assert Datasheet.from_text("a:") == Datasheet("a")
    array = SystolicArray(32, 16, "ws", 200, buffer_kb=64, gbytes_per_s=4, word_bytes=2)
    text = "a: 32x16 ws 200 MHz, 4GB/s, 128 kB, float16"
    assert Datasheet.from_text(text) == Datasheet("a", gbytes_per_s=4, array=array, dtype="float16")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("npu", "has no name"),
        (": 4 TOPS", "needs the name"),
        ("npu: 4", "'4' is not understood"),
        ("npu: 4 parsecs", "'4 parsecs' is not understood"),
        ("npu: 4 TOPS, 2 GOPS", "states gmacs_per_s twice"),
        ("npu: 0 TOPS", "above 0"),
        ("npu: 0x4 os 200 MHz", "above 0"),
        ("npu: 1e999 pJ/MAC", "0 or more"),
    ],
)
def test_text_that_is_not_understood(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Datasheet.from_text(text)


@given(st.text(max_size=40))
def test_any_text_is_a_datasheet_or_a_mistake_of_one_line(text: str) -> None:
    try:
        assert Datasheet.from_text(text).latency_ms(NETWORK) >= 0
    except ValueError as error:
        assert len(str(error).splitlines()) == 1 or not text.isprintable()


def test_the_model_that_the_numbers_ask_for() -> None:
    assert Datasheet("a", 10, 2, 0.1).latency_ms(NETWORK) == Roofline(10, 2, 0.1)(NETWORK)
    fused = TieredMemory(10, 2, 1e6, call_ms=0.1)(NETWORK)
    assert Datasheet("a", 10, 2, 0.1, chip_bytes=1e6).latency_ms(NETWORK) == fused
    assert fused < Roofline(10, 2, 0.1)(NETWORK)
    array = SystolicArray(8, 8)
    assert Datasheet("a", call_ms=0.1, array=array).latency_ms(NETWORK) == pytest.approx(array(NETWORK) + 0.2)


def test_bytes_energy_and_counts() -> None:
    assert set(FULL.costs(NETWORK)) == set(COSTS)
    found = FULL.costs(NETWORK)
    assert found["macs"] == macs(NETWORK) and found["params"] == parameters(NETWORK) == found["size_bytes"]
    assert Datasheet("a").size_bytes(NETWORK) == 4 * parameters(NETWORK)
    # The activation reads and writes 8 x 10 x 10 numbers, more than either convolution.
    assert found["memory_bytes"] == found["size_bytes"] + 2 * 800
    moved = (3 * 144 + 216 + 800) + 1600 + (800 + 72 + 512)
    assert found["energy_mj"] == pytest.approx(1e-9 * (0.5 * macs(NETWORK) + 80 * moved))
    chip = Datasheet("a", 10, 2, chip_bytes=1e6, pj_per_mac=0, pj_per_byte=1, dtype="int8")
    assert chip.energy_mj(NETWORK) == pytest.approx(1e-9 * (3 * 144 + 216 + 72 + 512))  # fused: ends and weights alone
    array = Datasheet("a", array=SystolicArray(8, 8), pj_per_mac=0, pj_per_byte=1)
    assert array.energy_mj(NETWORK) == pytest.approx(1e-9 * (3 * 144 + 216 + 800 + 800 + 72 + 512))
    leaking = Datasheet("a", 10, 2, pj_per_mac=0, pj_per_byte=0, watts=2)
    assert leaking.energy_mj(NETWORK) == pytest.approx(2 * leaking.latency_ms(NETWORK))  # W times ms is mJ


def test_what_is_not_known_is_absent() -> None:
    sheet = Datasheet("a", 10, 2)
    assert sheet.energy_mj(NETWORK) is None
    assert "energy_mj" not in sheet.costs(NETWORK)
    with pytest.raises(ValueError, match="has no energies"):
        sheet.cost("energy_mj")
    with pytest.raises(ValueError, match="no cost is named 'speed'"):
        sheet.cost("speed")
    assert sheet.latency_ms(()) == 0 and sheet.memory_bytes(()) == 0


@pytest.mark.parametrize(
    "wrong", [{"gmacs_per_s": -1}, {"pj_per_mac": -1}, {"watts": math.inf}, {"chip_bytes": -1}, {"dtype": "double"}]
)
def test_numbers_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Datasheet("a", **wrong)  # type: ignore[arg-type]


def test_a_limit_of_a_search() -> None:
    space = SearchSpace({"rows": (10, 100, 1000), "width": (8, 64)})

    def workload(arch: object) -> Workload:
        rows, width = arch["rows"], arch["width"]  # type: ignore[index]
        return (Op("matmul", ((rows, 32), (32, width)), (rows, width), (), "float32"),)

    sheet = Datasheet("npu", 1.0)
    latency = sheet.objective("latency_ms", workload, at_most=0.25)
    assert latency.name == "npu.latency_ms" and latency.cheap
    log = search(space, RandomSearch(space, [latency]), [latency], trials=30, seed=0)
    kept = {trial.arch for trial in log if trial.state == "done"}
    assert kept and all(sheet.latency_ms(workload(arch)) <= 0.25 for arch in kept)
    assert any(trial.state == "infeasible" for trial in log)


class Npu(DatasheetTarget):
    datasheet = FULL


def test_a_target_of_what_is_not_there(tmp_path: Path) -> None:
    target = Npu(threads=2)
    assert isinstance(target, Target)
    assert target.name == "npu" and "2000" in target.fingerprint()["datasheet"]
    artefacts = [target.prepare(NET, (EXAMPLE,), [], tmp_path / name) for name in "ab"]
    assert [path.name for path in artefacts[0].files] == [WORKLOAD] == [target.file_name]
    found = target.measure(artefacts)
    assert [one.latency_ms for one in found] == [FULL.latency_ms(NETWORK)] * 2
    assert found[0].notes == ("computed from the datasheet of npu, not measured",)
    assert found[0].runs == 0 and found[0].energy_mj == FULL.energy_mj(NETWORK)
    assert found[0].size_mb == FULL.size_bytes(NETWORK) / 1e6
    assert found[0].fingerprint == {**target.fingerprint(), "batch": "1", "shape": "3x12x12"}
    other = DatasheetTarget(Datasheet("cpu", 0.1))
    assert other.measure(artefacts)[0].latency_ms > found[0].latency_ms


def test_a_file_that_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / WORKLOAD).write_text('{"kind": 3}')
    with pytest.raises(ValueError, match="prepare the network again"):
        Npu().measure([Artefact(tmp_path / WORKLOAD, (1, 3, 8, 8), ())])


def test_random_networks_never_beat_a_better_device() -> None:
    rng = random.Random(0)
    for _ in range(20):
        width = rng.choice([8, 64, 256])
        work = (Op("matmul", ((width, 32), (32, width)), (width, width), (), "float32"),) * rng.randint(1, 5)
        assert Datasheet("b", 20, 4, chip_bytes=1e5).latency_ms(work) <= Datasheet("a", 10, 2).latency_ms(work)


def test_a_class_of_the_users_own_file(tmp_path: Path) -> None:
    file = tmp_path / "npu.py"
    line = 'datasheet = Datasheet.from_text("own npu: 4 TOPS, 8.5 GB/s")'
    file.write_text(f"from sartor.costs import Datasheet, DatasheetTarget\n\nclass Own(DatasheetTarget):\n    {line}\n")
    assert load_target(f"{file}:Own").name == "own npu"
