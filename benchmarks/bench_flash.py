"""FLASH: NN-Degree beside counts of weights on digits, hierarchical SHGO beside brute force, and NAS-Bench-201.

Degree: 40 fully connected networks of two cells (width 8 to 32, 4 to 12 layers, random concatenated links), without
normalisation, 10 epochs each, mean of three trainings; the accuracy model is fitted to 25 and judged on 15. Design:
three cells, widths 8 to 64 in steps of 8 and 0 to 40 links in steps of 10 (64,000 designs) under a bound on latency;
its optimum is known by enumeration. NAS-Bench-201: as in the other benchmarks, with an estimated degree.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import differential_evolution
from scipy.stats import kendalltau, spearmanr
from torch import Tensor, nn

from incumbents import nasbench201_values
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies._relaxation import Relaxation, hierarchical_shgo
from sartor.strategies.flash import FLASH, Cell, fitted_accuracy, nn_degree
from sartor.strategies.random_search import RandomSearch
from sartor.strategies.regularized_evolution import RegularizedEvolution

Row = Mapping[str, str | float | int | None]
Floats = NDArray[np.float64]
AFTER = (50, 100, 200)
CELLS = range(3)
DEPTH = 4


def rows(quick: bool) -> Iterator[Row]:
    """The degree, the design, and the searches."""
    yield from degrees(8 if quick else 40, 1 if quick else 3)
    yield from designs()
    yield from verified(3 if quick else 30)
    values = nasbench201_values(FLASH, 3 if quick else 30, AFTER)
    for queries, column in zip(AFTER, values.T, strict=True):
        yield row(f"nasbench201, {queries} queries", "test accuracy, %", column)


def row(what: str, unit: str, values: Sequence[float] | Floats) -> Row:
    """Return the mean and deviation."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"what": what, "unit": unit, "n": len(values), "mean": float(np.mean(values)), "deviation": deviation}


# ---- NN-Degree ----------------------------------------------------------------------------------------


class LinkedNet(nn.Module):
    """Cells of fully connected layers; each long-range link adds one earlier channel to the input of a layer."""

    def __init__(self, cells: Sequence[Cell], rng: np.random.Generator) -> None:
        """Draw the links evenly over the layers that have something to link to."""
        super().__init__()
        self.layers = nn.ModuleList()
        self.links: list[list[int]] = []
        inputs = 64
        for width, depth, skips in (map(int, cell) for cell in cells):
            extra = rng.multinomial(skips, np.ones(depth - 2) / (depth - 2))
            for place in range(depth):
                earlier = width * max(0, place - 1)
                count = min(int(extra[place - 2]), earlier) if place >= 2 else 0
                self.links.append(rng.choice(earlier, count, replace=False).tolist() if count else [])
                self.layers.append(nn.Linear((width if place else inputs) + count, width))
            inputs = width
        self.depths = [int(cell.depth) for cell in cells]
        self.head = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Run (B, 64) images."""
        layers = iter(zip(self.layers, self.links, strict=True))
        for depth in self.depths:
            before: list[Tensor] = []
            for layer, links in itertools.islice(layers, depth):
                linked = torch.cat(before[:-1], dim=1)[:, links] if links else x[:, :0]
                x = torch.relu(layer(torch.cat([x, linked], dim=1)))
                before.append(x)
        logits: Tensor = self.head(x)
        return logits


def degrees(networks: int, seeds: int) -> Iterator[Row]:
    """Train, and correlate accuracy with the degree, with the number of weights, and with one given the other."""
    rng = np.random.default_rng(0)
    g: list[float] = []
    weights: list[float] = []
    accuracy: list[float] = []
    for index in range(networks):
        cells = [Cell(int(rng.integers(8, 33)), int(rng.integers(4, 13)), int(rng.integers(0, 41))) for _ in range(2)]
        g.append(nn_degree(cells))
        trained = [trained_accuracy(cells, 100 * index + seed) for seed in range(seeds)]
        accuracy.append(float(np.mean([one for one, _ in trained])))
        weights.append(trained[0][1])
    yield row("Spearman of accuracy with NN-Degree", "1", [float(spearmanr(g, accuracy)[0])])
    yield row("Spearman of accuracy with the number of weights", "1", [float(spearmanr(weights, accuracy)[0])])
    yield row("Spearman with NN-Degree, given the number of weights", "1", [partial(g, accuracy, weights)])
    cut = networks * 25 // 40
    a, b = fitted_accuracy(g[:cut], accuracy[:cut])
    predicted = 1 / (a / np.array(g[cut:]) + b)
    yield row("Kendall tau of the accuracy model on the others", "1", [float(kendalltau(predicted, accuracy[cut:])[0])])
    error = float(np.abs(predicted - np.array(accuracy[cut:])).mean())
    yield row("mean error of the accuracy model on the others", "accuracy, 1", [error])


def trained_accuracy(cells: Sequence[Cell], seed: int) -> tuple[float, int]:
    """Return the accuracy on 540 held-out digits after 10 epochs of Adam, and the number of weights."""
    from sklearn.datasets import load_digits

    images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(labels))
    train, held = torch.from_numpy(order[:1257]), torch.from_numpy(order[1257:])
    x, y = (images / 16).float(), labels.long()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = LinkedNet(cells, np.random.default_rng(seed))
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(10):
            for batch in torch.split(train[torch.randperm(len(train))], 64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    with torch.no_grad():
        accuracy = float((net(x[held]).argmax(1) == y[held]).float().mean())
    return accuracy, sum(parameter.numel() for parameter in net.parameters())


def partial(x: Sequence[float], y: Sequence[float], given: Sequence[float]) -> float:
    """Return the Spearman correlation of x and y, given a third."""
    xy, xz, yz = (float(spearmanr(*pair)[0]) for pair in ((x, y), (x, given), (y, given)))
    return (xy - xz * yz) / float(np.sqrt((1 - xz**2) * (1 - yz**2)))


# ---- design -------------------------------------------------------------------------------------------

SPACE = SearchSpace(
    {f"width{c}": tuple(range(8, 65, 8)) for c in CELLS} | {f"skips{c}": tuple(range(0, 41, 10)) for c in CELLS}
)


def degree(values: Mapping[str, float]) -> float:
    """Return NN-Degree of the three cells."""
    return nn_degree(Cell(values[f"width{c}"], DEPTH, values[f"skips{c}"]) for c in CELLS)


def features(values: Mapping[str, float]) -> tuple[float, float, float]:
    """Return multiply-accumulates (a cell's resolution is half of the one before), channels moved, and a constant."""
    macs = sum(4.0**-c * (DEPTH * values[f"width{c}"] ** 2 + values[f"skips{c}"] * values[f"width{c}"]) for c in CELLS)
    moved = sum(2.0**-c * (DEPTH * values[f"width{c}"] + values[f"skips{c}"]) for c in CELLS)
    return macs, moved, 1.0


def accuracy(values: Mapping[str, float]) -> float:
    """Return an accuracy in per cent that saturates late, and differently by cell."""
    parts = [nn_degree([Cell(values[f"width{c}"], DEPTH, values[f"skips{c}"])]) for c in CELLS]
    return 100 / (1 + sum(weight / g for weight, g in zip((4.0, 6.0, 8.0), parts, strict=True)))


def latency(values: Mapping[str, float]) -> float:
    """Return milliseconds."""
    macs, moved, constant = features(values)
    return 1e-3 * macs + 1e-2 * moved + 0.5 * constant


BOUND = 8.0


def premise(values: Mapping[str, float]) -> float:
    """Return an accuracy in per cent that is a function of the degree, which is what FLASH supposes."""
    return 100 / (1 + 40 / degree(values))


def designs() -> Iterator[Row]:
    """Minimise the analytic problem itself: SHGO, differential evolution and random designs at equal evaluations."""
    best = max(accuracy(values) for values in everything() if latency(values) <= BOUND)
    relaxation = Relaxation(SPACE)
    calls = [0]

    def loss(x: Floats) -> float:
        calls[0] += 1
        return -accuracy(relaxation.values(x))

    def slack(x: Floats) -> float:
        return 1 - latency(relaxation.values(x)) / BOUND

    start = time.process_time()
    pool = hierarchical_shgo(loss, relaxation, np.zeros(len(SPACE.choices)), [slack], block=6, vertices=64)
    seconds = time.process_time() - start
    budget = calls[0]
    yield row("SHGO: evaluations of the objective", "1", [float(budget)])
    yield row("SHGO: CPU time", "s", [seconds])
    yield row("SHGO: gap of the best rounded design to the optimum", "accuracy, %", [best - rounded(relaxation, pool)])
    gaps = [best - rounded(relaxation, [evolved(relaxation, loss, slack, budget, seed)]) for seed in range(10)]
    yield row("differential evolution, as many evaluations: gap", "accuracy, %", gaps)
    rng = np.random.default_rng(0)
    drawn = [[rng.random(len(SPACE.choices)) * relaxation.tops for _ in range(budget)] for _ in range(3)]
    yield row(
        "random designs, as many evaluations: gap", "accuracy, %", [best - rounded(relaxation, one) for one in drawn]
    )


def everything() -> Iterator[Mapping[str, float]]:
    """Yield what the choices of every design stand for."""
    names = list(SPACE.choices)
    for options in itertools.product(*SPACE.choices.values()):
        yield dict(zip(names, map(float, options), strict=True))  # type: ignore[arg-type]


def rounded(relaxation: Relaxation, pool: Sequence[Floats]) -> float:
    """Return the best accuracy within the bound among the designs around the points."""
    found = [0.0]
    for point in pool:
        for index in relaxation.rounded(point):
            values = relaxation.values(relaxation.position(index))
            found += [accuracy(values)] if latency(values) <= BOUND else []
    return max(found)


def evolved(
    relaxation: Relaxation, loss: Callable[[Floats], float], slack: Callable[[Floats], float], budget: int, seed: int
) -> Floats:
    """Run differential evolution with a penalty, for about `budget` evaluations."""
    size = 5 * len(relaxation.tops)
    result = differential_evolution(
        lambda x: loss(x) + 1e3 * max(0.0, -slack(x)),
        [(0.0, top) for top in relaxation.tops],
        popsize=5,
        maxiter=max(1, budget // size - 1),
        polish=False,
        rng=seed,
    )
    point: Floats = result.x
    return point


def verified(seeds: int) -> Iterator[Row]:
    """Search the same designs as strategies do: 25 samples and 10 designs, all measured."""
    best = max(premise(values) for values in everything() if latency(values) <= BOUND)
    objectives = [Objective("accuracy", measured_accuracy, goal="max"), Objective("ms", measured_ms, at_most=BOUND)]
    makes: dict[str, Callable[[], Strategy]] = {
        "FLASH, degree and features given": lambda: FLASH(SPACE, objectives, degree=degree, hardware=features),
        "FLASH, both estimated": lambda: FLASH(SPACE, objectives),
        "random search": lambda: RandomSearch(SPACE, objectives),
        "regularized evolution": lambda: RegularizedEvolution(SPACE, objectives, population=10, tournament=5),
    }
    for name, make in makes.items():
        gaps, kept = [], []
        for seed in range(seeds):
            log = search(SPACE, make(), objectives, trials=35, seed=seed)
            gaps.append(best - max([t.values["accuracy"] for t in log if t.state == "done"], default=0.0))
            kept.append(sum(t.state == "done" for t in log[-10:]) / 10)
        yield row(f"{name}, 35 trials: gap", "accuracy, %", gaps)
        yield row(f"{name}: of the last 10, within the bound", "share", kept)


def measured_accuracy(arch: Architecture) -> float:
    """Return the accuracy of a design."""
    return premise({name: float(option) for name, option in arch.items()})  # type: ignore[arg-type]


def measured_ms(arch: Architecture) -> float:
    """Return the latency of a design."""
    return latency({name: float(option) for name, option in arch.items()})  # type: ignore[arg-type]
