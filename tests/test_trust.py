# SPDX-License-Identifier: Apache-2.0
"""A program from elsewhere is not loaded if loading it could run code of whoever wrote it."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sartor.deploy.parity import ExportError
from sartor.deploy.program import export_pt2, load_pt2
from sartor.deploy.trust import reason_for_distrust


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    export_pt2(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 2)).eval(), torch.rand(2, 1, 8, 8), path)
    return path


def changed(program: Path, path: Path, name: str, change: Callable[[bytes], bytes] | bytes) -> Path:
    """Copy the archive with one member changed, or added."""
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(path, "w") as copy:
        root = source.namelist()[0].partition("/")[0]
        for member in source.namelist():
            if member == f"{root}/{name}" and callable(change):
                copy.writestr(member, change(source.read(member)))
            elif member != f"{root}/{name}":
                copy.writestr(member, source.read(member))
        if not callable(change):
            copy.writestr(f"{root}/{name}", change)
    return path


def test_what_this_package_writes_is_trusted_and_loads(program: Path) -> None:
    assert reason_for_distrust(program) == ""
    assert load_pt2(program)(torch.rand(5, 1, 8, 8)).shape == (5, 2)


def pickled_weights(text: bytes) -> bytes:
    config = json.loads(text)
    next(iter(config["config"].values()))["use_pickle"] = True
    return json.dumps(config).encode()


def evaluated(text: bytes) -> bytes:
    return text.replace(b"Symbol('", b"__import__('os').getpid() or Symbol('", 1)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("data/weights/model_weights_config.json", pickled_weights, "weights are pickled"),
        ("models/model.json", evaluated, "holds the expression"),
        ("data/weights/model.pt", b"", "it holds data/weights/model.pt"),
        ("data/aotinductor/model/wrapper.so", b"", "it holds data/aotinductor/model/wrapper.so"),
    ],
)
def test_what_would_run_code_is_refused(
    program: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes] | bytes, told: str
) -> None:
    with pytest.raises(ExportError, match=told):
        load_pt2(changed(program, tmp_path / "other.pt2", name, change))


def test_pickled_inputs_are_refused_and_not_unpickled(program: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(Touch(tmp_path / "touched"), buffer, pickle_module=pickle)
    with pytest.raises(ExportError, match="holds more than tensors"):
        load_pt2(changed(program, tmp_path / "other.pt2", "data/sample_inputs/model.pt", buffer.getvalue()))
    assert not (tmp_path / "touched").exists()
