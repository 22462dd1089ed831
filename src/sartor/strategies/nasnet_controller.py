# SPDX-License-Identifier: Apache-2.0
"""The controller of NASNet: a recurrent policy trained by reinforcement learning.

Zoph and Le, "Neural Architecture Search with Reinforcement Learning", ICLR 2017, arXiv:1611.01578 (REINFORCE).
Zoph, Vasudevan, Shlens and Le, "Learning Transferable Architectures for Scalable Image Recognition", CVPR 2018,
arXiv:1707.07012 (proximal policy optimisation, PPO).

Idea: an LSTM writes an architecture choice by choice. The accuracy of the trained network is the reward, and the
gradient of the expected reward makes the decisions of good architectures more likely. PPO takes several steps on the
same architectures and stops where the policy has moved too far from the one that drew them.

Differs from the papers: the choices are those of any space, with the gated ones skipped where they do not matter. A
failed or infeasible trial earns the lowest reward so far. With several workers, an architecture counts as drawn by
the policy at the time of its tell. `FactorisedPolicy` with `Reinforce(learning_rate=0.01, decay=0.9)` is the
REINFORCE baseline of NAS-Bench-201 (Dong and Yang, ICLR 2020, arXiv:2001.00326).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names, costs
from sartor.space import SearchSpace
from sartor.strategies._operators import excess
from sartor.strategies._policy import FactorisedPolicy, LSTMPolicy, Policy, sampled, scored, tokens
from sartor.trial import Trial

__all__ = ["PPO", "FactorisedPolicy", "LSTMPolicy", "NASNetController", "Reinforce", "mnasnet_reward"]

_ATTEMPTS = 100


@dataclass(frozen=True)
class Reinforce:
    """The policy gradient of Williams (1992), as Zoph and Le use it.

    learning_rate: of Adam (6e-4). batch: architectures per step (1: ours). entropy: weight of the bonus (0).
    decay: of the baseline, a moving average of rewards (0.95).
    """

    learning_rate: float = 6e-4
    batch: int = 1
    entropy: float = 0.0
    decay: float = 0.95
    epochs = 1

    def gain(self, log_p: Tensor, before: Tensor, advantage: Tensor) -> Tensor:
        """Return (N,) numbers whose gradient is that of the expected reward: (R - b) log pi."""
        return advantage * log_p


@dataclass(frozen=True)
class PPO:
    """Proximal policy optimisation with the clipped objective (Schulman et al. 2017), as NASNet uses it.

    learning_rate: of Adam (3.5e-4). batch: architectures that are learnt from together (20). entropy: weight of the
    bonus (1e-5). decay: of the baseline (0.95). clip: change of a probability ratio that still pays (0.2: ours).
    epochs: steps on each batch (10: ours).
    """

    learning_rate: float = 3.5e-4
    batch: int = 20
    entropy: float = 1e-5
    decay: float = 0.95
    clip: float = 0.2
    epochs: int = 10

    def gain(self, log_p: Tensor, before: Tensor, advantage: Tensor) -> Tensor:
        """Return the (N,) clipped surrogates: min(r A, clip(r, 1 - e, 1 + e) A), with r the ratio to `before`."""
        ratio = (log_p - before).exp()
        return torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)


class NASNetController:
    """Minimises (or maximises) the first objective; the others count through their bounds, or through `reward`.

    policy: makes the policy of a space: LSTMPolicy (the papers'), FactorisedPolicy, or a function of one's own, such
        as `functools.partial(LSTMPolicy, seed=1)`.
    update: PPO() (NASNet, CVPR 2018), or Reinforce() (ICLR 2017).
    reward: of a trial within the bounds, to be maximised (default: the first objective's value, negative where it is
        minimised); `mnasnet_reward` is one for two objectives.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        policy: Callable[[SearchSpace], Policy] = LSTMPolicy,
        update: PPO | Reinforce = PPO(),
        reward: Callable[[Trial], float] | None = None,
    ) -> None:
        """Start with an untrained policy; ValueError for numbers of the update that are out of range."""
        check_names(objectives)
        _check(update)
        self.space = space
        self.objectives = tuple(objectives)
        self.update = update
        self.reward = reward
        self.policy = policy(space)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=update.learning_rate)
        self._baseline = (0.0, 0.0)  # sums of weighted rewards and of weights
        self._lowest = math.inf
        self._batch: list[tuple[Architecture, float]] = []  # with the advantage

    def ask(self, rng: random.Random) -> Architecture:
        """Draw from the policy; again, if the constraint refuses it, and in the end from the space."""
        for _ in range(_ATTEMPTS):
            arch = sampled(self.space, self.policy, rng)
            if self.space.constraint is None or self.space.constraint(arch):
                return arch
        return self.space.sample(rng)

    def tell(self, trial: Trial) -> None:
        """Compare the reward with the baseline; with the last of a batch, learn."""
        reward = self._reward(trial)
        if not math.isfinite(reward):
            return  # nothing was feasible so far: there is nothing to compare with
        total, weight = self._baseline
        self._batch.append((trial.arch, reward - total / weight if weight else 0.0))
        # Numerator and denominator have the same bias towards 0, which the quotient has not.
        decay = self.update.decay
        self._baseline = (decay * total + (1 - decay) * reward, decay * weight + (1 - decay))
        if len(self._batch) == self.update.batch:
            self._learn()
            self._batch = []

    def _reward(self, trial: Trial) -> float:
        """Return the reward; the lowest so far (inf at first) for a trial that failed or is infeasible."""
        reward = math.inf
        if not excess(trial, self.objectives):
            reward = self.reward(trial) if self.reward else -costs(trial, self.objectives[:1])[0]
        if math.isfinite(reward):
            self._lowest = min(self._lowest, reward)
        return reward if math.isfinite(reward) else self._lowest

    def _learn(self) -> None:
        archs, advantages = zip(*self._batch, strict=True)
        chosen, decided = tokens(self.space, archs)
        advantage = torch.tensor(advantages)
        before = None
        for _ in range(self.update.epochs):
            log_p, entropy = scored(self.policy, chosen, decided)
            before = log_p.detach() if before is None else before
            gain = self.update.gain(log_p, before, advantage) + self.update.entropy * entropy
            self.optimizer.zero_grad()
            (-gain.mean()).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return weights, the optimiser's state, the baseline, and the trials that are not learnt from yet."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "baseline": self._baseline,
            "lowest": self._lowest,
            "batch": [(arch.to_json(), advantage) for arch, advantage in self._batch],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._baseline = state["baseline"]
        self._lowest = state["lowest"]
        self._batch = [(Architecture.from_json(text), advantage) for text, advantage in state["batch"]]


def mnasnet_reward(accuracy: str, latency: str, target: float, *, exponent: float = -0.07) -> Callable[[Trial], float]:
    """Return the reward accuracy * (latency / target) ** exponent (Tan et al., MnasNet, CVPR 2019).

    accuracy, latency: names of objectives, neither of which is bounded. A trial without their values has the reward
    NaN, which counts as a failure.
    """

    def reward(trial: Trial) -> float:
        ratio = trial.values.get(latency, math.nan) / target
        return trial.values.get(accuracy, math.nan) * math.pow(ratio, exponent)

    return reward


def _check(update: PPO | Reinforce) -> None:
    if not (update.learning_rate > 0 and update.batch >= 1 and update.epochs >= 1 and update.entropy >= 0):
        raise ValueError(f"{update}: a learning rate above 0, a batch and epochs of at least 1, an entropy from 0")
    if not 0 <= update.decay < 1:
        raise ValueError(f"decay is {update.decay}: it must be at least 0 and below 1")
