# SPDX-License-Identifier: Apache-2.0
"""What every target keeps. One joins with a class: its object, and how its runtime alone runs a file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sartor.deploy.parity import compare, outputs
from sartor.protocols import Artefact, Measurement, Target
from sartor.targets.fingerprint import require_comparable
from toy_networks import SmallNet, noise


class TargetContract:
    target: Target
    script: str
    """Python that sets `y` to the outputs (N, K) of the file `path` for `x` (N, C, H, W), without sartor."""
    tolerance = 1e-4  # relative to the largest output
    runs = 10  # timed in each round

    @pytest.fixture(scope="class")
    @classmethod
    def networks(cls) -> Sequence[nn.Module]:
        return [SmallNet(width=4), SmallNet(width=24), SmallNet(width=8)]

    @pytest.fixture(scope="class")
    @classmethod
    def artefacts(cls, networks: Sequence[nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Sequence[Artefact]:
        root = tmp_path_factory.mktemp("target")
        example, calibration = (noise(1),), [noise(32, seed=1)]
        return [cls.target.prepare(net, example, calibration, root / str(index)) for index, net in enumerate(networks)]

    @pytest.fixture(scope="class")
    @classmethod
    def measurements(cls, artefacts: Sequence[Artefact]) -> Sequence[Measurement]:
        return cls.target.measure(artefacts)

    def test_it_is_a_target_with_a_stable_fingerprint(self) -> None:
        assert isinstance(self.target, Target)
        found = self.target.fingerprint()
        assert found == self.target.fingerprint() == json.loads(json.dumps(found))
        assert {"processor", "cores", "runtime", "version", "threads", "dtype", "system"} <= set(found)
        assert not any("/" in value for value in found.values())

    def test_prepare_writes_whole_files_and_leaves_the_network_alone(self, tmp_path: Path) -> None:
        net = SmallNet().train()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        artefact = self.target.prepare(net, (noise(1),), [noise(16)], tmp_path / "new" / "folder")
        assert artefact.input_shape == (1, 1, 8, 8)
        assert artefact.path in artefact.files
        assert sorted(artefact.path.parent.iterdir()) == sorted(artefact.files)
        assert all(file.stat().st_size for file in artefact.files)
        assert all(module.training for module in net.modules())
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())

    def test_equal_networks_give_equal_files(
        self, networks: Sequence[nn.Module], artefacts: Sequence[Artefact], tmp_path: Path
    ) -> None:
        again = self.target.prepare(networks[0], (noise(1),), [noise(32, seed=1)], tmp_path)
        assert again.path.read_bytes() == artefacts[0].path.read_bytes()

    def test_the_files_hold_no_paths_of_this_machine(self, artefacts: Sequence[Artefact]) -> None:
        for file in artefacts[0].files:
            content = file.read_bytes()
            assert str(Path(__file__).parents[2]).encode() not in content
            assert str(file.parent).encode() not in content

    def test_the_file_alone_computes_what_the_network_does_in_a_new_process(
        self, networks: Sequence[nn.Module], artefacts: Sequence[Artefact], tmp_path: Path
    ) -> None:
        inputs = noise(5, seed=2)
        np.save(tmp_path / "x.npy", inputs.numpy())
        lines = f"import sys; import numpy as np; path = sys.argv[1]; x = np.load('x.npy'); {self.script}"
        command = [sys.executable, "-W", "ignore", "-c", f"{lines}; np.save('y.npy', y)"]
        subprocess.run([*command, str(artefacts[2].path)], cwd=tmp_path, check=True, timeout=120)
        found, expected = np.load(tmp_path / "y.npy"), reference(networks[2], inputs)
        assert np.abs(found - expected).max() <= self.tolerance * np.abs(expected).max()

    def test_measure_returns_one_measurement_per_artefact_in_order(self, measurements: Sequence[Measurement]) -> None:
        assert len(measurements) == 3
        small, large, medium = measurements
        assert small.size_mb < medium.size_mb < large.size_mb
        for one in measurements:
            assert 0 < one.minimum <= one.p10 <= one.latency_ms <= one.p90 <= one.p95 <= one.p99
            assert one.ci_low <= one.latency_ms <= one.ci_high
            assert one.rounds >= 6
            assert one.runs == self.runs * one.rounds
            assert one.energy_mj is None or one.energy_mj > 0

    def test_measurements_say_under_which_conditions(self, measurements: Sequence[Measurement]) -> None:
        for one in measurements:
            assert one.fingerprint == {**self.target.fingerprint(), "batch": "1", "shape": "1x8x8"}
        require_comparable(measurements)

    def test_the_target_runs_the_file_that_it_measures(
        self, networks: Sequence[nn.Module], artefacts: Sequence[Artefact]
    ) -> None:
        run = self.target.runner(artefacts[1])  # type: ignore[attr-defined]
        parity = compare(run, outputs(networks[1], noise(5, seed=3)), noise(5, seed=3))
        assert parity.max_rel_error <= self.tolerance

    def test_measurements_survive_json(self, measurements: Sequence[Measurement]) -> None:
        for one in measurements:
            assert Measurement.from_dict(json.loads(json.dumps(one.to_dict()))) == one

    def test_a_refused_file_is_named_and_the_others_are_measured(
        self, artefacts: Sequence[Artefact], tmp_path: Path
    ) -> None:
        broken = tmp_path / artefacts[0].path.name
        broken.write_bytes(b"not a model")
        missing = tmp_path / "missing" / broken.name
        some = [Artefact(broken, (1, 1, 8, 8), (broken,)), artefacts[0], Artefact(missing, (1, 1, 8, 8), ())]
        with pytest.raises(RuntimeError) as caught:
            self.target.measure(some)
        assert str(broken) in str(caught.value)
        assert str(missing) in str(caught.value)
        assert "\n" not in str(caught.value)
        first, second, third = caught.value.measurements  # type: ignore[attr-defined]
        assert first is None
        assert isinstance(second, Measurement)
        assert third is None

    def test_nothing_to_measure_is_nothing_measured(self) -> None:
        assert self.target.measure([]) == []

    def test_more_than_one_input_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="2 inputs"):
            self.target.prepare(SmallNet(), (noise(1), noise(1)), [], tmp_path)

    def test_threads_are_as_before(self, artefacts: Sequence[Artefact]) -> None:
        before = torch.get_num_threads()
        self.target.measure(artefacts[:1])
        assert torch.get_num_threads() == before


def reference(net: nn.Module, inputs: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    net.eval()
    with torch.no_grad():
        return np.asarray(net(inputs).numpy())
