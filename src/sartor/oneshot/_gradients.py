# SPDX-License-Identifier: Apache-2.0
"""What gradients say after a backward pass: of each option in force, of weights that options share, of each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sartor.architecture import Option
from sartor.choice import Choice, Size
from sartor.gates import key
from sartor.nn.elastic import Elastic
from sartor.supernet import named_choices

__all__ = ["Owned", "flat_gradient", "option_norms", "outside", "owned_weights", "sample_norms"]

Owned = Mapping[str, Mapping[nn.Parameter, frozenset[object]]]
"""By choice: the weights it decides on, each with the options (as `gates.key`) under which it takes part."""


def owned_weights(net: nn.Module) -> Owned:
    """Return which weights each choice of a network decides on.

    Those of a mixed operation's candidates take part under their own option, those of a block under the depths that
    reach it, and those of a layer of elastic sizes under all options, each with a slice of them. A choice without
    weights, such as the input resolution, has none.
    """
    names = {id(choice): name for name, choice in named_choices(net).items()}
    owned: dict[str, dict[nn.Parameter, frozenset[object]]] = {name: {} for name in names.values()}

    def add(choice: Choice, parameters: Sequence[nn.Parameter], options: frozenset[object]) -> None:
        mine = owned[names[id(choice)]]
        for parameter in parameters:
            mine[parameter] = mine.get(parameter, frozenset()) | options

    for module in net.modules():
        for child, size, allowed in module.gates() if isinstance(module, Elastic) else ():
            (root,) = size.roots  # a container's size follows from one choice
            at = {key(option): size.evaluate({root: option}.__getitem__) for option in root.options}
            options = frozenset(name for name, value in at.items() if value in allowed)
            add(root, [*module._modules[child].parameters()], options)  # type: ignore[union-attr]
        for size in vars(module).values():
            for root in size.roots if isinstance(size, Size) else ():
                add(root, [*module.parameters(recurse=False)], frozenset(map(key, root.options)))
    return owned


def option_norms(owned: Owned, arch: Mapping[str, Option]) -> dict[str, float]:
    """Return by choice the norm of the gradient of the option in force, summed over its weights; 0.0 without any.

    To be called after the backward pass of one sub-network, or of one and the same on several batches: a gradient is
    then 0 outside of the slice in force, so that its norm is that of the slice.
    """
    weights = list({p: None for mine in owned.values() for p in mine if p.grad is not None})
    if not weights:
        return dict.fromkeys(owned, 0.0)
    gradients = [p.grad for p in weights if p.grad is not None]
    each = torch.stack(list(torch._foreach_norm(gradients))).tolist()
    norm = dict(zip(weights, each, strict=True))
    return {
        name: sum(norm.get(p, 0.0) for p, options in mine.items() if key(arch[name]) in options)
        for name, mine in owned.items()
        if name in arch
    }


def outside(net: nn.Module, owned: Owned, name: str) -> list[nn.Parameter]:
    """Return the trained weights that the choice does not decide on: those that all of its options share."""
    return [p for p in net.parameters() if p.requires_grad and p not in owned[name]]


def flat_gradient(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradients of all weights as one vector, 0 for those without."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([part.flatten() for part in parts]) if parts else torch.zeros(0)


def sample_norms(logits: Tensor) -> Tensor:
    """Return (N,) the norm of each sample's loss gradient at its logits (N, K), after the pass of a mean loss.

    The logits must have kept their gradient (`logits.retain_grad()` before the backward pass). For cross-entropy it is
    softmax(z) - onehot(y).
    """
    assert logits.grad is not None, "call logits.retain_grad() before the backward pass"
    norms: Tensor = torch.linalg.vector_norm(logits.grad.detach().flatten(1), dim=1)
    return norms * len(logits)
