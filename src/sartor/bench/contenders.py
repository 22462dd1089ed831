# SPDX-License-Identifier: Apache-2.0
"""The gradient-based searches that take part, each with the recipe of its paper, shortened by the rule for all.

The rule is `sartor.differentiable.descent.Recipe.shortened`. No method has a setting of its own that was chosen here.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sartor import names
from sartor.architecture import Architecture
from sartor.own import is_own
from sartor.protocols import Learner

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ABSENT", "ALL", "CONTENDERS", "Contender", "Scene", "Searching", "absent", "check_methods", "contender"]

ALL = "all"


class Searching(Learner, Protocol):
    """A learner that says at any time what it would choose."""

    needs: str

    def architecture(self) -> Architecture:
        """Return the network found so far."""
        ...


@dataclass(frozen=True)
class Scene:
    """What a search is given.

    network: `network(mixed)` makes a new supernet, and `mixed` its edges, see `sartor.spaces.micro.Micro`, if not None.
    steps, seed: of the search. validation: batches of the alphas' share, for what judges on many.
    """

    network: Callable[[Any], nn.Module]
    steps: int
    seed: int
    validation: Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Contender:
    """A method of `sartor list methods`, or path.py:Class, with the settings that make a variant of it.

    mixed: gives what makes the edges of the network.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    mixed: Callable[[], Any] | None = None

    def __call__(self, scene: Scene) -> Searching:
        """Return a new search."""
        net = scene.network(self.mixed() if self.mixed else None)
        kind = names.load("methods", self.method)
        made: Searching = _made(kind, net, scene, self.settings)
        return made


@dataclass(frozen=True)
class Perturbed:
    """DARTS-PT: a search read out by perturbation, with 5 of 50 epochs between two decisions."""

    fixed: bool = False

    def __call__(self, scene: Scene) -> Searching:
        """Return a new search with its read-out."""
        from sartor.differentiable.darts import DARTS
        from sartor.differentiable.darts_pt import DARTSPT
        from sartor.differentiable.darts_pt_fixed import FixedAlphas

        net = scene.network(None)
        search: Any = _made(FixedAlphas if self.fixed else DARTS, net, scene, {})
        interval = max(1, scene.steps // 10)
        return DARTSPT(
            search, interval=interval, validation=scene.validation, tune_alphas=not self.fixed, seed=scene.seed
        )


def partial_channels() -> Any:
    """Return what makes the edges of PC-DARTS for CIFAR-10: a quarter of the channels goes through operations."""
    from sartor.differentiable.pc_darts import PartialChannels

    return PartialChannels(4)


def gdas_gated(scene: Scene) -> Searching:
    """Return GDAS where operations that were not drawn tell what they would have done, which it leaves out."""
    from sartor.differentiable.mixers import gated

    return Contender("gdas", {"mix": gated})(scene)


CONTENDERS: Mapping[str, Callable[[Scene], Searching]] = {
    "darts": Contender("darts"),
    "darts_2nd": Contender("darts", {"order": 2}),
    "snas": Contender("snas"),
    "gdas": Contender("gdas"),
    "gdas_gated": gdas_gated,
    "pc_darts": Contender("pc_darts", mixed=partial_channels),
    "rarts": Contender("rarts"),
    "sharp_darts": Contender("sharp_darts"),
    "sd_darts": Contender("sd_darts"),
    "darts_pt": Perturbed(),
    "darts_pt_fixed": Perturbed(fixed=True),
    "proxylessnas": Contender("proxylessnas"),
    "proxylessnas_reinforce": Contender("proxylessnas", {"mode": "reinforce"}),
    "fbnet": Contender("fbnet"),
    "parsec": Contender("parsec"),
    "fp_nas": Contender("fp_nas"),
    "tanglenas": Contender("tanglenas"),
    "balanced_mixture": Contender("balanced_mixture"),
}
"""By name, what makes a search."""

ABSENT: Mapping[str, str] = {
    "single_path": "its superkernels need options that are slices of one weight, and slots have none",
    "la_darts": "without a latency it is darts",
    "fbnetv5": "it searches for several tasks at once, and here is one",
    "dass": "it searches for sparse networks, and the table's are dense",
    "bossnas": "it rates the paths of blocks, and the table's networks are one block",
    "supertickets": "it prunes one network",
    "supervised": "it trains one network",
}
"""Methods that take no part, and why."""


def absent(name: str) -> str | None:
    """Return why a built-in method takes no part; None for one that does, or is unknown."""
    if name in names.built_in("methods") and names.shares_weights(name):
        return "it trains a supernet and chooses nothing"
    return ABSENT.get(name)


def check_methods(methods: Iterable[str]) -> list[str]:
    """Return the methods that names stand for, each once; "all" is every contender, and path.py:Class one's own.

    Raises ValueError for an unknown name and for a method that takes no part, with the reason.
    """
    found: dict[str, None] = {}
    for name in methods:
        if is_own(name):
            names.check("methods", name)
        elif (why := absent(name)) is not None:
            raise ValueError(f"the method {name!r} takes no part: {why}")
        elif name != ALL and name not in CONTENDERS:
            close = difflib.get_close_matches(name, CONTENDERS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"no method is named {name!r}; {hint}there are: {', '.join(CONTENDERS)}")
        found |= dict.fromkeys(CONTENDERS if name == ALL else [name])
    return [*found]


def contender(name: str) -> Callable[[Scene], Searching]:
    """Return what makes the search of a name that `check_methods` returned."""
    return Contender(name) if is_own(name) else CONTENDERS[name]


def _made(kind: type, net: nn.Module, scene: Scene, settings: Mapping[str, Any]) -> Any:
    """Return a learner of a class with its recipe shortened; what its constructor does not take is left out."""
    from sartor.supernet import search_space

    takes = inspect.signature(kind).parameters
    given: dict[str, Any] = {"seed": scene.seed} if "seed" in takes else {}
    if "recipe" in takes:
        given["recipe"] = takes["recipe"].default.shortened(scene.steps)
    return kind(net, search_space(net), steps=scene.steps, **given, **settings)
