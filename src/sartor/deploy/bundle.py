# SPDX-License-Identifier: Apache-2.0
"""A network as a folder that stands alone: weights, programs, preprocessing, and how to use them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
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
from sartor.deploy.usage import INT8, script

__all__ = ["Bundle", "is_complete", "state_bytes", "write_bundle"]

FILES = (
    "architecture.json", "weights.safetensors", "model.pt2", "model.onnx", "preprocessing.json", "use.py",
)  # fmt: skip
MARKER = "preprocessing.json"  # the first to go and the last to come where a bundle is replaced
LEFT = ".*.partial"  # what a target was making in the folder when it was killed


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
    if not all((folder / name).is_file() for name in _names(int8)):
        return False
    try:
        told = json.loads((folder / MARKER).read_bytes())
    except ValueError:
        return False
    return "tokenizer" not in told or (folder / str(told["tokenizer"])).is_file()


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
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> Bundle:
    """Write `net` with all that its use takes into `folder`, wholly or not at all.

    The files are made in a hidden folder beside it, compared with torch on real inputs `samples` (N, C, H, W), or token
    ids (N, T), and moved at the end; `weights.safetensors`, if there is one, can be read at every instant. A complete
    bundle with the same weights is kept and compared again. Other files in `folder` are left alone, but for temporary
    ones of a killed export. The size in `preprocessing` (mode, channels, height, width, mean, std, scale)
    follows `example`, for the resolution may have been searched; so does the `length` of sequences. `calibration` is
    batches of training data, `files` what else the use takes, such as a tokenizer. A language model has no `classes`.

    Raises:
        ExportError: a network that cannot be exported, or a file that differs from torch.
        ValueError: no samples, a class count that does not fit, or a folder of another architecture.
        OSError: the disk is full or not writable; `folder` is as it was.
    """
    _check(folder, arch, samples, classes)
    _sweep(folder)
    reference, weights = outputs(net, samples), state_bytes(net)
    if classes and reference.shape != (len(samples), len(classes)):
        raise ValueError(f"outputs of shape {reference.shape} do not fit {len(classes)} class names")
    if is_complete(folder, int8=int8) and (folder / "weights.safetensors").read_bytes() == weights:
        with contextlib.suppress(ExportError):  # a damaged file is written again
            return Bundle(folder, _paths(folder, int8, files), _parity(folder, int8, reference, samples))
    sizes = {"length": example.shape[1]}
    if example.is_floating_point():
        sizes = dict(zip(("height", "width"), example.shape[-2:], strict=True))
    told = {**preprocessing, **sizes, "classes": [*classes]}
    with _beside(folder) as partial:
        write_bytes(partial / "weights.safetensors", weights)
        _describe(partial, arch, told, int8)
        export_pt2(net, example, partial / "model.pt2")
        export_onnx(net, example, partial / "model.onnx")
        if int8:
            quantize_onnx(partial / "model.onnx", calibration, partial / INT8)
        for name, content in files.items():
            write_bytes(partial / name, content)
        parity = _parity(partial, int8, reference, samples)
        _move(partial, folder, (*files, *_names(int8)))
    return Bundle(folder, _paths(folder, int8, files), parity)


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
    """Write what is no network."""
    write_bytes(folder / "architecture.json", (arch.to_json() + "\n").encode())
    write_json(folder / MARKER, preprocessing)
    write_bytes(folder / "use.py", script(preprocessing, int8).encode())


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


def _paths(folder: Path, int8: bool, more: Iterable[str]) -> tuple[Path, ...]:
    return tuple(folder / name for name in (*_names(int8), *more))


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


def _move(partial: Path, folder: Path, names: Sequence[str]) -> None:
    """Put the finished files in their place: the folder at once, or file by file into one that is there.

    Then the marker goes first and comes last, so that the folder is incomplete meanwhile. The weights are there
    throughout, old or new: a run that is resumed makes the bundle again from them.
    """
    if not folder.exists():
        os.rename(partial, folder)
        return
    (folder / MARKER).unlink(missing_ok=True)
    for name in sorted(names, key=MARKER.__eq__):
        os.replace(partial / name, folder / name)
