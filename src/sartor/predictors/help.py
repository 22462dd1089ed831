# SPDX-License-Identifier: Apache-2.0
"""HELP: latency on a new device from ten measurements, by learning over devices.

Lee, Lee, Chong and Hwang, "HELP: Hardware-Adaptive Efficient Latency Prediction for NAS via Meta-Learning", NeurIPS
2021, arXiv:2106.08630.

To predict latency on a device is a task, and many devices are known. A network f(x, v; theta) learns over them such
weights and step sizes that two steps of gradient descent on ten measurements suit it to a new device. The device itself
is known by those measurements alone: they make its embedding v, which also conditions the weights that the steps start
from.

Differs from the paper: the ten measurements are all that is seen of a device (the authors' code takes ten more, and
scales by the extremes of hundreds); they are scaled to mean 0 and spread 1, and any ten will do. The embedding is
therefore not the latencies of ten fixed references but a line through the measurements: a cost for each option, with a
prior that starts from what options cost on the sources, and is learnt as well. The network adds to that line. Half of
the devices of an episode are synthetic (blends of sources, and operators with costs of their own). A perceptron reads
one-hot options unless `links` ask for the graph network. The outer loop has lr 1e-3 (paper: 1e-4) and gradients of norm
1 at most, inner steps start at 1e-2 (1e-3), measurements are noisy in training, errors are divided by the spread of a
device's latencies, and the last layer starts at zero. Closest to the paper are `line=False`, `references`, `links`,
`synthetic=0`, `rate=1e-3` and `lr=1e-4`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sartor.architecture import Architecture
from sartor.encodings import graph, neighbourhood, onehot
from sartor.predictors._help_adapted import AdaptedHELP, predicted, rows_of, rows_of_references
from sartor.predictors._help_files import read, write
from sartor.predictors._help_network import Floats, Inputs, Meta, counting, prior
from sartor.predictors._help_tasks import Rows, checked_devices, devices_of_episode, drawn_samples, spread_out
from sartor.predictors._networks import one_thread
from sartor.predictors._samples import Scale
from sartor.ranking import spearman
from sartor.space import SearchSpace

__all__ = ["HELP", "AdaptedHELP"]

_SHIPPED = Path(__file__).parent / "data"
_CHECKS = 10  # sets of samples that validation draws
_CHECKED = 1000  # architectures that it ranks


class HELP:
    """A predictor of latency for any device, once it has learnt from several.

    links: pairs of choices for a graph network, as for `GCN`; none makes a perceptron.
    references: if given, the embedding is their latencies, in this order, and these are what is measured.
    line: whether the network adds to the line; without, it needs `references`.
    units, steps, rate: of the layers (100), of the inner loop (2), and its initial step size (the paper's is 1e-3).
    modulation, kl, draws: of z: its effect (.01), the weight of its divergence (.1), and how many are averaged (10).
    samples, episodes, devices, queries: measurements of a device (10), and the outer loop (2,000; 8; 200).
    lr: of Adam in the outer loop; the paper's is 1e-4.
    synthetic, noise: the share of synthetic devices, and the greatest relative error of a latency in training.

    Raises ValueError for sizes out of range, and for neither line nor references.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        links: Sequence[tuple[str, str]] = (),
        references: Sequence[Architecture] = (),
        line: bool = True,
        units: int = 100,
        steps: int = 2,
        rate: float = 1e-2,
        modulation: float = 0.01,
        kl: float = 0.1,
        draws: int = 10,
        samples: int = 10,
        episodes: int = 2000,
        devices: int = 8,
        queries: int = 200,
        lr: float = 1e-3,
        synthetic: float = 0.5,
        noise: float = 0.05,
        seed: int = 0,
    ) -> None:
        if min(units, draws, devices) < 1 or min(samples, queries) < 2 or min(steps, episodes) < 0:
            raise ValueError(f"units {units}, draws {draws}, devices {devices}, samples {samples}: too few of one")
        if not line and not references:
            raise ValueError("line=False leaves nothing that tells devices apart: give references")
        self.space, self.links, self.references = space, tuple((one, other) for one, other in links), tuple(references)
        self.samples, self.episodes, self.devices, self.queries = samples, episodes, devices, queries
        self.kl, self.draws, self.lr, self.seed = kl, draws, lr, seed
        self.synthetic, self.noise = synthetic, noise
        self._sizes: dict[str, Any] = {"line": line, "units": units, "steps": steps, "rate": rate}
        self._sizes["modulation"] = modulation
        self._meta: Meta | None = None
        self.history: list[tuple[int, float]] = []
        """Episodes, and the mean Spearman correlation on the validation devices after them."""

    # ---- learning over devices ------------------------------------------------------------------------

    def meta_fit(
        self,
        archs: Sequence[Architecture],
        devices: Mapping[str, ArrayLike],
        validation: Mapping[str, ArrayLike] | None = None,
        *,
        every: int = 100,
    ) -> Self:
        """Learn from N architectures and their (N,) latencies on each of `devices`, in any unit; return self.

        With `validation` devices, what ranks them best is kept; they are looked at after `every` that many episodes.
        Raises ValueError for no device, latencies that are not N positive numbers, too few architectures, and
        references that are not among them.
        """
        tables, held = checked_devices(devices, len(archs)), checked_devices(validation or {}, len(archs))
        if not len(tables) or len(archs) < max(self.samples, 2):
            raise ValueError(f"{len(tables)} devices and {len(archs)} architectures are too few to learn from")
        inputs, counts = self._inputs(archs), counting(self.space)
        held_options = onehot(self.space, archs)
        columns = _standardised(held_options @ counts)
        rng, self.history = np.random.default_rng(self.seed), []
        fixed = rows_of_references(self.references, archs)
        with one_thread(), torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            meta = self._meta = self._new_meta(inputs, prior(held_options, counts, tables))
            checks = self._checks(columns, fixed)
            adam = torch.optim.Adam(meta.parameters(), lr=self.lr)
            best: tuple[float, dict[str, Tensor]] | None = None
            for episode in range(self.episodes + 1):
                if len(held) and (episode % every == 0 or episode == self.episodes):
                    rho = self._validated(inputs, held, checks)
                    self.history.append((episode, rho))
                    if best is None or rho > best[0]:
                        best = rho, {name: one.clone() for name, one in meta.state_dict().items()}
                if episode < self.episodes:
                    self._episode(adam, inputs, columns, tables, fixed, rng)
            if best is not None:
                meta.load_state_dict(best[1])
        return self

    def _episode(
        self,
        adam: torch.optim.Optimizer,
        inputs: Inputs,
        columns: Floats,
        tables: Floats,
        fixed: Rows | None,
        rng: np.random.Generator,
    ) -> None:
        meta = self._ready()
        ms = devices_of_episode(
            tables, columns - columns.min(axis=0), self.devices, synthetic=self.synthetic, noise=self.noise, rng=rng
        )
        drawn = [fixed if fixed is not None else drawn_samples(columns, self.samples, rng) for _ in ms]
        asked = rng.choice(len(columns), min(self.queries, len(columns)), replace=False)
        scales = [Scale.of(table[rows]) for table, rows in zip(ms, drawn, strict=True)]
        y, true = _scaled(ms, drawn, scales), _scaled(ms, [asked] * len(ms), scales)
        scores, divergence, _ = predicted(meta, rows_of(inputs, np.stack(drawn)), y, rows_of(inputs, asked), None)
        errors = (scores - true).square().mean(dim=1) / true.var(dim=1).clamp(min=1e-6)
        adam.zero_grad()
        (errors.mean() + self.kl * divergence).backward()  # type: ignore[no-untyped-call]  # second order
        torch.nn.utils.clip_grad_norm_(meta.parameters(), 1.0)
        adam.step()

    def _validated(self, inputs: Inputs, held: Floats, checks: tuple[list[Rows], Rows]) -> float:
        """Return the mean Spearman correlation over validation devices and sets of samples, at the mean of z."""
        meta, (drawn, asked) = self._ready(), checks
        rhos: list[float] = []
        for table in held:
            scales = [Scale.of(table[rows]) for rows in drawn]
            y = _scaled(np.tile(table, (len(drawn), 1)), drawn, scales)
            with torch.no_grad():
                normal = torch.zeros(len(drawn), meta.entries)
                scores, _, _ = predicted(meta, rows_of(inputs, np.stack(drawn)), y, rows_of(inputs, asked), normal)
            rhos += [spearman(row.numpy(), table[asked]) for row in scores]
        return float(np.mean(rhos))

    def _checks(self, columns: Floats, fixed: Rows | None) -> tuple[list[Rows], Rows]:
        rng = np.random.default_rng((self.seed, 1))
        drawn = [fixed] if fixed is not None else [drawn_samples(columns, self.samples, rng) for _ in range(_CHECKS)]
        return drawn, rng.choice(len(columns), min(_CHECKED, len(columns)), replace=False)

    # ---- a new device ---------------------------------------------------------------------------------

    def adapt(self, archs: Sequence[Architecture], ms: ArrayLike) -> AdaptedHELP:
        """Return the predictor of the device that took `ms` for `archs`: two or more, in the way of ten."""
        return self.predictor().fit(archs, np.asarray(ms, dtype=np.float64))

    def predictor(self) -> AdaptedHELP:
        """Return a `Predictor` whose `fit` adapts; ValueError before `meta_fit`."""
        meta = self._ready()
        return AdaptedHELP(meta, self._inputs, references=self.references, draws=self.draws, seed=self.seed)

    def suggest(
        self, candidates: Sequence[Architecture] | None = None, *, count: int | None = None, seed: int = 0
    ) -> list[Architecture]:
        """Return which architectures to measure: `references`, or those of the candidates that say most.

        candidates: those that can be measured (default: 300 that are drawn from the space).
        count: how many (default: `samples`), if there are as many.
        """
        if self.references:
            return list(self.references)
        if candidates is None:
            rng = random.Random(seed)
            candidates = [self.space.sample(rng) for _ in range(300)]
        columns = _standardised(onehot(self.space, candidates) @ counting(self.space))
        return [candidates[row] for row in spread_out(columns, min(count or self.samples, len(candidates)))]

    # ---- files ----------------------------------------------------------------------------------------

    def save(self, path: Path | str) -> None:
        """Write what was learnt as safetensors, with the space, so that `load` needs nothing else."""
        told = {name: getattr(self, name) for name in ("links", "draws", "samples", "seed")}
        references = [dict(arch) for arch in self.references]
        told |= {"space": self.space.to_json(), "references": references, "sizes": self._sizes}
        write(Path(path), told, self._ready().state_dict())

    @classmethod
    def load(cls, path: Path | str) -> HELP:
        """Read what `save` wrote, but for a space's constraint, which is code; ValueError for any other file."""
        told, state = read(Path(path))
        try:
            space = SearchSpace.from_json(told["space"])
            references = [Architecture(one) for one in told["references"]]
            more = {name: told[name] for name in ("links", "draws", "samples", "seed")}
            model = cls(space, references=references, **told["sizes"], **more)
            model._meta = model._new_meta(model._inputs([space.smallest()]), state["factor"].numpy())
            model._meta.load_state_dict(state)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} does not hold what HELP.save writes: {error}") from None
        return model

    @classmethod
    def shipped(cls, name: str = "nasbench201") -> HELP:
        """Return what comes with the package: "nasbench201", which has learnt from 27 device settings."""
        path = _SHIPPED / f"help_{name}.safetensors"
        if not path.is_file():
            names = ", ".join(sorted(one.stem.removeprefix("help_") for one in _SHIPPED.glob("help_*.safetensors")))
            raise ValueError(f"nothing ready-made is named {name!r}: there is {names}; for other spaces call meta_fit")
        return cls.load(path)

    # ---- arrays ---------------------------------------------------------------------------------------

    def _ready(self) -> Meta:
        if self._meta is None:
            raise ValueError("HELP has learnt from no device yet: call meta_fit, or take HELP.shipped()")
        return self._meta

    def _new_meta(self, inputs: Inputs, prior: Floats) -> Meta:
        heard = torch.from_numpy(neighbourhood(self.space, self.links)).float() if self.links else None
        directions, references = torch.from_numpy(prior).float(), len(self.references)
        return Meta(inputs.x.shape[-1], directions, references=references, heard=heard, **self._sizes)

    def _inputs(self, archs: Sequence[Architecture]) -> Inputs:
        held = torch.from_numpy(onehot(self.space, archs)).float()
        x = torch.from_numpy(graph(self.space, archs, places=False)).float() if self.links else held
        return Inputs(x, held)


def _standardised(columns: Floats) -> Floats:
    deviation = columns.std(axis=0)
    return np.asarray((columns - columns.mean(axis=0)) / np.where(deviation > 1e-6, deviation, 1.0))


def _scaled(ms: Floats, rows: Sequence[Rows], scales: Sequence[Scale]) -> Tensor:
    """Return (T, N) latencies of each device at its rows, in units of its scale."""
    each = zip(ms, rows, scales, strict=True)
    return torch.from_numpy(np.stack([scale.standardised(table[at]) for table, at, scale in each])).float()
