# SPDX-License-Identifier: Apache-2.0
"""Existing networks as supernets: pretrained ones of known families, and any other by rules of the user's own."""

from sartor.adapt.elastic import DEFAULTS, elastic, family_of
from sartor.adapt.importance import sort_by_importance
from sartor.adapt.plain import plain
from sartor.adapt.rules import Depth, Rule, Stated, Width

__all__ = ["DEFAULTS", "Depth", "Rule", "Stated", "Width", "elastic", "family_of", "plain", "sort_by_importance"]
