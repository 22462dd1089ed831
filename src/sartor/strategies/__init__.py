# SPDX-License-Identifier: Apache-2.0
"""Search strategies: what to evaluate next, asked and told one trial at a time."""

from sartor.strategies.local_search import LocalSearch
from sartor.strategies.nsga2 import NSGA2
from sartor.strategies.pareto_local_search import ParetoLocalSearch
from sartor.strategies.random_search import RandomSearch
from sartor.strategies.regularized_evolution import RegularizedEvolution
from sartor.strategies.successive_halving import SuccessiveHalving

__all__ = ["NSGA2", "LocalSearch", "ParetoLocalSearch", "RandomSearch", "RegularizedEvolution", "SuccessiveHalving"]
