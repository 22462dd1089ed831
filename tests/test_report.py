"""The report: what it says, what it survives, and that it stands alone."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import sqlite3
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from report_fixture import (
    TARGET,
    TRIALS,
    UP_TO,
    run_json,
    write_run,
)
from sartor.architecture import Architecture
from sartor.report import write_report
from sartor.report.page import FILTERS
from sartor.report.reading import read_run

HOSTILE = "<script>alert(1)</script>\"'&</style>{{ 7*7 }}<!--\u202e\u00e9\u4e2d$x^2$"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "demo")
    write_report(folder)
    return folder


class Page(HTMLParser):
    """Collects what a browser would see: text outside scripts and styles, tags, and references."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.blocks: dict[str, str] = {}
        self.inside = ""
        self.feed(source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.inside = f"{tag}:{values.get('id')}" if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.blocks[self.inside] = self.blocks.get(self.inside, "") + data
        else:
            self.words.append(data)


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def numbers_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def test_the_numbers_are_those_of_the_folder(finished: Path) -> None:
    numbers, text = numbers_of(finished), page_of(finished).text
    assert numbers["complete"] and numbers["missing"] == []
    assert {row["name"] for row in numbers["beside_the_front"]} == {
        path.name for path in (finished / "candidates").iterdir()
    }
    assert {row["name"] for row in numbers["front"]} == {path.name for path in (finished / "pareto").iterdir()}
    for row in [*numbers["front"], *numbers["baselines"]]:
        folder = finished / ("pareto" if row["name"] in {one["name"] for one in numbers["front"]} else "baselines")
        record = json.loads((folder / row["name"] / "measurement.json").read_text())
        measured = record["targets"][TARGET]
        assert row["latency_ms"] == measured["measurement"]["latency_ms"]
        assert row["test"] == measured["accuracy"]["test"]
        assert row["within_limit"] is measured["within_limit"]
        assert row["params"] == record["params"]
        shown = [
            row["name"],
            f"{100 * row['test']:.2f}",
            FILTERS["sig"](row["latency_ms"]),
            FILTERS["sig"](row["p90"]),
        ]
        assert all(part in text for part in shown)
    assert numbers["recommended"]["id"] == Architecture.from_json((finished / "best/architecture.json").read_text()).id
    assert [row["name"] for row in numbers["front"] if row["recommended"]] == [numbers["recommended"]["name"]]
    assert (finished / "best/why.txt").read_text() in text
    assert "1.63 %" in text and "0.995" in text and "0.954" in text  # MAPE, Spearman, Kendall
    assert "sartor search digits --target onnxruntime --latency 0.2ms --out runs/demo" in text


def test_the_search_is_counted_with_its_reasons(finished: Path) -> None:
    search = numbers_of(finished)["search"]
    assert search["done"] + search["infeasible"] + search["failed"] == search["trials"] == TRIALS
    assert search["failed"] == 3 and search["infeasible"] > 1
    counted = {(one["state"], one["count"]) for one in search["reasons"]}
    assert counted == {("failed", 2), ("failed", 1), ("infeasible", search["infeasible"])}
    assert "not enough memory" in page_of(finished).text


def test_the_page_stands_alone(finished: Path) -> None:
    page = page_of(finished)
    assert (finished / "report.html").stat().st_size < 6e6
    assert page.references and all(reference.startswith("data:") for reference in page.references)
    assert "default-src 'none'" in (finished / "report.html").read_text()  # nor could a script load anything
    assert "@import" not in page.blocks["style:None"] and "url(" not in page.blocks["style:None"]
    figures = json.loads(page.blocks["script:figures"])
    assert set(figures) == {"front", "latency", "training", "search"}


def test_every_colour_of_a_figure_is_in_both_palettes(finished: Path) -> None:
    page = page_of(finished)
    roles = set(re.findall(r'"@(\w+)"', page.blocks["script:figures"]))
    palettes = json.loads(page.blocks["script:palettes"])
    assert roles and all(roles <= set(palette) for palette in palettes.values())


def test_the_front_image_is_drawn(finished: Path) -> None:
    data = (finished / "front.png").read_bytes()
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.format == "PNG" and image.size == (1600, 900) and len(data) > 30_000
    colours = image.convert("RGB").getcolors(1 << 24)
    assert colours is not None and len(colours) > 100


def test_the_same_folder_gives_the_same_files(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "demo")
    write_report(copy)
    for name in ("report.html", "front.png", "report.json"):
        assert (copy / name).read_bytes() == (finished / name).read_bytes()
    assert str(finished.parent) not in (finished / "report.html").read_text()


STOPPED = (
    "latency is not modelled yet (0 networks measured)",
    "training has logged 0 of 1,200 steps",
    "the search has told 0 of 240 trials",
    "no measured baseline yet: largest, middle, smallest",
    "no measured baseline yet: largest, middle, smallest",
    "no network is recommended yet",
    "",
)


@pytest.mark.parametrize(("up_to", "said"), list(zip(UP_TO, STOPPED, strict=True)))
def test_a_run_stopped_anywhere_is_reported(tmp_path: Path, up_to: str, said: str) -> None:
    folder = write_run(tmp_path / "run", up_to)
    assert write_report(folder) == folder / "report.html"
    missing = numbers_of(folder)["missing"]
    assert numbers_of(folder)["complete"] is (up_to == "finished")
    assert (missing[0] if missing else "") == said and said in page_of(folder).text
    assert ("This run is unfinished." in page_of(folder).text) is bool(missing)


FILES = ("latency_model.json", "train.jsonl", "run.sqlite", "latency.costs", "best/architecture.json")
DAMAGES = [*(((name,), "cut") for name in FILES), *((FILES, damage) for damage in ("gone", "cut", "noise"))]


@pytest.mark.parametrize(("names", "damage"), DAMAGES)
def test_a_damaged_file_is_a_note_not_the_end(tmp_path: Path, names: tuple[str, ...], damage: str) -> None:
    folder = write_run(tmp_path / "run")
    member = sorted((folder / "pareto").iterdir())[0] / "measurement.json"
    for path in (member, *(folder / name for name in names)):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 3] if damage == "cut" else b"\xff\x00{[" * 50)
        if damage == "gone":
            path.unlink()
    write_report(folder)
    notes = " ".join(numbers_of(folder)["notes"])
    for name in names:
        assert Path(name).name in notes or damage == "gone"
    assert f"pareto/{member.parent.name}/measurement.json" in notes or damage == "gone"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "run.json is missing"),
        ("", "unreadable"),
        ('{"format": 1, "created"', "unreadable"),
        ("[1, 2]", "no JSON object"),
        ('{"format": 2}', "format 2 is unknown"),
    ],
)
def test_a_bad_run_json_is_one_clear_line(tmp_path: Path, content: str | None, said: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "run.json").write_text(content)
    with pytest.raises(ValueError, match=said) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {
            "task": None,
            "plan": [],
            "objectives": "error",
            "space": 3,
            "targets": ["x"],
            "stages": [1],
            "command": 5,
        },
        {
            "space": {"choices": {"a": []}},
            "environment": {"torch": {"version": [1, 2]}},
            "task": {"classes": 10},
        },
        {"objectives": [{"name": "latency_ms", "at_most": math.nan}, 7, {"goal": "min"}], "seed": None},
    ],
)
def test_a_run_json_of_unexpected_form_is_survived(tmp_path: Path, broken: dict[str, Any]) -> None:
    folder = write_run(tmp_path / "run", **broken)
    if not broken:
        (folder / "run.json").write_text("{}")
    write_report(folder)
    assert numbers_of(folder)["front"]


def test_hostile_text_is_only_text(tmp_path: Path, finished: Path) -> None:
    arguments = {"data": HOSTILE, HOSTILE: HOSTILE}
    task = run_json({})["task"] | {"source": HOSTILE, "classes": [HOSTILE, "b"], "warnings": [HOSTILE]}
    target = {"name": TARGET, "fingerprint": {"processor": HOSTILE}}
    folder = write_run(tmp_path / "run", task=task, arguments=arguments, target=target, command=["sartor", HOSTILE])
    (folder / "best/why.txt").write_text(HOSTILE, encoding="utf-8")
    with sqlite3.connect(folder / "run.sqlite") as connection:
        connection.execute("UPDATE trials SET note = ? WHERE state = 'failed'", (HOSTILE,))
    connection.close()
    member = sorted((folder / "pareto").iterdir())[0]
    member.rename(member.with_name("<img src=x onerror=alert(1)>"))
    write_report(folder)
    page = page_of(folder)
    assert page.text.count(" ".join(HOSTILE.split())) >= 5
    assert sorted(set(page.tags)) == sorted(set(page_of(finished).tags) | {"ul", "li"})
    assert page.tags.count("script") == 4 and "img" in page.tags and page.tags.count("img") == 1
    figures = json.loads(page.blocks["script:figures"])
    hover = [text for trace in figures["front"]["data"] for text in trace.get("text", ())]
    assert any("&lt;img" in text for text in hover) and not any("<img" in text for text in hover)


def test_notes_warn_of_noise_rough_prediction_and_broken_limits(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", task=run_json({})["task"] | {"warnings": ["class 3 has 40 times the samples"]})
    member = sorted((folder / "pareto").iterdir())[0]
    record = json.loads((member / "measurement.json").read_text())
    record["targets"][TARGET]["measurement"] |= {"noisy": True, "notes": ["rounds differ by 18 %"]}
    record["targets"][TARGET]["within_limit"] = False
    (member / "measurement.json").write_text(json.dumps(record))
    model = json.loads((folder / "latency_model.json").read_text()) | {
        "kendall": 0.71,
        "method": "5-fold <validation>",
    }
    (folder / "latency_model.json").write_text(json.dumps(model))
    write_report(folder)
    notes = " ".join(numbers_of(folder)["notes"])
    for part in (
        "class 3 has 40 times",
        f"{member.name} is noisy: rounds differ by 18 %",
        "Kendall tau 0.71",
    ):
        assert part in notes and part in page_of(folder).text
    assert f"exceed the limit: {member.name}" in notes
    assert "By 5-fold <validation>, the mean absolute error is 1.63 %" in page_of(folder).text


def test_every_limit_is_shown_with_the_verdict(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    path = folder / "pareto" / Architecture.from_json((folder / "best/architecture.json").read_text()).id
    record = json.loads((path / "measurement.json").read_text())
    limits = {
        "latency_ms": {"limit": 0.2, "value": 0.1},
        "macs": {"limit": 2e6, "value": 3e6},
        "x": {"limit": None},
    }
    record["targets"][TARGET] |= {"limits": limits, "within_limit": False}
    (path / "measurement.json").write_text(json.dumps(record))
    write_report(folder)
    assert numbers_of(folder)["recommended"]["limits"] == [["latency_ms", 0.2, 0.1], ["macs", 2e6, 3e6]]
    assert "over limit" in page_of(folder).text and "150 % of 2.00 M macs" in page_of(folder).text


def test_a_search_in_which_no_network_kept_the_limits(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    shutil.rmtree(folder / "pareto")
    shutil.rmtree(folder / "best")
    write_report(folder)
    assert numbers_of(folder)["complete"] and "No network kept the limits" in page_of(folder).text


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["/opt/venv/bin/sartor", "search", "a b"], "sartor search 'a b'"),
        (["/opt/sartor/__main__.py", "search", "x"], "python -m sartor search x"),
        (["job.py", "--fast"], "job.py --fast"),
        (["-c"], None),
    ],
)
def test_the_command_is_shown_by_its_name(tmp_path: Path, command: list[str], shown: str | None) -> None:
    folder = write_run(tmp_path / "run", "started", command=command)
    write_report(folder)
    text = page_of(folder).text.split("How to reproduce")[1].split("Environment")[0]
    assert text.strip() == f"pip install sartor==0.1.0 torch==2.13.0 {shown or ''}".strip()


def test_a_run_without_a_limit_has_no_verdict(tmp_path: Path) -> None:
    objectives = [{"name": "error", "goal": "min"}, {"name": "latency_ms", "goal": "min"}]
    folder = write_run(tmp_path / "run", objectives=objectives)
    for path in folder.rglob("measurement.json"):
        record = json.loads(path.read_text())
        for entry in record["targets"].values():
            entry |= {"limit_ms": None, "limits": {}, "within_limit": True}
        path.write_text(json.dumps(record))
    write_report(folder)
    assert "no limit set" in page_of(folder).text and "at most" not in page_of(folder).text.split("Verdict")[0]
    assert "shapes" not in json.loads(page_of(folder).blocks["script:figures"])["front"]["layout"]


def test_trials_survive_values_that_are_not_finite(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "searched")
    with sqlite3.connect(folder / "run.sqlite") as connection:
        connection.execute("""UPDATE trials SET "values" = '{"error": NaN, "latency_ms": Infinity}' WHERE number < 5""")
    connection.close()
    write_report(folder)
    assert len(read_run(folder).trials) == TRIALS and dict(read_run(folder).trials[0].values) == {}


def test_reading_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write_report(folder)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    new = {path.name for path in after.keys() - before.keys()}
    new -= {"run.sqlite-shm", "run.sqlite-wal"}  # SQLite's own, of any reader
    assert new == {"report.html", "report.json", "front.png"}
    assert all(after[path] == content for path, content in before.items())


def test_effects_on_latency_follow_the_made_up_device(finished: Path) -> None:
    effects = numbers_of(finished)["effects"]
    resolution = next(one for one in effects["choices"] if one["choice"] == "resolution")["options"]
    latencies = [one["latency_ms"]["value"] for one in resolution]
    assert [one["option"] for one in resolution] == [8, 12, 16] and latencies == sorted(latencies)
    source = (finished / "report.html").read_text()
    distinct = [part["distinct"] for one in effects["choices"] for option in one["options"]
                for part in (option["accuracy"], option["latency_ms"])]  # fmt: skip
    assert source.count('vague"') == distinct.count(False) > 0 and distinct.count(True) > 0
    assert effects["choices"][0]["choice"] == "resolution" and effects["explained"]["latency_ms"] > 0.8


def test_how_each_network_was_trained_is_said(tmp_path: Path, finished: Path) -> None:
    numbers = numbers_of(finished)
    shared, scratch = "shared weights 1,200 steps + 240 of its own", "from scratch, 1,440 steps"
    assert {row["training"] for row in [*numbers["front"], *numbers["beside_the_front"]]} == {shared}
    assert {row["training"] for row in numbers["baselines"]} == {scratch}
    assert numbers["recommended"]["training"] == shared
    verified = len(numbers["front"]) + len(numbers["beside_the_front"])
    said = f"{verified} networks ({shared}); largest, middle, smallest ({scratch})."
    assert said in page_of(finished).text
    folder = write_run(tmp_path / "run")
    for path in folder.rglob("measurement.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({key: record[key] for key in record if "steps" not in key and key != "trained"}))
    write_report(folder)
    assert {row["training"] for row in numbers_of(folder)["baselines"]} == {""}
    assert "How the networks were trained" not in page_of(folder).text


def test_many_noisy_measurements_are_one_note(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for path in folder.rglob("measurement.json"):
        record = json.loads(path.read_text())
        record["targets"][TARGET]["measurement"] |= {"noisy": True, "notes": ["other processes ran"]}
        path.write_text(json.dumps(record))
    write_report(folder)
    notes = [note for note in numbers_of(folder)["notes"] if "noisy" in note]
    assert len(notes) == 1 and "other processes ran" in notes[0]
