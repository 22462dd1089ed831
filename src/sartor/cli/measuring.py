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
        artefacts |= _of_file(model, file_name) if model.is_file() else _of_run(model, kind.name, file_name)
    return _attempted(artefacts, _timer(kind, threads))


def _reads_onnx(file_name: str) -> bool:
    """Whether a target runs ONNX files, its own kind aside: OpenVINO reads both."""
    return file_name.endswith((".onnx", ".xml"))


def _of_file(path: Path, file_name: str) -> dict[str, Artefact]:
    from sartor.protocols import Artefact

    if not _reads_onnx(file_name):
        raise ValueError(f"{path}: this target runs files like {file_name}; give a run folder")
    return {str(path): Artefact(path, _input_of(path), (path,))}


def _of_run(run: Path, target: str, file_name: str) -> dict[str, Artefact]:
    """Return the exported networks of a run: the front and the baselines, not those still being written.

    A network that was searched for another target is taken as the ONNX file of the same precision, where there is one
    that the target reads.
    """
    if not (run / "run.json").is_file():
        raise ValueError(f"{run} is no run folder (a search writes run.json into it)")
    folders = [path for part in ("pareto", "baselines") for path in sorted(run.glob(f"{part}/[!.]*"))]
    found = {str(folder): one for folder in folders if (one := _exported(folder, target, file_name)) is not None}
    if not found:
        raise ValueError(f"{run} holds no exported network with a {file_name}")
    return found


def _exported(folder: Path, target: str, file_name: str) -> Artefact | None:
    """Return what a target runs of one network; None where it has nothing for it."""
    from sartor.protocols import Artefact

    try:
        one = json.loads((folder / "export.json").read_bytes())["artefacts"][target]
        files = tuple(folder / str(name) for name in one["files"])
        return Artefact(
            folder / str(one["file"]), tuple(map(int, one["input_shape"])), files, int(one.get("ids_below", 0))
        )
    except (OSError, ValueError, LookupError, TypeError):  # not exported for it, or no longer described
        pass
    names = [file_name, *([Path(file_name).with_suffix(".onnx").name] if _reads_onnx(file_name) else [])]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        return None
    if ids := _ids_of(folder):
        return Artefact(path, ids[0], (path,), ids[1])
    shape = _input_of(path) if path.suffix == ".onnx" else _told_input(folder)
    return Artefact(path, shape, (path,))


def _ids_of(folder: Path) -> tuple[tuple[int, ...], int] | None:
    """The shape of the token ids of a network of text, and what they are below, as it was exported for another target.

    None for networks of images.
    """
    try:
        found = json.loads((folder / "export.json").read_bytes())["artefacts"].values()
        return next(
            ((tuple(map(int, one["input_shape"])), int(one["ids_below"])) for one in found if one.get("ids_below")),
            None,
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _told_input(folder: Path) -> tuple[int, ...]:
    path = folder / "preprocessing.json"
    try:
        size = json.loads(path.read_bytes())
        return (1, int(size["channels"]), int(size["height"]), int(size["width"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} does not say the size of the input ({error})") from None


def _input_of(path: Path) -> tuple[int, ...]:
    """Return the shape of the first input of an ONNX file, 1 for what it leaves open; () for what is no model."""
    try:
        import onnx

        graph = onnx.load(path, load_external_data=False).graph
        dimensions = graph.input[0].type.tensor_type.shape.dim
        return tuple(max(1, int(dimension.dim_value)) for dimension in dimensions)
    except ImportError:
        raise ImportError("reading ONNX files needs onnx: pip install 'sartor[onnx]'") from None
    except Exception:  # the runtime says why when it opens the file
        return ()


def _timer(kind: Target, threads: int) -> Callable[[Sequence[Artefact]], list[Measurement]]:
    """Return what times artefacts; ONNX Runtime here takes files from anywhere, with any inputs but token ids."""
    from sartor.targets.measure import measure_onnx
    from sartor.targets.onnxruntime import OnnxRuntimeTarget

    if not isinstance(kind, OnnxRuntimeTarget) or kind.device != "cpu":
        return kind.measure
    time = partial(measure_onnx, threads=threads, seconds=SECONDS)

    def measured(artefacts: Sequence[Artefact]) -> list[Measurement]:
        if any(one.ids_below for one in artefacts):
            return list(kind.measure(artefacts))
        return time([one.path for one in artefacts])

    return measured


def _attempted(
    artefacts: dict[str, Artefact], time: Callable[[Sequence[Artefact]], list[Measurement]]
) -> tuple[dict[str, Measurement], tuple[str, ...]]:
    from sartor.targets.artefacts import TargetError

    complaints: tuple[str, ...] = ()
    results: Sequence[Measurement | None]
    try:
        results = time([*artefacts.values()])
    except TargetError as error:
        results, complaints = error.measurements, tuple(error.reasons.values())
        if not any(results):  # the device itself, rather than one network
            complaints = (str(error),)
    return {name: one for name, one in zip(artefacts, results, strict=False) if one is not None}, complaints
