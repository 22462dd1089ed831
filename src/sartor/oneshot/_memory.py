# SPDX-License-Identifier: Apache-2.0
"""How much memory a training needs, before it starts: what its weights take with them, and its activations.

Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020, arXiv:1910.02054,
has the equations of the states. Activations are measured: what autograd keeps for a few samples, times the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sartor import distributed
from sartor.distributed.sharding import blocks_of
from sartor.nn import channels_last, resized
from sartor.oneshot._recipe import Recipe
from sartor.oneshot._training import Means
from sartor.supernet import activated

__all__ = [
    "Copies",
    "TrainingMemory",
    "check_memory",
    "free_memory",
    "kept_activations",
    "state_bytes",
    "training_memory",
]

MOMENTS = {"rmsprop": 2, "adam": 2, "adamw": 2, "sgd": 1, "lars": 1}  # numbers that an optimiser keeps for each weight
SAMPLES = 2  # the fewest for which a batch norm works on any map
ALMOST = 0.8  # of what is free, above which a training is warned of
CGROUPS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


class Copies(NamedTuple):
    """Further networks of the size of its own that a learner holds at most: its attribute `copies`.

    trained: with moments, as the parts after a split; one has gradients at a time. still: without, as a teacher or a
    moving average.
    """

    trained: int = 0
    still: int = 0


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that each worker needs. `weights` are there already when a training starts, all else is still to come."""

    weights: float
    gradients: float
    moments: float
    activations: float
    copies: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.gradients + self.moments + self.activations + self.copies

    @property
    def coming(self) -> float:
        """What a training takes beside the weights."""
        return self.total - self.weights

    def __str__(self) -> str:
        parts = ["weights", "gradients", "moments", "activations", *(["copies"] if self.copies else [])]
        return f"{_gb(self.total)}: " + ", ".join(f"{_gb(getattr(self, part))} of {part}" for part in parts)


def state_bytes(
    parameters: float,
    *,
    workers: int = 1,
    stage: int = 0,
    weights: float = 2.0,
    gradients: float = 2.0,
    moments: float = 12.0,
) -> float:
    """Return the bytes that weights, gradients and the optimiser's states take on each worker.

    The defaults are those of Adam in mixed precision (ZeRO, section 3.1): weights and gradients of 2 bytes, and 12 for
    the weights of 4 and two moments.

    Args:
        parameters: their number.
        workers: among whom the states are divided.
        stage: 0 divides nothing (data-parallel), 1 the optimiser's states, 2 the gradients too, 3 the weights too.
        weights, gradients, moments: bytes for each parameter.

    Raises ValueError for another stage.
    """
    if stage not in range(4):
        raise ValueError(f"stage {stage} is unknown: give 0, 1, 2 or 3")
    ordered = (weights, gradients, moments)
    return parameters * (sum(ordered[: 3 - stage]) + sum(ordered[3 - stage :]) / workers)


def training_memory(
    net: nn.Module,
    assignment: Mapping[str, Any],
    example: Tensor,
    *,
    batch_size: int,
    recipe: Recipe,
    means: Means = Means(),  # noqa: B008 - frozen
    workers: int | None = None,
    sharded: bool = False,
    copies: Copies = Copies(),  # noqa: B008 - immutable
) -> TrainingMemory:
    """Return what a training of `net` will need on each worker; the network is as before afterwards.

    Args:
        net: the whole network, before `distributed.shard`, where it will be trained or on the meta device.
        assignment: the largest sub-network that a pass runs.
        example: an image (1, C, H, W).
        batch_size: samples per step of all workers together. recipe, means: of the training.
        workers: their number, `distributed.world()` by default.
        sharded: whether the weights will be divided among them (stage 3); a block's are whole while it runs.
        copies: further networks that the learner will hold, its `copies` if it has any.
    """
    count = workers or distributed.world()
    trained = sum(p.nbytes for p in net.parameters() if p.requires_grad)
    weights = sum(p.nbytes for p in net.parameters())
    divided, block = (count, _largest_block(net)) if sharded else (1, 0)
    fixed, each = _activations(net, assignment, example, means)
    passed = batch_size / count / means.accumulate
    moments = MOMENTS[recipe.optimizer] * trained
    return TrainingMemory(
        weights=weights / divided,
        gradients=trained / divided + 2 * block,
        moments=moments / divided,
        activations=fixed + each * passed,
        copies=((copies.trained + copies.still) * weights + copies.trained * moments) / divided,
    )


def _largest_block(net: nn.Module) -> int:
    """Return the bytes of the weights that are whole at a time: of a block, or of what is in none."""
    blocks = [sum(p.nbytes for p in block.parameters()) for block in blocks_of(net)]
    return max([sum(p.nbytes for p in net.parameters()) - sum(blocks), *blocks])


def _activations(net: nn.Module, assignment: Mapping[str, Any], example: Tensor, means: Means) -> tuple[float, float]:
    """Return what a pass keeps whatever the batch, such as weights of lower precision, and for each sample."""
    weight = next(net.parameters())
    found = []
    for samples in (SAMPLES, 2 * SAMPLES):
        images = channels_last(example[:1].expand(samples, *example.shape[1:]).contiguous()).to(weight.device)
        with _undisturbed(net), activated(net, assignment), _cast(weight.device, means.precision):
            net.train()
            found.append(kept_activations(net, resized(images, net)))
    each = (found[1] - found[0]) / SAMPLES
    return max(0.0, found[0] - each * SAMPLES), each


def kept_activations(net: nn.Module, images: Tensor) -> int:
    """Return the bytes that autograd keeps for the backward pass of `net(images)`, its parameters and buffers not.

    Memory that several operators keep counts once; of a view, all that it keeps alive.
    """
    own = {_memory(tensor) for tensor in (*net.parameters(), *net.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if _memory(tensor) not in own:
            kept[_memory(tensor)] = tensor.untyped_storage()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = net(images)
    del outputs
    return sum(storage.nbytes() for storage in kept.values())


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextlib.contextmanager
def _undisturbed(net: nn.Module) -> Iterator[None]:
    """Put modes, buffers and the generators back after the block."""
    modes = [(module, module.training) for module in net.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(list(range(torch.cuda.device_count())) if used else []):
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _cast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "float32":
        return contextlib.nullcontext()
    kind = "cpu" if device.type == "meta" else device.type
    return torch.autocast(kind, getattr(torch, precision))


def free_memory(device: torch.device | str) -> float | None:
    """Return the bytes that this worker can still take: of its GPU, or its part of main memory; None if unknown."""
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    known = [free for free in (_available(Path("/proc/meminfo")), _allowed(Path("/sys/fs/cgroup"))) if free is not None]
    return min(known) / distributed.local_world() if known else None


def _available(path: Path) -> float | None:
    """Return what the system has left, in bytes."""
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _allowed(root: Path) -> float | None:
    """Return what is left of the limit of this container, in bytes; files in the cache can be dropped."""
    for limit, usage, statistics in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # of no such kind, or "max"
            allowed, used = int((root / limit).read_text()), int((root / usage).read_text())
            lines = (root / statistics).read_text().splitlines()
            cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
            return float(max(0, allowed - used + cached))
    return None


def check_memory(need: TrainingMemory, device: torch.device | str) -> str | None:
    """Return a warning where a training will come near to what is free, None where it will not or nobody knows.

    Raises ValueError where it does not fit.
    """
    free = free_memory(device)
    if free is None or need.coming < ALMOST * free:
        return None
    where = "the GPU" if torch.device(device).type == "cuda" else "main memory"
    text = f"training needs {need}; {_gb(free)} of {where} are free beside the weights for each worker"
    remedies = "a smaller batch, more parts of it (accumulate), bfloat16, more workers, or weights divided among them"
    if need.coming > free:
        raise ValueError(f"{text}: give {remedies}")
    return f"{text}; should it run out, give {remedies}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
