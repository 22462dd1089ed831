# SPDX-License-Identifier: Apache-2.0
"""SuperTickets: search channels and prune weights in one training, to a sparse sub-network that is ready to use.

You, Li, Sun, Ouyang and Lin, "SuperTickets: Drawing Task-Agnostic Lottery Tickets from Supernets via Jointly
Architecture Searching and Parameter Pruning", ECCV 2022, arXiv:2207.03677.

The idea: instead of search, train, prune and retrain, one training of the largest network does all. A penalty on the
scales of batch norms, larger for what costs more, takes channels out for good. At intervals ever more of the smallest
weights are masked, which gives a ticket, and then come back to train on ("connectivity may change").

    loss = task loss + rho(t) * sum over channels u of c_u |gamma_u|     # rho rises linearly at first
    at each check: take out the channels whose mean |gamma| is below the threshold, once they are worth it
    at pruning i of m: mask min(i * 10 %, target) of all weights, by global magnitude; a ticket; all masks to 1

The network is any whose modules name their channels (`sartor.nn.channels`), as those of `spaces.mixed_kernels`. With
its masks in force at the end, `learner.net` is the ticket; `ticket()` returns it as a plain network with zeros and no
masks. Estimate its batch norm before use (`recalibrate_batchnorm`). `transferred` takes weights and masks to another
task. Sub-networks are not sampled: no other than the ticket has useful weights.

Masked weights keep their values: in the authors' code a function that should zero them has no effect, so that they
return as they were, and this is the reactivation that was published. Under masks they have no gradient, but they
decay and keep their momentum. With `hold` above 0 a mask stays in force for a share of the interval before weights come
back; at 1 they never do, but are ranked again at each pruning.

Differs from the paper:
- Epochs are shares of the training: warm-up 25 of 350, a check every 10, a pruning every 25.
- No average of the weights is kept, only one of the scales, with a warm-up of its own: min(decay, (1 + t) / (10 + t)).
- c_u is the channel's share of multiply-accumulates over the mean channel's; how the authors normalise was not checked.
- What is evaluated and saved at a pruning is for `save` to do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.nn import baked, resized
from sartor.nn.channels import Channels, channels_of, macs_of_channels, shrink
from sartor.nn.pruning import Score, magnitude, masked, prune, reset, sparsity, transferred
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training
from sartor.space import SearchSpace
from sartor.supernet import extract

__all__ = ["RECIPE", "SuperTickets", "transferred"]

RECIPE = Recipe(lr=0.016, lr_batch=256, decays=350 / 2.4, dropout=None)


class SuperTickets:
    """The learner of SuperTickets. `net` is one plain network: the largest sub-network, which shrinks.

    Args:
        net: a supernet, whose initial weights are used.
        space: its sub-networks; training starts with the largest.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training. batch_size: samples per step.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
        rho: strength of the penalty. warmup: share of the steps in which it rises from 0.
        checks: how often channels are looked at. threshold: mean |gamma| below which one can go. least_macs: they go
            when they have so many multiply-accumulates together, or at the end.
        ema: decay of the mean of |gamma|.
        prunings: how often weights are masked. increment: share of all weights that are masked more each time, up to
            `target`.
        hold: share of the interval between two prunings in which masks stay in force; 0 as published.
        score: what ranks the weights.
        save: called at each pruning with the sparsity and the ticket.

    Raises ValueError for a network without named channels, and for shares outside of 0 to 1.
    """

    passes_per_step = 1.0
    shares_weights: bool = False
    """It trains one network."""

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        rho: float = 1.8e-4,
        warmup: float = 25 / 350,
        checks: int = 35,
        threshold: float = 1e-3,
        least_macs: float = 1e6,
        ema: float = 0.9999,
        prunings: int = 14,
        increment: float = 0.1,
        target: float = 0.8,
        hold: float = 0.0,
        score: Score = magnitude,
        save: Callable[[float, nn.Module], None] | None = None,
    ) -> None:
        if not all(0 <= share <= 1 for share in (target, hold, warmup, increment)):
            raise ValueError(
                f"target={target}, hold={hold}, warmup={warmup}, increment={increment}: give shares, from 0 to 1"
            )
        self.net = masked(extract(net, space.largest()))
        self.channels = channels_of(self.net)
        if not self.channels:
            raise ValueError(
                f"no module of {type(net).__name__} has a method channels: give a net such as MixedKernels"
            )
        self.loss, self.score, self.save = loss, score, save
        self.rho, self.warmup, self.ema = rho, warmup, ema
        self.checks, self.threshold, self.least_macs = checks, threshold, least_macs
        self.prunings, self.increment, self.target, self.hold = prunings, increment, target, hold
        self.training = Training(self.net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.whole = {path: len(one) for path, one in self.channels.items()}
        self.kept = {path: list(range(len(one))) for path, one in self.channels.items()}
        self.scales = {path: _gamma(one).clone() for path, one in self.channels.items()}
        self.macs: dict[str, float] = {}  # of one channel, known from the first batch on

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,), and what its number asks for.

        Returns the task loss, the penalty, the channels left, the share of weights masked and the learning rate.
        """
        if not self.macs:
            self.macs = macs_of_channels(self.net, self.channels, resized(batch[0][:1], self.net))
        total = torch.zeros(2)
        for images, labels in self.training.parts(batch):
            loss = self.training.recipe.smoothed(self.loss, self.training.logits({}, images), labels)
            penalty = self.penalty()
            self.training.backward(loss + penalty)
            total += torch.stack([loss.detach(), penalty.detach()]).cpu()
        rate = self.training.update()
        self._follow()
        self._events()
        loss_value, penalty_value = (total / self.training.means.accumulate).tolist()
        count = float(sum(map(len, self.channels.values())))
        found = {"loss": loss_value, "penalty": penalty_value, "channels": count, "sparsity": sparsity(self.net)}
        return found | {"learning_rate": rate}

    def strength(self) -> float:
        """Return rho at the step under way."""
        rising = self.warmup * self.training.steps
        return self.rho * min(self.training.done / rising, 1.0) if rising else self.rho

    def penalty(self) -> Tensor:
        """Return rho * sum of c_u |gamma_u|; its gradient is rho * c_u * sign(gamma_u)."""
        costs = self.costs()
        terms = [costs[path] * one.scale.weight.abs().sum() for path, one in self.channels.items()]
        return self.strength() * torch.stack(terms).sum()

    def costs(self) -> dict[str, float]:
        """Return c_u of the channels of each module: 1 for the mean channel of the whole network."""
        mean = sum(self.macs[path] * count for path, count in self.whole.items()) / sum(self.whole.values())
        return {path: macs / mean for path, macs in self.macs.items()}

    def _follow(self) -> None:
        done = self.training.done
        decay = min(self.ema, (1 + done) / (10 + done))
        for path, one in self.channels.items():
            self.scales[path].lerp_(_gamma(one), 1 - decay)

    def _events(self) -> None:
        """Shrink, prune and reset, where the step that was done is one for it."""
        done, steps = self.training.done, self.training.steps
        if any(done == round(steps * i / self.checks) for i in range(1, self.checks + 1)):
            self._shrink(at_any_rate=done == steps)
        turns = [i for i in range(1, self.prunings + 1) if done == round(steps * i / self.prunings)]
        if turns:
            share = min(turns[-1] * self.increment, self.target)
            prune(self.net, share, self.score)
            if self.save:
                self.save(share, self.ticket())
        free = (round(steps * (i + self.hold) / self.prunings) for i in range(1, self.prunings))
        if done < steps and self.hold < 1 and done in free:
            reset(self.net)

    def _shrink(self, at_any_rate: bool) -> None:
        """Take out the channels that no longer count, if they are worth it."""
        left = {path: (scale >= self.threshold).nonzero().flatten().tolist() for path, scale in self.scales.items()}
        gone = {path: len(self.channels[path]) - len(places) for path, places in left.items()}
        if at_any_rate or sum(self.macs[path] * count for path, count in gone.items()) >= self.least_macs:
            self.keep(left)

    def keep(self, left: Mapping[str, list[int]]) -> None:
        """Keep these channels of each module, by their numbers now; the optimiser and all that is known follow."""
        for path, places in left.items():
            if len(places) < len(self.channels[path]):
                shrink(self.channels[path], places, self.training.optimizer)
                self.scales[path] = self.scales[path][places]
                self.kept[path] = [self.kept[path][place] for place in places]

    def ticket(self, share: float | None = None) -> nn.Module:
        """Return the sub-network as a plain copy, masked weights as zeros; pruned to `share` instead where given."""
        network = copy.deepcopy(self.net)
        if share is not None:
            prune(network, share, self.score)
        for module in network.modules():
            if isinstance(module, nn.ModuleDict):
                for name in [name for name, child in module.items() if getattr(child, "width", None) == 0]:
                    del module[name]
        return baked(network).eval()

    @property
    def effort(self) -> Effort:
        """What the training has cost so far."""
        return self.training.effort

    def state_dict(self) -> dict[str, Any]:
        """Return weights, masks, the optimiser's state, the steps done, the channels left and what is known of them."""
        scales = {path: scale.clone() for path, scale in self.scales.items()}
        return {**self.training.state_dict(), "kept": dict(self.kept), "scales": scales, "macs": dict(self.macs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; ValueError where this network has lost channels that the state has."""
        for path, numbers in state["kept"].items():
            if missing := set(numbers) - set(self.kept[path]):
                raise ValueError(f"{path} has lost channel {min(missing)} of the state: load it into a new learner")
        self.keep({path: [self.kept[path].index(n) for n in numbers] for path, numbers in state["kept"].items()})
        self.training.load_state_dict(state)
        self.scales = {path: scale.clone() for path, scale in state["scales"].items()}
        self.macs = dict(state["macs"])


def _gamma(channels: Channels) -> Tensor:
    return channels.scale.weight.detach().abs()
