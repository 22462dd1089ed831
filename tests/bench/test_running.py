"""Running: every seed once, whatever happens between; entries of all kinds; nothing lost by one that fails."""

from __future__ import annotations

import json
import os
import signal as signals
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.toy_bench import COST, SIGNAL, SPACE, Aware, Broken, learned, short, toy
from sartor.bench import Entry, bench, named_entries, table_problem
from sartor.bench.entries import built_in, check_entries
from sartor.bench.queries import incumbents, read_queries
from sartor.bench.running import Outcome, finished, log_path, read_record
from sartor.limits import Form
from sartor.space import SearchSpace
from sartor.strategies.random_search import RandomSearch
from sartor.strategies.regularized_evolution import RegularizedEvolution
from sartor.trial import TrialLog

RANDOM = Entry("random_search", "random_search")
EVOLUTION = Entry("evolution", "regularized_evolution", settings={"population": 5, "tournament": 2}, tuned="nothing")


def archs(out: Path, entry: str, seed: int) -> list[str]:
    with TrialLog(log_path(out, entry, seed), readonly=True) as log:
        return [trial.arch.to_json() for trial in log]


def test_every_seed_has_its_log_and_every_query_its_row(tmp_path: Path) -> None:
    seen: list[Outcome] = []
    out = tmp_path / "out"
    page = bench(toy(), [RANDOM, EVOLUTION], queries=12, seeds=3, out=out, progress=seen.append)
    assert page == out / "report.html" and page.is_file()
    assert [(one.entry, one.seed) for one in seen] == [(e, s) for e in ("random_search", "evolution") for s in range(3)]
    assert all(one.cpu_s > 0 and one.whole and not one.error for one in seen)
    searches = read_queries(out, read_record(out)["problem"])
    assert searches["evolution"].values.shape == (3, 12, 1)
    assert archs(out, "evolution", 0) != archs(out, "evolution", 1)


def test_finished_seeds_are_not_run_again_and_half_ones_go_on(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    bench(toy(), [RANDOM, EVOLUTION], queries=14, seeds=2, out=whole)
    bench(toy(), [EVOLUTION], queries=6, seeds=1, out=out)
    before = log_path(out, "evolution", 0).with_suffix(".json").read_bytes()
    seen: list[Outcome] = []
    bench(toy(), [EVOLUTION], queries=6, seeds=1, out=out, resume=True, progress=seen.append)
    assert seen == [] and log_path(out, "evolution", 0).with_suffix(".json").read_bytes() == before
    bench(toy(), [RANDOM, EVOLUTION], queries=14, seeds=2, out=out, resume=True, progress=seen.append)
    assert [(one.entry, one.seed, one.whole) for one in seen] == [
        ("random_search", 0, True), ("random_search", 1, True), ("evolution", 0, False), ("evolution", 1, True),
    ]  # fmt: skip
    for entry in ("random_search", "evolution"):
        assert [archs(out, entry, seed) for seed in range(2)] == [archs(whole, entry, seed) for seed in range(2)]
    record = read_record(out)
    assert (record["queries"], record["seeds"], len(record["entries"])) == (14, 2, 2)
    bench(toy(), [EVOLUTION], queries=6, seeds=2, out=out, resume=True)
    assert read_queries(out, record["problem"])["evolution"].values.shape == (2, 6, 1), "fewer are the first ones"


def test_a_taken_folder_and_another_problem_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    bench(toy(), [RANDOM], queries=3, seeds=1, out=out)
    with pytest.raises(FileExistsError, match="--resume or replace it with --force"):
        bench(toy(), [RANDOM], queries=3, seeds=1, out=out)
    with pytest.raises(ValueError, match="was started with objectives"):
        bench(toy((SIGNAL, COST)), [RANDOM], queries=3, seeds=1, out=out, resume=True)
    bench(toy((SIGNAL, COST)), [RANDOM], queries=3, seeds=1, out=out, force=True)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (Entry("evolution", "random_search"), "source 'sartor regularized_evolution', and 'sartor random_search' is"),
        (
            Entry("evolution", "regularized_evolution", settings={"population": 6, "tournament": 2}),
            "setting population 5",
        ),
        (Entry("evolution", RegularizedEvolution, settings={"population": 5, "tournament": 2}), "with source"),
        (Entry("Evolution", "regularized_evolution", settings=dict(EVOLUTION.settings)), "with name 'evolution'"),
    ],
)
def test_an_entry_goes_on_as_it_was_even_after_it_was_left_out(tmp_path: Path, changed: Entry, told: str) -> None:
    out = tmp_path / "out"
    bench(toy(), [RANDOM, EVOLUTION], queries=3, seeds=1, out=out)
    for _ in range(2):
        with pytest.raises(ValueError, match=told):
            bench(toy(), [RANDOM, changed], queries=3, seeds=1, out=out, resume=True)
        bench(toy(), [RANDOM], queries=4, seeds=1, out=out, resume=True)
    bench(toy(), [EVOLUTION, RANDOM], queries=4, seeds=1, out=out, resume=True)
    assert read_record(out)["left_out"] == []


def test_other_cheaper_trainings_are_another_problem(tmp_path: Path) -> None:
    cheaper = [replace(toy(), arguments={"fidelities": {share: "cifar10_val12"}}) for share in ("0.06", "0.1")]
    for begun, asked in ((cheaper[0], cheaper[1]), (cheaper[0], toy()), (toy(), cheaper[0])):
        bench(begun, [RANDOM], queries=2, seeds=1, out=tmp_path / "out", force=True)
        with pytest.raises(ValueError, match="was started with fidelities"):
            bench(asked, [RANDOM], queries=2, seeds=1, out=tmp_path / "out", resume=True)
        bench(begun, [RANDOM], queries=2, seeds=1, out=tmp_path / "out", resume=True)


@pytest.mark.parametrize("counts", [{"queries": 0}, {"seeds": 0}, {"workers": 0}])
def test_counts_are_at_least_one(tmp_path: Path, counts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        bench(toy(), [RANDOM], **{"queries": 1, "seeds": 1, "out": tmp_path / "out", **counts})  # type: ignore[arg-type]


def test_an_entry_that_fails_costs_the_others_nothing(tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[Outcome]()
    with pytest.raises(ValueError, match=r"1 of 2 entries failed \(broken: seed 0: .*no more ideas.*report.html"):
        bench(toy(), [Entry("broken", Broken), RANDOM], queries=9, seeds=3, out=out, progress=seen.append)
    assert [one.entry for one in seen] == ["broken", *["random_search"] * 3], "no second seed of what fails"
    assert len(archs(out, "broken", 0)) == 4, "its trials are kept"
    assert "broken" in json.loads((out / "report.json").read_text())["failed"]
    with pytest.raises(ValueError, match=r"1 of 1 entries failed"):
        bench(toy(), [Entry("broken", Broken)], queries=9, seeds=1, out=tmp_path / "other")


def test_whatever_returns_a_log_takes_part(tmp_path: Path) -> None:
    out = tmp_path / "out"
    entries = [Entry("learned", search=learned), Entry("object", RandomSearch(SPACE)), Entry("class", RandomSearch)]
    bench(toy(), entries, queries=7, seeds=2, out=out)
    assert archs(out, "learned", 1) == archs(out, "object", 1) == archs(out, "class", 1)
    assert finished(out, "learned", 0) is not None
    with pytest.raises(ValueError, match="it returned 2 trials, and 7 queries"):
        bench(toy(), [Entry("short", search=short)], queries=7, seeds=1, out=tmp_path / "short")
    with pytest.raises(ValueError, match="its trial 0 has no value of cost"):
        bench(toy((SIGNAL, COST)), [Entry("learned", search=learned)], queries=7, seeds=1, out=tmp_path / "no")


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    entries = [EVOLUTION, Entry("learned", search=learned), Entry("made", RegularizedEvolution(SPACE, [SIGNAL]))]
    bench(toy(), entries, queries=8, seeds=2, out=tmp_path / "one")
    bench(toy(), entries, queries=8, seeds=2, out=tmp_path / "two", workers=2)
    one, two = (read_queries(tmp_path / name, read_record(tmp_path / name)["problem"]) for name in ("one", "two"))
    assert all((one[name].values == two[name].values).all() for name in one)


def test_a_killed_comparison_resumes(tmp_path: Path) -> None:
    """The process and its workers are killed at once; what was told is kept, and the end is the same."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    argv = [sys.executable, "-m", "bench.killed_bench", str(out)]
    tests = Path(__file__).parents[1]
    process = subprocess.Popen(argv, cwd=tests, start_new_session=True, env={**os.environ, "PYTHONPATH": str(tests)})
    deadline = time.monotonic() + 120
    while finished(out, "random_search", 1) is None and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signals.SIGKILL)
    process.wait()
    assert finished(out, "random_search", 1) is not None
    entries = named_entries(["random_search", "regularized_evolution"])
    kept = {path: path.read_bytes() for path in out.glob("trials/*/*.json")}
    bench(toy(), entries, queries=300, seeds=3, out=out, resume=True)
    bench(toy(), entries, queries=300, seeds=3, out=whole)
    assert {path: path.read_bytes() for path in kept} == kept
    for entry in entries:
        assert [archs(out, entry.name, seed) for seed in range(3)] == [archs(whole, entry.name, s) for s in range(3)]


# ---- entries ----------------------------------------------------------------------------------------


def test_all_is_every_built_in_strategy_and_names_are_not_repeated() -> None:
    assert tuple(entry.name for entry in named_entries(["all", "random_search"])) == built_in()


def test_an_entry_tells_its_hyper_parameters_and_what_they_were_tuned_on() -> None:
    told = EVOLUTION.described(9)
    assert told["settings"] == {"population": 5, "tournament": 2} and told["changed"] == ["population", "tournament"]
    assert told["tuned"] == "nothing" and told["given"] == "regularized_evolution"
    assert RANDOM.described(9)["settings"] == {"unique": False} and "published" in RANDOM.described(9)["tuned"]
    own = Entry("mine", RandomSearch).described(9)
    assert own["tuned"] == "not stated" and own["given"] is None and own["source"].endswith("RandomSearch")


def test_a_strategy_that_knows_its_budget_is_given_it_and_starts_anew_with_another(tmp_path: Path) -> None:
    out, entry = tmp_path / "out", Entry("aware", Aware)
    assert (
        entry.described(6)["settings"] == {"queries": 6}
        and Entry("set", Aware, settings={"queries": 3}).folder(6) == "set"
    )
    bench(toy(), [entry, RANDOM], queries=6, seeds=1, out=out)
    bench(toy(), [entry, RANDOM], queries=9, seeds=1, out=out, resume=True)
    with pytest.raises(ValueError, match=r"'aware' of .* with setting queries None, and 9 is"):
        bench(toy(), [Entry("aware", Aware, settings={"queries": 9})], queries=9, seeds=1, out=out, resume=True)
    assert len(archs(out, "aware@6", 0)) == 6 and len(archs(out, "aware@9", 0)) == 9
    assert len(archs(out, "random_search", 0)) == 9


def test_ones_own_file_takes_part_by_its_class(tmp_path: Path) -> None:
    path = tmp_path / "mine_for_bench.py"
    path.write_text("from sartor.strategies.random_search import RandomSearch\nclass Mine(RandomSearch):\n    pass\n")
    (entry,) = named_entries([f"{path}:Mine"], tuned={"Mine": "CIFAR-10, 20 queries"})
    assert entry.name == "Mine" and entry.tuned == "CIFAR-10, 20 queries"
    bench(toy(), [entry], queries=3, seeds=1, out=tmp_path / "out")
    bench(toy(), [entry], queries=3, seeds=2, out=tmp_path / "out", resume=True)
    path.write_text(path.read_text() + "    more = 1\n")
    with pytest.raises(ValueError, match=r"entry 'Mine' of .* was started with digest"):
        bench(toy(), [entry], queries=3, seeds=3, out=tmp_path / "out", resume=True)


def test_limits_are_taken_as_an_entry_says(tmp_path: Path) -> None:
    """Under a penalty nothing is infeasible while searching, and what counts in the end is within the limit."""
    problem = table_problem("nasbench201", "cifar10", device="pixel3", latency_ms=10.0)
    forms: tuple[Form, ...] = ("hard", "penalty")
    entries = [Entry(form, "regularized_evolution", limit_as=form) for form in forms]
    bench(problem, entries, queries=40, seeds=2, out=tmp_path / "board", workers=1)
    states: dict[str, set[str]] = {}
    for form in forms:
        paths = (tmp_path / "board" / "trials" / form).glob("*.sqlite")
        logs = [TrialLog(path, readonly=True) for path in sorted(paths)]
        states[form] = {trial.state for log in logs for trial in log}
        for log in logs:
            log.close()
    assert states == {"hard": {"done", "infeasible"}, "penalty": {"done"}}
    searches = read_queries(tmp_path / "board", read_record(tmp_path / "board")["problem"])
    held = [searches[form].held(searches[form].reported)[:, -1] for form in forms]
    assert np.isfinite(held).all()


def test_a_form_without_a_limit_is_told_before_anything_is_written(tmp_path: Path) -> None:
    problem = table_problem("nasbench201", "cifar10", device="pixel3")
    with pytest.raises(ValueError, match="taken as 'penalty' need a limit"):
        bench(problem, [replace(RANDOM, limit_as="penalty")], queries=4, seeds=1, out=tmp_path / "board")
    assert not (tmp_path / "board").exists()


def test_mistakes_with_entries_are_told() -> None:
    with pytest.raises(ValueError, match="takes limits as 'penalty': give a strategy's name or class"):
        Entry("a", RandomSearch(SearchSpace({"a": (1, 2)})), limit_as="penalty")
    with pytest.raises(ValueError, match="did you mean 'nsga2'"):
        named_entries(["nsga3"])
    with pytest.raises(ValueError, match="'nsga2' takes no part"):
        named_entries(["random_search"], tuned={"nsga2": "something"})
    with pytest.raises(ValueError, match="nothing takes part"):
        check_entries([])
    with pytest.raises(ValueError, match="two entries are named 'a b' and 'A-b'"):
        check_entries([Entry("a b", RandomSearch), Entry("A-b", RandomSearch)])
    with pytest.raises(ValueError, match="a strategy or a search, and not both"):
        Entry("none")
    with pytest.raises(ValueError, match="nothing is made from them"):
        Entry("made", RandomSearch(SPACE), settings={"unique": True})


# ---- the incumbent ----------------------------------------------------------------------------------


def test_the_incumbent_is_the_best_of_the_largest_budget() -> None:
    import numpy as np

    nan = float("nan")
    full = np.ones(5)
    assert incumbents(np.array([nan, 1.0, 3.0, 3.0, 2.0]), full, "max").tolist() == [-1, 1, 2, 2, 2]
    assert incumbents(np.array([5.0, 1.0, 3.0, 0.5, nan]), full, "min").tolist() == [0, 1, 1, 3, 3]
    rising = np.array([0.1, 0.1, 1.0, 0.1, 1.0])
    assert incumbents(np.array([5.0, 9.0, 4.0, 99.0, 6.0]), rising, "max").tolist() == [0, 1, 2, 2, 4]
