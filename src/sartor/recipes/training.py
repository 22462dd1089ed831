"""Stages 3, 5 and 6: train the shared weights, the networks to compare with, and fine-tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sartor import distributed
from sartor.architecture import Architecture
from sartor.checkpoint import nan_in
from sartor.data.pairs import Pairs
from sartor.differentiable.darts_pt import DARTSPT
from sartor.differentiable.dass import DASS, HYDRA, KEPT, sparse
from sartor.evaluation import SharedWeightError, specialised
from sartor.fit import Indexed, fit
from sartor.nn.parametrized import baked
from sartor.oneshot import Recipe, Supervised
from sartor.recipes.expected import Soft, constant_cost, expected_cost
from sartor.recipes.job import Job
from sartor.recipes.methods import Searcher, distribution, learner, network_of, use_of
from sartor.recipes.supernets import (
    Remade,
    Serving,
    Supernet,
    data_of,
    made,
    made_again,
    serving,
    trained_in,
)  # fmt: skip
from sartor.recipes.watching import Watched
from sartor.supernet import activated, extract, recalibrate_batchnorm
from sartor.workload import macs

__all__ = [
    "PortableError",
    "Shared",
    "Trained",
    "batches_of",
    "check_fits",
    "evaluation_batches",
    "finetuned",
    "longer",
    "method_learner",
    "pruned",
    "retrained",
    "scratch_network",
    "step_seconds",
    "steps_alone",
    "supernet_learner",
    "supervised_learner",
    "train",
    "trained_alone",
]

Trained = tuple[nn.Module, Mapping[str, Any]]
"""A network, and how it was trained: "trained", in words, "steps" and, after shared weights, "finetune_steps"."""

SEARCH_SAMPLES = 2048  # of the validation split, that every candidate is evaluated on
CHECKPOINTS = 20
PERTURBED_SAMPLES = 512  # that DARTS-PT judges every operation on
STEPS_OF_A_TRY = 1000  # of a learner that is made to see if it can be
LONGEST = 8.0  # times the planned steps, for the smallest networks


@dataclass(frozen=True)
class Shared:
    """The trained supernet, and what a differentiable search learned besides.

    serving: the network with choices whose weights an architecture shares. remade: the same for another process.
    first: the architecture that it reads out; None of a method that only trains weights. probabilities: of the options
    of choices, by name; empty where there are none. kept: share of the weights that networks are pruned to; None where
    they are not.
    """

    serving: Serving
    remade: Remade
    first: Architecture | None = None
    probabilities: Mapping[str, Sequence[float]] = field(default_factory=dict)
    kept: float | None = None


def train(job: Job) -> Shared:
    """The trained weights; continues at the newest checkpoint, or takes the weights of an earlier run."""
    if job.reads_out:
        return _searched(job)
    steps, size = job.plan["steps"], job.plan["batch_size"]
    if job.arguments.get("weights"):
        steps = job.plan["shared_steps"]
        learner = supernet_learner(job, steps=steps, batch_size=size)
        learner.load_state_dict(_adopted(job))
    else:
        learner = _trained(job, steps, size)
    again = partial(made_again, method=job.method, steps=steps, batch_size=size, seed=job.seed, recipe=_recipe(job))
    state = learner.state_dict() if distributed.is_first() else {}  # of divided weights a message that no other sends
    return Shared(serving(learner), Remade(job.maker(searching=True), state, again))


def _trained(job: Job, steps: int, batch_size: int) -> Supernet:
    """The learner after its training, in this process' memory; the first of several workers has the record."""
    learner = supernet_learner(job, steps=steps, batch_size=batch_size)
    _fit(job, learner, steps, "train", data_of(learner, job.task.train))
    if not distributed.is_first():
        return learner
    job.run.update({"effort": learner.effort._asdict()})
    if job.device == "cpu" and not job.arguments.get("shard"):
        return learner
    job.device = "cpu"  # sub-networks are extracted, measured and exported here
    found = job.run.load_checkpoint("train")
    assert found is not None
    learner = supernet_learner(job, steps=steps, batch_size=batch_size, alone=True)
    learner.load_state_dict(found[1]["learner"])
    return learner


def _searched(job: Job) -> Shared:
    """What a differentiable search learned, with the architecture it reads out in the record."""
    net, steps = job.network(searching=True), job.plan["steps"]
    searcher = method_learner(job, net, steps=steps, cost=expected_cost(job))
    batches = batches_of(job, searcher)
    if isinstance(searcher, DARTSPT) and isinstance(batches, Pairs):  # the same images for all that it compares
        size = min(PERTURBED_SAMPLES, len(batches.shares[1]))
        searcher.validation = [batches.shares[1].batch(0, size)]
    with Watched(searcher, job.run, steps) as watched:
        _fit(job, watched, steps, "train", batches)
    first = searcher.architecture()
    job.run.update({"read_out": {"id": first.id, "choices": dict(first)}})
    found, kept = network_of(searcher, net, first).eval(), None
    if isinstance(searcher, DASS):  # masked weights become ordinary ones
        with activated(net, {KEPT: searcher.keep}):
            found, kept = baked(net), searcher.keep
    remade = Remade(job.maker(searching=True), found.state_dict())
    return Shared(lambda arch: found, remade, first, distribution(searcher), kept)


def check_fits(job: Job) -> None:
    """Raise ValueError, before anything is measured, for a method that does not fit the space or the data.

    What the method would bring, but the space does not take, is said aloud.
    """
    space, use = job.arguments["space"], use_of(job.method)
    net = job.network(searching=True)
    try:
        batches_of(job, method_learner(job, net, steps=STEPS_OF_A_TRY, cost=constant_cost(job)))
    except ValueError as error:
        raise ValueError(f"the method {job.method!r} does not fit the space {space!r} or the data: {error}") from None
    lacking = [name for name in {**use.searching, **use.both} if name not in job.accepted]
    if lacking:
        job.say(f"the space {space!r} takes no {' and no '.join(lacking)}: {job.method} goes without that part of it")


def method_learner(job: Job, net: nn.Module, *, steps: int, cost: Soft | None = None) -> Searcher:
    """The learner of the run's differentiable method. Raises ValueError where it does not fit the network."""
    weight = job.arguments.get("cost_weight")
    return learner(
        job.method,
        net,
        job.space,
        job.task.loss,
        steps=steps,
        seed=job.seed,
        cost=cost,
        weight=1.0 if weight is None else float(weight),
    )


def batches_of(job: Job, searcher: Searcher) -> Indexed:
    """What a method trains on: the training split, or pairs of two shares of it. The validation split stays apart."""
    if searcher.needs == "pairs":
        return Pairs(job.task.train, use_of(job.method).portion, classes=job.task.classes, seed=job.seed)
    return job.task.train


def _adopted(job: Job) -> dict[str, Any]:
    """The learner's state in an earlier run, which is copied into this one: that may be deleted then."""
    found = job.run.load_checkpoint("train")
    if found is not None:
        return found[1]["learner"]  # type: ignore[no-any-return]
    state, steps = trained_in(Path(job.arguments["weights"]))
    job.run.save_checkpoint(steps, {"learner": state, "seconds": 0.0}, "train")
    return state


def scratch_network(job: Job, name: str, arch: Architecture) -> Trained:
    """The network of `arch`, trained alone from scratch by the same recipe.

    It costs as much as a network of the front: its fine-tuning, and its part of the training of the shared weights.
    """
    steps = steps_alone(job, arch, "baseline_steps")
    learner = supervised_learner(job, arch, steps=steps, batch_size=job.plan["batch_size"])
    _fit(job, learner, steps, name)
    recalibrate_batchnorm(learner.net, job.calibration)
    how = "alone, from the pretrained weights" if job.is_pretrained else "from scratch"
    return learner.net.eval(), {"trained": how, "steps": steps}


def trained_alone(job: Job, shared: Shared, arch: Architecture) -> Trained:
    """The network of `arch` as it is shown: pruned where the method prunes, retrained, or fine-tuned."""
    if shared.kept is not None:
        return pruned(job, shared.kept, arch)
    return retrained(job, arch) if job.retrains else finetuned(job, shared.serving(arch), arch)


def retrained(job: Job, arch: Architecture) -> Trained:
    """The network of `arch` in the form that is deployed, trained alone from scratch, as the papers of cells do."""
    steps, size = steps_alone(job, arch, "finetune_steps"), job.plan["batch_size"]
    learner = supervised_learner(job, arch, steps=steps, batch_size=size)
    fit(learner, job.task.train, steps=steps, batch_size=size, seed=job.seed + 1, progress=_quiet)
    if name := nan_in(learner.net.state_dict()):
        raise ValueError(f"{name} is not finite after {steps} steps")
    recalibrate_batchnorm(learner.net, job.calibration)
    return learner.net.eval(), {"trained": "from scratch", "steps": steps, "search_steps": job.shared_steps}


def pruned(job: Job, kept: float, arch: Architecture) -> Trained:
    """The network of `arch` with a share `kept` of its weights: pre-trained, pruned and fine-tuned, as DASS does."""
    steps, size = steps_alone(job, arch, "finetune_steps"), job.plan["batch_size"]
    network = _anew(job, extract(sparse(job.network(), kept), {**arch, KEPT: kept}))
    learner = HYDRA(network, job.task.loss, steps=steps)
    fit(learner, job.task.train, steps=steps, batch_size=size, seed=job.seed + 1, progress=_quiet)
    recalibrate_batchnorm(baked(network), job.calibration)
    how = f"from scratch, pruned to {kept:.3g} of the weights"
    return network.eval(), {"trained": how, "steps": steps, "search_steps": job.shared_steps}


def finetuned(job: Job, supernet: nn.Module, arch: Architecture) -> Trained:
    """The sub-network after a training of its own, from the shared weights.

    A step of it costs a fraction of a step of all: what a short training of the shared weights leaves undone is made
    up here for the few networks that are shown, at the full learning rate, as smaller ones leave more undone. One
    that diverges is shown as it was.
    """
    network = specialised(supernet, arch, job.calibration)
    steps, size = steps_alone(job, arch, "finetune_steps"), job.plan["batch_size"]
    shared = {"trained": "shared weights", "steps": job.shared_steps, "finetune_steps": 0}
    if not steps:
        return network, shared
    try:
        learner = Supervised(network, job.task.loss, steps=steps, batch_size=size, recipe=job.recipe)
        fit(learner, job.task.train, steps=steps, batch_size=size, seed=job.seed + 1, progress=_quiet)
        if name := nan_in(network.state_dict()):
            raise ValueError(f"{name} is not finite after {steps} steps")
    except ValueError as error:
        job.say(f"{arch.id} is not fine-tuned: {error}")
        return specialised(supernet, arch, job.calibration), shared
    recalibrate_batchnorm(network, job.calibration)
    return network.eval(), {**shared, "trained": "shared weights, then fine-tuned", "finetune_steps": steps}


def longer(cost: float, middle: float) -> float:
    """How many times as long as planned a network trains alone: one that is cheaper than the middle one as many times.

    Small networks learn slowly, and so cost as much as the middle one in all.
    """
    return min(LONGEST, max(1.0, middle / max(cost, 1e-12)))


def steps_alone(job: Job, arch: Architecture, planned: str) -> int:
    """The steps that a network trains alone: those of the plan named `planned`, more for a small one.

    Where nothing was timed, because the work was given in counts, they are the same for all.
    """
    seconds = job.plan.get("seconds")
    times = longer(step_seconds(job, arch, seconds), seconds["middle"]) if seconds else 1.0
    return round(float(job.plan[planned]) * times)


def step_seconds(job: Job, arch: Architecture, seconds: Mapping[str, float]) -> float:
    """About how long a step of a network takes: between those of the hand-made ones, by its MACs."""
    timed = sorted((macs(job.workload(one)), seconds[name]) for name, one in job.hand_made().items())
    return float(np.interp(macs(job.workload(arch)), [count for count, _ in timed], [each for _, each in timed]))


def supernet_learner(job: Job, *, steps: int, batch_size: int, alone: bool = False) -> Supernet:
    """The learner of the run's method on the job's network with its initial weights, where it is trained.

    alone: whole and in main memory instead, whatever was asked for. Raises ValueError where it does not fit the space.
    """
    net = job.network() if alone else job.network().to(job.device)
    if not alone and job.arguments.get("shard"):
        distributed.shard(net)
    return made(
        job.method, net, job.space, job.task.loss, steps=steps, batch_size=batch_size, seed=job.seed,
        recipe=_recipe(job), means=job.means,
    )  # fmt: skip


def _recipe(job: Job) -> Recipe | None:
    """The recipe of the shared weights; None for the method's own."""
    return None if job.arguments.get("recipe") == "paper" else job.recipe


def supervised_learner(job: Job, arch: Architecture, *, steps: int, batch_size: int) -> Supervised:
    """Plain training of one network with initial weights of its own, or the pretrained ones where there are any."""
    network = extract(job.initial, arch)
    network = network if job.is_pretrained else _anew(job, network)
    return Supervised(network, job.task.loss, steps=steps, batch_size=batch_size, recipe=job.recipe)


def _anew(job: Job, network: nn.Module) -> nn.Module:
    """The network with initial weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        reset_parameters(network)
    return network


def reset_parameters(network: nn.Module) -> None:
    """Initialise a network anew: as its own class does it, or else as each of its layers does."""
    own = getattr(network, "reset_parameters", None)
    for reset in [own] if own else [getattr(module, "reset_parameters", None) for module in network.modules()]:
        if reset is not None:
            reset()


def evaluation_batches(job: Job) -> list[tuple[Tensor, Tensor]]:
    """Validation samples that candidates are compared on, in memory: of many the first, in their shuffled order."""
    validation = job.task.validation
    if len(validation) <= SEARCH_SAMPLES:
        return list(validation.batches(256))
    return [validation.batch(i, 256) for i in range(SEARCH_SAMPLES // 256)]


class PortableError:
    """`SharedWeightError` that can be sent to another process: it carries how to make the network, not the network."""

    def __init__(self, job: Job, shared: Shared) -> None:
        self.remade, self.threads = shared.remade, job.plan["training_threads"]
        self.metric, self.batches, self.calibration = job.task.metric, evaluation_batches(job), job.calibration
        self.serving: Serving | None = shared.serving

    def __call__(self, arch: Architecture) -> float:
        """The error in [0, 1] of the sub-network with the supernet's weights."""
        if self.serving is None:
            torch.set_num_threads(self.threads)
            self.serving = self.remade.serving()
        return SharedWeightError(self.serving(arch), self.metric, self.batches, self.calibration)(arch)

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "serving": None}


def _fit(
    job: Job, learner: Supernet | Supervised | Watched, steps: int, stage: str, batches: Indexed | None = None
) -> None:
    job.use_threads()
    fit(
        learner,
        job.task.train if batches is None else batches,
        steps=steps,
        batch_size=job.plan["batch_size"],
        seed=job.seed,
        run=job.run,
        stage=stage,
        every=max(1, steps // CHECKPOINTS),
        device=None if job.device == "cpu" else job.device,
    )


def _quiet(done: int, steps: int, scalars: Mapping[str, float]) -> None:
    return None
