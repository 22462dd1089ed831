# SPDX-License-Identifier: Apache-2.0
"""A network as a folder that stands alone: weights, programs, preprocessing, and how to use them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.atomic import write_bytes, write_json
from sartor.deploy.onnx import export_onnx, onnx_runner
from sartor.deploy.parity import ExportError, Parity, compare, outputs, require
from sartor.deploy.program import export_pt2, pt2_runner
from sartor.deploy.quantize import quantize_onnx
from sartor.deploy.scratch import scratch_beside, scratch_path

__all__ = ["Bundle", "is_complete", "state_bytes", "write_bundle"]

FILES = (
    "architecture.json", "weights.safetensors", "model.pt2", "model.onnx", "preprocessing.json", "use.py",
)  # fmt: skip
INT8 = "model.int8.onnx"
MARKER = "preprocessing.json"  # the first to go and the last to come where a bundle is replaced
LEFT = ".*.partial"  # what a target was making in the folder when it was killed

_USE = '''"""Classify {what} with ONNX Runtime, or PyTorch alone: python use.py [--torch] {file}"""

import json, sys
from pathlib import Path
import numpy as np
{imports}
if sys.argv[-1].startswith("--") or len(sys.argv) < 2:
    sys.exit(__doc__)
if not Path(sys.argv[-1]).is_file():
    sys.exit(sys.argv[-1] + ": no such file")
here = Path(__file__).resolve().parent
p = json.loads((here / "preprocessing.json").read_text(encoding="utf-8"))
{pixels}
scale, mean, std = (np.float32(p[name]).reshape(-1, 1, 1) for name in ("scale", "mean", "std"))
x = ((pixels / scale - mean) / std)[None]
if "--torch" in sys.argv:
    import torch
    scores = torch.export.load(here / "model.pt2").module()(torch.from_numpy(x)).detach().numpy()
else:
    import onnxruntime
    scores = onnxruntime.InferenceSession({model}).run(None, {{"input": x}})[0]
print(p["classes"][scores[0].argmax()])
'''
_MODEL = 'here / "model.onnx"'
_INT8_MODEL = f'next(here.glob("{INT8}"), {_MODEL})'  # the file that was measured
_IMAGE = {
    "what": "an image",
    "file": "IMAGE",
    "imports": "from PIL import Image\n",
    "pixels": """image = Image.open(sys.argv[-1]).convert(p["mode"])
image = image.resize((p["width"], p["height"]), Image.Resampling.BILINEAR)
pixels = np.asarray(image, np.float32).reshape(p["height"], p["width"], -1).transpose(2, 0, 1)""",
}
_ARRAY = {
    "what": "an array (channels, height, width)",
    "file": "ARRAY.npy",
    "imports": "",
    "pixels": "pixels = np.load(sys.argv[-1]).astype(np.float32)",
}


@dataclass(frozen=True)
class Bundle:
    """A folder written by `write_bundle`, and how far each of its programs is from torch by file name.

    The parity of ``model.int8.onnx`` is told, not required: what int8 costs is for the test split to say.
    """

    folder: Path
    files: tuple[Path, ...]
    parity: Mapping[str, Parity]


def is_complete(folder: Path, *, int8: bool = False) -> bool:
    """Tell whether `folder` holds a whole bundle, int8 model included where it is asked for."""
    return all((folder / name).is_file() for name in _names(int8))


def write_bundle(
    folder: Path,
    *,
    net: nn.Module,
    arch: Architecture,
    example: Tensor,
    samples: Tensor,
    preprocessing: Mapping[str, Any],
    classes: Sequence[str],
    int8: bool = False,
    calibration: Sequence[Tensor] = (),
) -> Bundle:
    """Write `net` with all that its use takes into `folder`, wholly or not at all.

    The files are made in a hidden folder beside it, compared with torch on real inputs `samples` (N, C, H, W)
    and moved at the end; `weights.safetensors`, if there is one, can be read at every instant. A complete bundle
    with the same weights is kept and compared again. Other files in `folder` are left alone, but for temporary
    ones of a killed export. The size in `preprocessing` (mode, channels, height, width, mean, std, scale)
    follows `example`, for the resolution may have been searched; `calibration` is batches of training data.

    Raises:
        ExportError: a network that cannot be exported, or a file that differs from torch.
        ValueError: no samples, a class count that does not fit, or a folder of another architecture.
        OSError: the disk is full or not writable; `folder` is as it was.
    """
    _check(folder, arch, samples, classes)
    _sweep(folder)
    reference, weights = outputs(net, samples), state_bytes(net)
    if reference.shape != (len(samples), len(classes)):
        raise ValueError(f"outputs of shape {reference.shape} do not fit {len(classes)} class names")
    if is_complete(folder, int8=int8) and (folder / "weights.safetensors").read_bytes() == weights:
        with contextlib.suppress(ExportError):  # a damaged file is written again
            return Bundle(folder, _paths(folder, int8), _parity(folder, int8, reference, samples))
    height, width = example.shape[-2:]
    told = {**preprocessing, "height": height, "width": width, "classes": [*classes]}
    with _beside(folder) as partial:
        write_bytes(partial / "weights.safetensors", weights)
        _describe(partial, arch, told, int8)
        export_pt2(net, example, partial / "model.pt2")
        export_onnx(net, example, partial / "model.onnx")
        if int8:
            quantize_onnx(partial / "model.onnx", calibration, partial / INT8)
        parity = _parity(partial, int8, reference, samples)
        _move(partial, folder, int8)
    return Bundle(folder, _paths(folder, int8), parity)


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Give the scratch folder of a bundle; OSErrors name the bundle."""
    try:
        with scratch_beside(folder) as partial:
            yield partial
    except OSError as error:
        raise OSError(error.errno, f"cannot write the bundle {folder}: {error.strerror or error}") from error


def _sweep(folder: Path) -> None:
    """Remove what a kill left in `folder` and beside it, so that it never ships."""
    for left in (*folder.glob(LEFT), scratch_path(folder)):
        shutil.rmtree(left, ignore_errors=True)


def _describe(folder: Path, arch: Architecture, preprocessing: Mapping[str, Any], int8: bool) -> None:
    """Write what is no network; the script reads image files, or arrays where the input is no image."""
    write_bytes(folder / "architecture.json", (arch.to_json() + "\n").encode())
    write_json(folder / MARKER, preprocessing)
    parts = _ARRAY if preprocessing["mode"] == "tensor" else _IMAGE
    script = _USE.format(**parts, model=_INT8_MODEL if int8 else _MODEL)
    write_bytes(folder / "use.py", script.encode())


def _check(folder: Path, arch: Architecture, samples: Tensor, classes: Sequence[str]) -> None:
    if not len(samples):
        raise ValueError("parity needs real samples, and there are none: give some of the validation split")
    if len(set(classes)) != len(classes):
        raise ValueError("class names are not unique: a name could not be traced back to its class")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: remove it or choose another folder")
    description = folder / "architecture.json"
    if description.is_file() and Architecture.from_json(description.read_text(encoding="utf-8")) != arch:
        raise ValueError(f"{folder} holds another architecture than {arch.id}: choose another folder")


def _names(int8: bool) -> tuple[str, ...]:
    return (*FILES, INT8) if int8 else FILES


def _paths(folder: Path, int8: bool) -> tuple[Path, ...]:
    return tuple(folder / name for name in _names(int8))


def state_bytes(net: nn.Module) -> bytes:
    """Return the state dict as safetensors; tied weights are written once for each name."""
    state = {name: value.detach().cpu().clone().contiguous() for name, value in net.state_dict().items()}
    return safetensors.torch.save(state)


def _parity(folder: Path, int8: bool, reference: Any, samples: Tensor) -> dict[str, Parity]:
    found = {
        "model.pt2": compare(pt2_runner(folder / "model.pt2"), reference, samples),
        "model.onnx": compare(onnx_runner(folder / "model.onnx"), reference, samples),
    }
    for name, parity in found.items():
        require(parity, str(folder / name))
    if int8:
        found[INT8] = compare(onnx_runner(folder / INT8), reference, samples)
    return found


def _move(partial: Path, folder: Path, int8: bool) -> None:
    """Put the finished files in their place: the folder at once, or file by file into one that is there.

    Then the marker goes first and comes last, so that the folder is incomplete meanwhile. The weights are there
    throughout, old or new: a run that is resumed makes the bundle again from them.
    """
    if not folder.exists():
        os.rename(partial, folder)
        return
    (folder / MARKER).unlink(missing_ok=True)
    for name in sorted(_names(int8), key=MARKER.__eq__):
        os.replace(partial / name, folder / name)
