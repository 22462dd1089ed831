# SPDX-License-Identifier: Apache-2.0
"""Networks whose weights, gradients and moments are divided among the workers: FSDP2, a block at a time.

A block's weights are gathered whole before it runs and dropped after. So elastic layers slice whole weights, and know
nothing of workers. All workers run the same sub-networks, as gathering is done together.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sartor.distributed.workers import rank, world
from sartor.nn import OneOf, Repeat, Stages

__all__ = ["blocks_of", "gathered", "is_sharded", "scattered", "shard"]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, Repeat, Stages, OneOf)
TENSOR = "torch.distributed.tensor"  # takes more than a second to import, so that only `shard` does it

N = TypeVar("N", bound=nn.Module)


def shard(
    net: N, *, blocks: Callable[[nn.Module], list[nn.Module]] | None = None, reshard: bool = True, offload: bool = False
) -> N:
    """Divide the weights of a network among the workers, in place, by `torch.distributed.fsdp.fully_shard`.

    Do it before the learner is made, as its optimiser holds the divided weights. A learner's `state_dict` then gathers
    whole tensors on the first worker, and is to be called by all. Weights lie contiguously: FSDP takes no channels
    last.

    Args:
        net: the network, whole, the same on all workers; without other workers it stays as it is.
        blocks: the parts that are gathered one at a time, `blocks_of` by default.
        reshard: whether a block's weights are dropped between its forward and backward pass (ZeRO's stage 3), or kept
            (stage 2).
        offload: keep weights, gradients and moments in main memory while they are not in use. Of GPUs.

    Raises ValueError for a network that is divided already, and where blocks share a parameter.
    """
    if world() == 1:
        return net
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    if any(map(is_sharded, net.parameters())):
        raise ValueError("the network is divided among the workers already: shard it once")
    parts = (blocks or blocks_of)(net)
    _check_apart(parts)
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    mesh = init_device_mesh(next(net.parameters()).device.type, (world(),))
    policy = CPUOffloadPolicy() if offload else OffloadPolicy()
    whole: list[nn.Module] = [*parts, net]
    for part in whole:
        fully_shard(part, mesh=mesh, reshard_after_forward=reshard, offload_policy=policy)
    return net


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """Return the outermost modules in lists, sequences and choices of a network that are none of these themselves."""
    found: dict[nn.Module, None] = {}
    for child in net.children():
        inside = _elements(child) if isinstance(child, CONTAINERS) else blocks_of(child)
        found.update(dict.fromkeys(inside))
    return [block for block in found if any(True for _ in block.parameters())]


def _elements(container: nn.Module) -> Iterator[nn.Module]:
    for child in container.children():
        if isinstance(child, CONTAINERS):
            yield from _elements(child)
        else:
            yield child


def _check_apart(blocks: list[nn.Module]) -> None:
    counts = Counter(id(parameter) for block in blocks for parameter in block.parameters())
    names = [name for block in blocks for name, p in block.named_parameters() if counts[id(p)] > 1]
    if names:
        raise ValueError(f"parameter {names[0]!r} belongs to several blocks: give `blocks` that hold all its users")


def is_sharded(tensor: Tensor) -> bool:
    """Say whether this is a worker's part of a tensor."""
    module = sys.modules.get(TENSOR)
    return module is not None and isinstance(tensor, module.DTensor)


def gathered(state: Any) -> Any:
    """Return nested state with whole tensors on the processor in place of divided ones: a message among all workers.

    Other workers than the first get empty tensors in their places, and so need no memory for them.
    """
    if world() == 1:
        return state
    if isinstance(state, Tensor):
        return _whole(state) if is_sharded(state) else state
    if isinstance(state, Mapping):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, (tuple, list)):
        return type(state)(gathered(value) for value in state)
    return state


def _whole(tensor: Any) -> Tensor:
    whole: Tensor = tensor.detach().full_tensor()
    return whole.cpu() if rank() == 0 else whole.new_empty(0, device="cpu")


def scattered(whole: Tensor, like: Tensor) -> Tensor:
    """Return this worker's part of a whole tensor that all workers have, divided as `like` is; whole if it is not."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    divided: Any = like
    placed = whole.to(divided.device_mesh.device_type)
    return distribute_tensor(placed, divided.device_mesh, divided.placements, src_data_rank=None)
