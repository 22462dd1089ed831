# SPDX-License-Identifier: Apache-2.0
"""Recipes: whole jobs, composed of the public parts."""

from sartor.recipes.device_search import search_for_device
from sartor.recipes.resuming import resume
from sartor.recipes.specialise import specialise
from sartor.recipes.supernet import train_supernet

__all__ = ["resume", "search_for_device", "specialise", "train_supernet"]
