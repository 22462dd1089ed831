# SPDX-License-Identifier: Apache-2.0
"""Architectures as arrays: what each entry means, and back."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor import encodings
from sartor.architecture import Architecture
from sartor.space import SearchSpace

GATED = SearchSpace(
    {"depth": (1, 2, 4), "kernel2": (3, 5), "kernel3": (3, 5), "op": ("conv", "pool")},
    {"kernel2": ((("depth", (2, 4)),),), "kernel3": ((("depth", (4,)), ("op", ("conv",))),)},
)
SHALLOW = Architecture({"depth": 1, "kernel2": 3, "kernel3": 3, "op": "pool"})
DEEP = Architecture({"depth": 4, "kernel2": 5, "kernel3": 3, "op": "conv"})


def test_what_the_columns_mean() -> None:
    assert encodings.onehot_names(GATED) == [
        *(("depth", depth) for depth in (1, 2, 4)),
        *(("kernel2", kernel) for kernel in (3, 5)),
        *(("kernel3", kernel) for kernel in (3, 5)),
        *(("op", op) for op in ("conv", "pool")),
    ]
    expected = [[1, 0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 1, 1, 0, 1, 0]]
    assert encodings.onehot(GATED, [SHALLOW, DEEP]).tolist() == expected
    assert encodings.indices(GATED, [SHALLOW, DEEP]).tolist() == [[0, 0, 0, 1], [2, 1, 0, 0]]


def test_numbers_keep_their_distances_and_what_is_absent_is_zero() -> None:
    middle = Architecture({"depth": 2, "kernel2": 5, "kernel3": 3, "op": "pool"})
    found = encodings.ordinal(GATED, [SHALLOW, middle, DEEP])
    np.testing.assert_allclose(found, np.array([[0, 0, 0, 1], [1 / 3, 1, 0, 1], [1, 1, 0, 0]]))


def test_a_lone_option_is_zero_in_the_ordinal_encoding() -> None:
    space = SearchSpace({"only": (7,), "flag": (False, True)})
    assert encodings.ordinal(space, [space.largest()]).tolist() == [[1.0, 0.0]]


def test_option_counts_are_shared_by_choices_and_types_are_kept_apart() -> None:
    space = SearchSpace({"a": (1, 2), "b": (2, 1), "c": (True, 2)})
    arch = Architecture({"a": 2, "b": 1, "c": True})
    assert encodings.option_counts(space, [arch]).tolist() == [[1, 1, 1]]  # of 1, 2 and True
    assert encodings.option_counts(GATED, [SHALLOW]).sum() == 2  # the kernels are not there


def test_architecture_and_positions_convert_to_one_another() -> None:
    rng = random.Random(0)
    archs = [GATED.sample(rng) for _ in range(50)]
    assert encodings.architectures(GATED, encodings.indices(GATED, archs)) == archs


def test_positions_of_what_is_absent_do_not_matter() -> None:
    (arch,) = encodings.architectures(GATED, np.array([[0, 1, 1, 1]]))
    assert arch == SHALLOW and arch in GATED


@given(st.data())
def test_enumeration_has_every_architecture_once(data: st.DataObject) -> None:
    """On random spaces with nested gates: as many as the exact count, all different, all in the space."""
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    names = [f"c{i}" for i in range(len(sizes))]
    gates = {}
    for place, name in enumerate(names[1:], start=1):
        if data.draw(st.booleans()):
            parent = data.draw(st.integers(0, place - 1))
            allowed = data.draw(st.sets(st.integers(0, sizes[parent] - 1)))
            gates[name] = (((names[parent], tuple(sorted(allowed))),),)
    order = data.draw(st.permutations(names))
    renamed = dict(zip(names, order, strict=True))
    space = SearchSpace(
        {renamed[name]: tuple(range(size)) for name, size in zip(names, sizes, strict=True)},
        {renamed[n]: tuple(tuple((renamed[o], v) for o, v in one) for one in gate) for n, gate in gates.items()},
    )
    archs = encodings.architectures(space, encodings.enumerated(space))
    assert len(archs) == len(set(archs)) == space.size
    assert all(arch in space for arch in archs)


def test_a_deep_space_is_enumerated_within_its_size() -> None:
    """40 nested choices: 2^40 rows without the gates, 41 with them."""
    names = [f"c{i:02}" for i in range(40)]
    gates = {name: (((before, (1,)),),) for before, name in itertools.pairwise(names)}
    space = SearchSpace(dict.fromkeys(names, (0, 1)), gates)
    assert len(encodings.enumerated(space)) == space.size == 41


def test_nodes_of_a_graph() -> None:
    space = SearchSpace({"a": ("x", "y"), "b": (3, 5), "c": ("x", "y")})
    arch = Architecture({"a": "y", "b": 5, "c": "x"})
    (nodes,) = encodings.graph(space, [arch], places=False)
    assert nodes.tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    (placed,) = encodings.graph(space, [arch])
    assert placed[:, 5:].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_who_hears_whom() -> None:
    gated = encodings.neighbourhood(GATED)  # depth, kernel2, kernel3, op, global
    assert gated.tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1]]
    assert encodings.neighbourhood(GATED, [("op", "depth")])[0].tolist() == [1, 0, 0, 1, 0]
    with pytest.raises(ValueError, match="'width', but no choice"):
        encodings.neighbourhood(GATED, [("op", "width")])


def test_a_stranger_is_named() -> None:
    with pytest.raises(ValueError, match="'dense' is no option of 'op'"):
        encodings.onehot(GATED, [SHALLOW, SHALLOW.replace(op="dense")])
    with pytest.raises(ValueError, match="True is no option of 'depth'"):
        encodings.indices(GATED, [SHALLOW.replace(depth=True)])
    with pytest.raises(ValueError, match="lacks the choice 'kernel2'"):
        encodings.indices(GATED, [Architecture({"depth": 1})])


def test_no_architecture_at_all() -> None:
    assert encodings.onehot(GATED, []).shape == (0, 9)
    assert encodings.ordinal(GATED, []).shape == encodings.indices(GATED, []).shape == (0, 4)
    assert encodings.architectures(GATED, np.empty((0, 4), dtype=np.intp)) == []
