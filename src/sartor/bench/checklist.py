# SPDX-License-Identifier: Apache-2.0
"""The check-list of good practice, answered from the record of a comparison; what is not met is said.

Lindauer and Hutter, "Best Practices for Scientific Research on Neural Architecture Search", JMLR 21(243), 2020,
arXiv:1909.02453; Yang, Esperanca and Carlucci, "NAS Evaluation is Frustratingly Hard", ICLR 2020,
arXiv:1912.12522. Items that a comparison in one program always meets are listed with how it meets them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sartor.bench.entries import UNKNOWN
from sartor.bench.statistics import smallest_p

ENOUGH = 30  # seeds, where evaluations are look-ups
LEAST = 8  # seeds of any comparison

State = Literal["met", "not met", "for the reader"]


@dataclass(frozen=True)
class Item:
    """One line of the list."""

    asked: str
    state: State
    answer: str


def checklist(
    record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], seeds: int, queries: int
) -> list[dict[str, str]]:
    """Return all items, in the order of the publication, as JSON can carry them."""
    return [asdict(item) for item in _items(record, rows, seeds, queries)]


def _items(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], seeds: int, queries: int) -> Iterator[Item]:
    problem, known = record["problem"], record["known"]
    yield Item(
        "The same benchmark for all: data, space and training",
        "met",
        f"Every entry searched {problem['name']} with the same space of {int(problem['space_size']):,} architectures"
        f"{', within one constraint' if problem['constrained'] else ''}, and asked the same objectives.",
    )
    yield _budgets(rows, seeds, queries)
    yield _signal(problem)
    yield _tuned(record["entries"])
    yield _seeds(seeds, known.get("optimum") is not None)
    yield _baseline(rows, known)
    yield Item(
        "Performance over the budget, not at its end alone",
        "met",
        "Curves with 95 % bands of the mean, the mean over the whole run, and queries needed to reach given qualities.",
    )
    yield _tests(len(rows), seeds)
    yield from _costs(problem)
    yield _cost_of_search(rows, any(one.get("method") for one in record["entries"]))
    yield from _ALWAYS


_ALWAYS = (
    Item(
        "Confounders: machine, versions, threads",
        "met",
        "All entries ran on one machine with the versions below. CPU times of processes that run at once share "
        "caches and clock: compare them where they differ by a factor.",
    ),
    Item(
        "Everything needed to repeat it",
        "met",
        "Seeds, settings and versions are in run.json, every query in queries.parquet, and the logs beside it.",
    ),
    Item(
        "Several data sets, and more than one space",
        "for the reader",
        "One problem is compared here. A claim about a strategy needs others: repeat it with another objective "
        "and another space.",
    ),
    Item(
        "Ablation of what is new",
        "for the reader",
        "An entry can take part twice with different settings; whether each part of a method was switched off once "
        "is not known here.",
    ),
)


def _tests(entries: int, seeds: int) -> Item:
    asked, pairs = "Corrected tests", entries * (entries - 1) // 2
    if not pairs:
        return Item(asked, "not met", "There is nothing to compare: one entry took part.")
    if smallest_p(seeds) * pairs >= 0.05:
        return Item(
            asked,
            "not met",
            f"{seeds} seeds are too few for the pairs compared, {pairs}: the smallest p-value that one can have is "
            f"{smallest_p(seeds):.2g}, which none keeps below 0.05 after Holm's correction.",
        )
    return Item(
        asked,
        "met",
        "Friedman's test, then Wilcoxon's signed ranks of each pair over seeds with Holm's correction; medians of "
        "the paired differences are stated.",
    )


def _budgets(rows: Sequence[Mapping[str, Any]], seeds: int, queries: int) -> Item:
    spent = {row["name"]: row["budget"] for row in rows}
    partial = {name: budget for name, budget in spent.items() if budget < queries - 1e-9}
    text = (
        f"{queries} queries for each of {seeds} seeds of every entry. A query is one trial: repeats of an "
        "architecture, infeasible and failed ones count."
    )
    if partial:
        told = ", ".join(f"{name} {budget:.1f}" for name, budget in partial.items())
        text += f" By cost they differ, as some queries are cheaper; in full evaluations: {told}, the others {queries}."
    return Item("Equal budgets", "not met" if partial else "met", text)


def _signal(problem: Mapping[str, Any]) -> Item:
    signal, reported = problem["objectives"][0]["name"], problem["reported"]
    if signal == reported:
        return Item(
            "The reported value is not what the search reads",
            "not met",
            f"The searches read {signal}, and the same is reported: good values include luck with this very quantity.",
        )
    return Item(
        "The reported value is not what the search reads",
        "met",
        f"The searches read {signal} and choose their incumbent by it; reported is {reported} of that incumbent, "
        f"never the best {reported} that was met.",
    )


def _tuned(entries: Sequence[Mapping[str, Any]]) -> Item:
    silent = [one["name"] for one in entries if one["tuned"] == UNKNOWN]
    if silent:
        return Item(
            "What was tuned, on what, and at what cost",
            "not met",
            f"Not stated for {', '.join(silent)}; the table of entries has what is known of the others.",
        )
    return Item("What was tuned, on what, and at what cost", "met", "Stated for each entry in the table of entries.")


def _seeds(seeds: int, tabular: bool) -> Item:
    needed = ENOUGH if tabular else LEAST
    kind = "where an evaluation is a look-up" if tabular else "in any comparison"
    return Item(
        "Enough seeds, with spread",
        "met" if seeds >= needed else "not met",
        f"{seeds} seeds; at least {needed} are asked for {kind}. Means have standard deviations and intervals; "
        "seed n of every entry draws from generators seeded with n.",
    )


def _baseline(rows: Sequence[Mapping[str, Any]], known: Mapping[str, Any]) -> Item:
    asked = "Beside random search, and the average random architecture"
    ran = any(row["name"] == "random_search" for row in rows)
    if known.get("random"):
        extra = "; it also took part" if ran else ""
        return Item(
            asked, "met", f"Both are exact here, computed from all {known['architectures']:,} architectures{extra}."
        )
    if ran:
        return Item(asked, "met", "Random search took part.")
    return Item(asked, "not met", "Random search did not take part: add random_search.")


def _costs(problem: Mapping[str, Any]) -> Iterator[Item]:
    further = [one["name"] for one in problem["objectives"][1:]]
    if further:
        yield Item(
            "Hardware costs: where they come from",
            "for the reader",
            f"{', '.join(further)}: as the data of the space has them; its documentation names device and measurement.",
        )


def _cost_of_search(rows: Sequence[Mapping[str, Any]], gradients: bool) -> Item:
    known = [row for row in rows if row["cpu_ms"] is not None]
    if len(known) < len(rows):
        silent = ", ".join(row["name"] for row in rows if row["cpu_ms"] is None)
        return Item(
            "What the search itself costs",
            "not met",
            f"No seed ran in one go for {silent}, so its CPU time is not known.",
        )
    return Item(
        "What the search itself costs",
        "met",
        "CPU time per query of strategy, loop and log, the look-up included; training time is not part of it"
        + (", but for supernets, whose searches have a table of their own." if gradients else "."),
    )
