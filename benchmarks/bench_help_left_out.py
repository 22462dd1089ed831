"""HELP on FBNet's and Once-for-all's tables: each device left out in turn, with all its batch sizes.

Spearman correlations on 1,000 networks that were not measured, means of 30 draws of any ten, beside what the same ten
give without HELP. Networks that are measured and ranked were not learnt from on any device, and nothing decides when to
stop. `deviation` is that of HELP over draws; `best source` is chosen knowing all latencies. SARTOR_LATENCIES names the
folder of the tables (see latency_tables.py); SARTOR_EPISODES sets how long HELP learns (500).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np

from bench_help_adaptation import Case, compared, row
from latency_tables import Latencies, family, fbnet, ofa
from sartor.encodings import onehot
from sartor.predictors import HELP
from sartor.predictors._help_network import counting

Row = Mapping[str, str | float | int | None]


def rows(quick: bool) -> Iterator[Row]:
    """A row per table and device, and the means."""
    episodes = 20 if quick else int(os.environ.get("SARTOR_EPISODES", "500"))
    for name, read in {"Once-for-all": ofa, "FBNet": fbnet}.items():
        yield from left_out(name, read(), 3 if quick else 30, episodes)


def left_out(name: str, table: Latencies, draws: int, episodes: int) -> Iterator[Row]:
    """A row for each device, the mean over its batch sizes, and the mean over devices."""
    columns, everything = onehot(table.space, table.archs) @ counting(table.space), []
    families: dict[str, list[str]] = {}
    for device in table.devices:
        families.setdefault(family(device), []).append(device)
    for one, settings in families.items():
        sources = {other: ms for other, ms in table.devices.items() if other not in settings}
        # The first half is learnt from; what is measured and what is ranked is of the second.
        half = len(table.archs) // 2
        known = {other: ms[:half] for other, ms in sources.items()}
        help = HELP(table.space, episodes=episodes).meta_fit(table.archs[:half], known)
        rng = np.random.default_rng(0)
        drawn = [half + rng.choice(500, 10, replace=False) for _ in range(draws)]
        asked, stacked = np.arange(half + 500, half + 1500), np.stack(list(sources.values()))
        cases = [Case(table.devices[device], columns, stacked, table.flops, asked) for device in settings]
        found = [compared(help, table.archs, case, drawn) for case in cases]
        everything.append({method: np.mean([each[method] for each in found], axis=0) for method in found[0]})
        yield row(name, "any ten", one, everything[-1])
    mean = {method: np.mean([each[method] for each in everything], axis=0) for method in everything[0]}
    yield row(name, "any ten", "mean", mean)
