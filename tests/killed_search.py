# SPDX-License-Identifier: Apache-2.0
"""A search to be killed: `python killed_search.py LOG TRIALS STRATEGY`, one line per told trial."""

import sys

from contracts.strategy_contract import OBJECTIVES, TOY
from sartor import strategies
from sartor.search import search
from sartor.trial import Trial, TrialLog


def report(trial: Trial) -> None:
    """Say that the trial was told."""
    print(trial.number, trial.arch.to_json(), flush=True)


if __name__ == "__main__":
    path, trials, name = sys.argv[1:]
    with TrialLog(path) as log:
        strategy = getattr(strategies, name)(TOY, OBJECTIVES, **({} if name == "RandomSearch" else {"population": 20}))
        search(TOY, strategy, OBJECTIVES, trials=int(trials), seed=5, log=log, progress=report)
