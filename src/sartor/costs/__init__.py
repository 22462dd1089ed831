"""Costs: what networks take on a device, kept or computed."""

from sartor.costs.store import CostStore

__all__ = ["CostStore"]
