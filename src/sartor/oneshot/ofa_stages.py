# SPDX-License-Identifier: Apache-2.0
"""The stages of progressive shrinking: which options each admits, how long it takes and how it learns.

Of Cai et al., "Once-for-All", ICLR 2020, arXiv:1908.09791; the constants are those of the authors' code.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from sartor.architecture import Option
from sartor.sizes import ascending
from sartor.space import SearchSpace

__all__ = ["ROLES", "STAGES", "Phase", "Stage", "phases", "role"]

ROLES: Mapping[str, str] = MappingProxyType(
    {
        "kernel": "kernel",
        "depth": "depth",
        "expand": "expand",
        "width": "expand",
        "channels": "expand",
        "hidden": "expand",
        "resolution": "resolution",
    }
)
"""The last word of a choice's name, as in `stages.0.head_width`, to what it is in a stage."""

FIRST_LR = 2.6 * 64 / 2048  # of the largest network, for the batch of 64 that the other learning rates are for


@dataclass(frozen=True)
class Stage:
    """A stage of progressive shrinking.

    Args:
        name: for messages.
        epochs: in the paper; here its share of all steps.
        networks: sub-networks per step.
        lr: learning rate, relative to the recipe's.
        warmup: share of the stage in which the learning rate rises.
        admits: the role of the choices that get options; "" for none.
        whole: whether they get all options; otherwise only the larger half, at least two.
    """

    name: str
    epochs: float
    networks: int
    lr: float
    warmup: float = 0.0
    admits: str = ""
    whole: bool = True


STAGES = (
    Stage("largest", 180, 1, 1.0),
    Stage("kernel", 120, 1, 3e-2 / FIRST_LR, 5 / 120, "kernel"),
    Stage("depth 1", 25, 2, 2.5e-3 / FIRST_LR, 0.0, "depth", whole=False),
    Stage("depth 2", 120, 2, 7.5e-3 / FIRST_LR, 5 / 120, "depth"),
    Stage("expand 1", 25, 4, 2.5e-3 / FIRST_LR, 0.0, "expand", whole=False),
    Stage("expand 2", 120, 4, 7.5e-3 / FIRST_LR, 5 / 120, "expand"),
)
"""The paper's schedule."""


class Phase(NamedTuple):
    """A stage over a space: its sub-networks, its first step and its number of steps."""

    stage: Stage
    space: SearchSpace
    first: int
    steps: int


def role(name: str) -> str:
    """Return the role of a choice; one of no known role, such as an operation, is that of a kernel."""
    return ROLES.get(name.rpartition(".")[2].rpartition("_")[2], "kernel")


def phases(space: SearchSpace, stages: Sequence[Stage], steps: int) -> list[Phase]:
    """Return the stages over a space; one that admits nothing new is left out, and the others share its steps.

    Resolutions are free in all stages. Raises ValueError where there is no stage, or the last leaves options out.
    """
    if not stages:
        raise ValueError("stages is empty: give at least one")
    admitted: dict[str, Sequence[Option]] = {
        name: options if role(name) == "resolution" else ascending(options)[-1:]
        for name, options in space.choices.items()
    }
    kept: list[tuple[Stage, SearchSpace]] = []
    for stage in stages:
        for name in admitted:
            if role(name) == stage.admits:
                admitted[name] = _admitted(space.choices[name], stage.whole)
        narrowed = space.restrict(admitted)
        if not kept or narrowed.choices != kept[-1][1].choices:
            kept.append((stage, narrowed))
    if kept[-1][1].choices != space.choices:
        raise ValueError(f"the last stage, {stages[-1].name!r}, leaves options out; admit all roles in whole stages")
    total = sum(stage.epochs for stage, _ in kept)
    ends = [round(steps * done / total) for done in itertools.accumulate(stage.epochs for stage, _ in kept)]
    firsts = [0, *ends[:-1]]
    return [Phase(*one, first, end - first) for one, first, end in zip(kept, firsts, ends, strict=True)]


def _admitted(options: Sequence[Option], whole: bool) -> Sequence[Option]:
    return options if whole else ascending(options)[-(len(options) // 2 + 1) :]
