# SPDX-License-Identifier: Apache-2.0
"""Search strategies: what to evaluate next, asked and told one trial at a time."""

from sartor.strategies.nsga2 import NSGA2
from sartor.strategies.random_search import RandomSearch
from sartor.strategies.regularized_evolution import RegularizedEvolution

__all__ = ["NSGA2", "RandomSearch", "RegularizedEvolution"]
