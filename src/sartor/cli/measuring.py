# SPDX-License-Identifier: Apache-2.0
"""`sartor measure`: which files to time, and timing them together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sartor.protocols import Artefact, Measurement, Target

SECONDS = 5.0
"""Time for each file; many short rounds tell more than a few."""


def measured(models: Sequence[Path], *, target: str, threads: int) -> tuple[dict[str, Measurement], tuple[str, ...]]:
    """Measure .onnx files, and the exported networks of run folders, in interleaved rounds.

    Returns:
        The measurements by the name to show, and one complaint for each file that the target refuses.

    Raises:
        FileNotFoundError: a model does not exist.
        ValueError: a model is neither file nor run, or the target cannot take it.
    """
    from sartor.targets import load_target

    for model in models:
        if not model.exists():
            raise FileNotFoundError(f"{model}: no such file or run folder")
        if model.is_file() and model.suffix != ".onnx":
            raise ValueError(f"{model} is no .onnx file; give one, or a run folder")
    kind = load_target(target, threads=threads)
    file_name = getattr(kind, "file_name", None)
    if not isinstance(file_name, str):
        raise ValueError(f"target {target!r} does not say which file it runs; give its class a file_name")
    artefacts: dict[str, Artefact] = {}
    for model in models:
        artefacts |= _of_file(model, file_name) if model.is_file() else _of_run(model, file_name)
    return _attempted(artefacts, _timer(kind, threads))


def _of_file(path: Path, file_name: str) -> dict[str, Artefact]:
    from sartor.protocols import Artefact

    if not file_name.endswith(".onnx"):
        raise ValueError(f"{path}: this target runs files like {file_name}; give a run folder")
    return {str(path): Artefact(path, (), (path,))}


def _of_run(run: Path, file_name: str) -> dict[str, Artefact]:
    """Return the exported networks of a run: the front and the baselines, not those still being written."""
    from sartor.protocols import Artefact

    if not (run / "run.json").is_file():
        raise ValueError(f"{run} is no run folder (a search writes run.json into it)")
    folders = [path for part in ("pareto", "baselines") for path in sorted(run.glob(f"{part}/[!.]*"))]
    found = {
        str(folder): Artefact(folder / file_name, _input_shape(folder, file_name), (folder / file_name,))
        for folder in folders
        if (folder / file_name).is_file()
    }
    if not found:
        raise ValueError(f"{run} holds no exported network with a {file_name}")
    return found


def _input_shape(folder: Path, file_name: str) -> tuple[int, ...]:
    if file_name.endswith(".onnx"):
        return ()  # such a file describes its inputs
    path = folder / "preprocessing.json"
    try:
        size = json.loads(path.read_bytes())
        return (1, int(size["channels"]), int(size["height"]), int(size["width"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} does not say the size of the input ({error})") from None


def _timer(kind: Target, threads: int) -> Callable[[Sequence[Artefact]], list[Measurement]]:
    """Return what times artefacts; ONNX Runtime takes files from anywhere, whose inputs they describe."""
    from sartor.targets.measure import measure_onnx
    from sartor.targets.onnxruntime import OnnxRuntimeTarget

    if not isinstance(kind, OnnxRuntimeTarget):
        return kind.measure
    time = partial(measure_onnx, threads=threads, seconds=SECONDS)
    return lambda artefacts: time([artefact.path for artefact in artefacts])


def _attempted(
    artefacts: dict[str, Artefact], time: Callable[[Sequence[Artefact]], list[Measurement]]
) -> tuple[dict[str, Measurement], tuple[str, ...]]:
    from sartor.targets.artefacts import TargetError

    complaints: tuple[str, ...] = ()
    results: Sequence[Measurement | None]
    try:
        results = time([*artefacts.values()])
    except TargetError as error:
        results, complaints = error.measurements, tuple(error.reasons.values()) or (str(error),)
    return {name: one for name, one in zip(artefacts, results, strict=False) if one is not None}, complaints
