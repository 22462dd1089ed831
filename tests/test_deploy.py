# SPDX-License-Identifier: Apache-2.0
"""Single files: ONNX, programs and int8, each against torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from sartor.deploy import onnx as deploy_onnx
from sartor.deploy import parity
from sartor.deploy.onnx import export_onnx, onnx_runner
from sartor.deploy.parity import ExportError, compare, evaluating, outputs, require
from sartor.deploy.program import export_pt2, load_pt2, pt2_runner
from sartor.deploy.quantize import quantize_onnx
from toy_networks import SmallNet, noise
from trained_digits import CLASSES, digit_images, trained_on


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    return digit_images()


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> nn.Module:
    return trained_on(*digits)


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
        with pytest.raises(ExportError, match=r"fails on|refuses the network"):
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


def test_layers_with_equal_biases_are_quantised_like_others(tmp_path: Path) -> None:
    """Those of fresh networks are all zero and are exported once; their latency is taken for that of trained ones."""
    found = []
    for name, spread in (("fresh", 0.0), ("trained", 0.1)):
        torch.manual_seed(0)
        net = nn.Sequential(*(nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1) for i in range(4))).eval()
        for parameter in net.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, std=spread)
        export_onnx(net, noise(1), tmp_path / f"{name}.onnx")
        quantize_onnx(tmp_path / f"{name}.onnx", [noise(8)], tmp_path / f"{name}.int8.onnx")
        found.append(sorted(nodes(tmp_path / f"{name}.int8.onnx")))
    assert found[0] == found[1]


def test_what_cannot_be_quantised(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello " * 50)
    with pytest.raises(ExportError, match=r"text\.onnx cannot be quantised"):
        quantize_onnx(tmp_path / "text.onnx", [noise(4)], tmp_path / "out.onnx")
    export_onnx(SmallNet(), noise(1), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="there are none"):
        quantize_onnx(tmp_path / "model.onnx", [], tmp_path / "out.onnx")


def test_what_a_killed_quantisation_left_is_cleared(tmp_path: Path, digits: tuple[Tensor, Tensor]) -> None:
    export_onnx(SmallNet(), noise(1), tmp_path / "model.onnx")
    leftover = tmp_path / ".model.int8.onnx.partial"
    leftover.mkdir()
    (leftover / "inferred.onnx").write_bytes(b"half")
    quantize_onnx(tmp_path / "model.onnx", [digits[0][:32]], tmp_path / "model.int8.onnx")
    assert sorted(os.listdir(tmp_path)) == ["model.int8.onnx", "model.onnx"]


def test_the_tolerance_is_stated() -> None:
    assert parity.TOLERANCE == 1e-4
