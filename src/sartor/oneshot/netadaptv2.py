# SPDX-License-Identifier: Apache-2.0
"""NetAdaptV2: train many widths in one pass, by a width for each image of a batch.

Yang, Liao, Sze: "NetAdaptV2: Efficient Neural Architecture Search with Fast Super-Network Training and Architecture
Optimization", CVPR 2021, arXiv:2104.00031. No public code.

The idea: a width keeps the first channels, so a mask for each image makes its sub-network, and one forward-backward
pass trains as many as the batch has images (ordered dropout). Channel-level bypass connections (`sartor.nn.Bypass`)
make depth a width of 0, which is trained the same way. Multi-layer coordinate descent then searches
(`sartor.strategies.coordinate_descent`), and what it finds is trained from scratch.

Differs from the paper:
- Any space whose widths are searched; depth is drawn per image where layers have a bypass, else per batch.
- Kernels, expansions and all other choices are drawn once per batch: a kernel cannot be masked by channels.
- What is masked is what a layer reads. The same channels are zero as in a mask of what the layer before it produces,
  but once, behind normalisation, activation and skip.
- Optimiser and schedule are those of `Recipe`, for all methods here.
Ordered dropout saves passes, not arithmetic: every image costs the widest network. Nothing is rescaled. A batch norm's
statistics for a channel are those of the images that keep it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor import distributed
from sartor.architecture import Architecture
from sartor.assignments import Assignment, PerSample
from sartor.choice import Choice
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training, draws
from sartor.oneshot.sampling import ordered
from sartor.sizes import position
from sartor.space import SearchSpace
from sartor.supernet import named_choices

__all__ = ["NetAdaptV2", "per_image", "widths"]


class NetAdaptV2:
    """The learner of NetAdaptV2: ordered dropout.

    Args:
        net: a network with choices.
        space: the sub-networks to train, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        per_sample: names of the choices that each image draws for itself; by default `widths(net)`. Expansions may be
            named, too.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
        seed: decides the sub-networks, each step's for itself.

    Raises ValueError where no choice is drawn per image, or one that is named is not there.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        per_sample: Collection[str] | None = None,
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        self.net, self.space, self.loss, self.seed = net, space, loss, seed
        self.per_sample = tuple(widths(net) if per_sample is None else per_sample)
        unknown = [name for name in self.per_sample if name not in space.choices]
        if unknown or not self.per_sample:
            what = f"{unknown[0]!r} is no choice of the space" if unknown else "the network has no searched width"
            raise ValueError(f"{what}: ordered dropout draws widths, such as {', '.join(widths(net)) or 'none here'}")
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.passes_per_step = 1.0

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,): one pass, of a sub-network for each image."""
        archs = self.drawn(len(batch[1]))
        choices, total, done = named_choices(self.net), 0.0, 0
        for images, labels in self.training.parts(batch):
            part = archs[done : done + len(labels)]
            done += len(labels)
            logits = self.training.logits(per_image(choices, part, self.per_sample), images)
            loss = self.training.recipe.smoothed(self.loss, logits, labels)
            self.training.backward(loss)  # sum over sub-networks of their share of the images times their mean loss
            total += loss.item()
        return {"loss": total / self.training.means.accumulate, "learning_rate": self.training.update()}

    def drawn(self, images: int) -> list[Architecture]:
        """Return this step's sub-networks, one for each of this worker's images; other workers draw on for theirs."""
        workers, rank = distributed.world(), distributed.rank()
        archs = ordered(self.space, draws(self.seed, self.training.done), workers * images, self.per_sample)
        return archs[rank * images : (rank + 1) * images]

    @property
    def effort(self) -> Effort:
        """What the training has cost so far."""
        return self.training.effort

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the optimiser's state, the number of steps done and their effort."""
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.training.load_state_dict(state)


def per_image(
    choices: Mapping[str, Choice], archs: Sequence[Architecture], names: Collection[str]
) -> dict[str, Assignment]:
    """Return what to activate so that image i runs through `archs[i]`, which differ in the choices `names` alone."""
    options: dict[str, Assignment] = dict(archs[0])
    for name in names:
        places = [position(choices[name].options, arch[name]) for arch in archs]
        options[name] = PerSample(torch.tensor(places))
    return options


def widths(net: nn.Module) -> list[str]:
    """Return the names of the choices that are themselves the width of what a layer produces, in the space's order."""
    produced = [
        getattr(module, attribute, None) for module in net.modules() for attribute in ("out_channels", "out_features")
    ]
    found = {id(size) for size in produced if isinstance(size, Choice)}
    return sorted(name for name, choice in named_choices(net).items() if id(choice) in found)
