"""A comparison that a test kills."""

from __future__ import annotations

import sys

from bench.toy_bench import toy
from sartor.bench import bench, named_entries

if __name__ == "__main__":
    bench(
        toy(),
        named_entries(["random_search", "regularized_evolution"]),
        queries=300,
        seeds=3,
        out=sys.argv[1],
        workers=2,
    )
