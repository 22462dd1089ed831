# SPDX-License-Identifier: Apache-2.0
"""Profiling on a simulated device: what is measured, that it continues after any kill, and what the file gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sartor.choice import Choice
from sartor.costs import load_profile
from sartor.nn import Conv2d
from sartor.recipes import profile_device as recipe
from sartor.targets.artefacts import TargetError
from simulated_device import MOBILENET, QUICK, Leaving, Setup, SimulatedTarget, network_ms, value


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return Setup.on(tmp_path / "a.costs", monkeypatch)


def test_a_profile_predicts_networks_that_it_has_not_seen(setup: Setup) -> None:
    said: list[str] = []
    profile = setup.run(on_progress=said.append)
    assert profile.chosen == "additive"
    assert value(profile, "mape") < 0.02
    assert value(profile, "spearman") > 0.98
    assert setup.kinds == ["plan", "pace", *["operators"] * setup.kinds.count("operators"), "test", "learn", "retest"]
    assert len(profile.train) == 20 and len(profile.test) == 8
    assert not profile.train.keys() & profile.test.keys()
    assert profile.fingerprint == setup.device.fingerprint()
    assert [one.name for one in profile.models] == [*QUICK]
    retest = profile.record["retest"]["mape"][0]
    assert retest == pytest.approx(0.0, abs=1e-9)  # the device drifts by a tenth, and the anchors tell
    assert {line.partition(":")[0] for line in said} >= {"pace", "operators", "test", "learn", "retest"}
    assert not [path for path in setup.path.parent.iterdir() if path != setup.path]


def test_the_file_gives_the_same_profile_again(setup: Setup) -> None:
    made = setup.run()
    read = load_profile(setup.path)
    archs = [*made.test]
    assert read.record == made.record
    assert read.predict(archs)[0].tolist() == made.predict(archs)[0].tolist()
    assert read.latency(archs[0]) == pytest.approx(read.predict(archs)[0][0])
    mean, deviation = read.predict(archs)
    assert (deviation >= mean * read.record["relative_error"] * 0.999).all()
    assert [len(part) for part in read.predict([])] == [0, 0]
    assert read.errors == made.errors
    assert 0.5 < read.coverage["share_of_time"] <= 1.0
    level = made.test[archs[0]] / network_ms(made.workload(archs[0]))
    assert read.latency(archs[0]) == pytest.approx(level * network_ms(made.workload(archs[0])), rel=0.05)


def test_it_continues_after_a_kill_in_any_session(setup: Setup) -> None:
    whole = setup.run()
    sessions = setup.device.sessions
    setup.path.unlink()
    archs = {arch for arch in {**whole.train, **whole.test}}
    for _ in range(sessions - 1):  # the power fails after each session
        setup.device = SimulatedTarget(dies_at=1)
        with pytest.raises(KeyboardInterrupt):
            setup.run()
    setup.device = SimulatedTarget()
    again = setup.run()
    assert {arch for arch in {**again.train, **again.test}} == archs
    assert setup.kinds.count("test") == setup.kinds.count("retest") == 1
    assert again.chosen == whole.chosen
    with pytest.raises(FileExistsError, match="--force"):
        setup.run()
    setup.device = SimulatedTarget()
    assert setup.run(force=True).chosen == "additive"
    assert len(setup.ledger.entries()) == 1


def test_a_real_kill_leaves_a_file_that_continues(setup: Setup) -> None:
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import simulated_device
import pytest
simulated_device.use_quick_models(pytest.MonkeyPatch())
from sartor.recipes import profile_device as recipe
class Dying(simulated_device.SimulatedTarget):
    def measure(self, artefacts):
        if self.sessions == 2:
            os.kill(os.getpid(), 9)
        return super().measure(artefacts)
device = Dying()
recipe.load_target = lambda text, threads: device
recipe.profile_device(target="simulated", out={str(setup.path)!r}, **{MOBILENET!r})
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120, env={**os.environ}, check=False)
    assert done.returncode == -9
    assert setup.kinds == ["plan", "pace", "operators"]
    assert setup.run().chosen == "additive"
    assert setup.kinds.count("pace") == 1


def test_after_the_first_networks_those_are_measured_on_which_models_disagree(setup: Setup) -> None:
    setup.run(samples=45)
    assert setup.kinds.count("learn") == 3
    assert len(load_profile(setup.path).train) == 45


def test_a_budget_ends_it_and_leaves_a_whole_profile(setup: Setup) -> None:
    profile = setup.run(samples=None, tests=None, budget_s=1.0)
    assert recipe.FEWEST <= len(profile.train) < recipe.POOL  # what the clock of this machine allows
    assert len(profile.test) >= recipe.FEWEST_TESTS
    assert profile.record["retest"] is not None


def test_operators_are_measured_once_for_all_spaces_of_a_device(setup: Setup) -> None:
    setup.run()
    setup.device.prepared.clear()
    setup.run(classes=11)
    operators = [name for name in setup.device.prepared if name.startswith("op")]
    assert len(operators) < 20  # the classifier's, and two that tell the level
    with pytest.raises(ValueError, match="several profiles"):
        load_profile(setup.path)


def test_networks_that_the_target_refuses_are_counted(setup: Setup) -> None:
    setup.device = SimulatedTarget(refuses="hardsigmoid")
    with pytest.raises(TargetError, match=r"refuses \d+ of \d+ networks: no hardsigmoid here"):
        setup.run()
    setup.device = SimulatedTarget(refuses="fft")
    assert setup.run().record["samples"]["refused"] == 0


def test_a_runtime_that_refuses_some_leaves_a_profile_of_the_others(setup: Setup) -> None:
    class Picky(SimulatedTarget):
        def prepare(self, model: Any, example: Any, calibration: Any, path: Path) -> Any:
            if len(self.prepared) % 7 == 3:
                self.prepared.append("refused")
                raise ValueError("too odd\nfor this runtime")
            return super().prepare(model, example, calibration, path)

    setup.device = Picky()
    profile = setup.run()
    samples = profile.record["samples"]
    assert samples["refused"] > 0
    assert samples["reasons"] == ["too odd"]
    assert profile.record["coverage"]["missing"] > 0
    assert value(profile, "mape") < 0.1


# ---- a device that is out of reach ------------------------------------------------------------------


def test_what_a_lost_connection_kept_from_being_measured_is_measured_later(setup: Setup) -> None:
    whole = setup.run()
    sessions, operators = setup.device.sessions, setup.ledger.operators(setup.device.fingerprint())
    setup.path.unlink()
    setup.device = device = Leaving()
    for device.gone_in in range(0, 2 * sessions, 2):  # once before each session
        with pytest.raises(TargetError, match=r"simulated measured none of \d+ networks: no route to host"):
            setup.run()
        device.dies_at = device.gone_in + 2
        if device.gone_in < 2 * sessions - 2:
            with pytest.raises(KeyboardInterrupt):
                setup.run()
            device.dies_at = -1
    again = setup.run()
    assert [*again.train] == [*whole.train] and again.record["samples"]["refused"] == 0
    found = setup.ledger.operators(setup.device.fingerprint())
    assert {name for name, ms in found.items() if ms is None} == {name for name, ms in operators.items() if ms is None}


def test_what_was_not_measured_has_a_reason(setup: Setup) -> None:
    class Terse(SimulatedTarget):
        def measure(self, artefacts: Any) -> Any:
            found: list[Any] = super().measure(artefacts)
            if self.sessions > 2:
                found[-1] = None
                raise TargetError("one was too much", {}, found)
            return found

    setup.device = Terse()
    samples = setup.run().record["samples"]
    assert samples["refused"] > 0 and samples["reasons"] == ["one was too much"]


# ---- continuing -------------------------------------------------------------------------------------


def test_what_was_begun_otherwise_is_not_continued(setup: Setup) -> None:
    setup.device = SimulatedTarget(dies_at=2)
    with pytest.raises(KeyboardInterrupt):
        setup.run(seed=1)
    setup.device = SimulatedTarget()
    with pytest.raises(ValueError, match="begun with --seed 1, not 0: go on with that, or name another file"):
        setup.run()
    with pytest.raises(ValueError, match="begun with --tests 8, not 9"):
        setup.run(seed=1, tests=9)
    assert setup.device.sessions == 0
    assert len(setup.run(seed=1, tests=None, samples=14).train) == 14  # more or less time is no other profile


def test_force_replaces_what_is_finished_and_continues_what_is_not(setup: Setup) -> None:
    setup.run()
    sessions = setup.device.sessions
    setup.device = SimulatedTarget(dies_at=1)
    with pytest.raises(KeyboardInterrupt):
        setup.run(force=True)
    setup.device = SimulatedTarget()
    setup.run(force=True)
    assert setup.device.sessions == sessions - 1
    assert setup.kinds.count("pace") == 1


OWN = """
from torch import nn
from sartor.choice import Choice
from sartor.nn import Conv2d, Linear

class Tiny(nn.Module):
    def __init__(self, classes, channels, size):
        super().__init__()
        self.width = Choice([4, 8, 12, 16])
        self.kernel = Choice([1, 3, 5])
        self.conv = Conv2d(channels, self.width, self.kernel, 1, "same")
        self.head = Linear(self.width, classes)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))
"""


def test_a_space_of_ones_own_however_small(setup: Setup) -> None:
    (setup.path.parent / "own.py").write_text(OWN)
    name = f"{setup.path.parent / 'own.py'}:Tiny"
    profile = setup.run(space=name, samples=None, budget_s=60, tests=None)
    assert len(profile.train) + len(profile.test) == 12
    with pytest.raises(ValueError, match="not built in: give its network"):
        load_profile(setup.path)
    assert load_profile(setup.path, network=profile.workload.network).chosen == profile.chosen
    with pytest.raises(ValueError, match="other choices"):
        load_profile(setup.path, network=torch.nn.Sequential(Conv2d(1, Choice([1, 2], name="width"), 3)))


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"budget_s": 0.0}, {"tests": -1}, {"space": "nothing"}, {"size": 4}])
def test_what_cannot_be_profiled(setup: Setup, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"samples|budget_s|tests|nothing|4x4"):
        setup.run(**wrong)
