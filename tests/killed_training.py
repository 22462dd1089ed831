# SPDX-License-Identifier: Apache-2.0
"""A learner whose second process is killed at a step, where the environment says at which."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

from sartor import distributed
from sartor.oneshot import BigNAS

KILLED_AT = "TESTS_KILLED_AT"


class Killed(BigNAS):
    """BigNAS, until then."""

    passes_per_step = 4.0

    def step(self, batch: Any) -> Mapping[str, float]:
        """Take a step, if it comes to that."""
        if distributed.rank() == 1 and str(self.training.done) == os.environ.get(KILLED_AT):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(batch)
