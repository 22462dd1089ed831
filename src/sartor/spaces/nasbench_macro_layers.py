# SPDX-License-Identifier: Apache-2.0
"""The layers of NAS-Bench-Macro, without torch: 8 layers in three stages, 3 operations each, 6,561 networks.

Su et al., "Prioritized Architecture Sampling with Monto-Carlo Tree Search", CVPR 2021, arXiv:2103.11922.
`sartor.spaces.nasbench_macro` is the network. An identity within a stage does nothing wherever it stands, so
that networks that differ in its place are the same, were trained once and share their values; the first layer
of a stage changes shapes and is never empty. `canonical` moves the identities to the end of their stage, as
the benchmark's own code does, which leaves 3,969 networks.
"""

from __future__ import annotations

from collections.abc import Mapping

from sartor.architecture import Architecture, Option
from sartor.space import SearchSpace

__all__ = ["NAMES", "OPERATIONS", "STAGES", "canonical", "from_string", "space", "to_string"]

OPERATIONS = ("identity", "mb3_k3", "mb6_k5")
"""Nothing, or a MobileNetV2 block of expansion 3 and kernel 3, or 6 and 5; "0", "1", "2" in the strings."""
STAGES = (2, 3, 3)
"""Layers of each stage; the first halves the sides and doubles the width."""
NAMES = tuple(f"layer_{i}" for i in range(sum(STAGES)))


def space() -> SearchSpace:
    """Return the 6,561 networks: eight choices, none of which is ever inactive."""
    return SearchSpace(dict.fromkeys(NAMES, OPERATIONS))


def to_string(arch: Mapping[str, Option]) -> str:
    """Return the benchmark's string, a digit 0 to 2 for each layer; ValueError for another architecture."""
    return "".join(map(str, _codes(arch)))


def from_string(text: str) -> Architecture:
    """Read what `to_string` writes; ValueError for anything else."""
    if len(text) != len(NAMES) or set(text) - set("012"):
        raise ValueError(f"{text!r} is no network of NAS-Bench-Macro: write {len(NAMES)} digits from 0 to 2")
    return Architecture({name: OPERATIONS[int(digit)] for name, digit in zip(NAMES, text, strict=True)})


def canonical(arch: Mapping[str, Option]) -> Architecture:
    """Return the same network with its identities at the end of their stages, all but a stage's first layer."""
    codes, kept = _codes(arch), []
    for layers in STAGES:
        (first, *rest), codes = codes[:layers], codes[layers:]
        kept += [first, *sorted(rest, key=lambda code: code == 0)]
    return Architecture({name: OPERATIONS[code] for name, code in zip(NAMES, kept, strict=True)})


def _codes(arch: Mapping[str, Option]) -> list[int]:
    codes = []
    for name in NAMES:
        operation = arch.get(name)
        if not isinstance(operation, str) or operation not in OPERATIONS:
            raise ValueError(f"{name} is {operation!r}: each of {', '.join(NAMES)} is one of {', '.join(OPERATIONS)}")
        codes.append(OPERATIONS.index(operation))
    return codes
