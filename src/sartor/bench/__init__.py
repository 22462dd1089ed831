# SPDX-License-Identifier: Apache-2.0
"""The scoreboard: searches compared over seeds at equal budgets, with the statistics that such a claim needs."""

from sartor.bench.entries import Entry, named_entries
from sartor.bench.methods import method_entries
from sartor.bench.problem import Problem, table_problem
from sartor.bench.running import bench

__all__ = ["Entry", "Problem", "bench", "method_entries", "named_entries", "table_problem"]
