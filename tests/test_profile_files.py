# SPDX-License-Identifier: Apache-2.0
"""Profiles in a file: which one is meant, what changes them, and which code they may run."""

from __future__ import annotations

from pathlib import Path

import pytest

from sartor.costs import load_profile
from sartor.costs import profile as profiles
from sartor.costs.ledger import Ledger
from sartor.space import SearchSpace
from simulated_device import Setup, SimulatedTarget


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return Setup.on(tmp_path / "a.costs", monkeypatch)


def test_nothing_that_is_measured_later_changes_a_finished_profile(setup: Setup) -> None:
    first = setup.run()
    archs = [*first.test]
    setup.device.factor = 2.0  # what the file says of a device may change
    setup.run(classes=11)
    setup.run(classes=11, force=True)
    read = load_profile(setup.path, shape={"classes": 10})
    assert read.record == first.record and first.chosen == "additive"
    assert read.predict(archs)[0].tolist() == first.predict(archs)[0].tolist()
    other = load_profile(setup.path, shape={"classes": 11})
    measured = set(other.record["operators"])
    assert measured - set(first.record["operators"])  # the classifier's
    assert set(other.record["operators"]) <= set(setup.ledger.operators(first.fingerprint))


def test_a_profile_is_chosen_by_what_it_is_of(setup: Setup) -> None:
    first = setup.run(samples=12, tests=0)
    setup.run(samples=12, tests=0, classes=11)
    with pytest.raises(ValueError, match=r"1x8x8, 10 classes.*1x8x8, 11 classes.*space or its shape"):
        load_profile(setup.path, target="simulated", space_is=first.space)
    for size in (8, (8, 8), [8, 8]):
        shape = {"classes": 11, "channels": 1, "size": size}
        assert load_profile(setup.path, space_is=first.space, shape=shape).shape["classes"] == 11
    with pytest.raises(
        ValueError, match=r"no such profile; its profiles: simulated on mobilenet \(1x8x8, 10 classes\)"
    ):
        load_profile(setup.path, shape={"size": 16})
    with pytest.raises(ValueError, match="no such profile"):
        load_profile(setup.path, space_is=SearchSpace({"width": (1, 2)}))
    with pytest.raises(ValueError, match="no 'sizes'"):
        load_profile(setup.path, shape={"sizes": 16})


def test_reading_a_profile_changes_nothing(setup: Setup) -> None:
    setup.run(samples=12, tests=0)
    before = setup.path.read_bytes()
    load_profile(setup.path).predict([])
    assert setup.path.read_bytes() == before


def test_a_file_from_before_records_had_operators(setup: Setup) -> None:
    made = setup.run()
    entry = setup.ledger.entries()[0]
    record = dict(entry.record or {})
    del record["operators"]
    setup.ledger.conclude(entry, record)
    archs = [*made.test]
    assert load_profile(setup.path).predict(archs)[0] == pytest.approx(made.predict(archs)[0])


def test_a_model_that_cannot_be_made_names_the_cause(setup: Setup) -> None:
    setup.run(samples=12, tests=0)
    (entry,) = setup.ledger.entries()
    for lost, cause in (
        ({"operators": {}}, "lacks the operators"),
        ({"chosen": "gbdt"}, "LightGBM"),
        ({"chosen": "x"}, "'x'"),
    ):
        setup.ledger.conclude(entry, {**(entry.record or {}), "chosen": "additive", **lost})
        with pytest.raises((ValueError, ImportError), match=cause):
            _ = load_profile(setup.path).predictor


def test_a_file_does_not_decide_which_code_is_run(setup: Setup) -> None:
    setup.run()
    ledger = setup.ledger
    entry = ledger.entries()[0]
    for place in ("os:system", "sartor.spaces.mobilenet:Form", "sartor.spaces.nothing:Here", "sartor.cli:Main"):
        space = {**entry.space, "made_by": place}
        other = ledger.begin("simulated", {"processor": place}, space, entry.settings)
        ledger.conclude(other, entry.record)
        with pytest.raises(ValueError, match=r"give .*network="):
            profiles.profile_of(ledger, ledger.entries()[-1])


def test_what_cannot_be_loaded(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_profile(tmp_path / "nothing.costs")
    Ledger(tmp_path / "empty.costs")
    with pytest.raises(ValueError, match="none that is finished"):
        load_profile(tmp_path / "empty.costs")
    setup.device = SimulatedTarget(dies_at=1)
    with pytest.raises(KeyboardInterrupt):
        setup.run()
    with pytest.raises(ValueError, match="start `sartor profile` again"):
        load_profile(setup.path)
    setup.device = SimulatedTarget()
    setup.run()
    ledger = setup.ledger
    ledger.conclude(ledger.entries()[0], {**(ledger.entries()[0].record or {}), "format": 99})
    with pytest.raises(ValueError, match="format 99"):
        load_profile(setup.path)
