# SPDX-License-Identifier: Apache-2.0
"""Tensors of a layer that are computed from others, by `torch.nn.utils.parametrize`: what quantisers and masks share.

A parametrization with a choice is part of the network as any module is: `named_choices` finds it, `activated` puts its
options in force, and `extract` leaves its plain form on an ordinary layer. The plain form of an elastic layer holds a
slice of the computed tensor instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["baked", "originals", "parametrizations"]

M = TypeVar("M", bound=nn.Module)


def parametrizations(net: nn.Module, kind: type[M]) -> Iterator[tuple[str, M, Tensor]]:
    """Yield, for each parametrization of a kind, the name of the tensor, as `0.weight`, the parametrization and what it
    computes from, a parameter that may be trained or frozen; one that computes from several is there for each.
    """
    for path, module in net.named_modules():
        for name, chain in _chains(module).items():
            for one in chain:
                if isinstance(one, kind):
                    for original in chain.parameters(recurse=False):
                        yield f"{path}.{name}" if path else name, one, original


def originals(net: nn.Module) -> list[Tensor]:
    """Return the parameters that parametrized tensors are computed from, in the order of the modules."""
    return [tensor for _, _, tensor in parametrizations(net, nn.Module)]


def baked(net: nn.Module) -> nn.Module:
    """Replace each parametrized tensor of a network by its value, in place; return the network.

    For deployment: quantised and masked weights become ordinary weights. Extract first where there are choices.
    """
    for module in list(net.modules()):
        if chains := _chains(module):
            values = {name: getattr(module, name).detach() for name in chains}
            trained = {n: any(p.requires_grad for p in c.parameters(recurse=False)) for n, c in chains.items()}
            # torch's own removal takes the property from the class, which copies of the module have in common.
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value.clone(), trained[name]))
    return net


def _chains(module: nn.Module) -> dict[str, parametrize.ParametrizationList]:
    """The parametrizations of a module's own tensors, by the tensor's name."""
    if not parametrize.is_parametrized(module):
        return {}
    chains = module.parametrizations
    assert isinstance(chains, nn.ModuleDict)
    return {name: chain for name, chain in chains.items() if isinstance(chain, parametrize.ParametrizationList)}
