# SPDX-License-Identifier: Apache-2.0
"""The architecture weights of a search while it learns them, in `architecture.jsonl` of the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from sartor.recipes.methods import Searcher, distribution
from sartor.run import Run

__all__ = ["POINTS", "STAGE", "Watched"]

POINTS = 50  # of a training, at which the weights are written
STAGE = "architecture"


class Watched:
    """A learner that trains another one, and writes at the start and about 50 times after what that prefers.

    A line has "step", "entropy" in nats and "probabilities": of the options of each choice, by name. Lines of steps
    that a resumed training does again are dropped first, so that a log has each step once. A context manager, which
    closes the log. Nothing is written for a method that has no distribution.
    """

    def __init__(self, learner: Searcher, run: Run, steps: int) -> None:
        self.learner, self.run = learner, run
        self.done, self.every = 0, max(1, steps // POINTS)
        self.steps = steps
        self._stack = ExitStack()
        self._write: Callable[[Mapping[str, Any]], None] | None = None

    def step(self, batch: Any) -> Mapping[str, float]:
        """Train on one batch; return the learner's scalars."""
        if self._write is None:
            self._write = self._stack.enter_context(self.run.log(STAGE, after=self.done or -1))
            if not self.done:
                self._tell(self._write, {})
        found = self.learner.step(batch)
        self.done += 1
        if self.done % self.every == 0 or self.done == self.steps:
            self._tell(self._write, found)
        return found

    def _tell(self, write: Callable[[Mapping[str, Any]], None], scalars: Mapping[str, float]) -> None:
        rows = {name: [round(one, 5) for one in row] for name, row in distribution(self.learner).items()}
        if rows:
            known = {name: scalars[name] for name in ("entropy", "cost") if name in scalars}
            write({"step": self.done, **known, "probabilities": rows})

    def state_dict(self) -> dict[str, Any]:
        """Return the learner's whole state, and the number of steps done."""
        return {"method": self.learner.state_dict(), "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.learner.load_state_dict(state["method"])
        self.done = state["done"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
