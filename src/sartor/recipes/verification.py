"""Stage 6: measure what is deployed on the target, and keep and complete what the limits and the front allow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.atomic import write_bytes, write_json
from sartor.deploy.bundle import state_bytes, write_bundle
from sartor.deploy.onnx import onnx_runner
from sartor.deploy.parity import ExportError
from sartor.deploy.program import pt2_runner
from sartor.evaluation import predictions
from sartor.nn import resized
from sartor.nn.resolution import resize
from sartor.objective import Objective, costs
from sartor.pareto import non_dominated_sort
from sartor.protocols import Artefact, Measurement
from sartor.recipes.job import Job
from sartor.recipes.training import Trained
from sartor.supernet import extract
from sartor.targets.artefacts import TargetError
from sartor.trial import Trial
from sartor.workload import macs, parameters

__all__ = [
    "Member",
    "complete_member",
    "exported_front",
    "measure_members",
    "read_entry",
    "read_member",
    "recommend",
    "select_front",
    "worth_verifying",
    "write_member",
]

PARITY_SAMPLES = 64


@dataclass(frozen=True)
class Member:
    """An exported network: its folder, its architecture, and the file of it that the target runs."""

    folder: Path
    arch: Architecture
    artefact: Artefact


def write_member(job: Job, folder: Path, arch: Architecture, made: Callable[[], Trained]) -> Member:
    """Prepare the network of `arch` for the target in `folder`, with its weights; kept where that was done before.

    `made` makes the network when it is needed, and says how. `export.json`, written last, says that the folder is
    whole.
    """
    if not (folder / "export.json").is_file():
        net, trained = made()
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "architecture.json", (arch.to_json() + "\n").encode())
        write_bytes(folder / "weights.safetensors", state_bytes(net))
        artefact = job.target.prepare(net, (job.example(net),), _calibration(job, net), folder)
        files = [path.name for path in artefact.files]
        shape = list(artefact.input_shape)
        described = {"file": artefact.path.name, "files": files, "input_shape": shape}
        write_json(folder / "export.json", {"artefact": described, "trained": dict(trained)})
    return read_member(folder)


def complete_member(job: Job, member: Member) -> None:
    """Make a whole bundle of a measured network: every format, checked against torch on real samples.

    The file that was measured is written again on the way; ExportError if it is not the same, byte for byte.
    """
    measured = {path: path.read_bytes() for path in member.artefact.files}
    net = stored_network(job, member)
    samples, _ = next(iter(job.task.validation.batches(PARITY_SAMPLES)))
    bundle = write_bundle(
        member.folder,
        net=net,
        arch=member.arch,
        example=job.example(net),
        samples=resized(samples, net),
        preprocessing=job.task.preprocessing.to_dict(),
        classes=job.task.classes,
        int8=job.target.name == "onnxruntime:int8",
        calibration=_calibration(job, net),
    )
    changed = [path.name for path, before in measured.items() if path.read_bytes() != before]
    if changed:
        raise ExportError(f"{member.folder}: {', '.join(changed)} exported again is not the file that was measured")
    parity = {name: found.to_dict() for name, found in bundle.parity.items()}
    path = member.folder / "measurement.json"
    record = json.loads(path.read_text())
    record["targets"][job.target.name]["parity"] = parity.get(member.artefact.path.name)
    write_json(path, {**record, "parity": parity})


def _calibration(job: Job, net: nn.Module) -> list[Tensor]:
    return [resized(images, net).contiguous() for images in job.calibration]


def read_member(folder: Path) -> Member:
    """The exported network in `folder`."""
    described = json.loads((folder / "export.json").read_text())["artefact"]
    arch = Architecture.from_json((folder / "architecture.json").read_text())
    files = tuple(folder / name for name in described["files"])
    return Member(folder, arch, Artefact(folder / described["file"], tuple(described["input_shape"]), files))


def measure_members(
    job: Job,
    members: Sequence[Member],
    predicted: Mapping[Architecture, float],
    splits: Sequence[str] = ("validation", "test"),
) -> list[Member]:
    """Measure all in interleaved rounds, evaluate the files on `splits`, and write each one's `measurement.json`.

    Returns those that the target ran; it may refuse others, and the rest goes on.
    """
    artefacts = [member.artefact for member in members]
    measured: Sequence[Measurement | None]
    try:
        measured = job.target.measure(artefacts)
    except TargetError as error:
        if not error.measurements:  # the device itself failed, no single network
            raise
        measured = error.measurements
        job.say(f"{job.target.name} refuses {len(error.reasons)} networks: {next(iter(error.reasons.values()))}")
    ran = [(member, found) for member, found in zip(members, measured, strict=True) if found is not None]
    for member, found in ran:
        _write_measurement(job, member, found, predicted.get(member.arch), splits)
    return [member for member, _ in ran]


def _write_measurement(
    job: Job, member: Member, measurement: Measurement, predicted_ms: float | None, splits: Sequence[str]
) -> None:
    path = member.folder / "measurement.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    before = known.get("targets", {}).get(job.target.name, {})
    workload = job.workload(member.arch)
    values = {
        "latency_ms": measurement.latency_ms,
        "size_bytes": 1e6 * measurement.size_mb,
        "macs": macs(workload),
        "params": parameters(workload),
    }
    limits = {
        name: {"limit": limit, "value": values[name], "within": values[name] <= limit}
        for name, limit in job.limits.items()
    }
    file = member.artefact.path.name
    trained = json.loads((member.folder / "export.json").read_text())["trained"]
    entry = {
        "fingerprint": job.target.fingerprint(),
        "measurement": measurement.to_dict(),
        "file": file,
        "accuracy": {split: file_metric(job, member, split) for split in splits},
        "accuracy_of": "file" if _runs_here(member) else "weights in torch",
        "predicted_ms": before.get("predicted_ms") if predicted_ms is None else predicted_ms,
        "limit_ms": job.limits.get("latency_ms"),
        "limits": limits,
        "within_limit": all(limit["within"] for limit in limits.values()),
    }
    targets = {**known.get("targets", {}), job.target.name: entry}
    write_json(
        path,
        {
            "targets": targets,
            "params": values["params"],
            "macs": values["macs"],
            "size_mb": measurement.size_mb,
            **trained,
        },
    )


def file_metric(job: Job, member: Member, split: str) -> float:
    """The metric of the deployed file itself, run on a whole split.

    A target of the user's own whose file is neither ONNX nor a torch program is evaluated by the weights in torch.
    """
    path, (height, width) = member.artefact.path, member.artefact.input_shape[-2:]
    batches = getattr(job.task, split).batches(256)
    if not _runs_here(member):
        return job.task.metric(*predictions(stored_network(job, member), batches))
    run = pt2_runner(path) if path.suffix == ".pt2" else onnx_runner(path)
    outputs, labels = [], []
    for images, target in batches:
        fitting = images if images.shape[-2:] == (height, width) else resize(images, width)
        outputs.append(torch.from_numpy(run(fitting.numpy())))
        labels.append(target)
    return job.task.metric(torch.cat(outputs), torch.cat(labels))


def _runs_here(member: Member) -> bool:
    return member.artefact.path.suffix in (".pt2", ".onnx")


def stored_network(job: Job, member: Member) -> nn.Module:
    """The network of a member, with the weights in its folder."""
    network = extract(job.network(), member.arch).eval()
    load_model(network, member.folder / "weights.safetensors")
    return network


def read_entry(job: Job, folder: Path) -> dict[str, Any]:
    """What was measured of the network in `folder` on the job's target."""
    return json.loads((folder / "measurement.json").read_text())["targets"][job.target.name]  # type: ignore[no-any-return]


def worth_verifying(trials: Sequence[Trial], goals: Sequence[Objective], count: int) -> list[Trial]:
    """Return `count` trials, from fast to slow: of each of as many bands of latency the one with the least error.

    Shared weights rank networks of one speed; across speeds they flatter the small ones, which leave less to a
    training of their own. So a slower network is taken though the trials show a faster one ahead of it. Bands are
    equal in ratio; where some are empty, the front of what remains fills up, and then the front of what then remains.
    `goals` are the error and the latency, in this order.
    """
    points = np.array([costs(trial, goals) for trial in trials])
    best_first = np.lexsort(points.T[::-1])
    scale = np.log(np.maximum(points[:, 1], 1e-12))
    bands = np.floor(count * (scale - scale.min()) / (np.ptp(scale) or 1.0)).clip(max=count - 1)
    chosen = [int(best_first[0]), int(np.lexsort(points.T)[0])]  # of least error, and the fastest
    for i in best_first:
        if bands[i] not in bands[chosen]:
            chosen.append(int(i))
    behind = [int(i) for layer in non_dominated_sort(points) for i in layer]
    kept = list(dict.fromkeys([*chosen, *behind]))[:count]
    return sorted((trials[i] for i in kept), key=lambda trial: costs(trial, goals)[::-1])


def select_front(job: Job, members: Sequence[Member]) -> list[Path]:
    """Move the verified front to `pareto/`, the rest to `candidates/`; return the front from fast to slow.

    The front is of validation accuracy and measured latency, among the networks within the limits: the test split
    decides nothing.
    """
    entries = {member.folder.name: read_entry(job, member.folder) for member in members}
    within = [name for name, entry in entries.items() if entry["within_limit"]]
    points = np.array(
        [[-entries[n]["accuracy"]["validation"], entries[n]["measurement"]["latency_ms"]] for n in within]
    )
    front = {within[i] for i in non_dominated_sort(points)[0]} if within else set()
    for member in members:
        place = job.path / ("pareto" if member.folder.name in front else "candidates") / member.folder.name
        if place != member.folder:
            place.parent.mkdir(exist_ok=True)
            member.folder.rename(place)
    return [job.path / "pareto" / n for n in sorted(front, key=lambda n: entries[n]["measurement"]["latency_ms"])]


def exported_front(job: Job, members: Sequence[Member]) -> list[Path]:
    """Form the verified front and export it in every format; a network that refuses one leaves its place to others."""
    while True:
        front = select_front(job, members)
        job.say(f"{len(front)} of {len(members)} are on the verified front; exporting every format")
        refused = {folder.name for folder in front if not _completed(job, folder)}
        if not refused:
            return front
        places = [job.path / part / member.folder.name for member in members for part in ("pareto", "candidates")]
        members = [read_member(place) for place in places if place.is_dir() and place.name not in refused]


def _completed(job: Job, folder: Path) -> bool:
    """Whether every format was exported; if not, the network is set aside."""
    try:
        complete_member(job, read_member(folder))
    except ExportError as error:
        job.say(f"{folder.name} is left out: {error}")
        aside = job.path / "candidates" / folder.name
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
        return False
    return True


def recommend(job: Job, front: Sequence[Path]) -> Path | None:
    """Copy the recommended network to `best/` and say why; None when the front is empty.

    With a latency limit that is the network of highest validation accuracy, for the limit says what speed is worth.
    Without one it is the fastest whose accuracy is within one standard error of the highest.
    """
    if not front:
        shutil.rmtree(job.path / "best", ignore_errors=True)  # of an earlier, shorter search
        return None
    entries = {folder: read_entry(job, folder) for folder in front}
    top = max(front, key=lambda folder: entries[folder]["accuracy"]["validation"])
    best, why = top, "it has the highest validation accuracy of all verified networks within the limits"
    if "latency_ms" not in job.limits:
        highest = entries[top]["accuracy"]["validation"]
        error = float(np.sqrt(max(0.0, highest * (1 - highest)) / len(job.task.validation)))
        best = next(f for f in front if entries[f]["accuracy"]["validation"] >= highest - error)
        why = (
            f"it is the fastest verified network whose validation accuracy is within one standard error "
            f"({100 * error:.2f} points) of the highest, {100 * highest:.2f} %"
        )
    accuracy, measured = entries[best]["accuracy"], entries[best]["measurement"]
    text = (
        f"{best.name} is recommended: {why}. Validation {job.task.metric_name} {100 * accuracy['validation']:.2f} %, "
        f"measured median latency {measured['latency_ms']:.4g} ms on {job.target.name}.\n"
    )
    partial = job.path / ".best.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(best, partial)
    write_bytes(partial / "why.txt", text.encode())
    shutil.rmtree(job.path / "best", ignore_errors=True)
    partial.rename(job.path / "best")
    return best
