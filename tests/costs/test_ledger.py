# SPDX-License-Identifier: Apache-2.0
"""What a profile was made from: whole sessions or none, one level, and never two fingerprints in one."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.architecture import Architecture
from sartor.costs import CostStore
from sartor.costs.ledger import Entry, Ledger, Measured, Session
from sartor.costs.levels import levelled, typical
from simulated_device import SimulatedTarget

DEVICE = SimulatedTarget()
SPACE = {"name": "toy", "channels": 1, "size": [8, 8], "classes": 2}
ARCHS = [Architecture({"width": width}) for width in (1, 2, 3, 4)]
MEASUREMENT = DEVICE._measurement(1.0)


def begun(path: Path) -> tuple[Ledger, Entry]:
    ledger = Ledger(path / "a.costs")
    return ledger, ledger.begin("simulated", DEVICE.fingerprint(), SPACE, {"seed": 0})


def session(number: int, values: dict[Architecture, float]) -> Session:
    found = (Measured(arch, replace(MEASUREMENT, latency_ms=ms, p10=0.9 * ms)) for arch, ms in values.items())
    return Session(number, "learn", 1.0, tuple(found))


def test_what_is_added_is_read_back(tmp_path: Path) -> None:
    ledger, entry = begun(tmp_path)
    networks = [Measured(ARCHS[0], MEASUREMENT), Measured(ARCHS[1], None, "too wide")]
    ledger.add_session(entry, "pace", 1.5, networks)
    ledger.add_operators(entry, 0.5, [("a", 0.1, MEASUREMENT, ""), ("b", None, None, "unknown")])
    ledger.add_session(entry, "learn", 2.5, [])
    again = Ledger(ledger.path)
    assert again.find(DEVICE.fingerprint(), SPACE) == entry == again.entries()[0]
    first, second, third = again.sessions(entry)
    assert first == Session(1, "pace", 1.5, tuple(networks))
    assert (second.number, second.kind, second.seconds) == (2, "operators", 0.5)
    assert (third.number, third.networks) == (3, ())
    assert again.operators(DEVICE.fingerprint()) == {"a": 0.1, "b": None}
    assert again.operators({"processor": "another"}) == {}
    assert CostStore(ledger.path).samples(DEVICE.fingerprint()) == []


def test_a_profile_is_concluded_settled_and_removed(tmp_path: Path) -> None:
    ledger, entry = begun(tmp_path)
    entry = ledger.settle(entry, {"seed": 1})
    assert entry.settings == {"seed": 1}
    ledger.conclude(entry, {"format": 1})
    assert ledger.entries()[0].record == {"format": 1}
    with pytest.raises(ValueError, match="continue or remove"):
        ledger.begin("simulated", DEVICE.fingerprint(), SPACE, {})
    ledger.remove(entry)
    assert ledger.entries() == []
    assert ledger.find(DEVICE.fingerprint(), SPACE) is None


def test_a_session_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    ledger, entry = begun(tmp_path)
    other = replace(MEASUREMENT, fingerprint={"processor": "another"})
    with pytest.raises(ValueError, match="processor 'another' where the profile has 'simulated'"):
        ledger.add_session(entry, "pace", 1.0, [Measured(ARCHS[0], MEASUREMENT), Measured(ARCHS[1], other)])
    with pytest.raises(ValueError, match="profile it by itself"):
        ledger.add_operators(entry, 1.0, [("a", 1.0, other, "")])
    assert ledger.sessions(entry) == []
    with sqlite3.connect(ledger.path) as database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON networks BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(ValueError, match="another process"):
        ledger.add_session(entry, "pace", 1.0, [Measured(ARCHS[0], MEASUREMENT)])
    assert ledger.sessions(entry) == []


def test_a_finished_profile_is_adopted_once_with_all_its_parts(tmp_path: Path) -> None:
    ledger, entry = begun(tmp_path)
    ledger.add_session(entry, "pace", 1.0, [Measured(ARCHS[0], MEASUREMENT)])
    ledger.add_operators(entry, 0.5, [("a", 0.1, MEASUREMENT, "")])
    ledger.conclude(entry, {"format": 1})
    (entry,) = ledger.entries()
    other = Ledger(tmp_path / "b.costs")
    other.begin("elsewhere", {"processor": "another"}, SPACE, {})
    ours = other.adopt(ledger, entry)
    assert ours.id == 2
    assert other.sessions(ours) == ledger.sessions(entry)
    assert other.operators(entry.fingerprint) == {"a": 0.1}
    assert ours.record == {"format": 1, "operators": {"a": 0.1}}  # which a record of today says itself
    assert other.adopt(ledger, entry) == ours
    assert ledger.adopt(ledger, entry) == entry
    other.conclude(ours, None)
    with pytest.raises(ValueError, match="unfinished"):
        other.adopt(ledger, entry)


def test_what_is_adopted_is_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    ledger, entry = begun(tmp_path)
    ledger.add_session(entry, "pace", 1.0, [Measured(ARCHS[0], MEASUREMENT)])
    ledger.conclude(entry, {"format": 1})
    (entry,) = ledger.entries()
    other = Ledger(tmp_path / "b.costs")
    with sqlite3.connect(other.path) as database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON networks BEGIN SELECT RAISE(ABORT, 'killed'); END")
    with pytest.raises(ValueError, match="another process"):
        other.adopt(ledger, entry)
    assert other.entries() == []
    with sqlite3.connect(other.path) as database:
        database.execute("DROP TRIGGER full")
    assert other.adopt(ledger, entry).record == {"operators": {}, "format": 1}
    assert other.sessions(other.entries()[0]) == ledger.sessions(entry)


def test_operators_that_another_profile_needs_stay(tmp_path: Path) -> None:
    ledger, entry = begun(tmp_path)
    ledger.add_operators(entry, 1.0, [(key, 0.1, MEASUREMENT, "") for key in "abc"])
    ledger.conclude(entry, {"operators": {"a": 0.1, "b": 0.1, "c": 0.1}})
    second = ledger.begin("simulated", DEVICE.fingerprint(), {**SPACE, "name": "other"}, {})
    ledger.remove(entry)
    assert {*ledger.operators(DEVICE.fingerprint())} == {*"abc"}  # one that is unfinished may need any
    entry = ledger.begin("simulated", DEVICE.fingerprint(), SPACE, {})
    ledger.conclude(second, {"format": 1})
    ledger.remove(entry)
    assert {*ledger.operators(DEVICE.fingerprint())} == {*"abc"}  # and so may one whose record does not tell
    entry = ledger.begin("simulated", DEVICE.fingerprint(), SPACE, {})
    ledger.conclude(second, {"operators": {"b": 0.1}})
    ledger.add_operators(entry, 1.0, [("b", 0.5, MEASUREMENT, "")])
    ledger.begin("elsewhere", {"processor": "another"}, SPACE, {})
    ledger.remove(entry)
    assert ledger.operators(DEVICE.fingerprint()) == {"b": 0.1}
    ledger.remove(ledger.entries()[0])
    assert ledger.operators(DEVICE.fingerprint()) == {}


def test_a_profile_that_others_came_from_stays(tmp_path: Path) -> None:
    ledger, entry = begun(tmp_path)
    adapted = ledger.begin("board", {"processor": "board"}, SPACE, {})
    for source in (entry.reference, entry.id):  # as it is written, and as it first was
        ledger.conclude(adapted, {"source": source})
        found = ledger.entries()[1]
        assert found.came_from(entry) and not entry.came_from(found)
        assert ledger.source(found) == entry and ledger.source(entry) is None
        with pytest.raises(ValueError, match=r"board on toy .* was adapted from simulated on toy .* another file"):
            ledger.remove(entry)
    ledger.conclude(adapted, {"source": {**entry.reference, "fingerprint": {"processor": "lost"}}})
    with pytest.raises(ValueError, match=r"lacks the profile .* adapt it again"):
        ledger.source(ledger.entries()[1])
    ledger.remove(entry)


def test_a_file_that_is_no_cost_store(tmp_path: Path) -> None:
    (tmp_path / "a.costs").write_text("no database, and long enough to be read as a header of one" * 20)
    with pytest.raises(ValueError, match="is no cost store"):
        Ledger(tmp_path / "a.costs")


def test_typical_is_the_undisturbed_value_at_the_level_of_the_medians() -> None:
    calm = [replace(MEASUREMENT, latency_ms=ms, p10=0.9 * ms) for ms in (1.0, 2.0, 3.0)]
    disturbed = [*calm[:2], replace(calm[2], latency_ms=4.5)]
    np.testing.assert_allclose(typical(disturbed), [1, 2, 3])
    assert len(typical([])) == 0


@given(st.lists(st.floats(0.25, 4.0), min_size=1, max_size=4), st.integers(0, 3))
def test_sessions_come_to_one_level(levels: list[float], anchor: int) -> None:
    true = {arch: 1.0 + place for place, arch in enumerate(ARCHS)}
    sessions = [
        session(n, {arch: true[arch] * level for arch in (ARCHS[anchor], ARCHS[n % 4])})
        for n, level in enumerate(levels)
    ]
    found = levelled(sessions)
    middle = float(np.median([level / levels[0] for level in levels])) * levels[0]
    for values in found:
        for arch, ms in values.items():
            assert ms == pytest.approx(true[arch] * middle)


def test_a_session_that_shares_no_network_keeps_its_level() -> None:
    first, second = levelled([session(1, {ARCHS[0]: 1.0}), session(2, {ARCHS[1]: 3.0})])
    assert first == {ARCHS[0]: pytest.approx(1.0)}
    assert second == {ARCHS[1]: pytest.approx(3.0)}
    assert levelled([]) == []
