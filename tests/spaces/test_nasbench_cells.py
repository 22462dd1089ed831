# SPDX-License-Identifier: Apache-2.0
"""The spaces of the tabular benchmarks as values: strings, counts, and which architectures are the same network."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from sartor.architecture import Architecture
from sartor.space import SearchSpace
from sartor.spaces import nasbench101_cell, nasbench201_cell, nasbench_graph, nasbench_macro_layers

FIRST = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"


def every(space: SearchSpace) -> Iterator[Architecture]:
    for options in itertools.product(*space.choices.values()):
        yield Architecture(dict(zip(space.choices, options, strict=True)))


@pytest.mark.parametrize("module", [nasbench101_cell, nasbench201_cell, nasbench_macro_layers, nasbench_graph])
def test_they_need_no_torch(module: ModuleType) -> None:
    code = f"import sys; sys.modules['torch'] = None; import {module.__name__} as space; space.space()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- NAS-Bench-201 ----------------------------------------------------------------------------------------


def test_published_counts_of_distinct_cells() -> None:
    cells = [*every(nasbench201_cell.space())]
    keys: dict[int, Callable[[Architecture], str]] = {
        12_751: lambda arch: nasbench201_cell.official_key(arch, zeros=False),
        6_466: nasbench201_cell.official_key,
        5_390: lambda arch: nasbench201_cell.simplified_key(arch, flat=False),
        4_930: nasbench201_cell.simplified_key,
    }
    for count, key in keys.items():
        assert len({key(arch) for arch in cells}) == count
    assert sum(not nasbench201_cell.is_connected(arch) for arch in cells) == 341
    assert sum(nasbench201_cell.simplified_key(arch) == "#" for arch in cells) == 341
    assert len(nasbench201_cell.representatives()) == 4_930


def test_strings_of_nasbench201_come_back() -> None:
    arch = nasbench201_cell.from_string(FIRST)
    assert dict(arch) == {
        "op_01": "avg_pool_3x3", "op_02": "nor_conv_1x1", "op_12": "skip_connect",
        "op_03": "nor_conv_1x1", "op_13": "skip_connect", "op_23": "skip_connect",
    }  # fmt: skip
    rng, space = random.Random(0), nasbench201_cell.space()
    for drawn in (arch, *(space.sample(rng) for _ in range(100))):
        assert nasbench201_cell.from_string(nasbench201_cell.to_string(drawn)) == drawn and drawn in space


@pytest.mark.parametrize("text", ["", FIRST[:-1], FIRST + "|", FIRST.replace("~2", "~1"), FIRST.replace("skip", "hop")])
def test_other_strings_are_no_cells(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no cell of NAS-Bench-201|is no operation"):
        nasbench201_cell.from_string(text)


def test_zeros_and_skips_are_seen_through() -> None:
    key, read = nasbench201_cell.simplified_key, nasbench201_cell.from_string
    direct = read("|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|")
    through = read("|skip_connect~0|+|none~0|none~1|+|none~0|nor_conv_3x3~1|none~2|")
    dead = read("|nor_conv_1x1~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|nor_conv_3x3~2|")
    assert key(direct) == key(through) == key(dead) == "(0)@nor_conv_3x3"
    assert nasbench201_cell.official_key(direct) != nasbench201_cell.official_key(dead).replace("#", "")


# ---- NAS-Bench-Macro --------------------------------------------------------------------------------------


def test_distinct_networks_of_macro() -> None:
    archs = [*every(nasbench_macro_layers.space())]
    assert len(archs) == 6561 and len({nasbench_macro_layers.canonical(arch) for arch in archs}) == 3969
    moved = nasbench_macro_layers.canonical(nasbench_macro_layers.from_string("00102021"))
    assert nasbench_macro_layers.to_string(moved) == "00120021"
    for arch in archs[::97]:
        assert nasbench_macro_layers.from_string(nasbench_macro_layers.to_string(arch)) == arch


@pytest.mark.parametrize("text", ["", "0201210", "020121003", "02012103", "a2012100"])
def test_other_strings_are_no_macro_networks(text: str) -> None:
    with pytest.raises(ValueError, match="write 8 digits from 0 to 2"):
        nasbench_macro_layers.from_string(text)


@pytest.mark.parametrize("module", [nasbench201_cell, nasbench_macro_layers])
def test_architectures_of_other_spaces_have_no_string(module: ModuleType) -> None:
    for other in ({}, {"op_01": 3}, {name: "conv" for name in module.space().choices}):
        with pytest.raises(ValueError, match="is one of"):
            module.to_string(other)


# ---- NAS-Bench-Graph --------------------------------------------------------------------------------------


def graph(link: tuple[int, ...], operations: str) -> Architecture:
    return Architecture({"link": link, **{f"op_{i}": one for i, one in enumerate(operations.split(), start=1)}})


@pytest.mark.parametrize(
    ("link", "operations", "number"),
    [
        ((0, 0, 0, 0), "gat gat gat gat", 0),
        ((0, 1, 2, 3), "gcn gin fc cheb", 81273),
        ((0, 1, 2, 3), "gcn skip gin fc", 88127),  # a skip within a path moves to the front
        ((0, 0, 1, 2), "gin gcn fc gat", 31207),  # the halves of the tree may change places
        ((0, 1, 1, 1), "gcn skip arma gat", 51058),  # a skip that adds an earlier node stays
    ],
)
def test_numbers_of_graph_networks(link: tuple[int, ...], operations: str, number: int) -> None:
    arch = graph(link, operations)
    assert nasbench_graph.to_hash(arch) == number
    assert nasbench_graph.from_hash(number) == nasbench_graph.canonical(arch)


def test_canonical_graphs_stand_for_themselves() -> None:
    rng, space = random.Random(0), nasbench_graph.space()
    for _ in range(300):
        arch = nasbench_graph.canonical(space.sample(rng))
        assert arch in space and nasbench_graph.canonical(arch) == arch


@pytest.mark.parametrize("number", [-1, 88_888, 99_999, 123_456, 90_000, 10])  # 10 is a network listed as 1
def test_other_numbers_are_no_graph_networks(number: int) -> None:
    with pytest.raises(ValueError, match="is no network of NAS-Bench-Graph"):
        nasbench_graph.from_hash(number)


def test_skips_alone_are_outside() -> None:
    nothing = graph((0, 1, 2, 3), "skip skip skip skip")
    assert nothing not in nasbench_graph.space()
    with pytest.raises(ValueError, match="a network of skips alone"):
        nasbench_graph.to_hash(nothing)
    with pytest.raises(ValueError, match="no data set 'core'"):
        nasbench_graph.space("core")
    with pytest.raises(ValueError, match="is no network of NAS-Bench-Graph"):
        nasbench_graph.canonical(graph((0, 2, 1, 3), "gat gat gat gat"))


# ---- NAS-Bench-101 ----------------------------------------------------------------------------------------


def relabelled(arch: Architecture, rng: random.Random) -> Architecture:
    """Return the same cell with its inner vertices in another order, and a useless edge."""
    matrix, operations = nasbench101_cell.to_matrix(arch)
    size = len(matrix)
    while True:
        inner = [*range(1, size - 1)]
        rng.shuffle(inner)
        order = [0, *inner, size - 1]
        moved = [[matrix[i][j] for j in order] for i in order]
        if not any(moved[i][j] for i in range(size) for j in range(i + 1)):
            found = nasbench101_cell.from_matrix(moved, [operations[i] for i in order])
            free = [v for v in range(1, 6) if not any(found[f"edge_{v}{w}"] for w in range(v + 1, 7))]
            return found.replace({f"edge_0{free[0]}": True}) if free else found


def test_the_numbers_of_vertices_do_not_matter() -> None:
    space, rng = nasbench101_cell.space(), random.Random(0)
    for _ in range(100):
        arch = space.sample(rng)
        canonical = nasbench101_cell.canonical(arch)
        assert canonical in space and nasbench101_cell.canonical(canonical) == canonical
        assert nasbench101_cell.canonical(relabelled(arch, rng)) == canonical
        assert nasbench101_cell.from_matrix(*nasbench101_cell.to_matrix(arch)) == canonical


def test_distinct_cells_of_up_to_four_vertices() -> None:
    """Counted by comparing graphs under all permutations, which `canonical` does not do."""
    for size, count in ((2, 1), (3, 6), (4, 84)):
        edges = [(i, j) for j in range(size) for i in range(j)]
        found, classes = set(), set()
        for bits in itertools.product((0, 1), repeat=len(edges)):
            matrix = [[0] * size for _ in range(size)]
            for (i, j), bit in zip(edges, bits, strict=True):
                matrix[i][j] = bit
            if not all(map(any, matrix[:-1])) or not all(any(row[j] for row in matrix) for j in range(1, size)):
                continue
            for names in itertools.product(nasbench101_cell.OPERATIONS, repeat=size - 2):
                found.add(nasbench101_cell.from_matrix(matrix, ["input", *names, "output"]))
                permuted = []
                for inner in itertools.permutations(range(1, size - 1)):
                    order = [0, *inner, size - 1]
                    rows = tuple(tuple(matrix[i][j] for j in order) for i in order)
                    permuted.append((rows, tuple(names[i - 1] for i in inner)))
                classes.add(min(permuted))
        assert len(found) == len(classes) == count


def test_what_is_no_cell_of_nasbench101() -> None:
    operations = ["input", *["maxpool3x3"] * 5, "output"]
    full = [[int(i < j) for j in range(7)] for i in range(7)]
    with pytest.raises(ValueError, match="21 edges on paths from input to output: a cell has 1 to 9"):
        nasbench101_cell.from_matrix(full, operations)
    with pytest.raises(ValueError, match="give a square matrix of 2 to 7"):
        nasbench101_cell.from_matrix([[0, 1]], ["input", "output"])
    assert not nasbench101_cell.is_cell(dict.fromkeys(nasbench101_cell.space().choices, False))
