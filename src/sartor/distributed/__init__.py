# SPDX-License-Identifier: Apache-2.0
"""Several workers that train one network: who this is, which samples are its own, and the mean of all gradients.

`torchrun` starts the workers. All draw the same sub-networks, since these follow from the seed and the step, so a
weight has a gradient on all of them or on none. Gradients are averaged once, after the last sub-network of a step.
"""

from sartor.distributed.messages import (
    agree,
    average,
    average_gradients,
    from_first,
    joined,
    same_everywhere,
    share,
    wait,
)
from sartor.distributed.sharding import gathered, is_sharded, scattered, shard
from sartor.distributed.workers import WorkerLost, is_first, local_world, rank, start, world

__all__ = [
    "WorkerLost",
    "agree",
    "average",
    "average_gradients",
    "from_first",
    "gathered",
    "is_first",
    "is_sharded",
    "joined",
    "local_world",
    "rank",
    "same_everywhere",
    "scattered",
    "shard",
    "share",
    "start",
    "wait",
    "world",
]
