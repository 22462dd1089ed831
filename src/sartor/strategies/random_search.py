# SPDX-License-Identifier: Apache-2.0
"""Random search.

Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13 (2012). As a baseline of
architecture
search: Li and Talwalkar, UAI 2019, arXiv:1902.07638; Yang, Esperanca and Carlucci, ICLR 2020,
arXiv:1912.12522.

Idea: draw architectures independently, keep the best. There is nothing to tune and nothing to wait for, and
every claim of another strategy is a claim against this one.

Differs from the paper: nothing; `unique` draws without replacement.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.space import SearchSpace
from sartor.strategies._operators import sampled_new
from sartor.trial import Trial


class RandomSearch:
    """Draws each choice uniformly.

    unique: never draw an architecture again that was told, unless 10,000 draws in a row find no new one.
    """

    def __init__(self, space: SearchSpace, objectives: Sequence[Objective] = (), *, unique: bool = False) -> None:
        """Take the space; the objectives are not looked at."""
        self.space = space
        self.unique = unique
        self._seen: set[Architecture] = set()

    def ask(self, rng: random.Random) -> Architecture:
        """Sample."""
        return sampled_new(self.space, rng, self._seen, attempts=10_000)

    def tell(self, trial: Trial) -> None:
        """Remember the architecture, if it must not be drawn again."""
        if self.unique:
            self._seen.add(trial.arch)
