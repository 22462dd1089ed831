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
# Of things that are told apart by colour alone, such as the lines of many searches; the same contrasts.
SERIES_LIGHT = {
    "s0": "#0b5a94",
    "s1": "#b3490c",
    "s2": "#22694a",
    "s3": "#7a3e9d",
    "s4": "#a81d4d",
    "s5": "#7a6200",
    "s6": "#0d7a80",
    "s7": "#5a616b",
}
SERIES_DARK = {
    "s0": "#74b4e8",
    "s1": "#f0965c",
    "s2": "#74c7a0",
    "s3": "#c79be6",
    "s4": "#f08aa8",
    "s5": "#d6bf5a",
    "s6": "#5fc9cf",
    "s7": "#a2a9b3",
}
