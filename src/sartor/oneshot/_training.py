# SPDX-License-Identifier: Apache-2.0
"""What the learners of shared weights have in common: passes, one optimiser step from several, and their count."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sartor import distributed
from sartor.nn import channels_last, resized
from sartor.oneshot._recipe import Recipe
from sartor.optimizers import restore
from sartor.supernet import activated

__all__ = ["Effort", "Means", "Training", "draws", "frozen_statistics", "refuse_divided"]

Batch = tuple[Tensor, Tensor]
"""Images (N, C, H, W) and labels (N,), or token ids (N, T) and labels (N,) or (N, T)."""


class Effort(NamedTuple):
    """What a training has cost: forward-backward passes of a batch, passes without a gradient, optimiser steps."""

    passes: int = 0
    looks: int = 0
    updates: int = 0


@dataclass(frozen=True)
class Means:
    """How a learner computes, whatever its method.

    precision: of the passes; weights, gradients and the loss stay float32. "float16" scales the loss.
    accumulate: parts that a batch is divided into, one after another, for less memory. Batch norm sees parts.

    Raises ValueError for fewer than one part.
    """

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Check."""
        if self.accumulate < 1:
            raise ValueError(f"accumulate is {self.accumulate}: a batch has one part or more")


def draws(seed: int, step: int) -> random.Random:
    """Return the randomness of one step: the same on all workers, and after a resume."""
    return random.Random(f"{seed}/{step}")


class Training:
    """Weights in training: forward passes of sub-networks, gradients that add up, and one update from all of them.

    A learner's step reads: for each part of the batch, `logits` and `backward` for each sub-network; then `update`.
    Weights that no sub-network of a step used have no gradient, and are left alone: no momentum, no decay.
    With several workers (`sartor.distributed`) each passes its own share of a batch, and `update` averages.

    Args:
        net: the network; its dropout layers get the recipe's probability.
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        recipe: optimiser, learning rate and regularisation. means: how to compute.

    Raises ValueError for a negative number of steps.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        steps: int,
        batch_size: int,
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
        means: Means = Means(),
    ) -> None:
        if steps < 0:
            raise ValueError(f"steps is {steps}: a training has 0 or more, which its learning rate follows")
        divided = any(map(distributed.is_sharded, net.parameters()))  # FSDP lays out weights itself
        self.net, self.steps, self.batch_size = net if divided else channels_last(net), steps, batch_size
        self.recipe, self.means = recipe, means
        self.done = 0
        self.effort = Effort()
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.optimizer = recipe.optimizer_of(self.parameters)
        self.dropouts = recipe.dropouts(net)
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=means.precision == "float16")
        self._decayed: Sequence[nn.Parameter] | None = None
        self._collected = False
        self._parts = {"passes": 0, "looks": 0}  # of batches, not yet a whole one

    @property
    def _device(self) -> torch.device:
        return self.parameters[0].device

    @property
    def learning_rate(self) -> float:
        """The learning rate of the step under way."""
        return self.recipe.learning_rate(self.done, self.steps, self.batch_size)

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """Yield the batch, or the parts of it that are accumulated, in the layout of the network, which trains.

        The labels (N, T) of sequences come as (N * T,), one for each row of `logits`.
        """
        self.net.train()
        images, labels = channels_last(batch[0]), batch[1]
        if len(labels) % self.means.accumulate:
            raise ValueError(f"a batch of {len(labels)} does not divide into accumulate={self.means.accumulate} parts")
        parts = zip(images.chunk(self.means.accumulate), labels.chunk(self.means.accumulate), strict=True)
        yield from ((inputs, _rows_of_labels(wanted)) for inputs, wanted in parts)

    def logits(self, assignment: Mapping[str, Any], images: Tensor, *, regularise: bool = True) -> Tensor:
        """Return the float32 outputs (N, K) of the sub-network, at its resolution; (N * T, V) of sequences.

        assignment: an architecture, weights over options, or {} for a network without choices.
        regularise: whether dropout drops.
        """
        for layer in self.dropouts:
            layer.training = regularise
        with activated(self.net, assignment), self.autocast():
            outputs: Tensor = self.net(resized(images, self.net))
        return _rows_of_outputs(outputs, images)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a mean over a part of the batch; all parts together are one pass."""
        part = loss / self.means.accumulate if self.means.accumulate > 1 else loss
        self.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
        self.count("passes")

    def look(self, arch: Mapping[str, Any], images: Tensor) -> Tensor:
        """Return the outputs of a sub-network without gradients, norms using the batch and keeping nothing of it."""
        with torch.no_grad(), frozen_statistics(self.net):
            outputs = self.logits(arch, images, regularise=False)
        self.count("looks")
        return outputs

    def taught(self, teacher: nn.Module, inputs: Tensor) -> Tensor:
        """Return what another network predicts, in eval mode and without gradients, in the shape of `logits`."""
        teacher.eval()
        with torch.no_grad(), self.autocast():
            outputs: Tensor = teacher(inputs)
        self.count("looks")
        return _rows_of_outputs(outputs, inputs)

    def count(self, kind: Literal["passes", "looks"]) -> None:
        """Count a pass or a look at a part of a batch; as many parts as a batch has are one."""
        whole, self._parts[kind] = divmod(self._parts[kind] + 1, self.means.accumulate)
        if whole:
            self.effort = self.effort._replace(**{kind: getattr(self.effort, kind) + 1})

    def decay_what_has_gradients(self) -> None:
        """Let weight decay act, in the coming update, only on what has a gradient now.

        The first call before an update counts: in later parts of a batch all that the step trains has a gradient.
        """
        if self._decayed is None:
            self._decayed = [p for p in self.parameters if p.grad is not None]

    def collect(self) -> None:
        """Make the gradients those of the whole batch: unscaled, and averaged over the workers; `update` does so."""
        if not self._collected:
            distributed.average_gradients(self.parameters)  # scaled, so that all workers see the overflow of one
            self.scaler.unscale_(self.optimizer)
            self._collected = True

    def update(self, rate: float | None = None) -> float:
        """Take one optimiser step from all gradients since the last one, forget them, and return the learning rate.

        rate: in place of the recipe's, of a learner whose training has parts with schedules of their own.
        """
        rate = self.learning_rate if rate is None else rate
        self.collect()
        self.recipe.decay_weights(self.parameters if self._decayed is None else self._decayed, rate)
        self.recipe.clip(self.parameters)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._decayed, self._collected = None, False
        self.done += 1
        self.effort = self.effort._replace(updates=self.effort.updates + 1)
        return rate

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the block that runs in the precision of these means."""
        if self.means.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, getattr(torch, self.means.precision))

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the optimiser's state, the number of steps done and the effort.

        Of a network that is divided among workers all must call this, and the first one gets the whole state.
        """
        state = {"net": dict(self.net.state_dict()), "optimizer": self.optimizer.state_dict(), "done": self.done}
        scaler = {"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}
        whole: dict[str, Any] = distributed.gathered({**state, "effort": list(self.effort), **scaler})
        return whole

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, moments in the layout of their weights, on which the last bit depends."""
        own = self.net.state_dict()
        divided = {name: distributed.scattered(value, own.get(name, value)) for name, value in state["net"].items()}
        self.net.load_state_dict(divided)
        restore(self.optimizer, state["optimizer"])
        self.done, self.effort = state["done"], Effort(*state.get("effort", ()))  # of older runs nothing was counted
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def _rows_of_outputs(outputs: Tensor, inputs: Tensor) -> Tensor:
    sequences = outputs.dim() == 3 and not inputs.is_floating_point()  # of ids; ensembles have 3 dimensions too
    return (outputs.flatten(0, 1) if sequences else outputs).float()


def _rows_of_labels(labels: Tensor) -> Tensor:
    return labels.flatten() if labels.dim() == 2 and not labels.is_floating_point() else labels


def refuse_divided(net: nn.Module, what: str) -> None:
    """Raise ValueError for weights that are divided among workers; `what` says what a method does with whole ones."""
    if any(map(distributed.is_sharded, net.parameters())):
        raise ValueError(f"{what}, and these weights are divided among workers: do not shard the network")


@contextlib.contextmanager
def frozen_statistics(net: nn.Module) -> Iterator[None]:
    """Let batch norms normalise by the batch, and leave what they track as it is."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
