# SPDX-License-Identifier: Apache-2.0
"""A profile: how long the networks of a space take on a device, and how far that may be believed.

The file holds what was measured and which model was chosen, never the model: it is fitted anew when it is first asked,
which takes seconds, gives the same model again, and runs no code that came with the file.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sartor.architecture import Architecture
from sartor.costs.errors import Interval
from sartor.costs.fitting import LEAST, MODELS, Judged, Make, candidates
from sartor.costs.ledger import Entry, Ledger
from sartor.costs.levels import levelled
from sartor.costs.operators import OperatorTable
from sartor.costs.transfer import TRANSFERS, transfers
from sartor.nn import resized
from sartor.protocols import Predictor
from sartor.space import SearchSpace
from sartor.supernet import extract, search_space
from sartor.workload import Workload, trace

__all__ = ["RECORD_FORMAT", "Profile", "Workloads", "load_profile", "operators_of", "pick", "profile_of", "table_of"]

Floats = NDArray[np.float64]

RECORD_FORMAT = 1
_KEPT = 1 << 16
_BUILT_IN = re.compile(r"sartor\.spaces\.[a-z]\w*:[A-Z]\w*")


class Workloads:
    """From an architecture of a network to the operators that its deployed form runs; the latest are kept.

    network: with choices; on the meta device, it costs no memory.
    shape: (channels, height, width) of an image.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, int, int]) -> None:
        self.network, self.image = network, torch.empty((1, *shape), device="meta")
        self._kept: dict[Architecture, Workload] = {}

    def __call__(self, arch: Architecture) -> Workload:
        """Trace it, at the resolution that the network asks for, without what no output depends on."""
        if arch not in self._kept:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            network = extract(self.network, arch)
            self._kept[arch] = trace(network, resized(self.image, network), live=True)
        return self._kept[arch]


@dataclass(frozen=True)
class Profile:
    """Predicted milliseconds of a space's architectures on one target, with the errors that were found.

    Attributes:
        target: its name.
        fingerprint: what decided the measurements; numbers of another fingerprint cannot be compared.
        space: the search space, and `space_name` and `shape` of the network: classes, channels, size (H, W).
        chosen: the model; one of `sartor.costs.fitting.MODELS`, or of `TRANSFERS` for an adapted profile.
        models: all that were tried, with the baselines "flops" and "parameters".
        train: milliseconds of the networks that the model is fitted to.
        test: milliseconds of networks that neither fit nor choice has seen; empty for an adapted profile.
        record: all of the above that is text and numbers, as the file has it.
    """

    target: str
    fingerprint: Mapping[str, str]
    space: SearchSpace
    space_name: str
    shape: Mapping[str, Any]
    chosen: str
    models: tuple[Judged, ...]
    train: Mapping[Architecture, float]
    test: Mapping[Architecture, float]
    record: Mapping[str, Any]
    workload: Workloads
    makers: Callable[[], Mapping[str, Make]]

    @property
    def errors(self) -> Mapping[str, Interval]:
        """MAPE (a share), R2, Spearman and Kendall with 95 % intervals: on the test, else by leaving out networks."""
        judged = next(one for one in self.models if one.name == self.chosen)
        return judged.test or judged.validation

    @property
    def coverage(self) -> Mapping[str, Any]:
        """What the operator table and the samples cover, as `sartor profile --show` tells."""
        found: Mapping[str, Any] = self.record["coverage"]
        return found

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) milliseconds and (N,) standard deviations: the model's, and at least its validation error."""
        if not len(archs):
            return np.empty(0), np.empty(0)
        mean, deviation = self.predictor.predict(archs)
        mean = np.maximum(mean, LEAST * min(self.train.values()))
        return mean, np.maximum(deviation, mean * float(self.record["relative_error"]))

    def latency(self, arch: Architecture) -> float:
        """Return the predicted milliseconds of one architecture."""
        return float(self.predict([arch])[0][0])

    @cached_property
    def predictor(self) -> Predictor:
        """The chosen model, fitted to `train`."""
        makers = self.makers()
        if self.chosen not in makers:
            raise _lacking(self.chosen)
        return makers[self.chosen]().fit([*self.train], np.array([*self.train.values()]))


def _lacking(model: str) -> Exception:
    """Return why a chosen model cannot be made here."""
    if model == "gbdt":
        return ImportError("the profile's model 'gbdt' needs LightGBM: pip install 'sartor[search]'")
    if model in ("operators", "additive"):
        return ValueError(f"the file lacks the operators that its model {model!r} is made from: profile again, --force")
    return ValueError(f"this version cannot make the profile's model {model!r}: use the version that wrote it")


def load_profile(
    path: Path | str,
    *,
    target: str | None = None,
    space: str | None = None,
    space_is: SearchSpace | None = None,
    shape: Mapping[str, Any] | None = None,
    network: nn.Module | None = None,
) -> Profile:
    """Read a profile from a `.costs` file, which is not changed.

    Args:
        path: the file.
        target: its name, where the file has profiles of several.
        space: the name of the space, where the file has profiles of several.
        space_is: a space with the choices that are meant, whatever its name.
        shape: what is meant of `classes`, `channels` and `size`: (H, W), or a number for both.
        network: with the profile's choices, on any device; needed for a space of your own, whose code the file lacks.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no profile, no such profile, several such, or one that is not finished; or the network
            has other choices.
        BlockingIOError, PermissionError: it cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    ledger = Ledger(path, to_read=True)
    return profile_of(ledger, pick(ledger, target=target, space=space, space_is=space_is, shape=shape), network)


def pick(
    ledger: Ledger,
    *,
    target: str | None = None,
    space: str | None = None,
    space_is: SearchSpace | None = None,
    shape: Mapping[str, Any] | None = None,
) -> Entry:
    """Return the one finished profile that is meant; ValueError as `load_profile`."""
    entries = ledger.entries()
    wanted = _wanted(shape or {})
    done = [one for one in entries if one.record is not None]
    fits = [one for one in done if target in (None, one.target) and space in (None, one.space["name"])]
    fits = [one for one in fits if all(one.space[name] == value for name, value in wanted.items())]
    if space_is is not None:
        fits = [one for one in fits if _choices(one) == dict(space_is.choices)]
    if len(fits) > 1:  # the profile that another was adapted from is meant only if it is named
        fits = [one for one in fits if not any(other.came_from(one) for other in done)]
    if len(fits) == 1:
        return fits[0]
    known = ", ".join(one.title for one in done) or "none that is finished"
    if len(fits) > 1:
        raise ValueError(f"{ledger.path} holds several profiles ({known}): name the target, the space or its shape")
    unfinished = "; start `sartor profile` again to finish it" if len(done) < len(entries) else ""
    raise ValueError(f"{ledger.path} holds no such profile; its profiles: {known}{unfinished}")


def _wanted(shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return a shape as the file has it."""
    if unknown := [*shape.keys() - {"classes", "channels", "size"}]:
        raise ValueError(f"a shape has no {unknown[0]!r}: it has classes, channels and size")
    size = shape.get("size")
    given = {} if size is None else {"size": [size, size] if isinstance(size, int) else [*size]}
    return {**shape, **given}


def _choices(entry: Entry) -> dict[str, Any]:
    return dict(SearchSpace.from_json(entry.space["space"]).choices)


def profile_of(ledger: Ledger, entry: Entry, network: nn.Module | None = None) -> Profile:
    """Return the profile of an entry that is finished; ValueError for an unknown format or another network."""
    record = entry.record or {}
    if record.get("format") != RECORD_FORMAT:
        raise ValueError(f"{ledger.path}: the profile has format {record.get('format')}; this version reads 1")
    shape = {name: entry.space[name] for name in ("classes", "channels", "size")}
    space = SearchSpace.from_json(entry.space["space"])
    workload = Workloads(_network(entry, network), (shape["channels"], *shape["size"]))
    train, test = networks_of(ledger, entry)

    def makers() -> Mapping[str, Make]:
        seed = int(entry.settings["seed"])
        if (source := ledger.source(entry)) is None:
            return candidates(space, workload, table_of(ledger, entry), seed=seed)
        return transfers(space, workload, profile_of(ledger, source, workload.network).predictor, seed=seed)

    return Profile(
        entry.target, entry.fingerprint, space, entry.space["name"], shape, record["chosen"],
        tuple(map(_judged, record["models"])), train, test, record, workload, makers,
    )  # fmt: skip


def networks_of(ledger: Ledger, entry: Entry) -> tuple[dict[Architecture, float], dict[Architecture, float]]:
    """Return the milliseconds of the networks to learn from, and of those of the test, at one level."""
    train: dict[Architecture, list[float]] = {}
    test: dict[Architecture, float] = {}
    sessions = ledger.sessions(entry)
    tested = {one.arch for session in sessions if session.kind == "test" for one in session.networks}
    anchors = {one.arch for session in sessions if session.kind == "pace" for one in session.networks}
    for session, values in zip(sessions, levelled(sessions), strict=True):
        for arch, ms in values.items():
            if arch in tested - anchors:
                if session.kind == "test":
                    test[arch] = ms
            else:
                train.setdefault(arch, []).append(ms)
    return {arch: float(np.median(found)) for arch, found in train.items()}, test


def table_of(ledger: Ledger, entry: Entry, asked: Sequence[str] | None = None) -> OperatorTable | None:
    """Return the operator table of a profile; None if no operator was measured.

    asked: the keys of a profile that is being made; a finished one has kept its operators.
    """
    try:
        return OperatorTable.of(operators_of(ledger, entry, asked))
    except ValueError:
        return None


def operators_of(ledger: Ledger, entry: Entry, asked: Sequence[str] | None = None) -> dict[str, float | None]:
    """Return the milliseconds by key that a profile's table is made of; of `asked`, those that are measured yet."""
    kept: Mapping[str, float | None] | None = (entry.record or {}).get("operators")
    if kept is not None:
        return {**kept}
    stored = ledger.operators(entry.fingerprint)
    return stored if asked is None else {name: stored[name] for name in asked if name in stored}


def _network(entry: Entry, network: nn.Module | None) -> nn.Module:
    if network is None:
        network = _built_in(entry)
    if search_space(network).to_json() != entry.space["space"]:
        raise ValueError(f"the network has other choices than the profile of {entry.space['name']}: give the same one")
    return network


def _built_in(entry: Entry) -> nn.Module:
    """Make a network of this package; a file never decides which other code is run."""
    place = entry.space["made_by"] or ""
    if not _BUILT_IN.fullmatch(place):
        raise ValueError(f"the space {entry.space['name']!r} is not built in: give its network, as network=...")
    module, _, name = place.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise ValueError(
            f"this version has no space {entry.space['name']!r}: give its network, as network=..."
        ) from None
    if not (isinstance(made, type) and issubclass(made, nn.Module)):
        raise ValueError(f"{place} is no network of this package: give the profile's, as network=...")
    with torch.device("meta"):
        return made(entry.space["classes"], entry.space["channels"], tuple(entry.space["size"]))


def _judged(values: Mapping[str, Any]) -> Judged:
    validation = {name: Interval(*found) for name, found in values["validation"].items()}
    test = values["test"] and {name: Interval(*found) for name, found in values["test"].items()}
    return Judged(values["name"], validation, test or None)


KNOWN = {**TRANSFERS, **MODELS}
"""What each model is, in words."""
