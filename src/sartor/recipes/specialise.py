# SPDX-License-Identifier: Apache-2.0
"""From trained shared weights to a network for every device and limit, in minutes and without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sartor.recipes.device_search import search_for_device
from sartor.recipes.job import Say
from sartor.recipes.methods import BIGNAS
from sartor.recipes.record import arguments_of
from sartor.run import Run
from sartor.task import Task

__all__ = ["TRIALS", "specialise"]

TRIALS = 200


def specialise(
    supernet: str | Path,
    *,
    target: str | Sequence[str],
    latencies_ms: Sequence[float] | Mapping[str, Sequence[float]],
    out: str | Path | None = None,
    limits: Mapping[str, float] | None = None,
    trials: int = TRIALS,
    strategy: str = "linas",
    finetune_steps: int = 0,
    batch: int = 1,
    costs: str | Path | None = None,
    data: Task | None = None,
    threads: int = 1,
    force: bool = False,
    on_progress: Say | None = None,
) -> Run:
    """Find, for each target and latency limit, the best sub-network of a trained supernet; all verdicts are measured.

    One search serves all targets and limits: the error of an architecture is evaluated once, with shared weights and
    statistics of its own, and its latency predicted for each target. Then the best few of each limit are exported and
    measured, and `specialised.json` in the returned run says which meets it with the highest validation accuracy.

    Args:
        supernet: a run of `train_supernet`, or of a search that trained shared weights.
        target: a name of `sartor list targets`, or several.
        latencies_ms: limits of the median latency, of all targets, or by target's name ("" for all).
        out: the run folder; the supernet's with "-specialised" behind it, if None.
        limits: further limits, see `search_for_device`.
        trials: evaluations in all.
        strategy: of the first part of the trials, which look for the front; the rest look within each limit.
        finetune_steps: of every network that is measured; 0 takes the shared weights as they are.
        batch: samples of an inference, of which latencies are measured.
        costs: a file that `sartor profile` wrote, instead of measuring a sample first.
        data: where the supernet was trained on a `Task`, that.
        threads: of the targets' runtimes.
        force: replace the run in `out`.
        on_progress: called with a line at each stage.

    Raises ValueError for what cannot be used, LimitError when no network meets any limit, FileExistsError when `out` is
    taken.
    """
    supernet = Path(supernet)
    asked = arguments_of(Run.open(supernet, lock=False))
    if asked.get("given") and data is None:
        raise ValueError(f"{supernet} was trained on a Task of its own; give it again as data=")
    ladder = latencies_ms if isinstance(latencies_ms, Mapping) else {"": list(latencies_ms)}
    size = asked.get("image_size")
    return search_for_device(
        data or asked["data"],
        target=target,
        out=supernet.with_name(f"{supernet.name}-specialised") if out is None else out,
        limits=limits,
        ladder=ladder,
        budget_s=None,
        steps=finetune_steps,
        trials=trials,
        space=asked["space"],
        method=asked.get("method", BIGNAS),
        strategy=strategy,
        seed=asked["seed"],
        threads=threads,
        image_size=tuple(size) if isinstance(size, list) else size,
        length=asked.get("length"),
        elastic=asked.get("elastic"),
        uniform=asked.get("uniform") or (),
        batch=batch,
        weights=supernet,
        costs=costs,
        force=force,
        on_progress=on_progress,
    )
