# SPDX-License-Identifier: Apache-2.0
"""Measuring what a profile needs on one target: networks of a space, and operators as little networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.costs.ledger import Measured
from sartor.costs.levels import typical
from sartor.costs.little import little_network
from sartor.costs.operators import parse
from sartor.deploy.parity import ExportError
from sartor.nn import resized
from sartor.protocols import Artefact, Measurement, Target
from sartor.supernet import extract
from sartor.targets.artefacts import TargetError

__all__ = ["Bench", "MeasuredOperator", "check_accepted"]

SECONDS = 0.25
"""Of timing for each network: the fit averages over many."""
CALIBRATION = 16

MeasuredOperator = tuple[str, float | None, Measurement | None, str]
_REFUSALS = (ExportError, TargetError, ValueError, RuntimeError, NotImplementedError)


@dataclass
class Bench:
    """Prepares networks of a space for a target, in a folder that is the caller's to remove, and measures them.

    network: on the processor, with any weights. image: (1, C, H, W). calibration: images (N, C, H, W) for int8; noise
    where no data is known.
    """

    target: Target
    network: nn.Module
    image: Tensor
    folder: Path
    calibration: Tensor | None = None
    _artefacts: dict[str, Artefact | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        timed: Any = self.target
        if is_dataclass(timed) and any(one.name == "seconds" for one in fields(timed)):
            timed = replace(timed, seconds=SECONDS)  # type: ignore[type-var]
            self.target = timed

    def networks(self, archs: Sequence[Architecture], keep: Sequence[Architecture] = ()) -> list[Measured]:
        """Measure architectures together, in interleaved rounds; the files of `keep` stay for the next time.

        TargetError if nothing could be measured.
        """
        prepared = [self._prepared(arch.id, partial(self._runnable, arch)) for arch in archs]
        found = self._measured(prepared)
        for arch in set(archs) - set(keep):
            self._forget(arch.id)
        return [Measured(arch, one, reason) for arch, (one, reason) in zip(archs, found, strict=True)]

    def operators(self, keys: Sequence[str], stored: Mapping[str, float | None]) -> list[MeasuredOperator]:
        """Measure operators and pairs by their keys; milliseconds are at the level of those that are `stored`.

        The first two that were stored are measured again with each session, and tell the level. What cannot be made
        into a network is refused. TargetError if nothing could be measured.
        """
        again = [name for name, ms in stored.items() if ms is not None][:2]
        asked = [*dict.fromkeys([*again, *keys])]
        prepared = [self._prepared(f"op{place}", partial(_little, name)) for place, name in enumerate(asked)]
        found = self._measured(prepared)
        for place in range(len(asked)):
            self._forget(f"op{place}")
        kept = [name for name, (one, _) in zip(asked, found, strict=True) if one is not None]
        now = dict(zip(kept, typical([one for one, _ in found if one is not None]).tolist(), strict=True))
        ratios = [now[name] / ms for name in now if (ms := stored.get(name))]
        level = float(np.median(ratios)) if ratios else 1.0
        return [
            (name, now[name] / level if one is not None else None, one, reason)
            for name, (one, reason) in zip(asked, found, strict=True)
            if name not in stored
        ]

    def _prepared(self, name: str, make: Callable[[], tuple[nn.Module, Tensor] | None]) -> Artefact | str:
        """Return the files of a network, or the reason for which there are none."""
        if name not in self._artefacts:
            path = self.folder / name
            path.mkdir(parents=True, exist_ok=True)
            self._artefacts[name] = self._attempted(make, path)
        return self._artefacts[name]

    def _attempted(self, make: Callable[[], tuple[nn.Module, Tensor] | None], path: Path) -> Artefact | str:
        made = make()
        if made is None:
            return "no network of this operator alone can be made"
        network, example = made
        inputs = torch.randn((CALIBRATION, *example.shape[1:]), generator=torch.Generator().manual_seed(1))
        if self.calibration is not None and example.shape[1] == self.calibration.shape[1]:
            inputs = resized(self.calibration, network)
        try:
            return self.target.prepare(network, (example,), [inputs], path)
        except _REFUSALS as error:
            return (str(error).splitlines() or [type(error).__name__])[0]

    def _measured(self, prepared: Sequence[Artefact | str]) -> list[tuple[Measurement | None, str]]:
        """Return each measurement, or None and the reason of a refusal.

        Where nothing was measured, the device may just be out of reach, which says nothing of a network: TargetError.
        """
        artefacts = [one for one in prepared if isinstance(one, Artefact)]
        reasons: Mapping[int, str] = {}
        found: Sequence[Measurement | None] = []
        try:
            found = self.target.measure(artefacts) if artefacts else []
        except TargetError as error:
            if not any(one is not None for one in error.measurements):
                said = min([str(error), *error.reasons.values()], key=len)  # once, not for each network
                raise TargetError(f"{self.target.name} measured none of {len(artefacts)} networks: {said}") from None
            reasons = {place: error.reasons.get(place, str(error)) for place in range(len(artefacts))}
            found = error.measurements
        told = iter((one, "" if one is not None else reasons.get(place, "")) for place, one in enumerate(found))
        return [next(told) if isinstance(one, Artefact) else (None, one) for one in prepared]

    def _runnable(self, arch: Architecture) -> tuple[nn.Module, Tensor]:
        """Return the network that would be deployed, and its input.

        Norms that start at zero would let a runtime, or a quantiser, see a network that is mostly zero.
        """
        network = extract(self.network, arch).eval()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_parameters()
        return network, resized(self.image, network)

    def _forget(self, name: str) -> None:
        artefact = self._artefacts.pop(name, None)
        for file in artefact.files if isinstance(artefact, Artefact) else ():
            file.unlink(missing_ok=True)


def check_accepted(target: Target, found: Sequence[Measured], *, least: int = 1) -> None:
    """TargetError if a target refuses most networks, or leaves fewer than `least` of them."""
    refused = [one for one in found if one.measurement is None]
    if refused and (2 * len(refused) > len(found) or len(found) - len(refused) < least):
        raise TargetError(f"{target.name} refuses {len(refused)} of {len(found)} networks: {refused[0].reason}")


def _little(name: str) -> tuple[nn.Module, Tensor] | None:
    return little_network(*map(parse, name.split(">")))
