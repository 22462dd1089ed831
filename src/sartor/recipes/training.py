"""Stages 3, 5 and 6: train the shared weights, the hand-made networks to compare with, and tune what is shown."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.fit import fit
from sartor.oneshot import BigNAS, Recipe, Supervised
from sartor.recipes.job import Job
from sartor.supernet import extract, recalibrate_batchnorm

__all__ = ["evaluation_batches", "scratch_network", "supernet_learner", "supervised_learner", "train", "tuned"]

SEARCH_SAMPLES = 2048  # of the validation split, that every candidate is evaluated on
CHECKPOINTS = 20


def train(job: Job) -> nn.Module:
    """The trained supernet; continues at the newest checkpoint."""
    learner = supernet_learner(job, steps=job.plan["steps"], batch_size=job.plan["batch_size"])
    _fit(job, learner, job.plan["steps"], "train")
    return learner.net


def scratch_network(job: Job, name: str, arch: Architecture) -> nn.Module:
    """The network of `arch`, trained alone from scratch on the batches that the supernet saw, by the same recipe."""
    learner = supervised_learner(job, arch, steps=job.plan["steps"], batch_size=job.plan["batch_size"])
    _fit(job, learner, job.plan["steps"], name)
    recalibrate_batchnorm(learner.net, job.calibration)
    return learner.net.eval()


def tuned(job: Job, network: nn.Module) -> nn.Module:
    """The sub-network after a short training of its own, from the shared weights, at half the learning rate.

    A step of it costs a fraction of a step of all: what a short training of the shared weights leaves undone is made
    up here for the few networks that are shown.
    """
    steps, size = job.plan["tuning_steps"], job.plan["batch_size"]
    if steps:
        recipe = Recipe(lr=Recipe.lr / 2)
        learner = Supervised(network, job.task.loss, steps=steps, batch_size=size, recipe=recipe)
        fit(learner, job.task.train, steps=steps, batch_size=size, seed=job.seed + 1, progress=_quiet)
        recalibrate_batchnorm(network, job.calibration)
    return network.eval()


def supernet_learner(job: Job, *, steps: int, batch_size: int) -> BigNAS:
    """BigNAS on the job's network with its initial weights."""
    return BigNAS(job.network(), job.space, job.task.loss, steps=steps, batch_size=batch_size, seed=job.seed)


def supervised_learner(job: Job, arch: Architecture, *, steps: int, batch_size: int) -> Supervised:
    """Plain training of one network with initial weights of its own."""
    network = extract(job.network(), arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        reset_parameters(network)
    return Supervised(network, job.task.loss, steps=steps, batch_size=batch_size)


def reset_parameters(network: nn.Module) -> None:
    """Initialise a network anew: as its own class does it, or else as each of its layers does."""
    own = getattr(network, "reset_parameters", None)
    for reset in [own] if own else [getattr(module, "reset_parameters", None) for module in network.modules()]:
        if reset is not None:
            reset()


def evaluation_batches(job: Job) -> list[tuple[Tensor, Tensor]]:
    """The validation samples that candidates are compared on, in memory: a stratified part if there are many."""
    validation = job.task.validation
    if len(validation) <= SEARCH_SAMPLES:
        return list(validation.batches(256))
    return [validation.batch(i, 256) for i in range(SEARCH_SAMPLES // 256)]


def _fit(job: Job, learner: BigNAS | Supervised, steps: int, stage: str) -> None:
    job.use_threads()
    fit(
        learner,
        job.task.train,
        steps=steps,
        batch_size=job.plan["batch_size"],
        seed=job.seed,
        run=job.run,
        stage=stage,
        every=max(1, steps // CHECKPOINTS),
    )


def _quiet(done: int, steps: int, scalars: Mapping[str, float]) -> None:
    return None
