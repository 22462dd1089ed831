# SPDX-License-Identifier: Apache-2.0
"""How a search goes: what it prefers, how sure it is, how much discretising loses, how sharp its minimum is.

Networks are judged in training mode, with the statistics of each batch, as a supernet's running statistics belong to
no architecture; buffers are as before afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sartor.architecture import Architecture, Option
from sartor.differentiable.descent import Batch, Loss, logits_of
from sartor.ranking import kendall_tau

__all__ = [
    "calls",
    "discretisation_gap",
    "hessian_eigenvalue",
    "rank_correlation",
    "saved_activations",
    "score",
    "share",
    "sharpness",
    "undisturbed",
]

Assignment = Mapping[str, Any]


def share(arch: Mapping[str, Option], option: Option) -> float:
    """Return the share of the choices that hold `option`, such as "skip_connect": of those that can; 0 for none."""
    held = [value for value in arch.values() if type(value) is type(option)]
    return sum(value == option for value in held) / max(len(held), 1)


def score(
    net: nn.Module, assignment: Assignment, batches: Iterable[Batch], metric: Callable[[Tensor, Tensor], float]
) -> float:
    """Return the mean of `metric` over batches under an assignment, soft or hard, weighted by their samples."""
    total, count = 0.0, 0
    with undisturbed(net), torch.no_grad():
        for images, labels in batches:
            total += metric(logits_of(net, assignment, images), labels) * len(labels)
            count += len(labels)
    if not count:
        raise ValueError("there is no batch to judge a network on: give at least one")
    return total / count


def discretisation_gap(
    net: nn.Module,
    soft: Assignment,
    arch: Architecture,
    batches: Sequence[Batch],
    metric: Callable[[Tensor, Tensor], float],
) -> float:
    """Return the supernet's score minus that of the architecture read out of it, with the same weights."""
    return score(net, soft, batches, metric) - score(net, arch, batches, metric)


def rank_correlation(
    net: nn.Module,
    truth: Mapping[Architecture, float],
    batches: Sequence[Batch],
    metric: Callable[[Tensor, Tensor], float],
) -> float:
    """Return Kendall's tau between architectures' scores with shared weights and their true ones."""
    return kendall_tau([score(net, arch, batches, metric) for arch in truth], list(truth.values()))


def sharpness(net: nn.Module, assignment: Assignment, batch: Batch, loss: Loss, rho: float = 0.05) -> float:
    """Return how much the loss rises one step of length rho * ||w|| along its gradient in the weights w.

    Foret et al., "Sharpness-Aware Minimization", ICLR 2021, equation 2. The weights are restored.
    """
    weights = [p for p in net.parameters() if p.requires_grad]
    with undisturbed(net):
        value = loss(logits_of(net, assignment, batch[0]), batch[1])
        found = torch.autograd.grad(value, weights, allow_unused=True)
        gradients: Sequence[Tensor | None] = found
        pairs = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
        scale = rho * _norm([w for w, _ in pairs]) / max(_norm([g for _, g in pairs]), 1e-12)
        before = [w.detach().clone() for w, _ in pairs]
        with torch.no_grad():
            for weight, gradient in pairs:
                weight.add_(gradient, alpha=scale)
            risen = loss(logits_of(net, assignment, batch[0]), batch[1])
            for (weight, _), old in zip(pairs, before, strict=True):
                weight.copy_(old)
    return float(risen - value.detach())


def hessian_eigenvalue(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], *, iterations: int = 20, seed: int = 0
) -> float:
    """Return the eigenvalue of largest magnitude of a loss's Hessian in `parameters`, by power iteration.

    Of the validation loss in the alphas, it warns of a collapse to skips (Zela et al., ICLR 2020).
    """
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    vector = [torch.randn(p.shape, generator=generator, device="cpu").to(p) for p in parameters]
    eigenvalue = 0.0
    for _ in range(iterations):
        length = max(_norm(vector), 1e-30)
        vector = [v / length for v in vector]
        product = torch.autograd.grad(gradients, parameters, vector, retain_graph=True)
        eigenvalue = float(sum((v * h).sum() for v, h in zip(vector, product, strict=True)))
        vector = [h.detach() for h in product]
    return eigenvalue


def saved_activations(run: Callable[[], object]) -> int:
    """Return how many numbers autograd keeps for the backward pass of what `run` computes, weights not counted.

    A tensor that several operators keep counts once.
    """
    kept: dict[tuple[int, tuple[int, ...]], int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            alive.append(tensor)  # so that no address is used twice
            kept[tensor.data_ptr(), tuple(tensor.shape)] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def calls(net: nn.Module, run: Callable[[], object]) -> Counter[str]:
    """Return how often modules without children ran while `run` did, by the path of the module."""
    counted: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, path=path: counted.update([path]))
        for path, module in net.named_modules()
        if not list(module.children())
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return counted


@contextmanager
def undisturbed(net: nn.Module) -> Iterator[None]:
    """Put modes and buffers, such as running statistics, back after the block."""
    modes = [(module, module.training) for module in net.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([t.detach().double().square().sum() for t in tensors]).sum().sqrt())
