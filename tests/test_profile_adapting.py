# SPDX-License-Identifier: Apache-2.0
"""From the profile of one device to that of another, with ten networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sartor.architecture import Architecture
from sartor.costs import load_profile
from sartor.costs.ledger import Ledger
from sartor.ranking import spearman
from sartor.recipes import profile_device as recipe
from sartor.recipes.profile_device import adapt_profile
from sartor.targets.artefacts import TargetError
from simulated_device import Leaving, Setup, SimulatedTarget, network_ms, value

FEW = {"samples": 12, "tests": 0}  # to learn from, where the old profile need not be good


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return Setup.on(tmp_path / "a.costs", monkeypatch)


def test_ten_networks_adapt_a_profile_to_another_device(setup: Setup, tmp_path: Path) -> None:
    old = setup.run()
    setup.device = SimulatedTarget(name="board", factor=3.0, drift=0.0)
    new = adapt_profile(setup.path, target="board", out=tmp_path / "board.costs")
    assert setup.device.sessions == 1 and len(setup.device.prepared) == 10
    assert new.chosen.startswith("old")
    assert new.fingerprint["processor"] == "board"
    assert len(new.train) == 10 and new.test == {}
    assert value(new, "mape") < 0.03
    archs: list[Architecture] = [*old.test]
    for arch, ms in zip(archs, new.predict(archs)[0], strict=True):
        assert ms == pytest.approx(3 * network_ms(old.workload(arch)), rel=0.08)
    setup.path.unlink()  # the new file is complete by itself
    again = load_profile(tmp_path / "board.costs")
    assert again.target == "board"
    assert again.predict(archs)[0].tolist() == new.predict(archs)[0].tolist()
    assert load_profile(tmp_path / "board.costs", target="simulated").chosen == old.chosen
    with pytest.raises(FileExistsError):
        adapt_profile(tmp_path / "board.costs", target="board", out=tmp_path / "board.costs", source="simulated")
    with pytest.raises(ValueError, match="itself adapted"):
        adapt_profile(tmp_path / "board.costs", target="board", out=tmp_path / "other.costs", source="board")


def test_a_device_is_not_adapted_to_itself(setup: Setup, tmp_path: Path) -> None:
    setup.run(**FEW)
    before = setup.path.read_bytes()
    for out in (setup.path, tmp_path / "b.costs"):
        with pytest.raises(ValueError, match="is of this very device"):
            adapt_profile(setup.path, target="simulated", out=out, force=True)
    assert setup.path.read_bytes() == before and not (tmp_path / "b.costs").exists()


def test_an_adapted_profile_keeps_its_source(setup: Setup) -> None:
    old = setup.run(**FEW)
    setup.device = SimulatedTarget(name="board", factor=3.0)
    made = adapt_profile(setup.path, target="board", out=setup.path, samples=4)
    again = adapt_profile(setup.path, target="board", out=setup.path, source="simulated", samples=4, force=True)
    assert len(setup.ledger.entries()) == 2 and {*again.train} == {*made.train}
    assert made.record["source"]["fingerprint"] == old.fingerprint
    setup.device = SimulatedTarget()
    with pytest.raises(ValueError, match=r"board on mobilenet .* was adapted from simulated on mobilenet"):
        setup.run(force=True)
    archs = [*old.train]
    assert load_profile(setup.path).predict(archs)[0].tolist() == again.predict(archs)[0].tolist()
    entries = setup.ledger.entries()
    setup.ledger.conclude(entries[1], {**(entries[1].record or {}), "source": entries[0].id})  # as first written
    assert load_profile(setup.path).predict(archs)[0].tolist() == again.predict(archs)[0].tolist()


def test_adapting_and_measuring_do_not_continue_each_other(setup: Setup, tmp_path: Path) -> None:
    setup.run(**FEW)
    out = tmp_path / "board.costs"
    setup.device = SimulatedTarget(name="board", dies_at=0)
    with pytest.raises(KeyboardInterrupt):
        adapt_profile(setup.path, target="board", out=out, samples=4)
    with pytest.raises(ValueError, match="begun with --from"):
        setup.run(out=out)
    with pytest.raises(ValueError, match="begun with --seed 0, not 1"):
        adapt_profile(setup.path, target="board", out=out, seed=1)
    setup.device = SimulatedTarget(name="board")
    assert len(adapt_profile(setup.path, target="board", out=out, samples=5).train) == 5
    ledger = Ledger(out)
    ledger.conclude(ledger.entries()[1], None)
    with pytest.raises(ValueError, match="begun with --samples 5, not 4"):
        adapt_profile(setup.path, target="board", out=out, samples=4)
    assert len(adapt_profile(setup.path, target="board", out=out, samples=5).train) == 5


def test_for_nasbench201_what_was_learnt_from_other_devices_is_tried(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("POOL", 20), ("PLANNED", 4)):
        monkeypatch.setattr(recipe, name, count)
    old = setup.run(space="nasbench201", channels=3, samples=8, tests=0)
    setup.device = SimulatedTarget(name="board", factor=3.0, drift=0.0)
    new = adapt_profile(setup.path, target="board", out=tmp_path / "board.costs")
    assert setup.device.sessions == 1 and len(setup.device.prepared) == len(new.train) == 10
    judged = {one.name: one.validation for one in new.models}
    assert "help" in judged and len(judged) == 7
    archs = [*old.train]
    ranked = replace(new, chosen="help").predict(archs)[0]
    assert spearman(ranked, np.array([network_ms(old.workload(arch)) for arch in archs])) > 0.7
    assert value(new, "mape") < 0.05
    assert load_profile(tmp_path / "board.costs").predict(archs)[0].tolist() == new.predict(archs)[0].tolist()


def test_what_cannot_be_adapted(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 or more"):
        adapt_profile(setup.path, target="board", out=tmp_path / "b.costs", samples=3)
    with pytest.raises(FileNotFoundError):
        adapt_profile(setup.path, target="board", out=tmp_path / "b.costs")


def test_adapting_continues_after_a_lost_connection(setup: Setup, tmp_path: Path) -> None:
    setup.run(**FEW)
    setup.device = device = Leaving(name="board")
    device.gone_in = 0
    out = tmp_path / "board.costs"
    with pytest.raises(TargetError, match="measured none of 10 networks: no route to host"):
        adapt_profile(setup.path, target="board", out=out)
    assert Ledger(out).sessions(Ledger(out).entries()[1]) == []
    assert len(adapt_profile(setup.path, target="board", out=out).train) == 10


def test_too_few_that_are_accepted_are_not_stored(setup: Setup, tmp_path: Path) -> None:
    class Half(SimulatedTarget):
        def measure(self, artefacts: Any) -> Any:
            found: list[Any] = super().measure(artefacts)
            raise TargetError("odd", {0: "odd", 1: "odd"}, [None, None, *found[2:]])

    setup.run(**FEW)
    setup.device = Half(name="board")
    for _ in range(2):
        with pytest.raises(TargetError, match="board refuses 2 of 4 networks: odd"):
            adapt_profile(setup.path, target="board", out=tmp_path / "board.costs", samples=4)
