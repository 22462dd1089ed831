# SPDX-License-Identifier: Apache-2.0
"""What may be written on the command line: each argument's type, unit and help, in one place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from typer import Argument, Option

from sartor import units


class ImageSize(NamedTuple):
    """Height and width that images are resized to."""

    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> ImageSize:
        """Read "32" (a square) or "24x32" (height x width)."""
        found = re.fullmatch(r"\s*(\d{1,5})\s*(?:x\s*(\d{1,5}))?\s*", text)
        sides = [int(side) for side in found.groups(default=found[1])] if found else [0]
        if not all(sides):
            raise ValueError(f"image size {text!r} is not understood; expected a side or HxW, as 32 or 24x32")
        return cls(*sides)


class Limit(NamedTuple):
    """A limit of all targets, or of the one that is named."""

    target: str
    value: float

    @classmethod
    def reader(cls, parse: Callable[[str], float]) -> Callable[[str], Limit]:
        """Return what reads "2ms" or "openvino:int8=2ms"."""

        def read(text: str) -> Limit:
            target, equals, value = text.rpartition("=")
            if equals and not target:
                raise ValueError(f"limit {text!r} names no target; expected a value or TARGET=VALUE, as torch={value}")
            return cls(target, parse(value))

        return read


class Options(NamedTuple):
    """The options of what is searched in a pretrained network, by its role."""

    role: str
    values: tuple[int | float | tuple[int, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Options:
        """Read "heads=6,9,12", "mlp=0.5,0.75" or, for blocks by their numbers, "depth=0+2+5,3"."""
        role, _, values = text.partition("=")
        try:
            if not role.isidentifier():
                raise ValueError(role)
            return cls(role, tuple(_count_or_share(one) for one in values.split(",")))
        except ValueError:
            raise ValueError(
                f"options {text!r} are not understood; expected ROLE=COUNTS or shares, as heads=6,9,12 or mlp=0.5,0.75"
            ) from None


def _count_or_share(text: str) -> int | float | tuple[int, ...]:
    if "+" in text:
        return tuple(int(part) for part in text.split("+"))
    return float(text) if "." in text else int(text)


TARGET = "Where it will run, of `sartor list targets`, remote:COMMAND, datasheet:TEXT or path.py:Class"

Data = Annotated[
    str, Argument(metavar="DATA", help="digits, an .npz or IDX file, a folder, a data set id; text with --model.")
]
Out = Annotated[Path, Option(metavar="RUN", help="The run folder to write, as runs/first.")]
Target = Annotated[str, Option(metavar="NAME", help=f"{TARGET}.")]
Targets = Annotated[list[str] | None, Option("--target", metavar="NAME", help=f"{TARGET}; may repeat.")]
Latency = Annotated[
    list[Limit] | None,
    Option(
        metavar="TIME",
        parser=Limit.reader(units.parse_latency),
        help="Limit of the latency, such as 0.2ms; of one target alone, as torch=2ms.",
    ),
]
Energy = Annotated[
    list[Limit] | None,
    Option(metavar="ENERGY", parser=Limit.reader(units.parse_energy), help="Limit per inference, such as 5mJ."),
]
Memory = Annotated[
    list[Limit] | None,
    Option(metavar="BYTES", parser=Limit.reader(units.parse_size), help="Limit of the peak memory, such as 20MB."),
]
Size = Annotated[
    list[Limit] | None,
    Option(metavar="BYTES", parser=Limit.reader(units.parse_size), help="Limit of the exported file, such as 2MB."),
]
LimitAs = Annotated[
    Literal["hard", "penalty", "exponent", "lagrangian", "pareto"],
    Option("--limit-as", help="How the search takes limits; the verdict is measured all the same."),
]
Profile = Annotated[
    Path | None, Option("--costs", metavar="FILE", help="Predict latencies with a file that `sartor profile` wrote.")
]
Weights = Annotated[
    Path | None, Option(metavar="RUN", help="Take the shared weights of an earlier run instead of training.")
]
Macs = Annotated[
    float | None,
    Option(metavar="COUNT", parser=units.parse_count, help="Limit of the multiply-accumulates, such as 10M."),
]
Params = Annotated[
    float | None, Option(metavar="COUNT", parser=units.parse_count, help="Limit of the parameters, such as 1M.")
]
Budget = Annotated[
    float | None,
    Option(metavar="TIME", parser=units.parse_duration, help="Wall-clock time; 3min, if nothing is said."),
]
Steps = Annotated[int | None, Option(metavar="N", min=1, help="Training steps; with --trials, instead of a budget.")]
Trials = Annotated[int | None, Option(metavar="N", min=1, help="Trials; with --steps, the same work on every machine.")]
TrialTimeout = Annotated[
    float | None,
    Option(metavar="TIME", parser=units.parse_duration, help="A trial that takes longer has failed."),
]
Space = Annotated[str, Option(metavar="NAME", help="Of `sartor list spaces`, or path.py:Class.")]
Model = Annotated[
    str | None,
    Option("--model", metavar="MODEL", help="Start from a pretrained network of Hugging Face: a folder or an id."),
]
Elastic = Annotated[
    list[Options] | None,
    Option(
        "--elastic",
        metavar="ROLE=LIST",
        parser=Options.parse,
        help="What of a pretrained network is searched, as heads=6,9,12 or mlp=0.5,0.75; may repeat.",
    ),
]
Uniform = Annotated[
    list[str] | None,
    Option("--uniform", metavar="ROLE", help="What is the same in all blocks of a pretrained network; may repeat."),
]
Length = Annotated[
    int | None, Option("--length", metavar="TOKENS", min=2, help="Of a sequence; 64, if nothing is said.")
]
Batch = Annotated[int, Option("--batch", metavar="N", min=1, help="Samples of an inference whose latency is measured.")]
Method = Annotated[
    str | None,
    Option(metavar="NAME", help="What trains the shared weights: bignas, or a differentiable one, as fbnet."),
]
Retrain = Annotated[
    bool | None,
    Option(
        "--retrain/--inherit",
        help="Train what a differentiable method finds from scratch, or from the shared weights.",
        show_default=False,
    ),
]
CostWeight = Annotated[
    float | None,
    Option(metavar="X", help="How much limits weigh in a differentiable method's loss; 1, if nothing is said."),
]
Strategy = Annotated[str, Option(metavar="NAME", help="Of `sartor list strategies`, or path.py:Class.")]
ImageSide = Annotated[
    ImageSize | None,
    Option("--image-size", metavar="HxW", parser=ImageSize.parse, help="Resize images, to 32 or 24x32."),
]
Baselines = Annotated[bool, Option("--baselines/--no-baselines", help="Train hand-made networks too, to compare with.")]
Seed = Annotated[int, Option(metavar="N", min=0, max=2**32 - 1, help="Of every random draw.")]
Threads = Annotated[int, Option(metavar="N", min=1, max=1024, help="Of the target.")]
Resume = Annotated[bool, Option("--resume", help="Continue what is there.")]
Force = Annotated[bool, Option("--force", help="Replace what is there.")]
Debug = Annotated[bool, Option("--debug", help="On an error, show where it came from.")]

Supernet = Annotated[Path, Argument(metavar="RUN", help="A run with trained shared weights, of `sartor train`.")]
TrainSpace = Annotated[
    str, Argument(metavar="SPACE", help="Of `sartor list spaces`, path.py:Class, or hf: and a pretrained network.")
]
SharedMethod = Annotated[
    str | None, Option("--method", metavar="NAME", help="What trains the shared weights, of `sartor list methods`.")
]
TrainSteps = Annotated[int | None, Option("--steps", metavar="N", min=1, help="Training steps, instead of a budget.")]
BatchSize = Annotated[
    int | None, Option("--batch-size", metavar="N", min=1, help="Samples per step, of all processes together.")
]
Recipe = Annotated[
    Literal["short", "paper"],
    Option("--recipe", help="One for trainings of minutes to hours, or the method's own."),
]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"], Option("--precision", help="Of the passes; weights stay float32.")
]
Accumulate = Annotated[int, Option("--accumulate", metavar="N", min=1, help="Parts of a batch, for less memory.")]
Shard = Annotated[bool, Option("--shard", help="Divide the weights among torchrun's processes (FSDP2).")]
SpecialisedOut = Annotated[
    Path | None, Option("--out", metavar="RUN", help="The run folder to write; RUN-specialised, if nothing is said.")
]
SpecialTrials = Annotated[int, Option("--trials", metavar="N", min=1, help="Evaluations of sub-networks in all.")]
Finetune = Annotated[
    int, Option("--finetune", metavar="STEPS", min=0, help="Training steps of each network that is measured.")
]
Latencies = Annotated[
    list[Limit],
    Option(
        "--latency",
        metavar="TIME",
        parser=Limit.reader(units.parse_latency),
        help="A limit that gets a network, such as 0.2ms; of one target alone, as torch=2ms; may repeat.",
    ),
]

BenchSpace = Annotated[str, Option("--space", metavar="NAME", help="Of `sartor list tables`.")]
Column = Annotated[str, Option("--objective", metavar="COLUMN", help="What is reported, as cifar100; more is better.")]
Device = Annotated[str | None, Option(metavar="NAME", help="Minimise the latency of this device too, as pixel3.")]
Costs = Annotated[list[str] | None, Option("--cost", metavar="COLUMN", help="Minimise this column too; may repeat.")]
DeviceLatency = Annotated[
    float | None, Option("--latency", metavar="TIME", parser=units.parse_latency, help="Limit of the device's latency.")
]
Signal = Annotated[
    str | None,
    Option(metavar="COLUMN", help="What the searches read; <objective>_val12, or x_val for x_test, if there is."),
]
Fidelities = Annotated[
    list[str] | None, Option("--fidelity", metavar="BUDGET=COLUMN", help="A cheaper training, as 0.06=...; may repeat.")
]
Strategies = Annotated[
    str | None, Option(metavar="NAMES", help="all, or names of `sartor list strategies` with commas.")
]
OwnStrategies = Annotated[
    list[str] | None, Option("--strategy", metavar="path.py:Class", help="A strategy of your own; may repeat.")
]
GradientMethods = Annotated[
    str | None,
    Option("--methods", metavar="NAMES", help="Searches by gradients: all, or names with commas; --space micro."),
]
MethodSteps = Annotated[int | None, Option("--steps", metavar="N", min=1, help="Of each search by gradients; 269.")]
Tuned = Annotated[
    list[str] | None, Option("--tuned", metavar="NAME=TEXT", help="What an entry was tuned on; may repeat.")
]
Queries = Annotated[int, Option(metavar="N", min=1, help="Trials of each seed.")]
Seeds = Annotated[int, Option(metavar="N", min=1, max=10_000, help="Searches of each strategy.")]
Workers = Annotated[
    int | None, Option(metavar="N", min=1, max=1024, help="Processes; one per core, if nothing is said.")
]
BenchOut = Annotated[Path, Option("--out", metavar="DIR", help="The folder to write, as runs/scoreboard.")]

Run = Annotated[Path, Argument(metavar="RUN", help="The run folder.")]
MoreTime = Annotated[
    float | None,
    Option("--budget", metavar="+TIME", parser=units.parse_duration, help="More time, such as +3min."),
]
OpenPath = Annotated[bool, Option("--open-path", help="Print the report's path and nothing else.")]
Models = Annotated[list[Path], Argument(metavar="MODEL", help=".onnx files, or run folders.")]
Family = Annotated[
    Literal["spaces", "strategies", "methods", "targets", "tables"] | None,
    Argument(metavar="FAMILY", help="All of them, if nothing is said."),
]
