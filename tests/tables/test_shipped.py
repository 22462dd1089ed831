# SPDX-License-Identifier: Apache-2.0
"""The tables in the package hold what was published: every column by checksum, and the figures people know."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sartor import tables
from sartor.architecture import Architecture
from sartor.spaces import nasbench201_cell, nasbench_graph, nasbench_macro_layers
from sartor.tables import DATA, NAMES, load

# SHA-256 (16 digits) of the published columns as little-endian float64, in the order of the rows.
PUBLISHED = json.loads((Path(__file__).parents[1] / "golden" / "tables.json").read_text(encoding="utf-8"))


def checksum(column: NDArray[np.generic]) -> str:
    values = column.astype("<f8")
    return hashlib.sha256(np.where(np.isnan(values), np.nan, values).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_the_published_ones_to_the_last_bit(name: str) -> None:
    table = load(name)
    assert {*table.columns} - {"connected"} == {*PUBLISHED[name]}
    for column, expected in PUBLISHED[name].items():
        assert checksum(table.column(column)) == expected, column


def test_files_are_small_and_hold_no_pickle() -> None:
    paths = list(DATA.glob("*.npz"))
    assert sum(path.stat().st_size for path in paths) < 8_000_000
    assert max(path.stat().st_size for path in paths) < 1_000_000
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            assert file.files


def test_every_file_belongs_to_a_table_and_is_in_the_notice() -> None:
    notice = (DATA / "NOTICE.md").read_text(encoding="utf-8")
    for path in DATA.glob("*.npz"):
        assert path.stem.split("_")[0] in {"micro", "nasbench201", "nasbench"}
        assert f"`{path.name}`" in notice or f"`{path.stem.rpartition('_')[0]}_*.npz`" in notice, path.name


def test_files_carry_no_date() -> None:
    for path in DATA.glob("*.npz"):
        with zipfile.ZipFile(path) as file:
            assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_loading_needs_no_torch_and_little_time() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy, time; start = time.process_time()\n"
        "from sartor.tables import load; table = load('nasbench201')\n"
        "table.objective('cifar10_val12').measure(table.architecture(0))\n"
        "print(time.process_time() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 5  # 0.1 s on an idle machine: this is a test of the imports, not of the machine


# ---- NAS-Bench-201 ----------------------------------------------------------------------------------------


def test_published_optima() -> None:
    table = load("nasbench201")
    assert len(table) == table.space.size == 15_625
    for column, row, value in (("cifar10", 6111, 94.3733), ("cifar100", 9930, 73.5133), ("imagenet16", 857, 47.3111)):
        assert int(table.column(column).argmax()) == row
        assert table.column(column)[row] == pytest.approx(value, abs=5e-5)
    assert table.column("cifar10_val").max() == pytest.approx(91.57)


def test_rows_are_in_the_order_of_the_official_index() -> None:
    table = load("nasbench201")
    first = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    assert nasbench201_cell.to_string(table.architecture(0)) == first
    assert table.row(nasbench201_cell.from_string(first)) == 0
    measured = {name: float(table.column(f"cifar10_{name}")[0]) for name in ("edgegpu_latency_ms", "edgegpu_energy_mj")}
    assert measured == {"edgegpu_latency_ms": 5.807418537139893, "edgegpu_energy_mj": 24.226614330768584}


def test_what_the_edge_tpu_and_disconnected_cells_are() -> None:
    table = load("nasbench201")
    assert np.isfinite(table.column("cifar100_edgetpu_latency_ms")).sum() == 10_926
    connected = table.column("connected")
    assert (~connected).sum() == 341
    for row in (*np.flatnonzero(~connected)[:20].tolist(), 0, 6111):
        assert nasbench201_cell.is_connected(table.architecture(row)) == connected[row]
    pixel3 = table.column("cifar10_pixel3_latency_ms")
    assert np.median(pixel3[~connected]) < 0.1 < 1 < pixel3[connected].min()
    assert np.isfinite(np.log(pixel3[connected])).all()


def test_parameters_and_flops_follow_the_closed_form() -> None:
    table = load("nasbench201")
    options = nasbench201_cell.OPERATIONS
    count = {name: (table.codes == options.index(name)).sum(axis=1) for name in options}
    wide, narrow, pools = count["nor_conv_3x3"], count["nor_conv_1x1"], count["avg_pool_3x3"]
    params = 0.073306 + 0.24304 * wide + 0.028 * narrow
    flops = 7.943872 + 35.81952 * wide + 4.36224 * narrow + 1.29024 * pools
    np.testing.assert_allclose(table.column("params_m"), params, rtol=1e-12)
    np.testing.assert_allclose(table.column("flops_m"), flops, rtol=1e-12)


def test_low_fidelity_and_copies() -> None:
    table = load("nasbench201")
    full = table.objective("cifar10", fidelities={12 / 200: "cifar10_val12"})
    arch = table.architecture(6111)
    assert full.fidelity and full.measure(arch, 1.0) == table.column("cifar10")[6111]
    assert full.measure(arch, 12 / 200) == table.column("cifar10_val12")[6111]
    np.testing.assert_array_equal(table.column("help_fpga_ms"), table.column("cifar10_fpga_latency_ms"))


# ---- NAS-Bench-Macro and NAS-Bench-Graph ------------------------------------------------------------------


def test_macro_figures() -> None:
    table = load("nasbench_macro")
    assert len(table) == table.space.size == 6561
    assert table.column("accuracy").max() == pytest.approx(93.1267, abs=5e-5)
    seeds = np.mean([table.column(f"accuracy_{i}") for i in range(3)], axis=0)
    np.testing.assert_allclose(table.column("accuracy"), seeds, rtol=1e-6)


def test_macro_networks_that_are_the_same_have_the_same_values() -> None:
    table = load("nasbench_macro")
    twins = table.rows([nasbench_macro_layers.canonical(arch) for arch in table.architectures()])
    assert len(set(twins.tolist())) == 3969
    for column in ("accuracy", "params_m", "flops_m"):
        np.testing.assert_array_equal(table.column(column), table.column(column)[twins])


@pytest.mark.parametrize("dataset", nasbench_graph.DATASETS)
def test_graph_tables_have_a_row_for_every_network(dataset: str) -> None:
    table, rng = load(f"nasbench_graph:{dataset}"), random.Random(0)
    assert len(table) == (2021 if dataset == "proteins" else 26_206)
    drawn = [table.space.sample(rng) for _ in range(300)]
    assert np.isfinite(table.values("test", drawn)).all()
    for arch in drawn:
        assert table.architecture(table.row(arch)) == nasbench_graph.canonical(arch)
    numbers = [nasbench_graph.to_hash(arch) for arch in table.architectures()[:500]]
    assert numbers == sorted(numbers)


@pytest.mark.slow
def test_graph_spaces_cover_their_tables() -> None:
    for dataset, networks in (("cora", 26_206), ("proteins", 2021)):
        space = nasbench_graph.space(dataset)
        table = load(f"nasbench_graph:{dataset}")
        archs = (
            Architecture(dict(zip(space.choices, one, strict=True)))
            for one in itertools.product(*space.choices.values())
        )
        found = table.rows([arch for arch in archs if arch in space])
        assert len(set(found.tolist())) == networks


def test_an_unknown_table_is_answered_with_the_closest() -> None:
    with pytest.raises(ValueError, match="no table is named 'nasbench_graph:cor': there is nasbench_graph:cora"):
        load("nasbench_graph:cor")
    assert {*tables.NAMES} >= {"nasbench201", "nasbench_macro", "nasbench_graph:arxiv"}
