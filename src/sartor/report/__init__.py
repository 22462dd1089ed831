# SPDX-License-Identifier: Apache-2.0
"""The report of a run: one self-contained page, one image, one file of numbers."""

from sartor.report.page import write_report

__all__ = ["write_report"]
