"""Stage 6: export networks, and measure what is deployed on the targets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.atomic import write_bytes, write_json
from sartor.deploy.bundle import state_bytes, write_bundle
from sartor.deploy.onnx import onnx_runner
from sartor.deploy.parity import ExportError
from sartor.deploy.program import pt2_runner
from sartor.evaluation import predicted, scored
from sartor.nn import resized
from sartor.protocols import Artefact, Measurement, Target
from sartor.recipes.job import Job
from sartor.recipes.profiling import MEASURED, measured_value
from sartor.recipes.searching import Candidates
from sartor.recipes.training import Trained
from sartor.supernet import extract
from sartor.targets.artefacts import TargetError
from sartor.workload import macs, parameters

__all__ = ["Member", "complete_member", "measure_members", "read_member", "runner", "stored_network", "write_member"]

PARITY_SAMPLES = 64


@dataclass(frozen=True)
class Member:
    """An exported network: its folder, its architecture, and the file of it that each target runs, by its name."""

    folder: Path
    arch: Architecture
    artefacts: Mapping[str, Artefact]

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that targets run."""
        return tuple(dict.fromkeys(path for one in self.artefacts.values() for path in one.files))


def write_member(job: Job, folder: Path, arch: Architecture, made: Callable[[], Trained]) -> Member:
    """Prepare the network of `arch` for the targets in `folder`, with its weights; kept where that was done before.

    `made` makes the network when it is needed, and says how. `export.json`, written last, says that the folder is
    whole.
    """
    if not (folder / "export.json").is_file():
        net, trained = made()
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "architecture.json", (arch.to_json() + "\n").encode())
        write_bytes(folder / "weights.safetensors", state_bytes(net))
        net = _stored(job, folder, arch)  # training leaves layouts of its own, which programs for torch would hold
        described, written = {}, dict[Path, bytes]()
        for target in job.targets:
            artefact = target.prepare(net, (job.example(net),), _calibration(job, net), folder)
            now = {path: path.read_bytes() for path in artefact.files}
            if clash := next((path.name for path in now if written.get(path, now[path]) != now[path]), None):
                raise ValueError(f"{target.name} overwrites {clash} of another target: search for them one by one")
            written |= now
            files = [path.relative_to(folder).as_posix() for path in artefact.files]
            shape = list(artefact.input_shape)
            file = artefact.path.relative_to(folder).as_posix()
            ids = {"ids_below": artefact.ids_below} if artefact.ids_below else {}
            described[target.name] = {"file": file, "files": files, "input_shape": shape, **ids}
        write_json(folder / "export.json", {"artefacts": described, "trained": dict(trained)})
    return read_member(folder)


def complete_member(job: Job, member: Member) -> None:
    """Make a whole bundle of a measured network: every format, checked against torch on real samples.

    The file that was measured is written again on the way; ExportError if it is not the same, byte for byte.
    """
    measured = {path: path.read_bytes() for path in member.files}
    net = stored_network(job, member)
    samples, _ = next(iter(job.task.validation.batches(PARITY_SAMPLES)))
    bundle = write_bundle(
        member.folder,
        net=net,
        arch=member.arch,
        example=job.example(net),
        samples=job.fitted(samples, job.example(net).shape),
        preprocessing=job.task.preprocessing.to_dict(),
        files=job.task.preprocessing.files(),
        classes=job.task.classes,
        int8=any(path.name == "model.int8.onnx" for path in member.files),
        calibration=_calibration(job, net),
    )
    changed = [path.name for path, before in measured.items() if path.read_bytes() != before]
    if changed:
        raise ExportError(f"{member.folder}: {', '.join(changed)} exported again is not the file that was measured")
    parity = {name: found.to_dict() for name, found in bundle.parity.items()}
    path = member.folder / "measurement.json"
    record = json.loads(path.read_text())
    for name, entry in record["targets"].items():
        entry["parity"] = parity.get(member.artefacts[name].path.name) if name in member.artefacts else None
    write_json(path, {**record, "parity": parity})


def _calibration(job: Job, net: nn.Module) -> list[Tensor]:
    return [resized(images, net).contiguous() for images in job.calibration]


def read_member(folder: Path) -> Member:
    """The exported network in `folder`."""
    described = json.loads((folder / "export.json").read_text())["artefacts"]
    arch = Architecture.from_json((folder / "architecture.json").read_text())
    artefacts = {
        target: Artefact(
            folder / one["file"],
            tuple(one["input_shape"]),
            tuple(folder / name for name in one["files"]),
            one.get("ids_below", 0),
        )
        for target, one in described.items()
    }
    return Member(folder, arch, artefacts)


def measure_members(
    job: Job, members: Sequence[Member], candidates: Candidates, splits: Sequence[str] = ("validation", "test")
) -> list[Member]:
    """Measure all in interleaved rounds, evaluate the files on `splits`, and write each one's `measurement.json`.

    Returns those that a target ran; it may refuse others, and the rest goes on.
    """
    ran: dict[Path, Member] = {}
    for target in job.targets:
        measured: Sequence[Measurement | None]
        try:
            measured = target.measure([member.artefacts[target.name] for member in members])
        except TargetError as error:
            if not any(error.measurements):  # the device itself failed, no single network
                raise
            measured = error.measurements
            job.say(f"{target.name} refuses {len(error.reasons)} networks: {next(iter(error.reasons.values()))}")
        for member, found in zip(members, measured, strict=True):
            if found is not None:
                ran[member.folder] = member
                predicted = candidates.get(member.arch, {}).get(target.name)
                _write_measurement(job, target, member, found, predicted, splits)
    return [member for member in members if member.folder in ran]


def _write_measurement(
    job: Job, target: Target, member: Member, found: Measurement, predicted_ms: float | None, splits: Sequence[str]
) -> None:
    path = member.folder / "measurement.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    before = known.get("targets", {}).get(target.name, {})
    workload = job.workload(member.arch)
    counted = {"macs": macs(workload), "params": parameters(workload)}
    values = {**counted, **{name: measured_value(found, name) for name in MEASURED}}
    limits = {
        name: {"limit": limit, "value": values[name], "within": bool(values[name] <= limit)}
        for name, limit in job.limits_on(target).items()
    }
    artefact = member.artefacts[target.name]
    trained = json.loads((member.folder / "export.json").read_text())["trained"]
    run = runner(target, artefact)
    entry = {
        "fingerprint": target.fingerprint(),
        "measurement": found.to_dict(),
        "file": artefact.path.relative_to(member.folder).as_posix(),
        "accuracy": {split: file_metric(job, member, target, split, run) for split in splits},
        "accuracy_of": "weights in torch" if run is None else "file",
        "predicted_ms": before.get("predicted_ms") if predicted_ms is None else predicted_ms,
        "limit_ms": job.limits_on(target).get("latency_ms"),
        "limits": limits,
        "within_limit": all(limit["within"] for limit in limits.values()),
    }
    targets = {**known.get("targets", {}), target.name: entry}
    write_json(path, {"targets": targets, **counted, "size_mb": found.size_mb, **trained})


Runner = Callable[[NDArray[Any]], NDArray[Any]]


def runner(target: Target, artefact: Artefact) -> Runner | None:
    """What runs a target's file here: the target itself where it can, else its format; None where nothing does."""
    own: Callable[[Artefact], Runner] | None = getattr(target, "runner", None)
    if own is not None:
        return own(artefact)
    if artefact.path.suffix == ".pt2":
        return pt2_runner(artefact.path)
    return onnx_runner(artefact.path) if artefact.path.suffix == ".onnx" else None


def file_metric(job: Job, member: Member, target: Target, split: str, run: Runner | None) -> float:
    """The metric of the deployed file itself, run on a whole split.

    A file that nothing here can run, as of a target of the user's own, is evaluated by its weights in torch.
    """
    batches = getattr(job.task, split).batches(256)
    if run is None:
        return scored(job.task.metric, predicted(stored_network(job, member), batches))
    shape = member.artefacts[target.name].input_shape
    return scored(job.task.metric, ((torch.from_numpy(run(job.fitted(x, shape).numpy())), y) for x, y in batches))


def stored_network(job: Job, member: Member) -> nn.Module:
    """The network of a member, with the weights in its folder."""
    return _stored(job, member.folder, member.arch)


def _stored(job: Job, folder: Path, arch: Architecture) -> nn.Module:
    network = extract(job.initial, arch).eval()
    network.load_state_dict(load_file(folder / "weights.safetensors"))  # with tied weights under each of their names
    return network
