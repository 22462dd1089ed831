"""What one device search works on: its run folder, data, target, network and space, made anew from the record."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sartor import names
from sartor.architecture import Architecture, Option
from sartor.nn import channels_last, resized
from sartor.nn.resolution import resize
from sartor.oneshot import FINE_TUNING, Means, Recipe
from sartor.protocols import Target
from sartor.recipes.methods import BIGNAS, use_of
from sartor.recipes.pretrained import network as pretrained_network
from sartor.recipes.pretrained import shape_of
from sartor.recipes.supernets import RECIPE
from sartor.run import Run
from sartor.space import SearchSpace
from sartor.supernet import extract, search_space
from sartor.task import Task
from sartor.workload import Workload, macs, parameters, trace

__all__ = ["LIMITS", "Job", "Say", "make_network"]

Say = Callable[[str], None]

LIMITS = {
    "latency_ms": "a median latency in milliseconds",
    "energy_mj": "an energy per inference in millijoules",
    "memory_mb": "a peak memory in megabytes",
    "size_bytes": "a deployed file in bytes",
    "macs": "a number of multiply-accumulates",
    "params": "a number of parameters",
}
COUNTED = ("macs", "params")  # the limits that are the same on every target

CALIBRATION_BATCHES = 4
CALIBRATION_SIZE = 128


@dataclass
class Job:
    """One device search in this process. Everything here follows from `run.record`, so that it can be resumed."""

    run: Run
    task: Task
    targets: tuple[Target, ...]
    say: Say
    device: str = "cpu"  # where shared weights are trained

    @property
    def target(self) -> Target:
        """The first target: the one whose front is shown first."""
        return self.targets[0]

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.run.path

    @property
    def arguments(self) -> dict[str, Any]:
        """What was asked."""
        return self.run.record["arguments"]  # type: ignore[no-any-return]

    @property
    def plan(self) -> dict[str, Any]:
        """The counts of work, fixed before training."""
        return self.run.record["plan"]  # type: ignore[no-any-return]

    @property
    def limits(self) -> dict[str, float]:
        """The limits that were asked for, by name; see `LIMITS`. Of one target alone: `latency_ms@openvino:int8`."""
        return self.arguments["limits"]  # type: ignore[no-any-return]

    def limits_on(self, target: Target) -> dict[str, float]:
        """The limits of a target by name: those of all, unless it has its own."""
        common = {name: limit for name, limit in self.limits.items() if "@" not in name}
        own = {name.partition("@"): limit for name, limit in self.limits.items() if "@" in name}
        return common | {name: limit for (name, _, where), limit in own.items() if where == target.name}

    @property
    def ladder(self) -> dict[str, list[float]]:
        """Several latency limits at once, each of which gets a network: of all targets at "", or of one by its name."""
        return self.arguments.get("ladder") or {}

    def rungs(self, target: Target) -> list[float]:
        """The latency limits of a target in milliseconds, from tight to loose; empty where at most one was asked."""
        return sorted({*self.ladder.get("", ()), *self.ladder.get(target.name, ())})

    def column(self, name: str, target: Target) -> str:
        """The name of a target's value in the trials: `name` of the first, `name@target` of every other."""
        return name if target is self.target else f"{name}@{target.name}"

    @property
    def shared_steps(self) -> int:
        """The steps that the shared weights had, here or in the run that they come from."""
        return int(self.plan.get("shared_steps", self.plan["steps"]))

    @property
    def compares(self) -> bool:
        """Whether hand-made networks are trained from scratch, to compare with."""
        return bool(self.arguments.get("baselines", True))

    @property
    def seed(self) -> int:
        """The seed that all randomness of the run derives from."""
        return int(self.arguments["seed"])

    @property
    def method(self) -> str:
        """What trains the shared weights: "bignas" and its like, or a method of differentiable search."""
        return str(self.arguments.get("method", BIGNAS))

    @cached_property
    def reads_out(self) -> bool:
        """Whether the method finds an architecture by itself, as those of differentiable search."""
        return names.reads_out(self.method)

    @property
    def retrains(self) -> bool:
        """Whether networks that were found are trained from scratch instead of from the shared weights.

        If nothing is said, where the space has an evaluation form of its own, as the cells of DARTS.
        """
        asked = self.arguments.get("retrain")
        return self.reads_out and ("form" in self.accepted if asked is None else bool(asked))

    @property
    def recipe(self) -> Recipe:
        """How networks of this run are trained: from the start, or fine-tuned where they are pretrained."""
        return FINE_TUNING if self.is_pretrained else RECIPE

    @property
    def is_pretrained(self) -> bool:
        """Whether the space is a pretrained network, of which nothing is trained from scratch."""
        return names.is_pretrained(self.arguments["space"])

    @property
    def means(self) -> Means:
        """How the shared weights are computed: precision, and parts of a batch."""
        return Means(**self.arguments.get("means", {}))

    def network(self, *, searching: bool = False) -> nn.Module:
        """The network with choices, in the form that is deployed or searched; its weights depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.maker(searching=searching)()

    def maker(self, *, searching: bool = False) -> Callable[[], nn.Module]:
        """What makes the network, in this process or, as it can be pickled, in another one."""
        return partial(make_network, self.arguments["space"], **self.form(searching=searching))

    def form(self, *, searching: bool = False) -> dict[str, Any]:
        """What the network is made with, deployed or searched; the two differ only where networks are retrained."""
        if not self.reads_out:
            return self.shape
        searching = searching or not self.retrains
        use = use_of(self.method)
        wanted = {"form": "search" if searching else "evaluation", **use.both, **(use.searching if searching else {})}
        return self.shape | {name: value for name, value in wanted.items() if name in self.accepted}

    @cached_property
    def accepted(self) -> frozenset[str]:
        """The keywords that the space takes."""
        return frozenset(inspect.signature(names.load("spaces", self.arguments["space"])).parameters)

    @property
    def shape(self) -> dict[str, Any]:
        """What a space is made with: the number of classes, of channels, and the images' (height, width)."""
        if self.is_pretrained:
            return shape_of(self.task, self.arguments["space"], self.arguments)
        _, channels, height, width = self.task.example.shape
        return {"classes": len(self.task.classes), "channels": channels, "size": (height, width)}

    @cached_property
    def initial(self) -> nn.Module:
        """The network with its initial weights, to extract from: made once, and never trained."""
        return self.network()

    @cached_property
    def ghost(self) -> nn.Module:
        """The supernet without memory, on the meta device."""
        with torch.device("meta"):
            return self.network()

    @cached_property
    def space(self) -> SearchSpace:
        """The search space. ValueError when the network has no choice."""
        space = search_space(self.ghost)
        if space.size < 2:
            raise ValueError(
                f"space {self.arguments['space']!r} has one network alone: give a choice in it two options or more"
            )
        return space

    def workload(self, arch: Architecture) -> Workload:
        """The operators of an inference's way through the network of `arch`, without those that no runtime runs."""
        if arch not in self._workloads:
            network = extract(self.ghost, arch)
            self._workloads[arch] = trace(network, self.example(network), live=True)
        return self._workloads[arch]

    @cached_property
    def _workloads(self) -> dict[Architecture, Workload]:
        return {}

    def example(self, network: nn.Module) -> Tensor:
        """The input that is measured, at the network's resolution."""
        return resized(self.measured, network)

    @property
    def measured(self) -> Tensor:
        """The input of which the latency is measured: as many samples as were asked for."""
        return self.task.example.repeat(self.batch, *[1] * (self.task.example.dim() - 1))

    @property
    def batch(self) -> int:
        """The samples of an inference, of which the latency is measured."""
        return int(self.arguments.get("batch") or 1)

    @cached_property
    def calibration(self) -> list[Tensor]:
        """Batches of training images, not augmented, for statistics and quantisation."""
        size = min(CALIBRATION_SIZE, len(self.task.train))
        batches = [self.task.train.batch(i, size)[0] for i in range(CALIBRATION_BATCHES)]
        return [channels_last(self.fitted(one, self.task.example.shape)) for one in batches]

    def fitted(self, inputs: Tensor, shape: Sequence[int]) -> Tensor:
        """Inputs as a file for this shape takes them: images (N, C, H, W) resized, sequences (N, T) padded."""
        if inputs.is_floating_point():
            return inputs if inputs.shape[-2:] == tuple(shape[-2:]) else resize(inputs, shape[-1])
        pad = self.task.preprocessing.to_dict().get("pad") or 0
        return functional.pad(inputs, (0, shape[-1] - inputs.shape[-1]), value=pad)

    def largest(self) -> Architecture:
        """The network of the largest option of every choice."""
        return self._made_of(self.space.largest(), lambda options: options[-1])

    def middle(self) -> Architecture:
        """The hand-made medium network: every choice at its middle option."""
        declared = {name: options[len(options) // 2] for name, options in self.space.choices.items()}
        return self._made_of(declared, lambda options: options[len(options) // 2])

    def smallest(self) -> Architecture:
        """The network of the smallest option of every choice."""
        return self._made_of(self.space.smallest(), lambda options: options[0])

    def hand_made(self) -> dict[str, Architecture]:
        """The networks that one would take without a search."""
        return {"largest": self.largest(), "middle": self.middle(), "smallest": self.smallest()}

    def _made_of(self, declared: Mapping[str, Option], choose: Callable[[Sequence[Option]], Option]) -> Architecture:
        """The options that a space declares, but operations as chosen from small to large."""
        return self.space.canonical({**declared, **{name: choose(them) for name, them in self._operations.items()}})

    @cached_property
    def _operations(self) -> dict[str, tuple[Option, ...]]:
        """The options of the choices among operations, whose names have no order, from small to large.

        By the multiply-accumulates, then the parameters, of the network that has an operation wherever it can be.
        """
        choices = {name: them for name, them in self.space.choices.items() if all(isinstance(o, str) for o in them)}
        ordered: dict[tuple[Option, ...], tuple[Option, ...]] = {}
        for options in dict.fromkeys(choices.values()):
            names = [name for name, them in choices.items() if them == options]

            def size(option: Option, names: Sequence[str] = names) -> tuple[float, float]:
                workload = self.workload(self.space.canonical({**self.space.largest(), **dict.fromkeys(names, option)}))
                return macs(workload), parameters(workload)

            ordered[options] = tuple(sorted(options, key=size))
        return {name: ordered[options] for name, options in choices.items()}

    def use_threads(self) -> None:
        """Train and evaluate with the number of threads of the plan, on which the bits of the results depend."""
        torch.set_num_threads(int(self.plan["training_threads"]))


def make_network(space: str, **shape: Any) -> nn.Module:
    """The network of a space by its name, `path.py:Class` included; ValueError when that makes no network."""
    if names.is_pretrained(space):
        return pretrained_network(space, **shape)
    network = names.load("spaces", space)(**shape)
    if not isinstance(network, nn.Module):
        raise ValueError(f"space {space!r} made a {type(network).__name__}, not a network")
    return network
