# SPDX-License-Identifier: Apache-2.0
"""The cell of NAS-Bench-101, without torch: directed graphs of up to 7 vertices and 9 edges.

Ying et al., "NAS-Bench-101: Towards Reproducible Neural Architecture Search", ICML 2019, arXiv:1902.09635. The
first vertex is the input, the last the output, and each of the up to five others holds an operation. The
table is not shipped; `sartor.tables.original` reads the published file.

An architecture has a choice for each of the 21 possible edges and each of the 5 inner operations. Vertices that
are not on a path from input to output do nothing, and the numbers of the others do not matter: `canonical`
gives one architecture for each distinct cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from sartor.architecture import Architecture, Option
from sartor.space import SearchSpace

__all__ = ["MAX_EDGES", "OPERATIONS", "VERTICES", "canonical", "from_matrix", "is_cell", "space", "to_matrix"]

OPERATIONS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
VERTICES = 7
MAX_EDGES = 9
_LAST = VERTICES - 1
_EDGES = tuple((i, j) for j in range(VERTICES) for i in range(j))
_NAMES = {edge: f"edge_{edge[0]}{edge[1]}" for edge in _EDGES}

_Edges = frozenset[tuple[int, int]]


def space() -> SearchSpace:
    """Return the space of all cells: graphs with a path and at most nine edges on such paths."""
    operations = {f"op_{vertex}": OPERATIONS for vertex in range(1, _LAST)}
    return SearchSpace({**dict.fromkeys(_NAMES.values(), (False, True)), **operations}, constraint=is_cell)


def is_cell(arch: Mapping[str, Option]) -> bool:
    """Tell whether a path leads from the input to the output, and at most nine edges are on such paths."""
    return 0 < len(_on_paths(_edges(arch))) <= MAX_EDGES


def from_matrix(matrix: Sequence[Sequence[int]], operations: Sequence[str]) -> Architecture:
    """Return the canonical architecture of a published cell.

    matrix: (V, V) zeros and ones, ones above the diagonal only, V up to 7.
    operations: V names, of which the first and the last ("input" and "output") are not read.
    Raises ValueError for a matrix of another form, an unknown operation and what `is_cell` refuses.
    """
    size = len(matrix)
    if not 2 <= size <= VERTICES or len(operations) != size or any(len(row) != size for row in matrix):
        raise ValueError(f"a cell of {size} vertices and {len(operations)} operations: give a square matrix of 2 to 7")
    place = [*range(size - 1), _LAST]
    edges = {(place[i], place[j]) for i in range(size) for j in range(size) if matrix[i][j]}
    if not edges <= set(_EDGES):
        raise ValueError("the matrix has a one on or below its diagonal: edges lead to later vertices")
    for operation in operations[1:-1]:
        if operation not in OPERATIONS:
            raise ValueError(f"{operation!r} is no operation of NAS-Bench-101: these are {', '.join(OPERATIONS)}")
    codes = [OPERATIONS.index(operation) for operation in operations[1:-1]]
    return canonical(_written(frozenset(edges), codes))


def to_matrix(arch: Mapping[str, Option]) -> tuple[list[list[int]], list[str]]:
    """Return matrix and operations without the vertices that do nothing; ValueError where there is no path."""
    edges, codes = _on_paths(_edges(arch)), _codes(arch)
    _check(edges)
    vertices = sorted({vertex for edge in edges for vertex in edge})
    matrix = [[int((i, j) in edges) for j in vertices] for i in vertices]
    return matrix, ["input", *(OPERATIONS[codes[vertex - 1]] for vertex in vertices[1:-1]), "output"]


def canonical(arch: Mapping[str, Option]) -> Architecture:
    """Return the architecture that stands for all with this cell; ValueError for what `is_cell` refuses."""
    edges = _on_paths(_edges(arch))
    _check(edges)
    return _written(*_canonical(edges, _codes(arch)))


def _check(edges: _Edges) -> None:
    if not 0 < len(edges) <= MAX_EDGES:
        raise ValueError(f"{len(edges)} edges on paths from input to output: a cell has 1 to {MAX_EDGES}")


def _edges(arch: Mapping[str, Option]) -> _Edges:
    return frozenset(edge for edge, name in _NAMES.items() if arch[name] is True)


def _codes(arch: Mapping[str, Option]) -> tuple[int, ...]:
    return tuple(OPERATIONS.index(str(arch[f"op_{vertex}"])) for vertex in range(1, _LAST))


def _written(edges: _Edges, codes: Sequence[int]) -> Architecture:
    operations = {f"op_{i}": OPERATIONS[codes[i - 1] if i <= len(codes) else 0] for i in range(1, _LAST)}
    return Architecture({**{name: edge in edges for edge, name in _NAMES.items()}, **operations})


def _on_paths(edges: _Edges) -> _Edges:
    """Return the edges on a path from the input to the output."""
    forward, backward = {0}, {_LAST}
    for i, j in sorted(edges):  # by source: every edge into a vertex comes before the edges out of it
        if i in forward:
            forward.add(j)
    for i, j in sorted(edges, reverse=True):
        if j in backward:
            backward.add(i)
    kept = forward & backward
    return frozenset((i, j) for i, j in edges if i in kept and j in kept)


@lru_cache(maxsize=1 << 16)
def _canonical(edges: _Edges, codes: tuple[int, ...]) -> tuple[_Edges, tuple[int, ...]]:
    """Order the inner vertices by what tells them apart; of the orders of those alike, take the least edges."""
    inner = sorted({vertex for edge in edges for vertex in edge} - {0, _LAST})
    best: tuple[list[tuple[int, int]], tuple[int, ...]] | None = None
    for order in _orders(inner, edges, codes):
        number = {0: 0, _LAST: _LAST, **{vertex: i for i, vertex in enumerate(order, start=1)}}
        found = sorted((number[i], number[j]) for i, j in edges), tuple(codes[vertex - 1] for vertex in order)
        best = found if best is None else min(best, found)
    assert best is not None
    return frozenset(best[0]), best[1]


def _orders(inner: list[int], edges: _Edges, codes: tuple[int, ...]) -> Iterator[list[int]]:
    """Yield the orders of the inner vertices that agree with their colours: depth first, so that edges go up."""
    depth = {0: 0, _LAST: VERTICES}
    for vertex in inner:
        depth[vertex] = 1 + max(depth[i] for i, j in edges if j == vertex)
    keys: dict[int, object] = {v: (depth[v], codes[v - 1] if 0 < v < _LAST else -1) for v in depth}
    colours = _ranks(keys)
    for _ in inner:
        before = {v: sorted(colours[i] for i, j in edges if j == v) for v in depth}
        after = {v: sorted(colours[j] for i, j in edges if i == v) for v in depth}
        colours = _ranks({v: (colours[v], before[v], after[v]) for v in depth})
    alike = [[v for v in inner if colours[v] == colour] for colour in sorted({colours[v] for v in inner})]
    for choice in itertools.product(*(itertools.permutations(group) for group in alike)):
        yield [vertex for group in choice for vertex in group]


def _ranks(keys: Mapping[int, object]) -> dict[int, int]:
    order = {repr(key): key for key in keys.values()}
    ranks = {text: rank for rank, text in enumerate(sorted(order, key=lambda text: order[text]))}  # type: ignore[arg-type,return-value]
    return {vertex: ranks[repr(key)] for vertex, key in keys.items()}
