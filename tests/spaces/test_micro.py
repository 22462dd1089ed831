# SPDX-License-Identifier: Apache-2.0
"""The micro space and its table: the space contract, and what makes the table a ground truth."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contracts import space_contract as law
from contracts.space_contract import SpaceCase
from sartor.ranking import kendall_tau
from sartor.spaces import micro_slots
from sartor.spaces.micro import Micro
from sartor.supernet import extract, search_space
from sartor.tables import load
from sartor.workload import macs, parameters, trace

torch.set_num_threads(1)

CASE = SpaceCase("micro", Micro, (2, 1, 8, 8))
SMALL = SpaceCase("micro", partial(Micro, 4, 2, (5, 7), width=4, affine=False), (2, 2, 5, 7))
both = pytest.mark.parametrize("case", [CASE, SMALL], ids=["table", "small"])


def write_golden() -> None:
    law.write(CASE)


def test_names_are_golden() -> None:
    law.names_are_golden(CASE)


@both
def test_searching_stays_in_the_space(case: SpaceCase) -> None:
    law.searching_stays_in_the_space(case)


@both
def test_extraction_equals_activation(case: SpaceCase) -> None:
    law.extraction_equals_activation(case, torch.float64, count=10)


@both
def test_one_hot_equals_hard(case: SpaceCase) -> None:
    law.one_hot_equals_hard(case)


@both
def test_gradients_reach_every_choice(case: SpaceCase) -> None:
    law.gradients_reach_every_choice(case)


@both
def test_meta_build_takes_no_memory(case: SpaceCase) -> None:
    law.meta_build_takes_no_memory(case)


@both
def test_copies_are_independent(case: SpaceCase) -> None:
    law.copies_are_independent(case)


def test_exports() -> None:
    law.exports(CASE)


def test_images_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="images of 2x9 do not fit Micro"):
        Micro(size=(2, 9))


def test_scales_can_be_left_out_of_the_slots() -> None:
    network = Micro(affine=False)
    assert {name for name, _ in network.named_parameters() if "slots" in name} == {
        f"slots.{slot}.{operation}.1.weight" for slot in range(3) for operation in ("conv_1x1", "conv_3x3")
    }


# ---- the table ----------------------------------------------------------------------------------------------


def test_the_space_is_that_of_the_table() -> None:
    table = load("micro")
    assert search_space(CASE.ghost()) == micro_slots.space() == table.space
    assert len(table) == table.space.size == 64
    assert table.architectures() == [*micro_slots_in_order(table.space)]


def micro_slots_in_order(space: Any) -> Any:
    from sartor.architecture import Architecture

    for options in itertools.product(*space.choices.values()):
        yield Architecture(dict(zip(space.choices, options, strict=True)))


def test_costs_are_those_of_the_networks() -> None:
    table, ghost = load("micro"), CASE.ghost()
    for row in (0, 27, 63):
        workload = trace(extract(ghost, table.architecture(row)), torch.empty(1, 1, 8, 8))
        assert macs(workload) == round(1e6 * table.column("macs_m")[row])
        assert parameters(workload) == round(1e6 * table.column("params_m")[row])


def test_the_truth_tells_networks_apart() -> None:
    table = load("micro")
    seeds = [table.column(f"digits_val_{seed}") for seed in range(3)]
    np.testing.assert_allclose(table.column("digits_val"), np.mean(seeds, axis=0))
    assert min(kendall_tau(a, b) for a, b in itertools.combinations(seeds, 2)) > 0.8
    assert kendall_tau(table.column("digits_val"), table.column("digits_test")) > 0.85
    best = int(table.column("digits_val").argmax())
    assert set(table.architecture(best).values()) == {"conv_3x3"} and best == int(table.column("digits_test").argmax())
    assert table.column("digits_val")[best] == pytest.approx(98.374, abs=1e-3)
    assert table.column("digits_val").mean() < 83 and table.column("digits_val")[0] < 45  # all skip


def test_networks_that_are_the_same_share_their_accuracy() -> None:
    table = load("micro")
    kept: dict[tuple[Any, ...], set[float]] = {}
    for row, arch in enumerate(table.architectures()):
        path = tuple(option for option in arch.values() if option != "skip")
        kept.setdefault(path, set()).add(float(table.column("digits_test")[row]))
    assert len(kept) == 40 and all(len(values) == 1 for values in kept.values())


def test_a_scoreboard_runs(tmp_path: Path) -> None:
    from sartor.cli import benching

    assert "micro" in benching.tables()
    from sartor.bench.problem import table_problem

    problem = table_problem("micro", "digits_test", signal="digits_val", costs=["macs_m"])
    known = problem.known(10)
    assert known["architectures"] == 64 and known["optimum"] == pytest.approx(97.893, abs=1e-3)
    json.dumps(known)
