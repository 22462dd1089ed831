# SPDX-License-Identifier: Apache-2.0
"""Sorting the units of an adopted network by importance, so that a sub-network, which keeps the first, keeps the best.

Without data the importance of a unit (a head, a neuron, a channel) is the L1 norm of the weights that read it, as in
Cai, Gan, Wang, Zhang and Han, "Once-for-All", ICLR 2020, arXiv:1908.09791. From data it is how much the loss would
change, to first order, if the unit were gone: the absolute sum of weight times gradient over all weights that read it.
For heads this is the sensitivity of Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019,
arXiv:1905.10650, as the sum is the derivative of the loss by a factor on the head's output; for channels the criterion
of Molchanov, Mallya, Tyree, Frosio and Kautz, "Importance Estimation for Neural Network Pruning", CVPR 2019,
arXiv:1906.10771.

Differs from the papers: the absolute value is taken for each batch, not for each sample, and averaged over batches, so
give several small ones. Nothing is squared. All units are scored by one network, which is cut later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.permutation import Channels, Place, channel_groups, importance, order_by, permute, trained_options
from sartor.space import SearchSpace
from sartor.supernet import activated, search_space

__all__ = ["sort_by_importance", "taylor"]

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def sort_by_importance(
    model: nn.Module, batches: Batches | None = None, loss: Loss | None = None, *, trained: SearchSpace | None = None
) -> list[Channels]:
    """Sort all units whose number is searched, in place, the most important first; return the groups that were sorted.

    Args:
        model: a supernet, as `elastic` makes it: its largest network keeps its function.
        batches: inputs and labels to score units by; by the weights alone if None.
        loss: mean loss of rows of outputs (N, K) and labels (N,), cross-entropy if None; of sequences every position
            is a row.
        trained: the sub-networks that were trained before, which then stay as they are: units do not leave the bands
            between their widths. Without it, the largest alone.

    Units in sizes of index lists, which name them, stay in their places, and so do those that cannot be permuted, of
    which `permutation.channel_groups` gives the reasons, and the hidden size of a model of transformers that has no
    head, as its hidden states are what it returns.
    Raises ValueError for no batches, for outputs that are no tensor, and, with batches, if sorting changed what the
    network computes, as one of its modules mixes units by their place; they are then back in theirs.
    """
    groups = [one for one in channel_groups(model) if not _is_returned(model, one)]
    options = trained_options(model, trained)
    batches = None if batches is None else list(batches)
    scores = [importance(one) for one in groups] if batches is None else taylor(model, groups, batches, loss)
    orders = [(one, order_by(one, values, options)) for one, values in zip(groups, scores, strict=True)]
    sorted_ = [(one, order) for one, order in orders if order is not None]
    before = None if batches is None else _outputs(model, batches[0][0])
    for one, order in sorted_:
        permute(one, order)
    if batches is not None and before is not None and not _alike(_outputs(model, batches[0][0]), before):
        for one, order in sorted_:
            permute(one, order.argsort())
        raise ValueError(
            "sorting changed what the network computes: one of its modules mixes units by their place; "
            "write sizes of whole blocks as sizes.blocks, or leave that width out"
        )
    return [one for one, _ in sorted_]


def taylor(model: nn.Module, groups: list[Channels], batches: Batches, loss: Loss | None = None) -> list[Tensor]:
    """Return, for each group, (extent,) the mean over batches of |sum of weight * gradient| over what reads a unit.

    The largest network is scored, in eval mode; gradients and modes of the model stay as they were.
    Raises ValueError for no batches and for outputs that are no tensor.
    """
    places = [[one for one in group.places if one.role in ("reads", "gates")] for group in groups]
    tensors = {id(one.whole): one.whole for found in places for one in found}
    totals = [torch.zeros(group.extent, device="cpu") for group in groups]
    count = 0
    with _in_full(model), _differentiated(tensors.values()):
        for inputs, labels in batches:
            rows = _rows(model(inputs))
            value = (F.cross_entropy if loss is None else loss)(rows, labels.flatten())
            slopes = torch.autograd.grad(value, [*tensors.values()], materialize_grads=True) if tensors else ()
            products = {
                key: tensor.detach() * slope for (key, tensor), slope in zip(tensors.items(), slopes, strict=True)
            }
            for group, found, total in zip(groups, places, totals, strict=True):
                total += _change(group, found, products).abs()
            count += 1
    if not count:
        raise ValueError("no batch to score units by; give at least one batch of inputs and labels")
    return [total / count for total in totals]


def _is_returned(model: nn.Module, group: Channels) -> bool:
    """Whether these are the residual stream of a model of transformers without a head, and nothing is around it."""
    names = {(root.name or "").rpartition(".")[2] for root in group.size.roots}
    base = next((module for module in model.modules() if hasattr(module, "base_model_prefix")), None)
    if "hidden" not in names or base is None:
        return False
    found: Any = base
    alone = sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in base.parameters())
    return alone and found.base_model is base and found.get_output_embeddings() is None


def _change(group: Channels, places: list[Place], products: dict[int, Tensor]) -> Tensor:
    """(extent,) what the loss would lose with each unit, to first order: signed, as its readers may cancel out."""
    total, counted = torch.zeros(group.extent, device="cpu"), set()
    for place in places:
        stretch = id(place.whole), place.dim, place.start
        if stretch not in counted:  # tied layers hold one tensor, and one slope
            counted.add(stretch)
            total += place.per_channel(products[id(place.whole)], group.extent)
    return total


@contextmanager
def _in_full(model: nn.Module) -> Iterator[None]:
    """The largest network, in eval mode, for the `with` block."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with activated(model, search_space(model).largest()):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _differentiated(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Gradients of these tensors can be taken in the `with` block, also where they are frozen."""
    frozen = [tensor for tensor in tensors if not tensor.requires_grad]
    try:
        for tensor in frozen:
            tensor.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)


def _rows(outputs: object) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"the network returns a {type(outputs).__name__}, not a tensor: wrap it, as adapt.TextClassifier, "
            f"adapt.LanguageModel and adapt.ImageClassifier do"
        )
    return (outputs.flatten(0, -2) if outputs.dim() > 2 else outputs).float()


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with _in_full(model), torch.no_grad():
        return _rows(model(inputs))


def _alike(one: Tensor, other: Tensor) -> bool:
    """Equal but for the order of sums."""
    return torch.allclose(one, other, rtol=0.0, atol=1e-3 * float(other.abs().max()))
