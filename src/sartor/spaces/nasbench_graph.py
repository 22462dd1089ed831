# SPDX-License-Identifier: Apache-2.0
"""The space of NAS-Bench-Graph, without torch: graph neural networks of four operations, 26,206 distinct ones.

Qin, Zhang, Wang, Zhu, "NAS-Bench-Graph: Benchmarking Graph Neural Architecture Search", NeurIPS 2022 Datasets
and Benchmarks, arXiv:2206.09166. Four nodes, each with one operation, form a tree below the input: `link` gives
the node that each reads from, 0 for the input; what no other node reads leads to the output. There are nine
such trees. A network of skips alone is not part of the benchmark.

The same network can be written as several architectures: nodes may be numbered in another order, and a skip
does nothing within a path. `canonical` gives the one that the benchmark lists, and `to_hash` its number there:
five decimal digits, the tree and the four operations.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache

from sartor.architecture import Architecture, Option
from sartor.space import SearchSpace

__all__ = ["DATASETS", "LINKS", "OPERATIONS", "canonical", "from_hash", "space", "to_hash"]

LINKS: tuple[tuple[int, ...], ...] = (
    *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 1), (0, 0, 1, 2), (0, 0, 1, 3)),
    *((0, 1, 1, 1), (0, 1, 1, 2), (0, 1, 2, 2), (0, 1, 2, 3)),
)
OPERATIONS = ("gat", "gcn", "gin", "cheb", "sage", "arma", "graph", "fc", "skip")
DATASETS = ("arxiv", "citeseer", "computers", "cora", "cs", "photo", "physics", "proteins", "pubmed")
_NAMES = ("op_1", "op_2", "op_3", "op_4")
_SKIP = OPERATIONS.index("skip")
_ON_PROTEINS = ("gcn", "sage", "arma", "fc", "skip")


def space(dataset: str = "cora") -> SearchSpace:
    """Return the space of a data set: on all but proteins the same nine operations; ValueError for another name."""
    if dataset not in DATASETS:
        raise ValueError(f"NAS-Bench-Graph has no data set {dataset!r}: there is {', '.join(DATASETS)}")
    operations = _ON_PROTEINS if dataset == "proteins" else OPERATIONS
    return SearchSpace({"link": LINKS, **dict.fromkeys(_NAMES, operations)}, constraint=_has_operation)


def to_hash(arch: Mapping[str, Option]) -> int:
    """Return the benchmark's number of the network; ValueError for an architecture of another space."""
    link, codes = _canonical(*_read(arch))
    return int("".join(map(str, (LINKS.index(link), *codes))))


def from_hash(number: int) -> Architecture:
    """Return the architecture that `number` lists; ValueError where the benchmark has no such network."""
    digits = [int(digit) for digit in f"{max(number, 0):05d}"]
    if len(digits) == 5 and max(digits) < len(OPERATIONS):
        arch = _write(LINKS[digits[0]], digits[1:])
        if _has_operation(arch) and to_hash(arch) == number:
            return arch
    raise ValueError(f"{number} is no network of NAS-Bench-Graph: numbers are those of to_hash")


def canonical(arch: Mapping[str, Option]) -> Architecture:
    """Return the architecture that the benchmark lists for this network; ValueError for one of another space."""
    return _write(*_canonical(*_read(arch)))


def _has_operation(arch: Mapping[str, Option]) -> bool:
    return any(arch[name] != "skip" for name in _NAMES)


def _read(arch: Mapping[str, Option]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tree and the positions of the operations."""
    link, operations = arch.get("link"), [arch.get(name) for name in _NAMES]
    if link not in LINKS or not all(operation in OPERATIONS for operation in operations):
        raise ValueError(f"{dict(arch)} is no network of NAS-Bench-Graph: it has link, {', '.join(_NAMES)}")
    if not _has_operation(arch):
        raise ValueError("a network of skips alone is not part of NAS-Bench-Graph: draw from its space")
    return link, tuple(map(OPERATIONS.index, operations))  # type: ignore[return-value]


def _write(link: tuple[int, ...], codes: Sequence[int]) -> Architecture:
    return Architecture({"link": link, **{name: OPERATIONS[code] for name, code in zip(_NAMES, codes, strict=True)}})


@lru_cache(maxsize=1 << 16)
def _canonical(link: tuple[int, ...], codes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Move skips to the front, then take the least operations among the ways to number the nodes."""
    for node in (1, 2, 3, 4):
        if codes[node - 1] == _SKIP and _moves(node, link, codes):
            link, codes = _moved(node, link, codes)
    return min((listed, tuple(codes[node - 1] for node in order)) for listed, order in _numberings(link))


def _moves(node: int, link: tuple[int, ...], codes: tuple[int, ...]) -> bool:
    """Tell whether a skip may stand right behind the input instead: all but those that add an earlier node."""
    has_child, has_sibling = node in link, link.count(link[node - 1]) > 1
    if has_child or not has_sibling:
        return True
    while node:  # a path of skips alone gives the input itself
        if codes[node - 1] != _SKIP:
            return False
        node = link[node - 1]
    return True


def _moved(node: int, link: tuple[int, ...], codes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Take a node out of its path and put it between the input and all others, as node 1."""
    others = [other for other in (1, 2, 3, 4) if other != node]
    number = {0: 1, **{other: position for position, other in enumerate(others, start=2)}}
    number[node] = number[link[node - 1]]  # its children read what it read
    new = (0, *(number[link[other - 1]] for other in others))
    return new, (codes[node - 1], *(codes[other - 1] for other in others))


@cache
def _numberings(link: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return each order of the nodes that makes the tree one of LINKS, with that link."""
    found = []
    for order in itertools.permutations((1, 2, 3, 4)):
        number = {0: 0, **{node: position for position, node in enumerate(order, start=1)}}
        renumbered = tuple(number[link[node - 1]] for node in order)
        if renumbered in LINKS:
            found.append((renumbered, order))
    return found
