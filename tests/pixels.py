# SPDX-License-Identifier: Apache-2.0
"""How the images of a task were made inputs."""

from __future__ import annotations

from sartor.task import Preprocessing, Task


def pixels_of(task: Task) -> Preprocessing:
    assert isinstance(task.preprocessing, Preprocessing)
    return task.preprocessing
