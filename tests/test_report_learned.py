# SPDX-License-Identifier: Apache-2.0
"""What a differentiable search leaves for the report: drawn cells and chains, and how probabilities evolved."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from report_fixture import write_run
from sartor.architecture import Architecture, Option
from sartor.report import write_report
from sartor.report.cells import cell_diagram, cells_of, drawn_cells
from sartor.report.diagram import block_diagram
from sartor.report.evolution import entropies, evolution_charts, read_evolution
from sartor.space import SearchSpace

HOSTILE = '<script>"&'
CELL: dict[str, Option] = {
    "normal_inputs_2": (0, 1), "normal_inputs_3": (0, 2),
    "normal_op_02": "sep_conv_3x3", "normal_op_12": "skip_connect",
    "normal_op_03": "max_pool_3x3", "normal_op_13": "dil_conv_5x5", "normal_op_23": "none",
}  # fmt: skip


def texts(svg: str) -> list[str]:
    return [str(one.text) for one in ElementTree.fromstring(svg).iter("text")]


def write_lines(path: Path, *lines: object) -> Path:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def line(step: int, entropy: float = 1.0, **rows: list[float]) -> dict[str, object]:
    return {"step": step, "entropy": entropy, "probabilities": rows}


def test_a_cell_has_the_edges_that_its_nodes_keep() -> None:
    (cell,), rest = cells_of({**CELL, "stem": 8})
    assert cell.name == "normal" and rest == {"stem": 8}
    assert cell.edges == ((0, 2, "sep_conv_3x3"), (1, 2, "skip_connect"), (0, 3, "max_pool_3x3"), (2, 3, "none"))
    assert cell.nodes == [0, 1, 2, 3] and cell.inputs == [0, 1]


def test_without_lists_of_inputs_a_node_reads_all_that_come_before() -> None:
    (cell,), rest = cells_of({"op_01": "a", "op_02": "b", "op_12": "c"})
    assert cell.name == "cell" and not rest and len(cell.edges) == 3 and cell.inputs == [0]


def test_a_drawn_cell_tells_nodes_operations_and_what_lets_nothing_through() -> None:
    (cell,), _ = cells_of({**CELL, "normal_op_02": HOSTILE})
    svg = cell_diagram(cell)
    assert {"0", "1", "2", "3", "input", HOSTILE, "skip_connect", "none"} <= set(texts(svg))
    assert "dil_conv_5x5" not in svg and svg.count('class="link nothing"') == 1
    assert "<script>" not in svg


def test_no_two_edges_of_a_cell_share_a_line() -> None:
    (cell,), _ = cells_of(CELL)
    heights = re.findall(r'd="M\d+ (\d+)H', cell_diagram(cell))
    assert len(heights) == len(set(heights)) == 4


def test_the_arrows_of_two_cells_on_a_page_have_names_of_their_own() -> None:
    drawn, rest = drawn_cells(Architecture({**CELL, **{f"reduce{name[6:]}": one for name, one in CELL.items()}}))
    assert [name for name, _ in drawn] == ["normal", "reduce"] and not rest
    assert {re.findall(r'marker id="([^"]+)"', svg)[0] for _, svg in drawn} == {"tip-normal", "tip-reduce"}


def test_numbered_operations_are_a_chain_in_the_order_of_their_numbers() -> None:
    space = SearchSpace({f"slot_{i}": ("skip", "conv_3x3") for i in (10, 2, 1)})
    svg = block_diagram(space.largest(), space, "input", "output")
    shown = texts(svg)
    assert [one for one in shown if one.startswith("slot_")] == ["slot_1", "slot_2", "slot_10"]
    assert shown.count("conv_3x3") == 3 and "slot" in shown


def test_layers_of_a_stage_are_cards_of_a_row() -> None:
    names = [f"stages.{i}.blocks.{j}" for i in range(2) for j in range(2)]
    svg = block_diagram(Architecture(dict.fromkeys(names, "mb3_k5")), None, "input", "output")
    assert {"stages.0.blocks", "stages.1.blocks", *names} <= set(texts(svg))


def test_snapshots_are_read_whatever_the_file_is_like(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "architecture.jsonl",
        line(0, a=[0.5, 0.5]), line(10, a=[0.4, 0.6]), line(10, a=[0.3, 0.7]), "nonsense\n", {"step": 20},
        line(30, a=[0.1, 0.9]), '{"step": 40, "probabil',
    )  # fmt: skip
    found = read_evolution(path)
    assert [one.step for one in found] == [0, 10, 30] and found[1].probabilities["a"] == (0.3, 0.7)
    assert read_evolution(tmp_path / "missing.jsonl") == ()


def test_a_choice_whose_options_change_is_left_out(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", line(0, a=[0.5, 0.5], b=[1.0]), line(1, a=[0.5, 0.25, 0.25], b=[1.0]))
    assert [list(one.probabilities) for one in read_evolution(path)] == [["b"], ["b"]]


def test_a_chart_has_a_band_for_each_option_and_names_the_most_probable(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", line(0, 2.0, a=[0.5, 0.5]), line(50, 0.5, a=[0.2, 0.8]))
    space = SearchSpace({"a": ("skip", HOSTILE)})
    snapshots = read_evolution(path)
    svg, legend = evolution_charts(snapshots, space).split("</svg>", 1)[0] + "</svg>", evolution_charts(snapshots, None)
    tree = ElementTree.fromstring(svg)
    assert len(list(tree.iter("path"))) == 2 and f"80 % {HOSTILE}" in texts(svg)
    assert "option 1" in legend and "<script>" not in svg
    assert entropies(snapshots) == {"first": 2.0, "last": 0.5, "steps": 50}
    assert evolution_charts(snapshots[:1], space) == "" and entropies(snapshots[:1]) is None


@pytest.mark.parametrize("choices", [6, 28])
def test_charts_of_many_choices_and_options_stay_beside_each_other(choices: int) -> None:
    from sartor.report.evolution import Snapshot

    rows = {f"op_{i}": tuple([0.1] * 10) for i in range(choices)}
    svg = evolution_charts([Snapshot(0, rows), Snapshot(1, rows)], None).split("</svg>", 1)[0] + "</svg>"
    places = {(one.get("x"), one.get("y")) for one in ElementTree.fromstring(svg).iter("text")}
    assert len(places) == 2 * choices
    assert "s7" in svg and "s1 pale" in svg


def test_the_page_shows_what_was_learned_and_the_cells(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    plain = write_report(run).read_text()
    assert "What the search learned" not in plain and "Dots are the options" in plain
    record = json.loads((run / "run.json").read_text())
    record["arguments"]["method"], record["read_out"] = "pc_darts", {"id": "0123456789ab", "choices": {}}
    (run / "run.json").write_text(json.dumps(record))
    (run / "best" / "architecture.json").write_text(Architecture(CELL).to_json())
    write_lines(run / "architecture.jsonl", line(0, normal_op_02=[0.5, 0.5]), line(9, normal_op_02=[0.2, 0.8]))
    page = write_report(run).read_text()
    assert "What the search learned" in page and "0123456789ab" in page and "pc_darts" in page
    assert "The normal cell of network" in page and "Dots are the options" not in page
