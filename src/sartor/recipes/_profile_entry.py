# SPDX-License-Identifier: Apache-2.0
"""Which profile of a file is made: a new one, one to continue, or one to replace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sartor.costs.ledger import Entry, Ledger
from sartor.protocols import Target
from sartor.supernet import search_space

__all__ = ["check_free", "described", "entry_of"]


def entry_of(
    ledger: Ledger, target: Target, space: Mapping[str, Any], settings: Mapping[str, Any], *, force: bool
) -> Entry:
    """Return the profile to continue, or a new one.

    With `force` a finished one is removed first; one that is not is continued all the same. FileExistsError for one
    that is finished; ValueError if it was begun in another way, or if another was adapted from what is to be removed.
    """
    check_free(ledger, target, space, force=force)
    fingerprint = target.fingerprint()
    found = ledger.find(fingerprint, space)
    if found is not None and found.record is not None:
        ledger.remove(found)
        found = None
    if found is None:
        return ledger.begin(target.name, fingerprint, space, settings)
    _check_continued(ledger, found, settings)
    tests = settings["tests"] if found.settings["tests"] is None else found.settings["tests"]
    return ledger.settle(found, {**settings, "tests": tests})


def check_free(ledger: Ledger, target: Target, space: Mapping[str, Any], *, force: bool) -> None:
    """FileExistsError if the file has this profile, finished, and `force` is not given."""
    found = ledger.find(target.fingerprint(), space)
    if found is not None and found.record is not None and not force:
        raise FileExistsError(
            f"{ledger.path} has a profile of {space['name']} on {target.name}; --force measures it again, "
            f"`sartor profile {ledger.path}` shows it"
        )


def _check_continued(ledger: Ledger, found: Entry, settings: Mapping[str, Any]) -> None:
    """Refuse what decides which networks are measured, and is not what the profile was begun with."""
    was = found.settings
    begun = f"{ledger.path}: the unfinished profile of {found.title} was begun"
    if was.get("adapted", False) != settings.get("adapted", False):
        how = "with" if was.get("adapted") else "without"
        raise ValueError(f"{begun} {how} --from: go on so, or name another file")
    fixed = ("seed", "tests", "samples") if was.get("adapted") and ledger.sessions(found) else ("seed", "tests")
    for name in fixed:
        if None not in (was[name], settings[name]) and was[name] != settings[name]:
            raise ValueError(
                f"{begun} with --{name} {was[name]}, not {settings[name]}: go on with that, or name another file"
            )


def described(space: str, shape: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """What tells a space from others: its name, who made it, its images, and its choices."""
    found = search_space(network)
    if not found.choices:
        raise ValueError(f"space {space!r} has no choice to profile; give its network some")
    place = f"{type(network).__module__}:{type(network).__qualname__}"
    made_by = place if place.startswith("sartor.spaces.") else None
    return {"name": space, "made_by": made_by, **shape, "space": found.to_json()}
