# SPDX-License-Identifier: Apache-2.0
"""A graphics card that exists in arithmetic only: what `torch.cuda` would tell about it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch


@dataclass
class FakeCard:
    """Seconds pass when something is launched; memory is what a test says."""

    seconds: float = 0.0
    allocated: int = 0
    peak: int = 0
    free: int = 10**9
    events: list[str] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeCard:
        card = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = card.seconds
                card.events.append("record")

            def synchronize(self) -> None:
                card.events.append("synchronize")

            def elapsed_time(self, later: Event) -> float:
                return float(torch.tensor(1e3 * (later.at - self.at), dtype=torch.float32))

        properties = SimpleNamespace(
            name="Fake 100", total_memory=80 * 10**9, multi_processor_count=132, major=9, minor=0, uuid="ab-cd"
        )
        functions: dict[str, Any] = {
            "is_available": lambda: True, "current_device": lambda: 0, "Event": Event, "Stream": lambda: "a stream",
            "get_device_properties": lambda _: properties, "stream": lambda _: nullcontext(),
            "current_stream": lambda: SimpleNamespace(cuda_stream=42), "synchronize": lambda: None,
            "reset_peak_memory_stats": self.reset, "memory_allocated": lambda: self.allocated,
            "max_memory_allocated": lambda: self.peak, "empty_cache": lambda: None,
            "mem_get_info": lambda: (self.free, 10**9),
        }  # fmt: skip
        for name, function in functions.items():
            monkeypatch.setattr(torch.cuda, name, function)
        return self

    def reset(self) -> None:
        self.peak = self.allocated
