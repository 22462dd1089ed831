# SPDX-License-Identifier: Apache-2.0
"""DARTS-PT: read the architecture out by what the supernet loses without an operation.

Wang, Cheng, Chen, Tang & Hsieh, "Rethinking Architecture Selection in Differentiable NAS", ICLR 2021,
arXiv:2108.04392. Official code: ruocwang/darts-pt.

A large alpha does not mean an important operation: the better the supernet, the more weight goes to skips. So each
operation of an edge is masked in turn, and the one without which the validation accuracy falls most is kept; the rest
of the supernet is trained on before the next edge. Then each node drops the edges that it misses least.

    search = DARTS(net, search_space(net), steps=2500)  # or any other search with alphas
    read = DARTSPT(search, interval=250, validation=batches)
    fit(read, pairs, steps=read.steps)  # what the search has left to do, then the read-out
    read.architecture()

Differs from the paper:
- Projection is a part of the training: a step at which it is due decides first and then trains, so that a run that was
  stopped resumes exactly. Without `validation` it judges on the validation images of that step.
- The learning rate's minimum is a tenth of the search's, as the learning rate is.
- Running statistics do not see the images that networks are judged on; as published, judging uses the batch's own.
- Of equal accuracies the loss decides.
- The tuning has no expected cost in its loss, even if the search has.
- In a space without nodes that choose inputs there is no topology phase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture, Option
from sartor.choice import indices
from sartor.differentiable import relaxations
from sartor.differentiable.alphas import Alphas, Assignment
from sartor.differentiable.darts_pt_rounds import kinds_of_cells, rounds
from sartor.differentiable.descent import Batch, Descent, Loss, total_loss
from sartor.differentiable.diagnostics import score
from sartor.differentiable.readout import strongest_edges

__all__ = ["DARTSPT", "Search", "accuracy_then_loss"]

SLOWER = 0.1  # the learning rate of the tuning, as a share of the search's

Metric = Callable[[Tensor, Tensor], float]
"""(logits (N, K), labels (N,)) -> a number that is better when larger."""


class Search(Protocol):
    """A search that can be read out: a learner with logits of choices, and with its two optimisers."""

    net: nn.Module
    alphas: Alphas
    loss: Loss
    descent: Descent
    needs: str

    def step(self, batch: Any) -> Mapping[str, float]:
        """Train on one batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


def accuracy_then_loss(logits: Tensor, labels: Tensor) -> float:
    """Return the share of (N, K) logits that are largest at their label, less a trace of the cross-entropy.

    The trace decides between equal accuracies, which are many where images are few, and never between others: it is at
    most 1e-4, and a single image counts more than that in fewer than 10,000.
    """
    right = float((logits.argmax(1) == labels).float().mean())
    return right - 1e-6 * min(float(F.cross_entropy(logits, labels)), 100.0)


class DARTSPT:
    """A search, and its read-out by perturbation; a batch is one of training images and one of validation images.

    Args:
        search: trained, or not yet: then the first steps are its own.
        interval: steps of tuning between two rounds of decisions (5 epochs in the paper).
        validation: batches that all operations and edges are judged on.
        metric: what falls without an operation; larger is better. The first of equals is decided on.
        relax: how the search's logits become weights without a draw.
        tune_alphas: whether the undecided alphas learn in the tuning; not after
            `darts_pt_fixed.FixedAlphas`.
        side_by_side: choices of which one each is decided in a round, in groups; the two kinds of cells of DARTS if
            None.
        seed: of the order in which the edges, and then the nodes, are decided.

    `steps` is the number of steps in all, which `fit` is to be asked for.
    """

    needs = "pairs"

    def __init__(
        self,
        search: Search,
        *,
        interval: int,
        validation: Sequence[Batch] | None = None,
        metric: Metric = accuracy_then_loss,
        relax: Callable[[Tensor], Tensor] = relaxations.softmax,
        tune_alphas: bool = True,
        side_by_side: Iterable[Sequence[str]] | None = None,
        seed: int = 0,
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval is {interval}: tune for at least 1 step between two decisions")
        self.search, self.net, self.alphas, self.interval = search, search.net, search.alphas, interval
        self.validation, self.metric, self.relax, self.tune_alphas = validation, metric, relax, tune_alphas
        names = [*self.alphas.options, *self.alphas.inputs]
        groups = kinds_of_cells(names) if side_by_side is None else [list(group) for group in side_by_side]
        if sorted(name for group in groups for name in group) != sorted(names):
            raise ValueError(f"side_by_side must name each of {', '.join(names)} once")
        self.rounds = rounds(groups, set(self.alphas.inputs), seed)
        self.decided: dict[str, Option] = {}
        projecting = interval * (len(self.rounds) - 1) + 1  # the last decision is not tuned
        recipe = search.descent.recipe
        slower = replace(recipe, lr=recipe.lr * SLOWER, lr_min=recipe.lr_min * SLOWER)
        self.descent = Descent(self.net, self.alphas, steps=projecting, recipe=slower)
        self.descent.alpha_optimizer = search.descent.alpha_optimizer  # goes on as it was; that of the weights is new
        self.steps = search.descent.steps + projecting

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Take a step of the search; once it is done, decide where a decision is due, and tune what is undecided.

        Returns the training loss, the learning rate, the entropy of the alphas and the number of undecided choices.
        """
        if self.search.descent.done < self.search.descent.steps:
            found = self.search.step(batch if self.search.needs == "pairs" else batch[0])
            return {name: found[name] for name in ("loss", "learning_rate", "entropy")} | {"undecided": self._left()}
        train, validation = batch
        (number, tuned), rate = divmod(self.descent.done, self.interval), self.descent.learning_rate
        if tuned == 0 and number < len(self.rounds):
            for name in self.rounds[number]:
                decide = self._kept_edges if name in self.alphas.inputs else self._operation
                self.decided[name] = decide(name, self.validation or [validation])
        loss = self._tuned(train, validation) if self._left() else self._judged(train)
        self.descent.done += 1
        entropy = float(self.alphas.entropy().detach())
        return {"loss": loss, "learning_rate": rate, "entropy": entropy, "undecided": self._left()}

    def _operation(self, name: str, batches: Sequence[Batch]) -> Option:
        """Return the operation of an edge without which the metric is lowest."""
        row = list(self.alphas.options).index(name)
        able = self.alphas.allowed[row].nonzero().flatten().tolist()
        found = {}
        for place in able if len(able) > 1 else ():
            masked = self.weights().detach().clone()
            masked[row, place] = 0.0  # the others are not scaled up
            found[place] = score(self.net, self.mixture(masked), batches, self.metric)
        option: Option = self.alphas.options[name][min(able, key=lambda place: found.get(place, 0.0))]
        return option

    def _kept_edges(self, name: str, batches: Sequence[Batch]) -> Option:
        """Drop the edges of a node one by one, each time that without which the metric is best."""
        options: tuple[Option, ...] = self.alphas.space.choices[name]
        lists, left = [set(indices(option)) for option in options], set(range(self.alphas.inputs[name]))
        while left not in lists:
            able = [edge for edge in sorted(left) if any(kept <= left - {edge} for kept in lists)]
            found = {
                edge: score(self.net, self.mixture(self.weights(), {name: left - {edge}}), batches, self.metric)
                for edge in able
            }
            left = left - {max(able, key=found.__getitem__)}
        return options[lists.index(left)]

    def _tuned(self, train: Batch, validation: Batch) -> float:
        """Take a step on the alphas and one on the weights, as DARTS does; return the training loss."""
        if self.tune_alphas:
            value, _ = total_loss(self.net, self.mixture(self.weights()), validation, self.search.loss)
            self.descent.architecture(value)
        with torch.no_grad():
            fixed = self.mixture(self.weights())
        return self.descent.weights(total_loss(self.net, fixed, train, self.search.loss)[0])

    def _judged(self, train: Batch) -> float:
        """Return the training loss of what was decided."""
        with torch.no_grad():
            return float(total_loss(self.net, self.mixture(self.weights()), train, self.search.loss)[0])

    def _left(self) -> float:
        return float(len(self.alphas.options) + len(self.alphas.inputs) - len(self.decided))

    def weights(self) -> Tensor:
        """Return the (C, K) weights of the options: one-hot where it is decided, else what `relax` makes of logits."""
        rows = [name in self.decided for name in self.alphas.options]
        options = self.alphas.options.items()
        places = [several.index(self.decided.get(name, several[0])) for name, several in options]
        relaxed = self.relax(self.alphas.logits)
        one_hot = relaxations.one_hot(torch.tensor(places, device=relaxed.device), relaxed)
        return torch.where(torch.tensor(rows, device=relaxed.device).unsqueeze(1), one_hot, relaxed)

    def mixture(self, weights: Tensor, kept: Mapping[str, set[int]] | None = None) -> Assignment:
        """Return what `activated` takes: (C, K) weights, and the edges of nodes that are `kept` or were decided on."""
        nodes = {name: set(indices(self.decided[name])) for name in self.alphas.inputs if name in self.decided}
        edges = self.alphas.edge_weights()
        for name, positions in {**nodes, **(kept or {})}.items():
            mask = torch.zeros_like(edges[name])
            mask[list(positions)] = 1.0
            edges[name] = edges[name] * mask
        return self.alphas.assignment(weights, edges)

    def architecture(self) -> Architecture:
        """Return what was decided, and DARTS's read-out for what was not."""
        rest = strongest_edges(self.alphas, self.net, self.weights())
        return self.alphas.space.canonical({**rest, **self.decided})

    def state_dict(self) -> dict[str, Any]:
        """Return the search's state, what was decided, and the optimisers and steps of the tuning."""
        return {"search": self.search.state_dict(), "decided": dict(self.decided), "tuning": self.descent.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.search.load_state_dict(state["search"])
        self.descent.load_state_dict(state["tuning"])
        self.decided = dict(state["decided"])
