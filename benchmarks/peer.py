"""Other libraries as subprocesses, each in the environment that `benchmarks/peers/setup` made for it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.bench import Problem
from sartor.trial import Trial, TrialLog

HERE = Path(__file__).parent
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Library:
    """A peer: its environment below `.peers/`, its script below `benchmarks/peers/`, and what it is asked for."""

    name: str
    environment: str
    script: str
    request: dict[str, Any] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return HERE.parent / ".peers" / self.environment / "bin" / "python"

    def check(self) -> None:
        """Raise FileNotFoundError with the remedy, if its environment was not set up."""
        if not self.python.exists():
            raise FileNotFoundError(f"{self.name} is not set up: run benchmarks/peers/setup {self.environment}")

    def searched(self, grid: NDArray[np.float64], seeds: list[int], queries: int) -> list[dict[str, Any]]:
        """Return for each seed the options that it evaluated, in order, and the CPU seconds of the search alone.

        grid: (options of choice 1, ..., options of choice n, objectives), all to be minimised; NaN: not measured.
        """
        self.check()
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "table.npy"
            np.save(table, grid)
            request = {"table": str(table), "seeds": seeds, "queries": queries, "sqlite": False, **self.request}
            done = subprocess.run(
                [self.python, HERE / "peers" / self.script],
                input=json.dumps(request),
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, **dict.fromkeys(THREADS, "1")},
            )
        if done.returncode:
            raise RuntimeError(f"{self.name} failed: {done.stderr.strip().splitlines()[-1:]}")
        answer: list[dict[str, Any]] = json.loads(done.stdout)
        return answer


class Process:
    """A peer's script that runs on: it answers each line of JSON with one."""

    def __init__(self, library: Library, asked: Mapping[str, Any]) -> None:
        """Start the script with its first line; `first` is the answer."""
        library.check()
        self.library = library
        self._process = subprocess.Popen(
            [library.python, HERE / "peers" / library.script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **dict.fromkeys(THREADS, "1")},
        )
        self.first: Any = self.answer(asked)

    def answer(self, order: Any) -> Any:
        """Return the answer to an order; RuntimeError if the script ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        found = self._process.stdout.readline()
        if not found:
            raise RuntimeError(f"{self.library.script} ended: run it by hand to see why")
        return json.loads(found)

    def __enter__(self) -> Process:
        """Return the process itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def grid_of(problem: Problem) -> NDArray[np.float64]:
    """Return the costs of a tabular problem by option, (options ..., objectives); NaN outside its space."""
    from itertools import product

    choices = list(problem.space.choices.values())
    grid = np.full((*map(len, choices), len(problem.objectives)), np.nan)
    signs = [1.0 if one.goal == "min" else -1.0 for one in problem.objectives]
    for options in product(*(range(len(one)) for one in choices)):
        arch = architecture(problem, options)
        if problem.space.constraint is None or problem.space.constraint(arch):
            grid[options] = [sign * one.measure(arch) for sign, one in zip(signs, problem.objectives, strict=True)]
    return grid


def architecture(problem: Problem, options: Any) -> Architecture:
    """Return the architecture of the positions of its options."""
    values = zip(problem.space.choices.items(), options, strict=True)
    return Architecture({name: choice[place] for (name, choice), place in values})


class PeerSearch:
    """A peer as an entry of a scoreboard: all its seeds are searched at once, when the first is asked for."""

    def __init__(self, library: Library, problem: Problem, seeds: int) -> None:
        """Take the library; its environment must be there."""
        library.check()
        self.library, self.problem, self.seeds = library, problem, seeds
        self._found: list[list[list[int]]] = []

    def __call__(self, seed: int, queries: int) -> TrialLog:
        """Return the log of one seed."""
        if not self._found:
            answer = self.library.searched(grid_of(self.problem), list(range(self.seeds)), queries)
            self._found = [one["found"] for one in answer]
        log = TrialLog()
        for number, options in enumerate(self._found[seed]):
            arch = architecture(self.problem, options)
            values = {one.name: float(one.measure(arch)) for one in self.problem.objectives}
            log.append(Trial(number, arch, values, state="done"))
        return log
