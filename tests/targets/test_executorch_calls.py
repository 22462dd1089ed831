# SPDX-License-Identifier: Apache-2.0
"""How ExecuTorch is called, without it; `test_executorch.py` runs the real one where it is installed."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sartor.deploy.parity import ExportError
from sartor.protocols import Artefact
from sartor.targets import executorch
from sartor.targets.artefacts import TargetError
from sartor.targets.executorch import ExecuTorchTarget
from toy_networks import SmallNet, noise


@dataclass
class FakeExecuTorch:
    """A program is the bytes "program" and doubles its input of (2, 3)."""

    threads: int = 7
    pools: list[int] = field(default_factory=list)
    lowered: list[Any] = field(default_factory=list)

    def part(self, name: str) -> Any:
        parts = {
            "executorch.runtime": SimpleNamespace(Runtime=SimpleNamespace(get=lambda: self)),
            "executorch.exir": SimpleNamespace(to_edge_transform_and_lower=self.lower),
            "executorch.backends.xnnpack.partition.xnnpack_partitioner": SimpleNamespace(
                XnnpackPartitioner=lambda: "xnnpack"
            ),
            "executorch.extension.pybindings.portable_lib": SimpleNamespace(
                _threadpool_get_thread_count=lambda: self.threads, _unsafe_reset_threadpool=self.pools.append
            ),
        }
        return parts[name]

    def lower(self, program: Any, *, partitioner: list[Any]) -> Any:
        if program == "refused":
            raise RuntimeError("no such operator\nand more")
        self.lowered.append((program, partitioner))
        return SimpleNamespace(to_executorch=lambda: SimpleNamespace(buffer=b"program"))

    def load_program(self, path: Path) -> Any:
        if path.read_bytes() != b"program":
            raise RuntimeError("Failed to load program")
        return SimpleNamespace(load_method=lambda name: SimpleNamespace(execute=self.execute))

    def execute(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        (given,) = inputs
        assert given.shape == (2, 3)
        return [2 * given]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeExecuTorch:
    made, version = FakeExecuTorch(), importlib.metadata.version
    monkeypatch.setattr(executorch, "_part", made.part)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.5" if name == "executorch" else version(name))
    return made


def artefact(folder: Path, content: bytes = b"program") -> Artefact:
    path = folder / "model.pte"
    path.write_bytes(content)
    return Artefact(path, (2, 3), (path,))


def test_a_network_is_lowered_for_xnnpack(
    fake: FakeExecuTorch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export, "export", lambda net, inputs: "exported")
    made = ExecuTorchTarget().prepare(SmallNet(), (noise(2),), [], tmp_path / "new")
    assert fake.lowered == [("exported", ["xnnpack"])]
    assert made.path.read_bytes() == b"program"
    assert made.input_shape == (2, 1, 8, 8)


def test_a_network_that_it_does_not_take_is_an_export_error(
    fake: FakeExecuTorch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export, "export", lambda net, inputs: "refused")
    with pytest.raises(ExportError, match=r"ExecuTorch cannot lower the network: no such operator$"):
        ExecuTorchTarget().prepare(SmallNet(), (noise(1),), [], tmp_path)


def test_its_pool_has_the_threads_that_were_asked_for_while_it_is_measured(
    fake: FakeExecuTorch, tmp_path: Path
) -> None:
    (one,) = ExecuTorchTarget(threads=2, seconds=0.01).measure([artefact(tmp_path)])
    assert fake.pools == [2, 7]
    assert (one.fingerprint["threads"], one.fingerprint["version"]) == ("2", "1.5")
    assert (one.fingerprint["batch"], one.fingerprint["shape"]) == ("2", "3")


def test_a_program_is_run_for_any_number_of_samples(fake: FakeExecuTorch, tmp_path: Path) -> None:
    inputs = torch.arange(15.0).reshape(5, 3)
    found = ExecuTorchTarget().runner(artefact(tmp_path))(inputs.numpy())
    assert torch.equal(torch.from_numpy(found), 2 * inputs)


def test_files_that_it_refuses_are_named(fake: FakeExecuTorch, tmp_path: Path) -> None:
    missing = Artefact(tmp_path / "none.pte", (2, 3), ())
    with pytest.raises(TargetError, match=r"model\.pte: ExecuTorch refuses it \(Failed to load program\)") as caught:
        ExecuTorchTarget(seconds=0.01).measure([artefact(tmp_path, b"else"), missing])
    assert "none.pte: no such file" in caught.value.reasons[1]
