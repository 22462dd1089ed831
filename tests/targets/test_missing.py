# SPDX-License-Identifier: Apache-2.0
"""A runtime that is not installed is one line that names the extra."""

from __future__ import annotations

import builtins
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sartor.targets import load_target
from toy_networks import SmallNet, noise

LIBRARY = {
    "onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "openvino"), "ncnn": ("ncnn", "ncnn"),
    "mnn": ("MNN", "mnn"), "executorch": ("executorch", "executorch"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIBRARY)
def test_the_extra_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, extra = LIBRARY[name]
    real = builtins.__import__

    def absent(wanted: str, *args: Any, **named: Any) -> Any:
        if wanted.partition(".")[0] == library:
            raise ImportError(f"No module named {library!r}")
        return real(wanted, *args, **named)

    def nowhere(wanted: str) -> Any:
        raise ImportError(f"No module named {wanted!r}")

    target = load_target(name)
    monkeypatch.setattr(builtins, "__import__", absent)
    if name == "executorch":
        monkeypatch.setattr("sartor.targets.executorch.importlib.import_module", nowhere)
    with pytest.raises(ImportError, match=rf"missing.*pip install 'sartor\[{extra}\]'") as caught:
        target.fingerprint()
    assert "\n" not in str(caught.value)
    with pytest.raises(ImportError, match="missing"):
        target.measure([])
    if name in ("openvino", "mnn", "executorch"):
        with pytest.raises(ImportError, match="missing"):
            target.prepare(SmallNet(), (noise(1),), [], tmp_path)


def test_the_converter_of_ncnn_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ncnn")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pnnx.* is missing: pip install 'sartor\[ncnn\]'"):
        load_target("ncnn").fingerprint()
