# SPDX-License-Identifier: Apache-2.0
"""Monte Carlo tree search of DeepArchitect, with bisection.

Negrinho and Gordon, "DeepArchitect: Automatically Designing and Training Deep Architectures", 2017,
arXiv:1704.08792.

Idea: architectures with the same first decisions share a node of a tree. From the root, the search takes the
child whose mean reward and uncertainty are highest (UCT), and where the tree ends it completes the architecture at
random. Bisection makes a choice of many ordered options a binary tree over them, so that neighbours share nodes.

Differs from the paper: rewards are scaled to 0..1, by the lowest and highest so far unless `rewards` says what 0
and 1 are, because the bonus means something for that scale only; a failed or infeasible trial has the lowest
reward. A node is made when its first trial is told, so that asks whose trials are lost leave nothing behind.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names, costs
from sartor.space import SearchSpace
from sartor.strategies._decisions import Decisions, Move
from sartor.strategies._operators import excess
from sartor.trial import Trial

_ATTEMPTS = 100


class DeepArchitectMCTS:
    """Minimises (or maximises) the first objective; the others count through their bounds only.

    exploration: weight c of the bonus sqrt(2 ln n / n_child) (1.0: the authors' code). It is relative to the
        scale of `rewards`; on tables of accuracies 0.2 explores enough.
    bisect: halve the options of a choice instead of trying each; for choices whose options are in an order.
    rewards: the values of the first objective that are reward 0 and reward 1, such as (0, 100) for an accuracy in
        percent and (100, 0) for an error; None takes the worst and the best so far.
    order: names of all choices, in the order in which they are decided (default: by name, gated ones last).
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        exploration: float = 1.0,
        bisect: bool = False,
        rewards: tuple[float, float] | None = None,
        order: Sequence[str] | None = None,
    ) -> None:
        """Start with a root; ValueError for a negative exploration, equal rewards, or an order of other names."""
        check_names(objectives)
        if not exploration >= 0:
            raise ValueError(f"exploration is {exploration}: it must be at least 0")
        if rewards is not None and not abs(rewards[1] - rewards[0]) > 0:
            raise ValueError(f"rewards is {rewards}: give two different values, that of reward 0 first")
        self.space = space
        self.objectives = tuple(objectives)
        self.exploration = exploration
        self.decisions = Decisions(space, order, bisect=bisect)
        self.root = Node()
        sign = 1.0 if objectives[0].goal == "min" else -1.0
        self._fixed = rewards is not None
        self._worst, self._best = (-math.inf, math.inf) if rewards is None else (sign * rewards[0], sign * rewards[1])

    def ask(self, rng: random.Random) -> Architecture:
        """Walk down the tree and complete at random; again, if the constraint refuses the result."""
        for _ in range(_ATTEMPTS):
            arch = self._walked(rng)
            if self.space.constraint is None or self.space.constraint(arch):
                return arch
        return self.space.sample(rng)

    def tell(self, trial: Trial) -> None:
        """Add the reward to the nodes on the way to the architecture, and one node where they end."""
        cost = math.inf
        if not excess(trial, self.objectives):
            cost = costs(trial, self.objectives[:1])[0]
        if math.isfinite(cost) and not self._fixed:
            self._worst, self._best = max(self._worst, cost), min(self._best, cost)
        node = self.root
        node.add(cost)
        for move in self.decisions.path(trial.arch):
            is_new = move not in node.children
            node = node.children.setdefault(move, Node())
            node.add(cost)
            if is_new:
                return

    def _walked(self, rng: random.Random) -> Architecture:
        partial = self.decisions.start
        node: Node | None = self.root
        while node is not None and (moves := self.decisions.moves(partial)):
            move = self._selected(node, moves, rng)
            partial = self.decisions.after(partial, move)
            node = node.children.get(move)
        return self.decisions.completed(partial, rng)

    def _selected(self, node: Node, moves: list[Move], rng: random.Random) -> Move:
        """Return the move of the highest score; any that was never tried comes first, ties are random."""
        if untried := [move for move in moves if move not in node.children]:
            return rng.choice(untried)
        scores = [self._score(node, node.children[move]) for move in moves]
        best = max(scores)
        return rng.choice([move for move, score in zip(moves, scores, strict=True) if score == best])

    def _score(self, node: Node, child: Node) -> float:
        """Return the mean reward and the bonus (UCT)."""
        reward = 0.0
        if child.good and self._worst != self._best:
            mean = child.total / child.good
            reward = (mean - self._worst) / (self._best - self._worst) * child.good / child.visits
        return reward + self.exploration * math.sqrt(2 * math.log(node.visits) / child.visits)


class Node:
    """Trials below: all, those that count by their cost, and the sum of their costs."""

    __slots__ = ("children", "good", "total", "visits")

    def __init__(self) -> None:
        self.visits = 0
        self.good = 0
        self.total = 0.0
        self.children: dict[Move, Node] = {}

    def add(self, cost: float) -> None:
        """Count a trial; its cost is not finite if it failed or is infeasible."""
        self.visits += 1
        if math.isfinite(cost):
            self.good += 1
            self.total += cost
