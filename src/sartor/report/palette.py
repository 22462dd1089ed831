# SPDX-License-Identifier: Apache-2.0
"""The report's colours, by role; text keeps a contrast of 4.5:1 with the paper, marks 3:1 (WCAG 2.2 AA)."""

from __future__ import annotations

LIGHT = {
    "paper": "#fdfdfb",
    "panel": "#f6f5f1",
    "ink": "#1b1f24",
    "muted": "#5a616b",
    "rule": "#dfddd6",
    "front": "#0b5a94",
    "wash": "#dbe7f0",
    "baseline": "#b3490c",
    "good": "#22694a",
    "faint": "#8a919b",
}
DARK = {
    "paper": "#14171b",
    "panel": "#1b1f24",
    "ink": "#e8e6e1",
    "muted": "#a2a9b3",
    "rule": "#31363d",
    "front": "#74b4e8",
    "wash": "#213a4e",
    "baseline": "#f0965c",
    "good": "#74c7a0",
    "faint": "#79818c",
}
