# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-Supernets: weights that an architecture mixes for itself from m experts.

Jawahar, Yang, Xiong, Liu, Wang, Sun, Li, Pappu, Oguz, Abdul-Mageed, Lakshmanan, Krishnamoorthi, Chandra:
"Mixture-of-Supernets: Improving Weight-Sharing Supernet Training with Architecture-Routed Mixture-of-Experts",
Findings of ACL 2024, arXiv:2306.04845. Official code: UBC-NLP/MoS.

The idea: where sub-networks share weights outright, these cannot adapt to any of them. Here a layer has m tensors, and
a small router that sees the architecture alone says how to add them up, for the whole layer or for each neuron; descent
learns how much is shared. Inference costs nothing: for one architecture the mixture is an ordinary weight.

Differs from the paper:
- Any space: its choices are encoded as they are, numbers scaled to [0, 1] over their options and all else one-hot.
- The mixture is that of the "jack" variants of the code; its hard routes are left out.
- Of the distillation options, the largest's logits: `label_share` of the loss of the others is of the labels. Hidden
  layers and attention are not matched.
- Optimiser and schedule are those of `Recipe`, for all methods here.
- Experts begin as copies that differ by 1 % of a tensor's deviation: while they are equal, a router has no gradient.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.adapt.layers import Layers, layers_of
from sartor.choice import Size
from sartor.nn import Conv2d, Linear
from sartor.nn.routed import Encoding, Routing, route
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._sandwich import sandwich_gradients
from sartor.oneshot._training import Effort, Means, Training, draws, refuse_divided
from sartor.oneshot.divergences import kl
from sartor.oneshot.sampling import ends, sandwich
from sartor.space import SearchSpace
from sartor.supernet import named_choices

__all__ = ["MixtureOfSupernets", "routable"]


class MixtureOfSupernets:
    """The learner of Mixture-of-Supernets. It gives the layers of `net` experts and routers, in place.

    A fresh network, given to a learner of the same arguments, takes what `state_dict` returned.

    Args:
        net: a network with choices.
        space: the sub-networks to train, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        experts: m (the paper's 2).
        routing: "neuron" or "layer" (both are the paper's; neuron-wise did better).
        layers: paths of the layers to route; by default `routable(net)`: of a pretrained transformer the linear layers
            of its MLPs, of others all elastic linear layers and pointwise convolutions.
        noise: of the experts at the start, see `sartor.nn.route`.
        n_random: random sub-networks per step beside the largest and the smallest (the code's 1).
        label_share: part of the loss of the others that is of the labels (0.5, as the code offers).
        recipe: optimiser, learning rate and regularisation, of routers too. means: precision, and parts of a batch.
        seed: decides routers, noise and the random sub-networks, each step's for itself.

    Raises ValueError as `route`, where there is nothing to route, and for weights divided among workers.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        experts: int = 2,
        routing: Routing = "neuron",
        layers: Collection[str] | None = None,
        noise: float = 0.01,
        n_random: int = 1,
        label_share: float = 0.5,
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        refuse_divided(net, "Mixture-of-Supernets copies whole weights")
        ends(space)  # which every step trains: a constraint that excludes one is refused now
        self.net, self.space, self.loss, self.seed = net, space, loss, seed
        self.n_random, self.label_share = n_random, label_share
        names = routable(net) if layers is None else list(layers)
        if not names:
            raise ValueError(
                "the network has no elastic linear layer or pointwise convolution to route: name its layers"
            )
        encoding = Encoding(named_choices(net).values())
        generator = torch.Generator().manual_seed(seed)
        self.routers = {
            name: route(
                net.get_submodule(name), encoding, experts=experts, routing=routing, noise=noise, generator=generator
            )
            for name in names
        }
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.passes_per_step = 2.0 + n_random

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on inputs (N, ...) and labels (N,): a sandwich with in-place distillation.

        Returns the largest sub-network's loss, the others' mean divergence from it, and the learning rate.
        """
        largest, *others = sandwich(self.space, draws(self.seed, self.training.done), self.n_random)
        loss, distillation = sandwich_gradients(
            self.training, self.loss, largest, others, batch, kl, label_share=self.label_share
        )
        return {"loss": loss, "distillation": distillation, "learning_rate": self.training.update()}

    @property
    def effort(self) -> Effort:
        """What the training has cost so far."""
        return self.training.effort

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of experts and routers, the optimiser's state, the number of steps and their effort."""
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.training.load_state_dict(state)


def routable(net: nn.Module) -> list[str]:
    """Return the paths of what is routed where nothing is said.

    Of a network of a known family of transformers, the elastic linear layers of its MLPs: as in the paper, attention
    stays shared. Of others, all elastic linear layers and pointwise convolutions.
    """
    mlps = [path for one in _mlps(net) for path in (*one.makes, *one.reads)]
    if mlps:
        return [path for path in mlps if isinstance(net.get_submodule(path), Linear)]
    return [path for path, module in net.named_modules() if isinstance(module, Linear) or _is_pointwise(module)]


def _mlps(net: nn.Module) -> list[Layers]:
    try:
        return layers_of(net, "mlp")
    except ValueError:  # it is of no known family
        return []


def _is_pointwise(module: nn.Module) -> bool:
    if not isinstance(module, Conv2d) or isinstance(module.kernel_size, Size) or isinstance(module.groups, Size):
        return False
    return set(module.kernel_size) == {1} and module.groups == 1
