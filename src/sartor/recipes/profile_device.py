# SPDX-License-Identifier: Apache-2.0
"""`sartor profile`: from a target and a space to a predictor of latency that states its error.

Measured are, in this order: a few anchors, which tell the pace and, in every later session, the level of the machine;
operators and pairs of them, as little networks; the networks of the test; networks to learn from, of which all but the
first are taken where the models disagree most; and the test once more, which tells how well a ranking can be known.
The stages follow from what the file holds, so that the same call continues after a kill at any instant.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sartor.architecture import Architecture
from sartor.costs.fitting import Make, candidates, committee
from sartor.costs.ledger import Entry, Ledger
from sartor.costs.operators import CALL, key, pair_key, pairs
from sartor.costs.profile import Profile, Workloads, networks_of, pick, profile_of, table_of
from sartor.costs.roofline import Roofline
from sartor.costs.transfer import well_spread
from sartor.deploy.scratch import scratch_beside
from sartor.protocols import Target
from sartor.recipes._profile_bench import Bench, check_accepted
from sartor.recipes._profile_choice import mixed_pool, unlike
from sartor.recipes._profile_entry import check_free, described, entry_of
from sartor.recipes._profile_record import adapted_record, record_of
from sartor.recipes.job import Say, make_network
from sartor.space import SearchSpace
from sartor.targets import load_target

__all__ = ["adapt_profile", "profile_device"]

BUDGET_S = 600.0
FEWEST_TO_ADAPT = 4
ANCHORS = 3
FEWEST, FIRST, BATCH = 12, 24, 16  # networks to learn from: whatever the budget, at the start, and then at a time
FEWEST_TESTS, MOST_TESTS = 8, 48
POOL, PLANNED = 256, 64  # candidates to learn from, and those of them that tell which operators there are
OPERATORS_AT_A_TIME = 32
OPERATORS_SHARE = 0.25  # of the budget
MOST_PAIRS = 45
MOST_OF_TIME = 0.8
FITTING_SHARE = 0.1  # of the budget, for fits and what the plan did not see
NOMINAL = Roofline(20.0, 10.0, 0.002)  # to tell small networks from large before anything is measured


def profile_device(
    *,
    target: str,
    space: str,
    out: Path | str,
    size: int | tuple[int, int] = 32,
    channels: int = 3,
    classes: int = 10,
    budget_s: float | None = None,
    samples: int | None = None,
    tests: int | None = None,
    seed: int = 0,
    threads: int = 1,
    force: bool = False,
    on_progress: Say = lambda line: None,
) -> Profile:
    """Measure a target and fit what predicts the latency of a space's networks on it; continue if that was begun.

    Args:
        target, space: names, or path.py:Class.
        out: the `.costs` file to write, or to add to.
        size, channels, classes: of the images, and of the classifier.
        budget_s: wall-clock seconds; 600 where neither it nor `samples` is given.
        samples: networks to learn from; as many as the budget allows, if nothing is said.
        tests: networks that are held out; a quarter of what the budget allows, from 8 to 48, if nothing is said.
        seed: of every draw.
        threads: of the target.
        force: measure a finished profile again; its networks are, and the operators that no other profile needs.
        on_progress: is given a line for each session.

    Raises:
        FileExistsError: the file has this profile, finished, and `force` is not given.
        ValueError: a name or a number is wrong, the file is no cost store, the profile was begun with another seed or
            number of tests, or one that another was adapted from is to be measured again.
        BlockingIOError, PermissionError: the file cannot be read or written.
        TargetError: the target refuses the networks of this space, or cannot be reached; what was measured before is
            kept, and the same call continues.
    """
    _check_counts(samples=samples, tests=tests, budget_s=budget_s)
    device = load_target(target, threads=threads)
    shape = {"classes": classes, "channels": channels, "size": [size, size] if isinstance(size, int) else [*size]}
    network = _network(space, shape, seed)
    with _bench(Path(out), device, network, shape) as (ledger, bench):
        budget = BUDGET_S if budget_s is None and samples is None else budget_s
        settings = {"seed": seed, "budget_s": budget, "samples": samples, "tests": tests}
        entry = entry_of(ledger, device, described(space, shape, network), settings, force=force)
        made = _Profiling(ledger, entry, bench, on_progress)
        made.run()
        return profile_of(ledger, made.entry, network)


def adapt_profile(
    old: Path | str,
    *,
    target: str,
    out: Path | str,
    samples: int = 10,
    source: str | None = None,
    space: str | None = None,
    seed: int = 0,
    threads: int = 1,
    force: bool = False,
    on_progress: Say = lambda line: None,
) -> Profile:
    """Adapt a profile to another device with `samples` measured networks and no other look at it.

    The error is that of leaving out each of them in turn, the choice of the model included. `source` and `space` name
    the old profile where its file has several. The old one is copied into `out`, which is then complete by itself.

    Raises as `profile_device`, FileNotFoundError without the old file, and ValueError if the target is the device that
    the old profile is of.
    """
    if samples < FEWEST_TO_ADAPT:
        least = f"measure {FEWEST_TO_ADAPT} or more"
        raise ValueError(f"{samples} networks are too few to adapt a profile and tell its error: {least}")
    if not Path(old).is_file():
        raise FileNotFoundError(f"{old}: no such file")
    known = Ledger(old, to_read=True)
    theirs = pick(known, target=source, space=space)
    if known.source(theirs) is not None:
        raise ValueError(f"{old} was itself adapted: adapt from the profile that it was made from")
    device = load_target(target, threads=threads)
    if device.fingerprint() == theirs.fingerprint:
        raise ValueError(f"{old} is of this very device, {theirs.title}: leave out --from to measure it again")
    shape = {name: theirs.space[name] for name in ("classes", "channels", "size")}
    network = _network(theirs.space["name"], shape, seed)
    with _bench(Path(out), device, network, shape) as (ledger, bench):
        check_free(ledger, device, theirs.space, force=force)
        ours = ledger.adopt(known, theirs)
        settings = {"seed": seed, "budget_s": None, "samples": samples, "tests": 0, "adapted": True}
        entry = entry_of(ledger, device, theirs.space, settings, force=force)
        profile = profile_of(ledger, ours, network)
        if not any(one.measurement for session in ledger.sessions(entry) for one in session.networks):
            pool = mixed_pool(profile.space, POOL, random.Random(f"{seed}/adapt"))
            archs = well_spread(pool, profile.predict(pool)[0], profile.workload, min(samples, len(pool)))
            on_progress(f"measuring {len(archs)} networks on {device.name}")
            begun = time.monotonic()
            found = bench.networks(archs)
            check_accepted(device, found, least=FEWEST_TO_ADAPT)
            ledger.add_session(entry, "learn", time.monotonic() - begun, found)
        ledger.conclude(entry, adapted_record(ledger, entry, ours, profile))
        return profile_of(ledger, _again(ledger, entry), network)


@dataclass
class _Profiling:
    """One profile in the making. Everything follows from the ledger and the settings, so that it can be continued."""

    ledger: Ledger
    entry: Entry
    bench: Bench
    say: Say
    mark: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.space = SearchSpace.from_json(self.entry.space["space"])
        with torch.device("meta"):
            ghost = _network(self.entry.space["name"], self.entry.space, self.seed)
        _, channels, height, width = self.bench.image.shape
        self.workload = Workloads(ghost, (channels, height, width))

    @property
    def seed(self) -> int:
        return int(self.entry.settings["seed"])

    @property
    def budget(self) -> float | None:
        budget: float | None = self.entry.settings["budget_s"]
        return budget

    def run(self) -> None:
        """Go through the stages that the file lacks, and write the record."""
        if not self._has("pace"):
            self._anchors()
            self.ledger.add_session(self.entry, "plan", self._lap(), [])
            self._measure("pace", self._anchors())
        self._settle()
        self._operators()
        tests = self._tests()
        if tests and not self._has("test"):
            self._measure("test", tests)
        while batch := self._next():
            self._measure("learn", batch)
        if tests and not self._has("retest"):
            self._measure("retest", tests)
        self.say("fitting the models")
        asked = self._operator_keys
        record = record_of(self.ledger, self.entry, self._makers(), self.space, self.workload, asked)
        self.ledger.conclude(self.entry, {**record, "seconds": self._spent()})
        self.entry = _again(self.ledger, self.entry)

    # ---- sessions ---------------------------------------------------------------------------------

    def _measure(self, kind: str, archs: Sequence[Architecture]) -> None:
        """Measure networks, with the anchors, in one session."""
        anchors = self._anchors()
        asked = [*dict.fromkeys([*anchors, *archs])]
        self.say(f"{kind}: measuring {len(asked)} networks{self._left_in_words()}")
        found = self.bench.networks(asked, keep=[*anchors, *(self._tests() if kind == "test" else ())])
        check_accepted(self.bench.target, found)
        self.ledger.add_session(self.entry, kind, self._lap(), found)

    def _operators(self) -> None:
        """Measure operators, those that take most of the time first, until all are or their time is over."""
        asked = self._operator_keys
        while self.budget is None or self._spent("operators") < OPERATORS_SHARE * self.budget:
            stored = self.ledger.operators(self.entry.fingerprint)  # for whichever space of this device
            lacking = [name for name in asked if name not in stored]
            if not lacking:
                return
            self.say(f"operators: {len(asked) - len(lacking)} of {len(asked)} measured{self._left_in_words()}")
            found = self.bench.operators(lacking[:OPERATORS_AT_A_TIME], stored)
            self.ledger.add_operators(self.entry, self._lap(), found)

    @cached_property
    def _operator_keys(self) -> list[str]:
        """What most of the time goes to, then pairs of neighbours with their parts, then all other operators."""
        workloads = [self.workload(arch) for arch in self._pool()[:PLANNED]]
        weights: dict[str, float] = {}
        for op in (op for workload in workloads for op in workload):
            weights[key(op)] = weights.get(key(op), 0.0) + NOMINAL.op(op)
        ranked = sorted(weights, key=lambda name: -weights[name])
        shares = np.cumsum([weights[name] for name in ranked]) / sum(weights.values())
        most = ranked[: 1 + int(np.searchsorted(shares, MOST_OF_TIME))]
        tested = pairs(workloads)[:MOST_PAIRS]
        parts = [name for a, b in tested for name in (key(a), key(b), pair_key(a, b))]
        return [*dict.fromkeys([key(CALL), *most, *parts, *ranked])]

    # ---- which networks ---------------------------------------------------------------------------

    def _anchors(self) -> list[Architecture]:
        """A small, a middle and a large network."""
        ranked = sorted(self._pool()[:PLANNED], key=lambda arch: (NOMINAL(self.workload(arch)), arch.id))
        places = np.linspace(0.1, 0.9, min(ANCHORS, len(ranked))) * (len(ranked) - 1)
        return [ranked[round(place)] for place in places]

    def _pool(self) -> list[Architecture]:
        """Candidates to learn from."""
        if not hasattr(self, "_pooled"):
            self._pooled = mixed_pool(self.space, POOL, random.Random(f"{self.seed}/pool"))
        return self._pooled

    def _tests(self) -> list[Architecture]:
        """Half drawn from the space, half spread from small to large; none of them is an anchor."""
        count = int(self.entry.settings["tests"] or 0)
        drawn = mixed_pool(self.space, count + ANCHORS, random.Random(f"{self.seed}/test"))
        anchors = set(self._anchors())
        return [arch for arch in drawn if arch not in anchors][:count]

    def _next(self) -> list[Architecture]:
        """The next networks to learn from: spread at first, then where the models disagree; [] at the end."""
        train, _ = networks_of(self.ledger, self.entry)
        seen = {one.arch for session in self.ledger.sessions(self.entry) for one in session.networks}
        seen |= {*self._tests()}
        room = self._room(len(train))
        pool = [arch for arch in self._pool() if arch not in seen]
        if room < 1 or not pool:
            return []
        if len(train) < FIRST:
            return pool[: min(room, FIRST - len(train))]
        return unlike(self.space, pool, committee(self._makers(), train, pool), min(room, BATCH))

    def _makers(self) -> Mapping[str, Make]:
        table = table_of(self.ledger, self.entry, self._operator_keys)
        return candidates(self.space, self.workload, table, seed=self.seed)

    def _room(self, learnt: int) -> int:
        """How many more networks there are to learn from, by the number asked for and by the time that is left."""
        asked = self.entry.settings["samples"]
        room = asked - learnt if asked is not None else 10**6
        if self.budget is not None:
            pace = self._pace()
            again = pace * (len(self._tests()) + ANCHORS) * (not self._has("retest"))
            left = (1 - FITTING_SHARE) * self.budget - self._spent() - again
            room = min(room, int(left / pace) - ANCHORS)
        return max(room, min(FEWEST, asked or FEWEST) - learnt)

    # ---- time -------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Fix the number of tests, which later stages must not change, by the pace of the first session."""
        if self.entry.settings["tests"] is not None:
            return
        affordable = 4 * MOST_TESTS
        if self.budget is not None:
            affordable = int((1 - OPERATORS_SHARE - FITTING_SHARE) * self.budget / self._pace())
        count = min(MOST_TESTS, max(FEWEST_TESTS, affordable // 4), self.space.size // 4)
        self.entry = self.ledger.settle(self.entry, {**self.entry.settings, "tests": count})

    def _pace(self) -> float:
        """Seconds for a network, by the last session that was not of files that were there."""
        sessions = [one for one in self.ledger.sessions(self.entry) if one.networks and one.kind != "retest"]
        return sessions[-1].seconds / len(sessions[-1].networks)

    def _spent(self, kind: str | None = None) -> float:
        stored = sum(one.seconds for one in self.ledger.sessions(self.entry) if kind in (None, one.kind))
        return stored + (time.monotonic() - self.mark if kind is None else 0.0)

    def _lap(self) -> float:
        """Seconds since the last session ended, or since this process began."""
        begun, self.mark = self.mark, time.monotonic()
        return self.mark - begun

    def _left_in_words(self) -> str:
        return "" if self.budget is None else f", {max(0.0, self.budget - self._spent()):.0f} s left"

    def _has(self, kind: str) -> bool:
        return any(session.kind == kind for session in self.ledger.sessions(self.entry))


@contextmanager
def _bench(out: Path, target: Target, network: nn.Module, shape: Mapping[str, Any]) -> Iterator[tuple[Ledger, Bench]]:
    out.parent.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out)
    image = torch.randn((1, shape["channels"], *shape["size"]), generator=torch.Generator().manual_seed(0))
    with scratch_beside(out) as folder:
        yield ledger, Bench(target, network, image, folder)


def _network(space: str, shape: Mapping[str, Any], seed: int) -> nn.Module:
    sizes = {"classes": shape["classes"], "channels": shape["channels"], "size": tuple(shape["size"])}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return make_network(space, **sizes).eval()


def _again(ledger: Ledger, entry: Entry) -> Entry:
    return next(one for one in ledger.entries() if one.id == entry.id)


def _check_counts(**counts: float | None) -> None:
    for name, value in counts.items():
        if value is not None and not value >= (0 if name == "tests" else 1):
            raise ValueError(f"{name} is {value}: give 1 or more, or nothing")
