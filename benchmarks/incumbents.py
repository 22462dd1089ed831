"""What a search on a table has found after so many queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.objective import Objective
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.tables import load

Make = Callable[[SearchSpace, Sequence[Objective]], Strategy]
SIGNAL, VALUE = "cifar10_val12", "cifar10"


def nasbench201_values(make: Make, seeds: int, after: Sequence[int]) -> NDArray[np.float64]:
    """Return (seeds, len(after)) 200-epoch test accuracies of the best by 12-epoch validation on NAS-Bench-201."""
    table = load("nasbench201")
    objectives = [table.objective(SIGNAL)]
    found = []
    for seed in range(seeds):
        log = search(table.space, make(table.space, objectives), objectives, trials=max(after), seed=seed)
        archs = [trial.arch for trial in log]
        signal, value = table.values(SIGNAL, archs), table.values(VALUE, archs)
        found.append([value[int(np.argmax(signal[:queries]))] for queries in after])
    return np.array(found)
