"""From data, a device and a limit to a verified, exported Pareto set.

The stages, each of which leaves files behind, from which a run that is resumed goes on:

1. profile: measure a few networks on each target; predict the latency of the others.
2. plan: turn the budget into counts of steps and trials; again after the search, for what is left.
3. train: shared weights of all sub-networks (BigNAS, or a differentiable method), or those of an earlier run.
4. search: validation error with shared weights against predicted latency.
5. baselines: hand-made networks, trained from scratch on the same batches.
6. verify: export the fronts and the baselines, measure the files together, keep what the limits allow.
7. report.
"""

from __future__ import annotations

import pickle
import shutil
import time
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sartor import names, own
from sartor.architecture import Architecture
from sartor.data.read import absolute_source
from sartor.deploy.parity import ExportError
from sartor.limits import Form
from sartor.recipes.asked import check_ladder, check_limits, check_method, check_weights, load_targets
from sartor.recipes.decoding import measure_decoding
from sartor.recipes.expected import expected_cost
from sartor.recipes.fronts import exported_front, read_entries, recommend, write_verdicts
from sartor.recipes.job import COUNTED, Job, Say
from sartor.recipes.methods import BIGNAS
from sartor.recipes.planning import more_trials, plan, plan_alone
from sartor.recipes.pretrained import method_for, task_for
from sartor.recipes.profiling import drift, profile
from sartor.recipes.record import new_record, silent
from sartor.recipes.searching import Candidates, nearer, search_trials
from sartor.recipes.training import Shared, Trained, check_fits, scratch_network, train, trained_alone
from sartor.recipes.verification import Member, measure_members, read_member, write_member
from sartor.report import write_report
from sartor.run import Run
from sartor.targets.artefacts import TargetError
from sartor.task import Task

__all__ = ["finish", "search_for_device"]

LONG_S = 30.0  # a training after which the speed of the targets is looked at again


def search_for_device(
    data: str | Path | Task,
    *,
    target: str | Sequence[str] = "onnxruntime",
    out: str | Path,
    limits: Mapping[str, float] | None = None,
    limit_as: Form = "hard",
    budget_s: float | None = 180.0,
    steps: int | None = None,
    trials: int | None = None,
    space: str = "mobilenet",
    method: str | None = None,
    strategy: str = "auto",
    retrain: bool | None = None,
    cost_weight: float | None = None,
    seed: int = 0,
    threads: int = 1,
    trial_timeout_s: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    length: int | None = None,
    batch: int = 1,
    elastic: Mapping[str, Sequence[Any]] | None = None,
    uniform: Sequence[str] = (),
    baselines: bool = True,
    weights: str | Path | None = None,
    ladder: Mapping[str, Sequence[float]] | None = None,
    costs: str | Path | None = None,
    force: bool = False,
    on_progress: Say | None = None,
) -> Run:
    """Search networks for `data` on `target` within `limits`; the returned run names the folder with the results.

    Args:
        data: what `load_task` takes, or a `Task`.
        target: a name of `sartor list targets`, or `path.py:Class`; or several, each of which gets a front.
        out: the run folder; it must be new, or hold a run and `force` be given.
        limits: any of latency_ms, energy_mj, memory_mb, size_bytes, macs, params: of each target, or with `@` and the
            name of a target, as in ``latency_ms@openvino:int8``, of that one.
        limit_as: how the search takes limits, see `sartor.limits`; the verdict is measured and the same for all.
        budget_s: wall-clock seconds for everything. It is turned into counts of work: of steps and trials before
            training, of the steps that networks train by themselves after the search.
        steps, trials: those counts themselves, together and instead of a budget, for runs that repeat exactly.
        space, strategy: a name of `sartor list`, or `path.py:Class`; for a space also `hf:` and a folder or an id of a
            pretrained network, which is then fine-tuned.
        method: what trains the shared weights: "bignas", "instatune" for a pretrained network and "llama_nas" for a
            language model (what None stands for), or their like, after which the strategy searches; or a method of
            differentiable search, of `sartor list methods` or `path.py:Class`, whose read-out and distribution are
            searched unless a strategy is named.
        retrain: train networks that a differentiable method found from scratch, in the evaluation form of the space
            if it has one; False: fine-tune them from the shared weights; None: retrain where there is such a form.
        cost_weight: factor of the strength, or of the exponent, with which the limits of the first target join the
            loss of a differentiable method; 0 leaves them out. None is 1, and without a limit the method's own way.
        seed: of splits, weights, batches and search.
        threads: of the target's runtime.
        image_size: what images of unequal size are resized to, see `load_task`.
        length: tokens of a sequence of text, 64 if None.
        batch: samples of an inference, of which latencies are measured.
        elastic, uniform: of a pretrained network, the options by role, and the roles that are the same in all blocks;
            see `sartor.adapt.elastic`. Its defaults, if nothing is said.
        baselines: also train the hand-made networks from scratch, at equal cost, to compare with; about a third of
            the budget goes there.
        weights: an earlier run on the same space and classes, whose shared weights are taken instead of training.
            `steps` are then those that each network trains by itself, and there are no baselines, as they would cost
            as much as that training did.
        ladder: several latency limits in milliseconds, each of which gets the best network that meets it: of all
            targets at the key "", of one at its name. `specialised.json` has the verdicts.
        costs: a file that `sartor profile` wrote for the targets and the space: its predictions are used, and few
            networks are measured, for the speed of today.
        trial_timeout_s: a candidate that takes longer fails, and the search goes on.
        force: replace the run in `out`.
        on_progress: called with a line at each stage.

    Raises ValueError for what cannot be used, LimitError (a ValueError) before training when no network can meet
    the latency limit, FileExistsError when `out` is taken.
    """
    if (steps is None) != (trials is None) or (steps is None and budget_s is None):
        raise ValueError("give a budget_s, or both steps and trials")
    asked = (target,) if isinstance(target, str) else tuple(target)
    started = time.monotonic()
    devices = load_targets(asked, threads=threads)
    check_limits(limits or {}, [device.name for device in devices], limit_as)
    check_ladder(ladder or {}, limits or {}, [device.name for device in devices])
    names.check("spaces", space)
    names.check("strategies", strategy)
    method = method_for(space, data, BIGNAS) if method is None else method
    task = data if isinstance(data, Task) else task_for(data, space, seed=seed, image_size=image_size, length=length)
    check_method(method, space, retrain=retrain, cost_weight=cost_weight, weights=weights is not None)
    arguments = {
        "data": task.name if isinstance(data, Task) else absolute_source(str(data)), "given": isinstance(data, Task),
        "target": [own.absolute(one) for one in asked], "limits": dict(limits or {}), "limit_as": limit_as,
        "weights": str(Path(weights).resolve()) if weights else None,
        "costs": str(Path(costs).resolve()) if costs else None, "budget_s": budget_s if steps is None else None,
        "ladder": {name: sorted(values) for name, values in (ladder or {}).items()},
        "steps": steps, "trials": trials, "space": own.absolute(space), "method": own.absolute(method),
        "retrain": retrain, "cost_weight": cost_weight, "strategy": own.absolute(strategy),
        "seed": seed, "threads": threads, "trial_timeout_s": trial_timeout_s, "image_size": image_size,
        "length": length, "batch": batch, "uniform": list(uniform),
        "elastic": {role: list(them) for role, them in (elastic or {}).items()},
        "baselines": baselines and weights is None,
    }  # fmt: skip
    record = new_record(arguments, task, devices)
    if trial_timeout_s is not None:
        _check_portable(task)
    if weights is not None:
        check_weights(Path(weights), record, Path(out))
    if costs is not None and not Path(costs).is_file():
        raise FileNotFoundError(f"{costs}: no such file; `sartor profile` writes one")
    run = Run.create(out, record, force=force)
    try:
        return finish(Job(run, task, devices, on_progress or silent), started)
    except ValueError:
        if "plan" not in run.record:  # refused before there was any work: the folder is free for the right command
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def finish(job: Job, started: float, more_s: float | None = None) -> Run:
    """Run the stages that are not finished; the run stays open for the caller, and is closed by an error."""
    threads = torch.get_num_threads()
    try:
        if more_s is not None:
            _extend(job, more_s)
        for warning in job.task.warnings:
            job.say(f"warning: {warning}")
        if "space" not in job.run.record:
            if job.reads_out:
                check_fits(job)
            _record_space(job)
        if "profile" not in job.run.stages:
            with job.run.stage("profile"):
                profile(job)
                if job.reads_out:
                    expected_cost(job, aloud=True)
        if "plan" not in job.run.record:
            asked = {name: job.arguments[name] for name in ("budget_s", "steps", "trials")}
            with job.run.stage("plan"):
                planned = plan(job, spent_s=time.monotonic() - started, **asked)
            job.run.update({"plan": planned})
        _work(job, started)
    except BaseException:
        job.run.close()
        raise
    finally:
        torch.set_num_threads(threads)
    return job.run


def _work(job: Job, started: float) -> None:
    """Stages 3 to 7; training and search continue where they stopped.

    When they are finished they cost little: the weights are read, and the strategy is told its trials again.
    """
    job.use_threads()
    if "verify" not in job.run.stages:
        if not job.arguments.get("weights"):
            what = f"searching by {job.method}" if job.reads_out else "training shared weights"
            job.say(f"{what}: {job.plan['steps']} steps")
        with job.run.stage("train"):
            shared = train(job)
        if "drift" not in job.run.record and job.run.stages["train"] > LONG_S:
            with job.run.stage("drift"):
                now = drift(job)
            job.run.update({"drift": now})
        job.say(f"searching: {job.plan['trials']} trials")
        with job.run.stage("search"):
            candidates = search_trials(job, shared)
        if "finetune_steps" not in job.plan:
            spent_s = max(time.monotonic() - started, job.run.spent_s)
            job.run.update({"plan": plan_alone(job, candidates, spent_s=spent_s)})
        with job.run.stage("baselines"):
            baselines = _baselines(job)
        job.say(f"verifying {len(candidates)} networks on {' and '.join(target.name for target in job.targets)}")
        with job.run.stage("verify"):
            _verify(job, shared, candidates, baselines)
    if "report" not in job.run.stages:
        with job.run.stage("report"):
            page = write_report(job.path)
        found = (job.path / "best").is_dir()
        job.say(f"{'finished' if found else 'no network met the limits when measured'}; report: {page}")


def _baselines(job: Job) -> list[Member]:
    members: list[Member] = []
    if job.compares:
        job.say("training the baselines from scratch")
    for name, arch in job.hand_made().items() if job.compares else ():
        member = _written(job, job.path / "baselines" / name, arch, partial(scratch_network, job, name, arch))
        members += [member] if member else []
    return members


def _verify(job: Job, shared: Shared, candidates: Candidates, baselines: list[Member]) -> Path | None:
    members = []
    for arch in candidates:
        kept = job.path / "pareto" / arch.id
        folder = kept if kept.is_dir() else job.path / "candidates" / arch.id
        made = partial(trained_alone, job, shared, arch)
        member = _written(job, folder, arch, made)
        members += [member] if member else []
    members += _verified_before(job, set(candidates))
    measured = {member.folder for member in measure_members(job, [*baselines, *members], candidates)}
    if job.arguments["budget_s"] is not None:  # work given in counts is the same on every machine
        more = _second_look(job, shared, [member for member in members if member.folder in measured])
        members, measured = [*members, *more], measured | {member.folder for member in more}
    front = exported_front(job, [member for member in members if member.folder in measured])
    measure_decoding(job, front)
    if job.ladder:
        write_verdicts(job)
    return recommend(job)


def _second_look(job: Job, shared: Shared, members: Sequence[Member]) -> list[Member]:
    """Verify a few networks more for each target whose latency limit none uses, as measured."""
    found: list[Member] = []
    for target in job.targets:
        entries = [(member.arch, read_entries(member.folder).get(target.name)) for member in members]
        known = {arch: (one["predicted_ms"], one["measurement"]["latency_ms"])
                 for arch, one in entries if one and one["predicted_ms"]}  # fmt: skip
        more = nearer(job, shared, target, known)
        if more:
            job.say(f"no network uses the latency limit of {target.name}: verifying {len(more)} nearer to it")
        made = [_written(job, job.path / "candidates" / arch.id, arch, partial(trained_alone, job, shared, arch))
                for arch in more]  # fmt: skip
        found += measure_members(job, [member for member in made if member], more)
    return found


def _written(job: Job, folder: Path, arch: Architecture, made: Callable[[], Trained]) -> Member | None:
    """The network prepared for the target; None, said aloud, where it cannot be trained or exported."""
    try:
        return write_member(job, folder, arch, made)
    except (ExportError, TargetError, ValueError) as error:
        job.say(f"{folder.name} is left out: {error}")
        return None


def _verified_before(job: Job, again: Set[Architecture]) -> list[Member]:
    """Networks that an earlier, shorter search of this run exported; they compete with the new ones."""
    folders = [path.parent for kept in ("pareto", "candidates") for path in job.path.glob(f"{kept}/*/export.json")]
    return [member for member in map(read_member, sorted(folders)) if member.arch not in again]


def _extend(job: Job, budget_s: float) -> None:
    """Turn more seconds into more trials; what follows them is then done again. Before the last plan, just add."""
    if "finetune_steps" not in job.run.record.get("plan", {}):
        if job.arguments["budget_s"] is not None:
            job.run.update({"arguments": {**job.arguments, "budget_s": job.arguments["budget_s"] + budget_s}})
        return
    job.use_threads()
    extended = {**job.plan, "trials": job.plan["trials"] + more_trials(job, budget_s)}
    stages = {name: s for name, s in job.run.stages.items() if name not in ("search", "verify", "report")}
    job.run.update({"plan": extended, "stages": stages})


def _record_space(job: Job) -> None:
    space = job.space
    choices = {name: list(options) for name, options in space.choices.items()}
    goals: list[dict[str, Any]] = [{"name": "error", "goal": "min"}]
    for target in job.targets:
        limits = job.limits_on(target)
        for name in ("latency_ms", *(name for name in limits if name != "latency_ms")):
            goal = {"name": name if name in COUNTED else job.column(name, target), "goal": "min"}
            goals += [goal | ({"at_most": limits[name]} if name in limits else {})] if goal not in goals else []
    described = {"name": job.arguments["space"], "size": space.size, "choices": choices, "gates": dict(space.gates)}
    job.run.update({"space": described, "objectives": goals})


def _check_portable(task: Task) -> None:
    """Trials with a time limit run in processes of their own, to which the metric must travel."""
    try:
        pickle.dumps(task.metric)
    except Exception as error:
        raise ValueError(f"the task's metric cannot be sent to a process ({error}); define it in a module") from None
