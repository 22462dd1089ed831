# SPDX-License-Identifier: Apache-2.0
"""Original benchmark files become tables, through a process that runs nothing of what they hold."""

from __future__ import annotations

import bz2
import math
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sartor.architecture import Architecture
from sartor.spaces import nasbench101_cell, nasbench201_cell
from sartor.tables import _child, _others
from sartor.tables._converted import Converted
from sartor.tables._restricted_pickle import Refused, plain, read_pickle
from sartor.tables._tfrecord import masked_crc
from sartor.tables.original import KINDS, open_table, read_original
from tables import original_files as write


def read(kind: str, path: Path) -> Converted:
    """Read in this process, which is what the converter does in its own."""
    return _child.READERS[kind](path)


def test_every_kind_has_a_reader() -> None:
    assert {*KINDS} == {*_child.READERS}


# ---- through the whole of it: process, file, table -------------------------------------------------------------


def test_a_file_becomes_a_table_that_is_kept(tmp_path: Path) -> None:
    path = write.write_nats_file(tmp_path / "NATS-tss.pickle.pbz2")
    table = read_original("nats_bench", path, save=tmp_path / "kept.npz")
    assert len(table) == 3 and len(table.where(np.array([True, False, False])).architectures()) == 1
    first = nasbench201_cell.from_string(write.CELLS[0])
    expected = {"cifar10": 80.0, "cifar10_val": 77.0, "cifar10_test12": 70.0, "cifar10_val12": 67.0, "cifar100": 80.0}
    expected |= {"cifar10_cost_s": 40.5, "cifar10_cost12_s": 24.5, "params_m": 0.25, "flops_m": 12.5}
    for column, value in {**expected, "imagenet16_val": 79.0, "cifar100_gpu_latency_ms": 13.0}.items():
        assert table.values(column, [first])[0] == pytest.approx(value), column
    assert math.isnan(table.column("cifar10")[2]), "what was not evaluated is NaN"
    kept = open_table(tmp_path / "kept.npz")
    assert kept.architectures() == table.architectures() and {*kept.columns} == {*table.columns}
    with pytest.raises(ValueError, match="is no architecture of table 'nats_bench_topology'"):
        table.row(nasbench201_cell.from_string("|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"))


def test_a_malicious_file_is_refused_in_one_line_and_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "HW-NAS-Bench-v1_0.pickle"
    path.write_bytes(pickle.dumps(Calls(os.system, f"touch {trace}")))
    with pytest.raises(ValueError, match=r"cannot be read as hw_nas_bench: it asks for \w+\.system") as error:
        read_original("hw_nas_bench", path)
    assert "\n" not in str(error.value) and not trace.exists()


def test_limits_end_the_converter(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    path = tmp_path / "large.pickle"
    path.write_bytes(b"\x80\x04](" + b"}" * 12_000_000 + b"e.")  # a list of as many dictionaries
    with pytest.raises(ValueError, match=r"memory|limits"):
        read_original("hw_nas_bench", path, memory_limit_mb=600)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no kind of original file is named 'nasbench102'"):
        read_original("nasbench102", tmp_path)
    with pytest.raises(FileNotFoundError, match="give the path of your copy of nats_bench"):
        read_original("nats_bench", tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="cannot be saved"):
        read_original("nats_bench", tmp_path, save=tmp_path / "missing" / "x.npz")


def test_what_a_reader_did_not_foresee_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Path) -> Converted:
        raise AttributeError("'list' object has\nno attribute")

    monkeypatch.setattr(_child, "_limit", lambda *_: None)
    monkeypatch.setattr(sys, "addaudithook", lambda _: None)
    monkeypatch.setitem(_child.READERS, "nats_bench", fails)
    assert _child.main(["nats_bench", str(tmp_path), str(tmp_path / "out"), "1", "1"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# ---- the restricted grammar -------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Changes:
    """Pickles as an OrderedDict's class whose attributes are set afterwards."""

    def __reduce__(self) -> Any:
        return OrderedDict, (), {"items": 1}


def stored(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    data: dict[str, Any] = {
        "text": "ä\n", "none": None, "flags": [True, False], "large": 10**30, "set": {1, 2}, "bytes": b"\0\xff",
        "nested": OrderedDict(a=(1, (2.5, [])), b={}), "scalar": np.float32(1.5), "count": np.int64(7),
    }  # fmt: skip
    arrays = [np.arange(6.0).reshape(2, 3), np.arange(4, dtype=">i2"), np.asfortranarray(np.eye(3)), np.zeros((0, 2))]
    found = read_pickle(stored(tmp_path / "data", {"data": data, "arrays": arrays}, protocol))
    assert found["data"] == data
    for one, array in zip(found["arrays"], arrays, strict=True):
        np.testing.assert_array_equal(plain(one), array)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (Calls(os.system, "true"), r"asks for (posix|nt)\.system"),
        (Calls(eval, "1"), r"asks for builtins\.eval"),
        (Calls(getattr, "a", "upper"), r"asks for builtins\.getattr"),
        (Calls(__import__, "os"), r"asks for builtins\.__import__"),
        (Calls(open, "x", "w"), r"asks for \w+\.open"),
        (Path("x"), r"asks for pathlib"),
        (np.array([{}], dtype=object), r"numpy data of type 'O8'"),
        (np.array(["a"]), r"numpy data of type 'U1'"),
        (b"cos\nsystem\n(S'true'\ntR.", r"asks for os\.system"),
        (b"c__builtin__\neval\n(S'1'\ntR.", r"asks for __builtin__\.eval"),
        (b"(S'true'\nios\nsystem\n.", r"asks for os\.system"),
        (b"ccollections\nOrderedDict\n}S'__code__'\nI1\nsb.", "tries to change what a name stands for"),
        (b"ccollections\nOrderedDict.fromkeys\n(]tR.", r"asks for collections\.OrderedDict\.fromkeys"),
        (b"cnumpy\ndtype.__class__\n.", r"asks for numpy\.dtype\.__class__"),
        (b"\x80\x02\x82\x01.", "damaged"),  # a code of the extension registry
        (Changes(), "damaged"),
        (b"", "cut off"),
        (b"not a pickle", "damaged"),
        (pickle.dumps(list(range(1000)))[:400], "damaged|cut off"),
        (b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"x.", "damaged|cut off|memory"),
        (bz2.compress(pickle.dumps(list(range(9000))))[:-20], "cut off"),
        (b"PK\x03\x04 no archive", "cut off"),
    ],
)  # fmt: skip
def test_everything_else_is_refused_in_one_line(tmp_path: Path, content: object, told: str) -> None:
    with pytest.raises(Refused, match=told) as error:
        read_pickle(stored(tmp_path / "data", content))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_an_archive_with_a_malicious_pickle_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Calls(os.system, "true")))
    with pytest.raises(Refused, match=r"\.system"):
        read_pickle(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "y.pth", "w") as file:
        file.writestr("other", "x")
    with pytest.raises(Refused, match=r"not one of torch\.save"):
        read_pickle(tmp_path / "y.pth")


# ---- NAS-Bench-201 and NATS-Bench ---------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [True, False])
def test_nasbench201_in_both_formats_of_torch(tmp_path: Path, legacy: bool) -> None:
    found = read("nasbench201", write.write_nasbench201(tmp_path / "NAS-Bench-201.pth", legacy=legacy))
    assert [nasbench201_cell.to_string(arch) for arch in found.archs] == write.CELLS
    assert found.columns["cifar10"][:2].tolist() == [80.0, 90.0]
    assert found.columns["imagenet16_test12"][:2].tolist() == [70.0, 80.0]


def test_the_size_space_in_a_folder(tmp_path: Path) -> None:
    found = read("nats_bench", write.write_nats_folder(tmp_path / "NATS-sss-simple"))
    assert found.name == "nats_bench_size" and found.space.size == 8**5
    assert dict(found.archs[1]) == {"width_0": 8, "width_1": 8, "width_2": 8, "width_3": 8, "width_4": 16}
    assert found.columns["cifar100_val"].tolist()[:2] == [79.0, 89.0]


def test_nan_accuracies_stay_nan(tmp_path: Path) -> None:
    found = read("nats_bench", write.write_nats_file(tmp_path / "x.pbz2", accuracies=(math.nan, 90.0)))
    assert math.isnan(found.columns["cifar10"][0]) and found.columns["cifar10"][1] == 90.0


def test_nats_files_of_another_layout(tmp_path: Path) -> None:
    for whole, told in (
        ({"archs": []}, "has no entry 'meta_archs'"),
        ({"meta_archs": [], "arch2infos": {}}, "no list of architecture strings"),
        ({"meta_archs": write.CELLS, "arch2infos": {}}, "it holds no accuracy"),
        ({"meta_archs": ["|nor_conv_7x7~0|"], "arch2infos": {}}, "is no cell of NAS-Bench-201"),
        ({"meta_archs": ["8:8:8:8:9"], "arch2infos": {}}, "is no architecture of the size space"),
        ({"meta_archs": write.CELLS, "arch2infos": {7: {}}}, "results of architecture 7, of 3"),
        ({"meta_archs": write.CELLS, "arch2infos": {0: {"12": {"arch_str": write.CELLS[1]}}}}, "are filed under"),
        ({"meta_archs": write.CELLS, "arch2infos": {0: {"all": {}}}}, "where numbers of epochs should be"),
        ({"meta_archs": write.CELLS, "arch2infos": {0: []}}, "not by number of epochs"),
    ):
        with pytest.raises(ValueError, match=told):
            read("nats_bench", stored(tmp_path / "x", whole))


def test_an_architecture_that_is_there_twice_is_one_error(tmp_path: Path) -> None:
    path = write.write_nats_file(tmp_path / "x.pickle.pbz2", [write.CELLS[0], write.CELLS[1], write.CELLS[0]])
    with pytest.raises(ValueError, match=r"rows 0 and 2 of table .* are the same architecture"):
        read_original("nats_bench", path)


# ---- HW-NAS-Bench -------------------------------------------------------------------------------------------------


def test_hardware_costs(tmp_path: Path) -> None:
    found = read("hw_nas_bench", write.write_hardware(tmp_path / "HW-NAS-Bench-v1_0.pickle"))
    assert found.columns["cifar10_edgegpu_latency_ms"].tolist() == [5.8, 6.5, 6.4]
    assert found.columns["imagenet16_edgegpu_energy_mj"].tolist() == [24.2, 29.9, 29.4]
    assert found.columns["cifar100_edgetpu_latency_ms"].tolist()[:2] == [0.95, 1.4]
    assert math.isnan(found.columns["cifar100_edgetpu_latency_ms"][2]), "-1 stands for not measured"
    assert "cifar10_eyeriss_arithmetic_intensity" in found.columns
    with pytest.raises(Refused, match="no entry 'nasbench201'"):
        read("hw_nas_bench", stored(tmp_path / "x", {"fbnet": {}}))


# ---- NAS-Bench-101 ------------------------------------------------------------------------------------------------


def test_check_sums_are_those_of_the_format() -> None:
    assert masked(b"123456789") == 0xE3069283  # the check value that every description of CRC-32C gives


def masked(content: bytes) -> int:
    """Return the check sum without TensorFlow's mask."""
    turned = (masked_crc(content) - 0xA282EAD8) & 0xFFFFFFFF
    return (turned >> 17 | turned << 15) & 0xFFFFFFFF


def test_nasbench101(tmp_path: Path) -> None:
    table = read_original("nasbench101", write.write_nasbench101(tmp_path / "nasbench_full.tfrecord"))
    assert len(table) == 2 and {*table.columns} == {"valid", "test", "cost_s", "valid4", "test4", "cost4_s", "params_m"}
    chain = nasbench101_cell.from_matrix([[0, 1, 0], [0, 0, 1], [0, 0, 0]], ["input", "conv3x3-bn-relu", "output"])
    row = table.row(chain)
    assert table.column("valid")[row] == pytest.approx(0.901)
    assert table.column("test4")[row] == pytest.approx(0.696)
    assert table.column("cost_s")[row] == 1080.0 and table.column("params_m")[row] == 2.694282
    same = chain.replace(
        edge_01=False, edge_05=True, edge_16=False, edge_56=True, op_5="conv3x3-bn-relu", op_1="maxpool3x3"
    )
    assert table.row(same) == row, "the numbers of the vertices do not matter"
    with pytest.raises(ValueError, match="is no architecture of table 'nasbench101'"):
        table.row(chain.replace(op_1="maxpool3x3"))


def test_damaged_records(tmp_path: Path) -> None:
    path = write.write_nasbench101(tmp_path / "x.tfrecord")
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[40] ^= 1
    for damaged, told in (
        (content[:-30], "ends within record 11"),
        (content[:5], "record 0 does not begin as a TFRecord"),
        (b"\x80\x04N." * 10, "record 0 does not begin as a TFRecord"),
        (bytes(flipped), "record 0 has another check sum"),
        (b"", "holds no record"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(Refused, match=told):
            read("nasbench101", path)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (2, "0100010", "no square of zeros and ones"),
        (2, "010001001", "on or below its diagonal"),
        (2, "000000000", "0 edges on paths"),
        (3, "input,conv7x7,output", "'conv7x7' is no operation"),
        (3, "input,output", "2 operations"),
        (4, "####", "cannot be understood"),
        (4, write.metrics(1.0, 0.9, 0.9, 5)[:40], "cannot be understood"),
    ],
)
def test_records_of_another_layout(tmp_path: Path, place: int, value: str, told: str) -> None:
    row = write.nasbench101_rows()[0]
    row[place] = value
    with pytest.raises(Refused, match=told):
        read("nasbench101", write.write_nasbench101(tmp_path / "x.tfrecord", [row]))


# ---- NAS-Bench-301 and TransNAS-Bench-101 -------------------------------------------------------------------------


def test_nasbench301_averages_trainings_of_one_fidelity(tmp_path: Path) -> None:
    runs = [
        write.nasbench301_run(valid=93.0),
        write.nasbench301_run(valid=94.0),
        write.nasbench301_run(layers=20, valid=97.0),
    ]
    runs.append(write.nasbench301_run("max_pool_3x3", valid=90.0))
    table = read_original("nasbench301", write.write_nasbench301(tmp_path, runs))
    assert sorted(table.column("valid").tolist()) == [90.0, 93.5] and table.column("cost_s").tolist() == [5000.0] * 2
    assert all(arch in table.space for arch in table.architectures())
    assert _others.darts_space().largest() not in table.space, "the space is limited to what was trained"


def test_the_size_of_the_darts_space() -> None:
    assert _others.darts_space().size == (7**8 * 3 * 6 * 10) ** 2  # two of 2, 3, 4 and 5 inputs; eight operations


def test_nasbench301_of_another_layout(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no results_\*\.json"):
        read("nasbench301", tmp_path)
    for change, told in (
        ({"info": []}, "no entry 'info/0'"),
        ({"optimized_hyperparamater_config": {}}, "is missing"),
        ({"info": [{"val_accuracy": "high"}]}, "where a number should be"),
    ):
        with pytest.raises(Refused, match=f"results_0.json: .*{told}"):
            read("nasbench301", write.write_nasbench301(tmp_path, [{**write.nasbench301_run(), **change}]))


def test_transnas(tmp_path: Path) -> None:
    path = write.write_transnas(tmp_path / "transnas-bench_v10141024.pth")
    micro, macro = read("transnas_micro", path), read("transnas_macro", path)
    names = ("skip_connect", "none", "nor_conv_1x1", "nor_conv_3x3", "nor_conv_3x3", "nor_conv_3x3")
    cell = dict(zip(map(nasbench201_cell.choice_name, nasbench201_cell.EDGES), names, strict=True))
    assert micro.archs[0] == Architecture(cell) and micro.space.size == 4096
    assert micro.columns["class_scene_test_top1"].tolist() == [59.5, 4.5]
    assert micro.columns["class_scene_encoder_params"][0] == 300_000
    assert macro.space.size == 4**4 + 4**5 + 4**6
    assert [arch["depth"] for arch in macro.archs] == [4, 6]
    assert macro.columns["class_scene_valid_top1"].tolist() == [50.0, 51.0]
    for text in ("64-41414-1_02_339", "64-41414-1_02", "64-4111-basic"):
        with pytest.raises(Refused, match="is no cell of TransNAS-Bench-101"):
            read("transnas_micro", stored(tmp_path / "x", {"data": {"micro": {text: {}}}}))
    with pytest.raises(Refused, match="is no macro network"):
        read("transnas_macro", stored(tmp_path / "x", {"data": {"macro": {"64-41-basic": {}}}}))
