# SPDX-License-Identifier: Apache-2.0
"""Policies: distributions over the architectures of a space, decided choice by choice, that can be trained.

Letters of shapes: N architectures, T choices (steps, in the order of `traversal`), K the most options of a choice.
A token is the position of an option; a choice that is not active has token 0 and is not decided.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.encodings import active, indices
from sartor.space import SearchSpace
from sartor.strategies._decisions import traversal

State = tuple[Tensor, Tensor] | None


class Policy(Protocol):
    """A network that gives the logits of the next decision; made from the space alone."""

    def __call__(self, previous: Tensor, start: int = 0, state: State = None) -> tuple[Tensor, State]:
        """Return the (N, L, K) logits of the steps from `start` on, -inf where there is no option, and a state.

        previous: (N, L) tokens of the steps before each of these, 0 before the first.
        state: what the call for the steps before `start` returned.
        """
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return what is trained, as any `torch.nn.Module` does."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the weights by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Restore what `state_dict` returned."""
        ...


class LSTMPolicy(nn.Module):
    """The controller of Zoph and Le (ICLR 2017): an LSTM that reads the decision before and makes the next.

    hidden: size of the state and of the embeddings of options (100).
    spread: weights start uniformly in -spread..spread (0.1).
    seed: of these weights.
    """

    def __init__(self, space: SearchSpace, *, hidden: int = 100, spread: float = 0.1, seed: int = 0) -> None:
        """Draw the weights; every option of every choice has its own embedding and output."""
        super().__init__()
        columns, starts = _columns(space)
        total = int(columns.max()) + 1
        rows = torch.cat([torch.zeros(1, dtype=torch.long), 1 + starts[:-1]])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(1 + total, hidden)  # the first row stands for "nothing decided yet"
            self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
            self.output = nn.Linear(hidden, total)
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -spread, spread)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns.clamp(min=0), persistent=False)
        self.register_buffer("missing", columns < 0, persistent=False)
        self.rows: Tensor  # (T,) of the embedding of token 0 of the step before
        self.columns: Tensor  # (T, K) of the output
        self.missing: Tensor

    def forward(self, previous: Tensor, start: int = 0, state: State = None) -> tuple[Tensor, State]:
        """See `Policy`."""
        steps = slice(start, start + previous.shape[1])
        hidden, state = self.lstm(self.embedding(self.rows[steps] + previous), state)
        columns = self.columns[steps].expand(len(previous), -1, -1)
        logits = self.output(hidden).take_along_dim(columns, dim=2)
        return logits.masked_fill(self.missing[steps], -torch.inf), state


class FactorisedPolicy(nn.Module):
    """Logits for each choice alone: decisions do not depend on one another.

    spread: standard deviation of the first logits (0.001: NAS-Bench-201's REINFORCE).
    seed: of these logits.
    """

    def __init__(self, space: SearchSpace, *, spread: float = 1e-3, seed: int = 0) -> None:
        """Draw the logits."""
        super().__init__()
        columns, _ = _columns(space)
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(spread * torch.randn(columns.shape, generator=generator))
        self.register_buffer("missing", columns < 0, persistent=False)
        self.missing: Tensor

    def forward(self, previous: Tensor, start: int = 0, state: State = None) -> tuple[Tensor, State]:
        """See `Policy`; neither the previous tokens nor the state matter."""
        logits = self.logits.masked_fill(self.missing, -torch.inf)[start : start + previous.shape[1]]
        return logits.expand(len(previous), -1, -1), None


def sampled(space: SearchSpace, policy: Policy, rng: random.Random) -> Architecture:
    """Draw an architecture, each active choice given those before; the constraint is not looked at."""
    values = {name: options[0] for name, options in space.choices.items()}
    token, state = 0, None
    with torch.no_grad():
        for step, name in enumerate(traversal(space)):
            logits, state = policy(torch.tensor([[token]]), step, state)
            token = 0
            if space.is_active(name, values):
                chances = logits[0, 0].softmax(0).tolist()
                token = rng.choices(range(len(chances)), chances)[0]
                values[name] = space.choices[name][token]
    return Architecture(values)


def tokens(space: SearchSpace, archs: Sequence[Architecture]) -> tuple[Tensor, Tensor]:
    """Return the (N, T) tokens of architectures, and which of them were decided."""
    place = {name: column for column, name in enumerate(space.choices)}
    order = [place[name] for name in traversal(space)]
    table = indices(space, archs)
    return torch.from_numpy(table[:, order]), torch.from_numpy(active(space, table)[:, order])


def scored(policy: Policy, chosen: Tensor, decided: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (N,) log-probabilities of (N, T) tokens, and the (N,) entropies of the decisions they took."""
    previous = torch.cat([torch.zeros_like(chosen[:, :1]), chosen[:, :-1]], dim=1)
    logits, _ = policy(previous)
    logs = logits.log_softmax(2)
    of_tokens = logs.take_along_dim(chosen[:, :, None], dim=2)[:, :, 0]
    entropies = -(logs.exp() * logs.masked_fill(logs == -torch.inf, 0.0)).sum(dim=2)
    return (of_tokens * decided).sum(dim=1), (entropies * decided).sum(dim=1)


def _columns(space: SearchSpace) -> tuple[Tensor, Tensor]:
    """Number all options, choice by choice: (T, K) numbers, -1 where there is none, and the (T,) first ones."""
    counts = [len(space.choices[name]) for name in traversal(space)]
    columns = torch.full((len(counts), max(counts)), -1)
    starts = torch.tensor([sum(counts[:step]) for step in range(len(counts))])
    for step, count in enumerate(counts):
        columns[step, :count] = starts[step] + torch.arange(count)
    return columns, starts
