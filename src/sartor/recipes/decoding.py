# SPDX-License-Identifier: Apache-2.0
"""After a front is exported: how fast its language models write with a cache, in PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sartor.atomic import write_json
from sartor.recipes.job import Job
from sartor.recipes.verification import read_member, stored_network
from sartor.targets.decoding import decoding_speed

__all__ = ["measure_decoding"]

SECONDS = 1.0
"""Of timing for each network."""


def measure_decoding(job: Job, folders: Sequence[Path]) -> None:
    """Add to each `measurement.json` the tokens per second of a language model; of any other network do nothing.

    Prompt and what follows share the length of the measured input, so that no model runs out of places, and its batch.
    """
    if not folders or job.task.preprocessing.to_dict().get("kind") != "language":
        return
    ids = job.measured
    half = ids.shape[1] // 2
    networks = [stored_network(job, read_member(folder)) for folder in folders]
    threads = int(job.arguments["threads"])
    speeds = decoding_speed(
        networks, ids[:, :half], tokens=ids.shape[1] - half, threads=threads, seconds=SECONDS, seed=job.seed
    )
    for folder, speed in zip(folders, speeds, strict=True):
        path = folder / "measurement.json"
        write_json(path, {**json.loads(path.read_bytes()), "decoding": speed.to_dict()})
