# SPDX-License-Identifier: Apache-2.0
"""Measuring ONNX files that came from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.deploy.onnx import open_session
from sartor.protocols import Artefact, Measurement
from sartor.targets.artefacts import measure_artefacts
from sartor.targets.onnxruntime import OnnxRuntimeTarget

__all__ = ["measure_onnx"]

_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}

Shapes = Mapping[str, Sequence[int]]


def measure_onnx(
    paths: Sequence[str | Path], *, threads: int = 1, seconds: float = 5.0, seed: int = 0,
    shapes: Shapes | None = None,
) -> list[Measurement]:  # fmt: skip
    """Measure the ONNX files `paths` together with ONNX Runtime; one Measurement per file, in order.

    Inputs are normal noise; dimensions that a model leaves open are 1 unless `shapes` gives the shape of that
    input by name. The rounds take at most `seconds` per file. Weights kept beside a file count in its size.

    Raises:
        TargetError: after the other files were measured, for a file that is missing, is no ONNX, lacks its
            external data, has an operator that the runtime does not know or an input that is not float.
    """
    artefacts = [Artefact(path, (), (path, *_external(path))) for path in map(Path, paths)]
    target = {**OnnxRuntimeTarget(threads=threads).fingerprint(), "dtype": "as in the file"}
    fed: dict[Path, str] = {}

    def load(artefact: Artefact) -> Callable[[], object]:
        session = open_session(artefact.path, threads=threads)
        rng = np.random.default_rng(0)
        feed = {given.name: _noise(given, shapes or {}, rng) for given in session.get_inputs()}
        fed[artefact.path] = " ".join("x".join(map(str, array.shape)) for array in feed.values())
        return lambda: session.run(None, feed)

    def fingerprint(artefact: Artefact) -> Mapping[str, str]:
        batch, _, shape = fed[artefact.path].partition("x")
        return {**target, "batch": batch, "shape": shape}

    return measure_artefacts(artefacts, load, threads=threads, seconds=seconds, seed=seed, fingerprint=fingerprint)


def _noise(given: Any, shapes: Shapes, rng: np.random.Generator) -> NDArray[Any]:
    """Return noise for one input of a session."""
    if given.type not in _FLOATS:
        allowed = ", ".join(_FLOATS)
        raise ValueError(f"input {given.name!r} is {given.type}: only {allowed} can be filled with noise")
    own = [size if isinstance(size, int) and size > 0 else None for size in given.shape]
    shape = [size or 1 for size in own]
    if given.name in shapes:
        shape = list(shapes[given.name])
        fits = len(shape) == len(own) and all(a in (None, b) for a, b in zip(own, shape, strict=False))
        if not fits or min(shape, default=1) < 1:
            raise ValueError(f"{tuple(shape)} does not fit input {given.name!r} of shape {given.shape}")
    return np.asarray(rng.standard_normal(shape), dtype=_FLOATS[given.type])


def _external(path: Path) -> list[Path]:
    """Return the files beside `path` that hold weights of the model; [] for what is no model."""
    try:
        import onnx

        model = onnx.load(path, load_external_data=False)
    except Exception:  # the runtime gives the reason when it opens the file
        return []
    entries = [e for tensor in model.graph.initializer for e in tensor.external_data]
    names = {entry.value for entry in entries if entry.key == "location"}
    return sorted(path.parent / name for name in names if (path.parent / name).is_file())
