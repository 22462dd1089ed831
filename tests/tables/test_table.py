# SPDX-License-Identifier: Apache-2.0
"""A table: look-up, parts, objectives, and one clear error for each thing that can be wrong with it."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sartor.architecture import Architecture
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies.random_search import RandomSearch
from sartor.tables.files import Columns, arrays, open_table, packed
from sartor.tables.table import Table

SPACE = SearchSpace({"width": (8, 16), "kind": ("plain", "gated", "none")})
CODES = np.array([[kind, width] for width in range(2) for kind in range(3)], dtype=np.uint8)


def table(**changes: Any) -> Table:
    columns = {"accuracy": np.array([70.0, 71, 72, 80, 81, np.nan]), "time_ms": np.arange(6.0), "half": np.full(6, 7.0)}
    return Table(**{"name": "toy", "space": SPACE, "columns": columns, "codes": CODES, **changes})


def arch(kind: str, width: int) -> Architecture:
    return Architecture({"kind": kind, "width": width})


# ---- look-up ----------------------------------------------------------------------------------------------


def test_rows_and_architectures_are_each_others_inverse() -> None:
    toy = table()
    assert toy.architectures() == [toy.architecture(row) for row in range(6)]
    assert toy.rows(toy.architectures()).tolist() == list(range(6))
    assert toy.row(arch("gated", 16)) == 4 and toy.architecture(4) == arch("gated", 16)
    assert toy.values("accuracy", [arch("none", 8), arch("plain", 8)]).tolist() == [72.0, 70.0]
    assert toy.values("accuracy", []).shape == toy.rows([]).shape == (0,)
    assert all(one in SPACE for one in toy.architectures())


@pytest.mark.parametrize(
    "stranger",
    [
        Architecture({"kind": "plain"}),
        Architecture({"kind": "plain", "width": 24}),
        Architecture({"kind": "plain", "breadth": 8}),
        {"kind": "plain", "width": 8},
        None,
    ],
)
def test_an_unknown_architecture_is_one_error(stranger: Any) -> None:
    toy = table()
    for ask in (
        lambda: toy.row(stranger),
        lambda: toy.rows([arch("none", 8), stranger]),
        lambda: toy.values("accuracy", [stranger]),
        lambda: toy.objective("accuracy").measure(stranger),
    ):
        with pytest.raises(ValueError, match=r"is no architecture of table 'toy': draw from its space"):
            ask()


@pytest.mark.parametrize("row", [-1, 6])
def test_rows_outside_are_refused(row: int) -> None:
    with pytest.raises(ValueError, match=r"no row .*: rows are 0 to 5"):
        table().architecture(row)


def test_an_unknown_column_is_answered_with_the_closest() -> None:
    for ask in (table().column, table().objective, lambda name: table().values(name, [])):
        with pytest.raises(ValueError, match="no column 'accurracy': there is accuracy"):
            ask("accurracy")


def test_equal_networks_share_a_row() -> None:
    def canonical(one: Architecture) -> Architecture:
        return one.replace(width=8) if one["kind"] == "none" else one

    toy = table(canonical=canonical, codes=CODES[:5], columns={"accuracy": np.arange(5.0)})
    assert toy.row(arch("none", 16)) == toy.row(arch("none", 8)) == 2
    assert toy.rows([arch("none", 16), arch("plain", 16)]).tolist() == [2, 3]
    with pytest.raises(ValueError, match="is no architecture"):
        toy.row(arch("none", 32))


# ---- parts ------------------------------------------------------------------------------------------------


def test_where_limits_rows_and_space() -> None:
    toy = table()
    part = toy.where(np.isfinite(toy.column("accuracy")))
    assert len(part) == 5 and arch("none", 16) not in part.space
    assert part.architectures() == toy.architectures()[:5]
    assert part.column("accuracy").tolist() == [70.0, 71, 72, 80, 81]
    rng = random.Random(0)
    assert {part.space.sample(rng) for _ in range(100)} == {*part.architectures()}
    copy = pickle.loads(pickle.dumps(part))
    assert copy.space == part.space and copy.architectures() == part.architectures()
    assert len(repr(part.space.constraint)) < 200
    smaller = part.where(part.column("time_ms") < 2, name="fast")
    assert smaller.name == "fast" and len(smaller) == 2 and arch("none", 16) not in smaller.space


def test_where_refuses_what_is_no_mask_of_the_rows() -> None:
    for kept in (np.ones(5, dtype=bool), np.ones(6), [0, 1]):
        with pytest.raises(ValueError, match="give 6 booleans"):
            table().where(kept)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no row of table 'toy' is kept"):
        table().where(np.zeros(6, dtype=bool))


# ---- objectives -------------------------------------------------------------------------------------------


def test_goals_follow_from_units() -> None:
    toy = table()
    assert toy.objective("accuracy").goal == "max" and toy.objective("time_ms").goal == "min"
    assert toy.objective("half", goal="min", name="halved").name == "halved"
    assert toy.objective("time_ms", at_most=3.0).at_most == 3.0


def test_objectives_survive_pickling_without_the_numbers() -> None:
    objective = table().objective("accuracy")
    objective.measure(arch("plain", 8))
    copy = pickle.loads(pickle.dumps(objective))
    assert copy.measure(arch("gated", 16)) == objective.measure(arch("gated", 16)) == 81.0


def test_a_budget_buys_the_largest_fidelity_within_it() -> None:
    measure = table().objective("accuracy", fidelities={0.5: "half", 0.1: "time_ms"}).measure
    one = arch("none", 8)
    assert [measure(one, budget) for budget in (0.1, 0.3, 0.5, 0.9, 1.0)] == [2.0, 2.0, 7.0, 7.0, 72.0]
    with pytest.raises(ValueError, match=r"nothing was measured with a budget of 0\.05: the least is 0\.1"):
        measure(one, 0.05)
    for wrong in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="is not between 0 and 1"):
            table().objective("accuracy", fidelities={wrong: "half"})


def test_what_was_not_measured_is_a_failed_trial_and_the_search_goes_on() -> None:
    toy = table()
    objectives = [toy.objective("accuracy"), toy.objective("time_ms")]
    log = search(toy.space, RandomSearch(toy.space, objectives), objectives, trials=60)
    states = {trial.arch: (trial.state, trial.note) for trial in log}
    assert states.pop(arch("none", 16))[0] == "failed"
    assert {state for state, _ in states.values()} == {"done"} and len(states) == 5


# ---- malformed tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"codes": CODES[:, :1]}, "give at least one row of 2 integers"),
        ({"codes": CODES[:0]}, "give at least one row of 2 integers"),
        ({"codes": CODES.astype(float)}, "are float64 of shape"),
        (
            {"codes": CODES + 1},
            "row 1 of table 'toy' has option 3 of 'kind', which has 3|row . of table 'toy' has option",
        ),
        ({"codes": CODES[[0, 1, 2, 3, 4, 1]]}, "rows 1 and 5 of table 'toy' are the same architecture"),
        (
            {"columns": {"short": np.zeros(5)}},
            r"column 'short' of table 'toy' is float64 of shape \(5,\): give 6 numbers",
        ),
        ({"columns": {"text": np.array(list("abcdef"))}}, "column 'text' of table 'toy' is <U1"),
    ],
)
def test_a_malformed_table_is_one_error(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        table(**changes)
    assert "\n" not in str(error.value)


def saved(path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    toy = table()
    content = {**arrays("toy", SPACE, toy.architectures(), toy.columns), **(changes or {})}
    path.write_bytes(packed({name: value for name, value in content.items() if value is not None}))
    return path


def test_a_saved_table_comes_back(tmp_path: Path) -> None:
    found = open_table(saved(tmp_path / "toy.npz"))
    assert (found.name, found.space, [*found.columns]) == ("toy", SPACE, [*table().columns])
    np.testing.assert_array_equal(found.codes, CODES)
    for name, column in table().columns.items():
        np.testing.assert_array_equal(found.column(name), column)
    assert saved(tmp_path / "again.npz").read_bytes() == (tmp_path / "toy.npz").read_bytes()
    with pytest.raises(ValueError, match="read-only"):
        found.column("half")[0] = 1.0


def test_a_part_of_a_space_limits_the_space(tmp_path: Path) -> None:
    toy = table()
    content = arrays("part", SPACE, toy.architectures()[:3], {"accuracy": np.arange(3.0)})
    (tmp_path / "part.npz").write_bytes(packed(content))
    part = open_table(tmp_path / "part.npz", keep=True)
    assert part.name == "part" and len(part) == 3 and arch("plain", 16) not in part.space


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({".codes": None}, "is no table: it has no .codes"),
        ({".format": np.array(2)}, "has format 2, and 1 is what this version"),
        ({".rule": np.array("mystery")}, "by the rule 'mystery'"),
        ({".space": np.array("{}")}, "not the JSON of a search space"),
        ({".codes": CODES[[0, 0, 1, 2, 3, 4]]}, "rows 0 and 1 .* are the same architecture"),
        ({".codes": np.array([{}], dtype=object)}, None),
    ],
)
def test_a_malformed_file_is_one_error(tmp_path: Path, changes: dict[str, Any], told: str | None) -> None:
    if told is None:
        with pytest.raises(ValueError, match=r"pickle|object arrays"):
            saved(tmp_path / "toy.npz", changes)
        return
    with pytest.raises(ValueError, match=told) as error:
        open_table(saved(tmp_path / "toy.npz", changes))
    assert "\n" not in str(error.value)


def test_columns_are_checked_when_they_are_first_used(tmp_path: Path) -> None:
    found = open_table(saved(tmp_path / "toy.npz", {"half": np.zeros(4)}))
    assert found.column("accuracy")[0] == 70.0
    with pytest.raises(
        ValueError, match=r"column 'half' in toy.npz is float64 of shape \(4,\): it should be 6 numbers"
    ):
        found.column("half")


def test_a_damaged_file_is_one_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "toy.npz")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read as a table"):
        open_table(path)
    path.write_bytes(content[:60] + b"\0\1\2\3" + content[64:])
    with pytest.raises(ValueError, match=r"cannot be read from|is no table"):
        open_table(path)
    with pytest.raises(ValueError, match="cannot be read as a table"):
        Columns([tmp_path / "missing.npz"], 6)
