# SPDX-License-Identifier: Apache-2.0
"""`elastic`: turn an existing network into a supernet, in place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from sartor.adapt import convolutional
from sartor.adapt.huggingface import FAMILIES
from sartor.adapt.rules import Fractions, Rule, apply, roles
from sartor.supernet import named_choices

__all__ = ["DEFAULTS", "elastic", "family_of"]

DEFAULTS: Mapping[str, Fractions] = {
    "heads": (0.5, 0.75, 1.0),
    "cross_heads": (0.5, 0.75, 1.0),
    "mlp": (0.25, 0.5, 0.75, 1.0),
    "depth": (0.5, 0.75, 1.0),
    "width": (0.5, 0.75, 1.0),
}
"""The options of roles for which nothing is said."""


def elastic(
    model: nn.Module,
    rules: Sequence[Rule] | None = None,
    *,
    shared: Collection[str] = (),
    **options: Fractions,
) -> nn.Module:
    """Turn a network into a supernet in place, and return it: its parameters, state dict and forward stay its own.

    Args:
        model: of a family that is known, as it stands or inside another module; of convolutional blocks, see
            `adapt.convolutional`; or any network, with rules.
        rules: which layers share a size; those of the model's family if None.
        shared: roles with one choice for all blocks, such as ("heads", "mlp"); the others have one for each block.
        **options: by role, as `heads=[6, 9, 12], mlp=[0.5, 1.0], depth=[4, 5, 6]`: counts, fractions of the full size,
            and for a depth lists of the blocks that run. The full size is always an option. With none, the roles of
            `DEFAULTS` that the model has.

    In full the network computes what it did, to the last bit. A sub-network keeps the first of what it has: sort by
    importance first, see `adapt.sort_by_importance`.
    Raises ValueError, with the network as it was, for a network that no rule fits and for options that do not fit.
    """
    if rules is None:
        family = family_of(model)
        rules = FAMILIES[family] if family in FAMILIES else convolutional.rules_of(model, options)
    if not options:
        there = roles(model, rules)
        options = {role: them for role, them in DEFAULTS.items() if role in there}
        if not options and (known := named_choices(model)):
            raise ValueError(f"{type(model).__name__} is adopted already: its choices are {', '.join(known)}")
        if not options:
            sought = ", ".join(dict.fromkeys(rule.role for rule in rules)) or "nothing"
            raise ValueError(f"no rule fits {type(model).__name__}: of {sought} none is found in {_layers(model)}")
    apply(model, rules, options, (shared,) if isinstance(shared, str) else shared)
    return model


def family_of(model: nn.Module) -> str:
    """The family of the network, or of the first part of it that has one; "convolutional" for one of such blocks.

    Raises ValueError where there is none.
    """
    seen = []
    for module in model.modules():
        kind = getattr(getattr(module, "config", None), "model_type", None)
        if kind in FAMILIES:
            return str(kind)
        if kind is not None and kind not in seen:
            seen.append(kind)
    if not seen and (known := named_choices(model)):  # whose layers no longer say how wide they are
        raise ValueError(f"{type(model).__name__} has choices already ({', '.join(known)}): give all its roles at once")
    if not seen and convolutional.blocks_of(model):
        return "convolutional"
    what = f"the family {seen[0]!r}" if seen else f"{type(model).__name__}, which has no family"
    raise ValueError(
        f"no rules are known for {what}; known are {', '.join(FAMILIES)}; give rules= for its {_layers(model)}"
    )


def _layers(model: nn.Module) -> str:
    """The layers that have weights of their own, by class, each with the path of the first."""
    first: dict[str, str] = {}
    for path, module in model.named_modules():
        if module._parameters:
            first.setdefault(type(module).__name__, path)
    return ", ".join(f"{kind} (as {path or 'the network itself'})" for kind, path in first.items()) or "no layers"
