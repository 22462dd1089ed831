# SPDX-License-Identifier: Apache-2.0
"""Bundles: what they hold, that they stand alone, and that no kill leaves half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.deploy import bundle, parity
from sartor.deploy.bundle import Bundle, is_complete, write_bundle
from sartor.deploy.onnx import onnx_runner
from sartor.deploy.parity import ExportError, outputs
from toy_networks import SmallNet, noise
from trained_digits import CLASSES, digit_images, trained_on

ARCH = Architecture({"width": 8})
PREPROCESSING: Mapping[str, Any] = {
    "mode": "L", "channels": 1, "height": 8, "width": 8, "mean": [0.3], "std": [0.4], "scale": 255.0,
    "resize": "bilinear", "layout": "NCHW",
}  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    return digit_images()


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> nn.Module:
    return trained_on(*digits)


Write = Callable[..., Bundle]


@pytest.fixture
def write(digits: tuple[Tensor, Tensor], trained: nn.Module, tmp_path: Path) -> Write:
    def with_changes(**changes: Any) -> Bundle:
        images, _ = digits
        arguments: dict[str, Any] = {
            "net": trained, "arch": ARCH, "example": images[:1], "samples": images[1200:1232],
            "preprocessing": PREPROCESSING, "classes": CLASSES,
        }  # fmt: skip
        return write_bundle(tmp_path / "out" / ARCH.id, **{**arguments, **changes})

    return with_changes


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes long where a test is about files."""
    monkeypatch.setattr(bundle, "export_pt2", lambda net, example, path: path.write_bytes(b"quick"))
    monkeypatch.setattr(bundle, "_parity", lambda *_: {})


def classified(script: Path, *arguments: object, without: str) -> str:
    """What `use.py` prints in a process that cannot import the other runtime."""
    block = f"import runpy, sys; sys.modules[{without!r}] = None"
    code = f"{block}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    command = [sys.executable, "-W", "ignore", "-c", code, script, *arguments]
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=120).stdout


def test_a_bundle_stands_alone(write: Write, digits: tuple[Tensor, Tensor], trained: nn.Module, tmp_path: Path) -> None:
    images, _ = digits
    found = write(int8=True, calibration=[images[:64]])
    assert is_complete(found.folder, int8=True)
    assert sorted(found.files) == sorted(found.folder.iterdir())
    assert os.listdir(found.folder.parent) == [ARCH.id]
    assert Architecture.from_json((found.folder / "architecture.json").read_text()) == ARCH
    weights = safetensors.torch.load_file(found.folder / "weights.safetensors")
    fresh = SmallNet(width=40, seed=1)
    fresh.load_state_dict(weights)
    assert np.array_equal(outputs(fresh, images[:4]), outputs(trained, images[:4]))
    told = json.loads((found.folder / "preprocessing.json").read_text())
    assert told == {**PREPROCESSING, "classes": list(CLASSES)}
    assert set(found.parity) == {"model.pt2", "model.onnx", "model.int8.onnx"}
    assert found.parity["model.onnx"].to_dict()["samples"] == 32
    assert found.parity["model.int8.onnx"].agreement > 0.9

    pixels = ((images[1234, 0] * 0.4 + 0.3) * 255).round().numpy().astype(np.uint8)
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "digit.png")
    x = torch.from_numpy((pixels.astype(np.float32) / 255 - 0.3) / 0.4)[None, None]
    expected = CLASSES[int(outputs(trained, x)[0].argmax())] + "\n"
    assert classified(found.folder / "use.py", tmp_path / "digit.png", without="torch") == expected
    Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(tmp_path / "large.png")
    assert classified(found.folder / "use.py", tmp_path / "large.png", without="torch") == expected
    arguments = ("--torch", tmp_path / "digit.png")
    assert classified(found.folder / "use.py", *arguments, without="onnxruntime") == expected

    float32, int8 = found.folder / "model.onnx", found.folder / "model.int8.onnx"
    whole = float32.read_bytes()
    float32.write_bytes(b"not this one")
    scored = CLASSES[int(onnx_runner(int8)(x.numpy()).argmax())] + "\n"
    assert classified(found.folder / "use.py", tmp_path / "digit.png", without="torch") == scored
    float32.write_bytes(whole)
    int8.unlink()
    assert classified(found.folder / "use.py", tmp_path / "digit.png", without="torch") == expected


def test_inputs_that_are_no_images_are_read_from_arrays(
    write: Write, digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    images, _ = digits
    found = write(preprocessing={**PREPROCESSING, "mode": "tensor", "mean": [0.0], "std": [1.0], "scale": 1.0})
    np.save(tmp_path / "x.npy", images[3].numpy())
    expected = CLASSES[int(onnx_runner(found.folder / "model.onnx")(images[3:4].numpy()).argmax())] + "\n"
    assert classified(found.folder / "use.py", tmp_path / "x.npy", without="torch") == expected


def test_a_complete_bundle_is_kept_and_another_networks_is_replaced(
    write: Write, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    first = write()
    (first.folder / "measurement.json").write_text("{}")
    stamp = (first.folder / "model.pt2").stat().st_mtime_ns
    assert write() == first
    assert (first.folder / "model.pt2").stat().st_mtime_ns == stamp
    (first.folder / "model.onnx").unlink()
    assert not is_complete(first.folder)
    other = write(net=SmallNet(width=40, seed=3))
    assert is_complete(other.folder)
    assert (other.folder / "measurement.json").read_text() == "{}"
    assert os.listdir(other.folder.parent) == [ARCH.id]


@pytest.mark.parametrize("at", ["export_pt2", "export_onnx", "write_json", "_parity", "_move"])
def test_an_export_that_is_stopped_leaves_nothing(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: None, at: str
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, at, stopped)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert not os.listdir(tmp_path / "out")


def test_what_a_kill_left_is_cleared(write: Write, quick: None, tmp_path: Path) -> None:
    leftovers = [tmp_path / "out" / f".{ARCH.id}.partial", tmp_path / "out" / ARCH.id / ".float32.partial"]
    for _ in ("to be written", "complete"):
        for leftover in leftovers:
            leftover.mkdir(parents=True, exist_ok=True)
            (leftover / "model.onnx").write_bytes(b"half")
        found = write()
        assert is_complete(found.folder)
        assert sorted(found.files) == sorted(found.folder.iterdir())
        assert os.listdir(tmp_path / "out") == [ARCH.id]


class Killed(BaseException):
    """Nothing is done after it, as after a SIGKILL."""


def kill_at(call: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the process die at the start of its call number `call` that replaces, moves or removes a file."""
    calls: list[str] = []

    def counted(do: Callable[..., None], *args: Any, **named: Any) -> None:
        calls.append(do.__name__)
        if len(calls) >= call:
            raise Killed
        do(*args, **named)

    for name in ("replace", "rename", "unlink"):
        monkeypatch.setattr(os, name, partial(counted, getattr(os, name)))
    return calls


def test_a_kill_while_a_bundle_is_replaced_never_loses_the_weights(
    write: Write, monkeypatch: pytest.MonkeyPatch, quick: None, trained: nn.Module
) -> None:
    monkeypatch.setattr(bundle, "export_onnx", lambda net, example, path: path.write_bytes(b"quick"))
    other = SmallNet(width=40, seed=3)
    either = {bundle.state_bytes(trained), bundle.state_bytes(other)}
    incomplete = 0
    for call in range(1, 100):
        weights = write(net=trained).folder / "weights.safetensors"
        with monkeypatch.context() as patch:
            calls = kill_at(call, patch)
            with contextlib.suppress(Killed):
                write(net=other)
        assert weights.read_bytes() in either
        incomplete += not is_complete(weights.parent)
        assert write(net=other).folder == weights.parent
        assert is_complete(weights.parent)
        assert weights.read_bytes() == bundle.state_bytes(other)
        assert os.listdir(weights.parent.parent) == [ARCH.id]
        if len(calls) < call:
            break
    assert incomplete == len(bundle.FILES), "the marker goes first, and comes last"


def test_a_full_disk_is_said_and_costs_nothing_that_was_there(
    write: Write, monkeypatch: pytest.MonkeyPatch, quick: None, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = write()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"cannot write the bundle .*No space left on device") as caught:
            write(net=SmallNet(width=40, seed=3))
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path / "out") == [ARCH.id]
    assert write() == before


def test_a_wrong_export_is_no_bundle(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = parity.Parity(samples=32, max_abs_error=2.0, max_rel_error=1.0, agreement=0.5)
    monkeypatch.setattr(bundle, "compare", lambda *_: wrong)
    with pytest.raises(ExportError, match="differs from torch"):
        write()
    assert not os.listdir(tmp_path / "out")


def test_wrong_bundles(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit 3 class names"):
        write(classes=("a", "b", "c"))
    with pytest.raises(ValueError, match="not unique"):
        write(classes=("a",) * 10)
    with pytest.raises(ValueError, match="parity needs real samples"):
        write(samples=noise(1)[:0])
    (tmp_path / "out" / ARCH.id).mkdir(parents=True)
    (tmp_path / "out" / ARCH.id / "architecture.json").write_text(Architecture({"width": 9}).to_json())
    with pytest.raises(ValueError, match="holds another architecture"):
        write()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: remove it"):
        bundle._check(tmp_path / "file", ARCH, noise(1), CLASSES)


@pytest.mark.parametrize("arguments", [(), ("--torch",)])
def test_the_script_says_how_it_is_used(write: Write, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, str(write().folder / "use.py"), *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "python use.py [--torch] IMAGE" in ended.stderr and "Traceback" not in ended.stderr


def test_the_script_says_that_a_file_is_missing(write: Write) -> None:
    command = [sys.executable, str(write().folder / "use.py"), "nobody.png"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr.strip()) == (1, "nobody.png: no such file")
