# SPDX-License-Identifier: Apache-2.0
"""Stage 6, after measuring: the verified front of each target, what is good on all of them, and what to recommend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.atomic import write_bytes, write_json
from sartor.deploy.parity import ExportError
from sartor.pareto import non_dominated_sort
from sartor.protocols import Target
from sartor.recipes.job import Job
from sartor.recipes.verification import Member, complete_member, read_member

__all__ = ["ALL", "exported_front", "read_entries", "recommend", "select_front", "write_verdicts"]

ALL = "all targets"
"""The name, among the fronts, of the networks that are good on every target."""

Entries = Mapping[str, Mapping[str, Any]]  # what was measured, by target
Points = NDArray[np.float64]


def read_entries(folder: Path) -> dict[str, Any]:
    """What was measured of the network in `folder`, by target."""
    return json.loads((folder / "measurement.json").read_text())["targets"]  # type: ignore[no-any-return]


def select_front(job: Job, members: Sequence[Member]) -> list[Path]:
    """Move what is on the verified front of any target to `pareto/`, the rest to `candidates/`.

    A front is of validation accuracy and measured latency, among the networks within the limits: the test split
    decides nothing. With several targets there is one front for each, and one of what is good on all. `fronts.json`
    names their networks, from fast to slow. Returns the folders in `pareto/`, from fast to slow on the first target
    that has them.
    """
    measured = {member.folder.name: read_entries(member.folder) for member in members}
    fronts = {target.name: _front(target, measured) for target in job.targets}
    if len(job.targets) > 1:
        fronts[ALL] = _good_on_all(job, measured)
    chosen = list(dict.fromkeys(name for front in fronts.values() for name in front))
    for member in members:
        place = job.path / ("pareto" if member.folder.name in chosen else "candidates") / member.folder.name
        if place != member.folder:
            place.parent.mkdir(exist_ok=True)
            member.folder.rename(place)
    write_json(job.path / "fronts.json", fronts)
    return [job.path / "pareto" / name for name in chosen]


def _front(target: Target, measured: Mapping[str, Entries]) -> list[str]:
    """The names on the front of one target, from fast to slow."""
    entries = {name: targets[target.name] for name, targets in measured.items() if target.name in targets}
    within = [name for name, entry in entries.items() if entry["within_limit"]]
    points = np.array(
        [[-entries[n]["accuracy"]["validation"], entries[n]["measurement"]["latency_ms"]] for n in within]
    )
    return _sorted_front(within, points)


def _good_on_all(job: Job, measured: Mapping[str, Entries]) -> list[str]:
    """The names on the front of the least accuracy on any target and the greatest slowness on any.

    Slowness is the latency over the limit; where there is none, over that of the fastest network on that target.
    """
    names = [target.name for target in job.targets]
    within = [
        name
        for name, targets in measured.items()
        if all(one in targets and targets[one]["within_limit"] for one in names)
    ]
    if not within:
        return []
    accuracy = np.array([[measured[n][t]["accuracy"]["validation"] for t in names] for n in within])
    latency = np.array([[measured[n][t]["measurement"]["latency_ms"] for t in names] for n in within])
    limits = [job.limits_on(target).get("latency_ms") for target in job.targets]
    unit = [limit or fastest for limit, fastest in zip(limits, latency.min(axis=0), strict=True)]
    return _sorted_front(within, np.stack([-accuracy.min(axis=1), (latency / unit).max(axis=1)], axis=1))


def _sorted_front(names: Sequence[str], points: Points) -> list[str]:
    """The names that no other dominates by (N, 2) points to be minimised, by the second coordinate."""
    if not names:
        return []
    return [names[i] for i in sorted(non_dominated_sort(points)[0], key=lambda i: float(points[i, 1]))]


def exported_front(job: Job, members: Sequence[Member]) -> list[Path]:
    """Form the verified front and export it in every format; a network that refuses one leaves its place to others."""
    while True:
        front = select_front(job, members)
        job.say(f"{len(front)} of {len(members)} are on the verified front; exporting every format")
        refused = {folder.name for folder in front if not _completed(job, folder)}
        if not refused:
            return front
        places = [job.path / part / member.folder.name for member in members for part in ("pareto", "candidates")]
        members = [read_member(place) for place in places if place.is_dir() and place.name not in refused]


def _completed(job: Job, folder: Path) -> bool:
    """Whether every format was exported; if not, the network is set aside."""
    try:
        complete_member(job, read_member(folder))
    except ExportError as error:
        job.say(f"{folder.name} is left out: {error}")
        aside = job.path / "candidates" / folder.name
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
        return False
    return True


def recommend(job: Job) -> Path | None:
    """Copy the recommended network to `best/` and say why; None when the front is empty.

    It is of the front of what is good on all targets, or if that is empty, of the first target that has one. With a
    latency limit it is the network of highest validation accuracy, for the limit says what speed is worth. Without
    one it is the fastest whose accuracy is within one standard error of the highest. Accuracies are the least over
    targets.
    """
    fronts: dict[str, list[str]] = json.loads((job.path / "fronts.json").read_text())
    which = next((name for name in (ALL, *fronts) if fronts.get(name)), None)
    if which is None:
        shutil.rmtree(job.path / "best", ignore_errors=True)  # of an earlier, shorter search
        return None
    targets = [one for one in job.targets if which in (ALL, one.name)]
    entries = {name: read_entries(job.path / "pareto" / name) for name in fronts[which]}
    accuracy = {
        name: {split: min(found[t.name]["accuracy"][split] for t in targets) for split in ("validation", "test")}
        for name, found in entries.items()
    }
    best = top = max(entries, key=lambda name: accuracy[name]["validation"])
    why = "it has the highest validation accuracy of all networks that the search found within the limits"
    if not any("latency_ms" in job.limits_on(target) for target in targets):
        highest = accuracy[top]["validation"]
        error = float(np.sqrt(max(0.0, highest * (1 - highest)) / len(job.task.validation)))
        best = next(name for name in entries if accuracy[name]["validation"] >= highest - error)
        why = (
            f"it is the fastest verified network whose validation accuracy is within one standard error "
            f"({100 * error:.2f} points) of the highest, {100 * highest:.2f} %"
        )
    if which == ALL:
        why += f", on all of {', '.join(target.name for target in targets)}"
    timed = " and ".join(_timed(entries[best][target.name], target) for target in targets)
    text = (
        f"{best} is recommended: {why}. Validation {job.task.metric_name} "
        f"{100 * accuracy[best]['validation']:.2f} %, {timed}.\n"
    )
    _copied(job, job.path / "pareto" / best, text)
    return job.path / "best"


def write_verdicts(job: Job) -> None:
    """Write `specialised.json`: for each target and limit the network of highest validation accuracy that meets it.

    Everything in it was measured; "met" is false, and there is no network, where none that was verified is fast enough.
    """
    folders = {path.parent.name: path.parent for path in job.path.glob("*/*/measurement.json")
               if path.parent.parent.name in ("pareto", "candidates")}  # fmt: skip
    entries = {name: read_entries(folder) for name, folder in folders.items()}
    verdicts = []
    for target in job.targets:
        known = {name: found[target.name] for name, found in entries.items() if target.name in found}
        for limit in job.rungs(target):
            within = [n for n, one in known.items()
                      if one["within_limit"] and one["measurement"]["latency_ms"] <= limit]  # fmt: skip
            best = max(within, key=lambda name: (known[name]["accuracy"]["validation"], name), default=None)
            verdict: dict[str, Any] = {"target": target.name, "limit_ms": limit, "met": best is not None}
            verdict["least_ms"] = min((one["measurement"]["latency_ms"] for one in known.values()), default=None)
            if best is not None:
                latency = known[best]["measurement"]["latency_ms"]
                verdict |= {"id": best, "folder": folders[best].relative_to(job.path).as_posix(), "latency_ms": latency}
                verdict |= {"used": latency / limit, "accuracy": known[best]["accuracy"]}
            verdicts.append(verdict)
    write_json(job.path / "specialised.json", {"verdicts": verdicts})


def _timed(entry: Mapping[str, Any], target: Target) -> str:
    """Say a latency, and whether it was measured: a target may compute its own from a datasheet."""
    how = "computed" if entry["fingerprint"].get("runtime") == "computed" else "measured median"
    return f"{how} latency {entry['measurement']['latency_ms']:.4g} ms on {target.name}"


def _copied(job: Job, best: Path, why: str) -> None:
    """Put a copy of the recommended network in place, with the reason."""
    partial = job.path / ".best.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(best, partial)
    write_bytes(partial / "why.txt", why.encode())
    shutil.rmtree(job.path / "best", ignore_errors=True)
    partial.rename(job.path / "best")
