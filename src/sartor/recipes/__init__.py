"""Recipes: whole jobs, composed of the public parts."""

from sartor.recipes.device_search import resume, search_for_device

__all__ = ["resume", "search_for_device"]
