"""Hypervolume at 100 and 300 evaluations on CIFAR-100 and each of six devices, beside pymoo and Optuna.

NAS-Bench-201; the searches read the 12-epoch validation accuracy of CIFAR-100 and the device's latency (HW-NAS-Bench).
"read" is the hypervolume of these two, "reported" that of the same front with the 200-epoch test accuracy; both as a
share of the true front's, from the worst value of each over all networks of the space, which the table names. On the
edge TPU the space is the 10,926 networks that it measured: ours never ask for others, and the peers may, at no cost.
All NSGA-IIs have a population of 20 and the operators of a categorical space. 30 seeds, paired by number; p-values are
Wilcoxon's signed ranks of the champion (`auto`, else our NSGA-II) against each other entry, corrected by Holm over all
devices, entries and budgets.

SARTOR_ENTRIES names the entries, as "auto,nsga2,pymoo NSGA-II"; without, all are run, and peers must be set up.
SARTOR_OUT keeps the scoreboards of all devices: searches that it holds are not run again, so that a run that was cut
off goes on, and entries can be added. It is to be emptied when a strategy changes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from peer import Library, PeerSearch
from sartor.bench import Entry, Problem, bench, named_entries, table_problem
from sartor.bench.curves import Curves, all_curves, box_of
from sartor.bench.entries import built_in
from sartor.bench.queries import read_queries
from sartor.bench.running import read_record
from sartor.bench.statistics import holm, wilcoxon

Row = Mapping[str, str | float | int | None]

DEVICES = ("edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss", "fpga")
OURS = ("auto", "nsga2", "random_search")
POPULATION = 20
TUNED = "nothing; population 20 for all, as budgets are small"
LIBRARIES = {
    one.name: one
    for one in (
        Library("pymoo NSGA-II", "pymoo", "pymoo_nsga2.py", {"population": POPULATION}),
        Library("Optuna NSGA-II", "optuna", "optuna_search.py", {"algorithm": "nsga2", "population": POPULATION}),
        Library("Optuna TPE", "optuna", "optuna_search.py", {"algorithm": "tpe", "population": 0}),
    )
}


def rows(quick: bool) -> Iterator[Row]:
    """A row per device and entry: means over seeds, and standard deviations."""
    devices, seeds, steps = (DEVICES[3:4], 3, (50, 100)) if quick else (DEVICES, 30, (100, 300))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(os.environ.get("SARTOR_OUT", folder))
        found = {device: compared(device, out / device, seeds, steps[-1]) for device in devices}
    champion = "auto" if "auto" in next(iter(found.values()))[1] else "nsga2"
    corrected = against(champion, {device: curves for device, (_, curves) in found.items()}, steps)
    for device, (problem, curves) in found.items():
        reference = problem.known(1)["reference"]
        for name, one in curves.items():
            assert one.volume is not None and one.reported_volume is not None
            row: dict[str, str | float | int | None] = {"device": device, "entry": name}
            for step in steps:
                row[f"read {step}"], row[f"sd read {step}"] = spread(one.volume[:, step - 1])
                row[f"reported {step}"], row[f"sd reported {step}"] = spread(one.reported_volume[:, step - 1])
                row[f"p read {step}"] = corrected.get((device, name, step))
            yield {**row, "reference": ", ".join(f"{value:.4g}" for value in reference)}


def spread(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float]:
    """Return mean and standard deviation over seeds."""
    return float(values.mean()), float(values.std(ddof=1))


def compared(device: str, out: Path, seeds: int, queries: int) -> tuple[Problem, dict[str, Curves]]:
    """Return the problem of a device and the curves of all entries."""
    problem = table_problem("nasbench201", "cifar100", device=device)
    out.parent.mkdir(parents=True, exist_ok=True)
    bench(problem, entries(problem, seeds), queries=queries, seeds=seeds, out=out, resume=out.exists())
    record = read_record(out)
    searches = read_queries(out, record["problem"])
    objectives = record["problem"]["objectives"]
    return problem, all_curves(searches, objectives, box_of(searches, objectives, record["known"]))


def entries(problem: Problem, seeds: int) -> list[Entry]:
    """Return our entries and the peers, by name."""
    everything = [*(name for name in OURS if name in built_in()), *LIBRARIES]
    wanted = os.environ.get("SARTOR_ENTRIES", ",".join(everything)).split(",")
    return [entry(name, problem, seeds) for name in wanted]


def entry(name: str, problem: Problem, seeds: int) -> Entry:
    """Return one of our entries, or a peer."""
    if name in LIBRARIES:
        return Entry(name, search=PeerSearch(LIBRARIES[name], problem, seeds), tuned=TUNED)
    if name == "nsga2":
        return Entry(name, name, settings={"population": POPULATION}, tuned=TUNED)
    return named_entries([name])[0]


def against(
    champion: str, found: Mapping[str, Mapping[str, Curves]], steps: Sequence[int]
) -> dict[tuple[str, str, int], float]:
    """Return the corrected p-value of each device, entry and budget, by the hypervolume as read."""
    cells = [
        (device, name, step)
        for device, curves in found.items()
        for name in curves
        for step in steps
        if name != champion
    ]

    def volumes(device: str, name: str, step: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        curve = found[device][name].volume
        assert curve is not None
        return curve[:, step - 1]

    raw = [wilcoxon(volumes(device, champion, step), volumes(device, name, step)) for device, name, step in cells]
    return dict(zip(cells, holm(raw).tolist(), strict=True))
