# SPDX-License-Identifier: Apache-2.0
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
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.architecture import Architecture
from sartor.deploy import bundle, parity
from sartor.deploy import onnx as deploy_onnx
from sartor.deploy.bundle import Bundle, is_complete, write_bundle
from sartor.deploy.onnx import export_onnx, onnx_runner
from sartor.deploy.parity import ExportError, compare, evaluating, outputs, require
from sartor.deploy.program import export_pt2, load_pt2, pt2_runner
from sartor.deploy.quantize import quantize_onnx
from toy_networks import SmallNet, noise

ARCH = Architecture({"width": 8})
CLASSES = tuple("zero one two three four five six seven eight nine".split())
PREPROCESSING: Mapping[str, Any] = {
    "mode": "L", "channels": 1, "height": 8, "width": 8, "mean": [0.3], "std": [0.4], "scale": 255.0,
    "resize": "bilinear", "layout": "NCHW",
}  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return (pixels - 0.3) / 0.4, torch.tensor(data.target)


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> nn.Module:
    """A network of 18 thousand weights that knows most digits after a second of training."""
    images, labels = digits
    net = SmallNet(width=40).train()
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(50):
        part = torch.randint(1200, (64,), generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        F.cross_entropy(net(images[part]), labels[part]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return net.eval()


def nodes(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_an_exported_model_takes_any_batch_and_equals_torch(tmp_path: Path) -> None:
    net, path = SmallNet(), tmp_path / "model.onnx"
    export_onnx(net, noise(1), path, classes=CLASSES)
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import] == [deploy_onnx.OPSET]
    assert {entry.key: entry.value for entry in model.metadata_props}["classes"] == json.dumps(CLASSES)
    for count in (1, 2, 300):
        found = compare(onnx_runner(path), outputs(net, noise(count)), noise(count))
        assert found.samples == count
        assert found.max_rel_error < 1e-5
        assert found.agreement == 1.0
        assert require(found, "model") is found


def test_batch_norm_is_folded_in_the_file_and_in_the_runtime(tmp_path: Path) -> None:
    export_onnx(SmallNet(), noise(1), tmp_path / "model.onnx")
    assert "BatchNormalization" not in nodes(tmp_path / "model.onnx")
    assert nodes(tmp_path / "model.onnx").count("Conv") == 11
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
    assert {"BatchNormalization", "Relu"}.isdisjoint(nodes(tmp_path / "optimised.onnx"))


class Normed(nn.Module):
    """Holds an operator that torch's TorchScript exporter lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.RMSNorm(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.flatten(1)))  # type: ignore[no-any-return]


def test_what_one_exporter_lacks_the_other_exports_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net, path = Normed(), tmp_path / "model.onnx"
    export_onnx(SmallNet(), noise(1), tmp_path / "plain.onnx")
    export_onnx(net, noise(1), path)
    for count in (1, 7):
        require(compare(onnx_runner(path), outputs(net, noise(count)), noise(count)), "model")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_torch_without_the_first_exporter_gives_an_equal_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(net: nn.Module, inputs: Tensor) -> None:
        raise TypeError("export() got an unexpected keyword argument 'dynamo'")

    monkeypatch.setattr(deploy_onnx, "_traced", gone)
    net, path = SmallNet(), tmp_path / "model.onnx"
    export_onnx(net, noise(1), path)
    require(compare(onnx_runner(path), outputs(net, noise(7)), noise(7)), "model")
    assert "BatchNormalization" not in nodes(path)


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("out of order\nand more")


class Twice(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Forks(nn.Module):
    """Decides by its data, which a tracer cannot see."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] if bool(x.mean() > 0) else -x.flatten(1)[:, :10]


class Baked(nn.Module):
    """Takes the batch size for a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(int(x.shape[0]), 64)[:, :10] + torch.ones(int(x.shape[0]), 1)


def test_networks_that_cannot_be_exported(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for export in (export_onnx, export_pt2):
        with pytest.raises(ExportError, match="out of order"):
            export(Fails(), noise(1), path)
        with pytest.raises(ExportError, match=r"torch.int64 cannot be exported: a float batch"):
            export(SmallNet(), torch.zeros(1, 1, 8, 8, dtype=torch.int64), path)
    with pytest.raises(ExportError, match="the network fails on"):
        outputs(Fails(), noise(1))
    with pytest.raises(ExportError, match="returns tuple: only one tensor"):
        outputs(Twice(), noise(1))
    assert not os.listdir(tmp_path)


def test_an_export_that_computes_something_else_is_found_out(tmp_path: Path) -> None:
    path, samples = tmp_path / "model.onnx", torch.cat([noise(4) - 5, noise(4) - 5])
    export_onnx(Forks(), noise(1) + 5, path)
    found = compare(onnx_runner(path), outputs(Forks(), samples), samples)
    with pytest.raises(ExportError, match=r"model\.onnx differs from torch by .* on 8 samples"):
        require(found, str(path))
    not_a_number = compare(lambda x: np.full((len(x), 10), np.nan, np.float32), outputs(Forks(), samples), samples)
    with pytest.raises(ExportError, match="differs from torch by inf"):
        require(not_a_number, "model")
    with pytest.raises(ExportError, match=r"returns \(8, 3\) where the network returns \(8, 10\)"):
        compare(lambda x: np.zeros((len(x), 3), np.float32), outputs(Forks(), samples), samples)


def test_a_batch_size_that_is_baked_in_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError):
        export_onnx(Baked(), noise(1), path)
        require(compare(onnx_runner(path), outputs(Baked(), noise(5)), noise(5)), "model")


def test_evaluation_mode_is_undone_module_by_module() -> None:
    net = SmallNet().train()
    net[1].eval()
    with evaluating(net), pytest.raises(ZeroDivisionError):
        assert not any(module.training for module in net.modules())
        assert not torch.is_grad_enabled()
        1 / 0  # noqa: B018
    assert torch.is_grad_enabled()
    assert [net[index].training for index in range(3)] == [True, False, True]


def test_a_program_takes_any_batch_and_equals_torch(tmp_path: Path) -> None:
    net, path = SmallNet().train(), tmp_path / "model.pt2"
    export_pt2(net, noise(1), path)
    assert net.training
    for count in (1, 9):
        assert compare(pt2_runner(path), outputs(net, noise(count)), noise(count)).max_rel_error < 1e-6


def test_files_that_are_no_programs(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no such file"):
        load_pt2(tmp_path / "none.pt2")
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(ExportError, match=r"text\.pt2 is not a torch.export program"):
        load_pt2(tmp_path / "text.pt2")


def test_int8_is_smaller_and_about_as_accurate(
    tmp_path: Path, digits: tuple[Tensor, Tensor], trained: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    images, labels = digits
    whole, small = tmp_path / "model.onnx", tmp_path / "model.int8.onnx"
    export_onnx(trained, images[:1], whole)
    quantize_onnx(whole, [images[:64], images[64:128]], small)
    assert capfd.readouterr() == ("", "")
    assert sorted(os.listdir(tmp_path)) == ["model.int8.onnx", "model.onnx"]
    assert small.stat().st_size < 0.8 * whole.stat().st_size
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(nodes(small))
    test, truth = images[1200:], labels[1200:].numpy()
    exact = outputs(trained, test)
    found = compare(onnx_runner(small), exact, test)
    assert found.agreement > 0.97
    scores = onnx_runner(small)(test.numpy())
    assert (exact.argmax(1) == truth).mean() > 0.85
    assert (scores.argmax(1) == truth).mean() > (exact.argmax(1) == truth).mean() - 0.02


def test_what_cannot_be_quantised(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello " * 50)
    with pytest.raises(ExportError, match=r"text\.onnx cannot be quantised"):
        quantize_onnx(tmp_path / "text.onnx", [noise(4)], tmp_path / "out.onnx")
    with pytest.raises(ValueError, match="there are none"):
        quantize_onnx(tmp_path / "text.onnx", [], tmp_path / "out.onnx")


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


def test_what_a_killed_quantisation_left_is_cleared(tmp_path: Path, digits: tuple[Tensor, Tensor]) -> None:
    export_onnx(SmallNet(), noise(1), tmp_path / "model.onnx")
    leftover = tmp_path / ".model.int8.onnx.partial"
    leftover.mkdir()
    (leftover / "inferred.onnx").write_bytes(b"half")
    quantize_onnx(tmp_path / "model.onnx", [digits[0][:32]], tmp_path / "model.int8.onnx")
    assert sorted(os.listdir(tmp_path)) == ["model.int8.onnx", "model.onnx"]


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


def test_the_tolerance_is_stated() -> None:
    assert parity.TOLERANCE == 1e-4
