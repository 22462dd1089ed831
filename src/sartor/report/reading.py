# SPDX-License-Identifier: Apache-2.0
"""Reading a run folder, whatever of it is there yet.

A run may have been stopped at any instant, so every file but `run.json` is optional, and a file that is
damaged or half-written becomes a note in the report rather than the end of it.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sartor.architecture import Architecture
from sartor.space import SearchSpace
from sartor.trial import Trial, TrialLog

Json = dict[str, Any]

BASELINES = ("largest", "middle", "smallest")


@dataclass(frozen=True)
class Measured:
    """One network as one target ran it: latencies in milliseconds, accuracies as fractions."""

    target: str
    latency_ms: float
    p10: float
    p90: float
    validation: float | None = None
    test: float | None = None
    predicted_ms: float | None = None
    limit_ms: float | None = None
    within_limit: bool | None = None
    size_mb: float | None = None
    memory_mb: float | None = None
    energy_mj: float | None = None
    parity: float | None = None
    noisy: bool = False
    notes: tuple[str, ...] = ()
    limits: tuple[tuple[str, float, float], ...] = ()  # every limit as (name, limit, value)


@dataclass(frozen=True)
class Network:
    """An exported network: a member of the front, a baseline, or the recommended one."""

    name: str
    arch: Architecture
    targets: tuple[Measured, ...]
    params: float | None = None
    macs: float | None = None
    trained: str = ""
    steps: float | None = None
    finetune_steps: float | None = None  # on its own, after those of the weights that it shared
    tokens_per_s: float | None = None  # that a language model writes with a cache

    def on(self, target: str) -> Measured | None:
        """Return what `target` measured, or None."""
        return next((one for one in self.targets if one.target == target), None)

    @property
    def training(self) -> str:
        """How the network was trained, in few words; empty if that is not recorded."""
        if self.steps is None:
            return self.trained
        if self.finetune_steps is not None:
            return f"shared weights {self.steps:,.0f} steps + {self.finetune_steps:,.0f} of its own"
        return f"{self.trained or 'trained'}, {self.steps:,.0f} steps"


@dataclass(frozen=True)
class Record:
    """Everything a run folder says."""

    name: str
    run: Json
    space: SearchSpace | None = None
    trials: tuple[Trial, ...] = ()
    training: tuple[dict[str, float], ...] = ()
    latency_model: Json = field(default_factory=dict)
    latency_samples: int = 0
    front: tuple[Network, ...] = ()
    others: tuple[Network, ...] = ()  # verified too, but over a limit or beaten by a member of the front
    baselines: tuple[Network, ...] = ()
    best: Network | None = None
    why: str = ""
    notes: tuple[str, ...] = ()
    fronts: Json = field(default_factory=dict)  # names of networks by target, from fast to slow
    specialised: Json = field(default_factory=dict)  # "verdicts": what was found for each of several limits

    @property
    def targets(self) -> tuple[Json, ...]:
        """The targets, each with its name and fingerprint; the first is the one whose front comes first."""
        entries = self.run.get("targets")
        return tuple(map(mapping, entries)) if isinstance(entries, list) else ()

    @property
    def target_names(self) -> tuple[str, ...]:
        """The names of the targets."""
        return tuple(name for one in self.targets if isinstance(name := one.get("name"), str) and name)

    def part(self, key: str) -> Json:
        """Return the object `key` of run.json, empty where it is absent or no object."""
        return mapping(self.run.get(key))


def read_run(folder: Path) -> Record:
    """Read a run folder.

    Raises:
        ValueError: `run.json` is missing, unreadable, no JSON object, or of a later format.
    """
    run = _run_json(folder / "run.json")
    notes: list[str] = []
    best = _network(folder / "best", notes) if (folder / "best").is_dir() else None
    return Record(
        name=folder.resolve().name,
        run=run,
        space=_space(mapping(run.get("space")), notes),
        trials=_trials(folder / "run.sqlite", notes),
        training=_training(folder / "train.jsonl", notes),
        latency_model=_object(folder / "latency_model.json", notes),
        latency_samples=_sample_count(folder / "latency.costs", notes),
        front=_networks(folder / "pareto", notes),
        others=_networks(folder / "candidates", notes),
        baselines=tuple(sorted(_networks(folder / "baselines", notes), key=_baseline_order)),
        best=best,
        why=_text(folder / "best" / "why.txt"),
        fronts=_object(folder / "fronts.json", notes),
        specialised=_object(folder / "specialised.json", notes),
        notes=tuple(notes),
    )


def number(value: object) -> float | None:
    """Return `value` as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def mapping(value: object) -> Json:
    """Return `value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def texts(value: object) -> tuple[str, ...]:
    """Return the items of a JSON list as strings; a lone string is a list of one."""
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def _run_json(path: Path) -> Json:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        reason = f"{path.parent}: no run folder (run.json is missing); name a folder that sartor wrote"
        raise ValueError(reason) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: unreadable ({error}); restore it, or start the run again") from None
    if not isinstance(run, dict):
        raise ValueError(f"{path}: no JSON object ({type(run).__name__}); restore it, or start the run again")
    if run.get("format", 1) != 1:
        raise ValueError(f"{path}: format {run['format']!r} is unknown to this version (1); update sartor")
    return run


def _space(entry: Json, notes: list[str]) -> SearchSpace | None:
    choices, gates = mapping(entry.get("choices")), mapping(entry.get("gates"))
    if not choices:
        return None
    try:
        return SearchSpace(choices, gates)
    except (ValueError, TypeError) as error:
        notes.append(f"The search space could not be read ({error}); what depends on it was left out.")
        return None


def _object(path: Path, notes: list[str]) -> Json:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        notes.append(f"{_place(path)} could not be read and was left out.")
        return {}
    return value


def _place(path: Path) -> str:
    """Return a file's name, with its folder's where that tells two such files apart."""
    folders = {"pareto", "candidates", "baselines"}
    place = path.parts[-3:] if path.parent.parent.name in folders else path.parts[-1:]
    return "/".join(place)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _training(path: Path, notes: list[str]) -> tuple[dict[str, float], ...]:
    """Return the logged steps in order; of a step logged twice (after a resume) the later line holds."""
    steps: dict[float, dict[str, float]] = {}
    damaged = 0
    for line in _text(path).splitlines():
        try:
            entry = mapping(json.loads(line))
        except ValueError:
            entry = {}
        scalars = {str(key): one for key, value in entry.items() if (one := number(value)) is not None}
        if "step" in scalars:
            steps[scalars["step"]] = scalars
        else:
            damaged += 1
    if damaged:
        notes.append(f"{damaged} unreadable line(s) of {path.name} were left out.")
    return tuple(steps[step] for step in sorted(steps))


def _rows(path: Path, query: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query; the file is opened for reading only, so that a live run is not disturbed."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        yield from connection.execute(query)


def _trials(path: Path, notes: list[str]) -> tuple[Trial, ...]:
    if not path.exists():
        return ()
    try:
        with TrialLog(path, readonly=True) as log:
            return tuple(replace(trial, values=_finite(trial.values)) for trial in log)
    except (OSError, ValueError) as error:
        notes.append(f"The trials were left out: {str(error).replace(str(path), path.name)}.")
        return ()


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, entry in values.items() if (value := number(entry)) is not None}


def _sample_count(path: Path, notes: list[str]) -> int:
    if not path.exists():
        return 0
    try:
        return int(next(_rows(path, "SELECT COUNT(*) FROM samples"))[0])
    except sqlite3.Error as error:
        notes.append(f"{path.name} could not be read ({error}).")
        return 0


def _networks(folder: Path, notes: list[str]) -> tuple[Network, ...]:
    if not folder.is_dir():
        return ()
    # A folder that starts with a dot, or has no measurement yet, was being written when the run stopped.
    members = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = (_network(path, notes) for path in members if (path / "measurement.json").exists())
    return tuple(network for network in found if network is not None)


def _network(folder: Path, notes: list[str]) -> Network | None:
    record = _object(folder / "measurement.json", notes)
    try:
        arch = Architecture.from_json((folder / "architecture.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, AttributeError):
        notes.append(f"{_place(folder / 'architecture.json')} could not be read; that network was left out.")
        return None
    targets = mapping(record.get("targets")).items()
    measured = (_measured(name, mapping(entry)) for name, entry in targets)
    return Network(
        name=folder.name,
        arch=arch,
        targets=tuple(one for one in measured if one is not None),
        params=number(record.get("params")),
        macs=number(record.get("macs")),
        trained=str(record.get("trained") or ""),
        steps=number(record.get("steps")),
        finetune_steps=number(record.get("finetune_steps")),
        tokens_per_s=number(mapping(record.get("decoding")).get("per_s")),
    )


def _measured(target: str, entry: Mapping[str, Any]) -> Measured | None:
    timing, accuracy = mapping(entry.get("measurement")), mapping(entry.get("accuracy"))
    latency = number(timing.get("latency_ms"))
    if latency is None:
        return None
    p10, p90 = number(timing.get("p10")), number(timing.get("p90"))
    limit, within = number(entry.get("limit_ms")), entry.get("within_limit")
    limits = tuple(_limits(mapping(entry.get("limits"))))
    if limit is None and not limits:
        within = None
    elif not isinstance(within, bool):
        within = limit is None or latency <= limit
    return Measured(
        target=target,
        latency_ms=latency,
        p10=latency if p10 is None else p10,
        p90=latency if p90 is None else p90,
        validation=number(accuracy.get("validation")),
        test=number(accuracy.get("test")),
        predicted_ms=number(entry.get("predicted_ms")),
        limit_ms=limit,
        within_limit=within,
        size_mb=number(timing.get("size_mb")),
        memory_mb=number(timing.get("memory_mb")),
        energy_mj=number(timing.get("energy_mj")),
        parity=number(mapping(entry.get("parity")).get("max_abs_error")),
        noisy=timing.get("noisy") is True,
        notes=texts(timing.get("notes")),
        limits=limits,
    )


def _limits(entries: Json) -> Iterator[tuple[str, float, float]]:
    for name, entry in entries.items():
        limit, value = number(mapping(entry).get("limit")), number(mapping(entry).get("value"))
        if limit is not None and value is not None:
            yield name, limit, value


def _baseline_order(network: Network) -> tuple[int, str]:
    return (BASELINES.index(network.name) if network.name in BASELINES else len(BASELINES), network.name)
