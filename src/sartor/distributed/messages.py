# SPDX-License-Identifier: Apache-2.0
"""What workers tell each other. All functions but `share` are to be called by all workers, in the same order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from sartor.distributed.sharding import is_sharded
from sartor.distributed.workers import rank, world

__all__ = ["agree", "average", "average_gradients", "from_first", "joined", "same_everywhere", "share", "wait"]

BUCKET_BYTES = 25 * 2**20  # one message: large enough for the bandwidth, small beside the network


def share(batch: Any) -> Any:
    """Return this worker's part of a batch: of every tensor the rows of its place among equal, contiguous parts.

    Raises ValueError where a batch does not divide among the workers.
    """
    if world() == 1:
        return batch
    if isinstance(batch, Tensor):
        return batch if not batch.dim() else _rows(batch)
    if isinstance(batch, Mapping):
        return {key: share(value) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(share(value) for value in batch)
    return batch


def _rows(batch: Tensor) -> Tensor:
    rows, rest = divmod(len(batch), world())
    if rest:
        raise ValueError(f"a batch of {len(batch)} does not divide among {world()} workers: give a multiple of that")
    return batch.narrow(0, rows * rank(), rows)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the workers; parameters without one are left alone, as are sharded ones.

    FSDP averages the gradients of sharded parameters itself, in each backward pass.
    Raises ValueError where other parameters have gradients on one worker than on another.
    """
    if world() == 1:
        return
    used = [p for p in parameters if not is_sharded(p)]
    gradients = [p.grad for p in used if p.grad is not None]
    _check_same(bytes(p.grad is not None for p in used))
    sent = [(bucket, *_sum(bucket)) for bucket in _buckets(gradients)]
    for bucket, flat, work in sent:
        work.wait()
        flat /= world()
        parts: tuple[Tensor, ...] = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _check_same(used: bytes) -> None:
    """Refuse, on all workers, before messages of different lengths meet and give nonsense."""
    if not same_everywhere(hashlib.sha256(used).digest()):
        raise ValueError(
            "the workers have trained different sub-networks in one step: draw them from the seed and the step alone,"
            " and decide by averages over the workers (`distributed.average`)"
        )


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        fits = sum(g.nbytes for g in bucket) + gradient.nbytes <= BUCKET_BYTES
        if bucket and not (fits and gradient.dtype == bucket[0].dtype and gradient.device == bucket[0].device):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def _sum(bucket: Sequence[Tensor]) -> tuple[Tensor, Any]:
    flat = torch.cat([gradient.flatten() for gradient in bucket])
    return flat, dist.all_reduce(flat, async_op=True)


def average(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each scalar over the workers, which all have the same names.

    A learner that decides by what it measured, such as a loss or a gradient's size, must decide by this.
    """
    if world() == 1:
        return dict(scalars)
    values = torch.tensor(list(scalars.values()), dtype=torch.float64, device="cpu")
    dist.all_reduce(values)
    return dict(zip(scalars, (values / world()).tolist(), strict=True))


def joined(rows: Tensor) -> Tensor:
    """Return the rows that each worker gave, equally many, one worker's after another's: the inverse of `share`."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def agree(condition: bool) -> bool:
    """Say whether the condition holds for any worker."""
    return average({"condition": float(condition)})["condition"] > 0


def same_everywhere(digest: bytes) -> bool:
    """Say whether all workers have given the same bytes, of which the first six count."""
    if world() == 1:
        return True
    number = int.from_bytes(digest[:6], "big")
    ends = torch.tensor([number, -number], dtype=torch.int64, device="cpu")
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    return bool(ends[0] == -ends[1])


def from_first(data: bytes) -> bytes:
    """Return what the first worker gave; what the others give does not matter."""
    if world() == 1:
        return data
    size = torch.tensor([len(data)], device="cpu")
    dist.broadcast(size, 0)
    sent = torch.frombuffer(bytearray(data), dtype=torch.uint8) if rank() == 0 and data else None
    buffer = torch.empty(int(size), dtype=torch.uint8, device="cpu") if sent is None else sent
    if len(buffer):
        dist.broadcast(buffer, 0)
    return buffer.numpy().tobytes()


def wait() -> None:
    """Wait until all workers are here."""
    agree(False)
