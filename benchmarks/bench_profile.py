# SPDX-License-Identifier: Apache-2.0
"""`sartor profile` within ten minutes: error and ranking of every model beside FLOPs and parameters, on this machine.

For each target and space one profile of 600 s (or SARTOR_BUDGET): MobileNet on 8x8 grey images, and NAS-Bench-201
networks on 32x32 colour images. Errors are those of held-out networks; "again" is their second measurement as a
prediction of the first, beyond which no ranking can be known. Run it when the machine is quiet. What is finished is
kept in runs/profiles and not measured again; a run that was stopped continues there. Delete a file to measure its
target and space anew.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sartor.costs import Profile
from sartor.costs.ledger import Ledger
from sartor.costs.profile import profile_of
from sartor.recipes.profile_device import profile_device
from sartor.targets import load_target

Row = Mapping[str, str | float | int | None]

KEPT = Path(__file__).parents[1] / "runs" / "profiles"
BUDGET_S, QUICK_S = float(os.environ.get("SARTOR_BUDGET", "600")), 20.0
TARGETS = ("onnxruntime", "openvino:int8", "torch")
SPACES: Mapping[str, Mapping[str, Any]] = {
    "mobilenet": {"size": 8, "channels": 1, "classes": 10},
    "nasbench201": {"size": 32, "channels": 3, "classes": 10},
}


def rows(quick: bool) -> Iterator[Row]:
    """A row per target, space and model, and one for measuring again."""
    with tempfile.TemporaryDirectory() as scratch:
        for space, shape in SPACES.items():
            for target in TARGETS[:1] if quick else TARGETS:
                folder = Path(scratch) if quick else KEPT
                path = folder / f"{space}-{target.replace(':', '-')}.costs"
                profile = _profile(path, target, space, shape, QUICK_S if quick else BUDGET_S)
                yield from _rows(profile)


def _profile(path: Path, target: str, space: str, shape: Mapping[str, Any], budget_s: float) -> Profile:
    """Return the finished profile of this very device, or measure what is lacking."""
    fingerprint = load_target(target).fingerprint()
    kept = Ledger(path, to_read=True) if path.is_file() else None
    for entry in kept.entries() if kept else ():
        if kept and entry.fingerprint == fingerprint and entry.record is not None:
            return profile_of(kept, entry)

    def say(line: str) -> None:
        sys.stdout.write(f"{space} on {target}: {line}\n")
        sys.stdout.flush()

    return profile_device(target=target, space=space, out=path, budget_s=budget_s, on_progress=say, **shape)


def _rows(profile: Profile) -> Iterator[Row]:
    shared = {"space": profile.space_name, "target": profile.target}
    samples = profile.record["samples"]
    told = {
        "train": samples["train"],
        "test": samples["test"],
        "noisy": samples["noisy"] / samples["measurements"],
        "roofline": profile.coverage.get("missing"),
        "seconds": profile.record["seconds"],
    }
    for model in profile.record["models"]:
        mark = "*" if model["name"] == profile.chosen else ""
        yield {**shared, "model": model["name"] + mark, **_errors(model["test"]), **told}
    yield {**shared, "model": "again", **_errors(profile.record["retest"]), **told}


def _errors(found: Mapping[str, Sequence[float | None]] | None) -> Row:
    none = (None, None, None)
    mape, rho = ((found or {}).get(name, none) for name in ("mape", "spearman"))
    percent = [None if value is None else 100 * value for value in mape]
    return {
        "MAPE %": percent[0],
        "MAPE low": percent[1],
        "MAPE high": percent[2],
        "R2": (found or {}).get("r2", none)[0],
        "Spearman": rho[0],
        "rho low": rho[1],
        "rho high": rho[2],
        "Kendall": (found or {}).get("kendall", none)[0],
    }
