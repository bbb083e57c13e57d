"""Search for an accelerator and its mappings, by evolution as in NAAS and by gradient as in DOSA, on AlexNet's layers.

Lin et al., NAAS: Neural Accelerator Architecture Search, DAC 2021 (arXiv 2105.13258); Hong et al., DOSA, MICRO 2023.
NAAS's claims: choosing what runs in parallel and in which order, not sizes alone, gives 1.4 to 3.5 times less energy
times delay; and it is found when loops are encoded by their importance, not by the index of an order.

All searches have the same envelope of multipliers, memory on the chip and bandwidth, and the exact model of
`jaxcomp.hwmodels.Spatial` has the last word. Energy times delay is that of the five layers together: the sum of their
energies times the sum of their cycles. An evaluation is a design with a mapping for each of the five layers; for a
gradient it is one with its derivative. Evolution is in two levels: each accelerator gets mappings by an evolution of
their own. Times are without compilation. The paper has MAESTRO for a model, networks beside AlexNet, bandwidths among
the sizes, and searches networks too; none of that is here.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from experiments import _plots, _tables
from experiments._naas_evolution import Normal, outer_generation
from experiments._naas_gradient import descend
from experiments._naas_space import IMPORTANCE, INDEX, SIZING, Envelope, Space, alexnet
from experiments._registry import Context, experiment

_GRADIENT = "gradient, many starts"
_METHODS = {
    SIZING: "evolution, sizes alone",
    INDEX: "evolution, orders by index",
    IMPORTANCE: "evolution, orders by importance",
}
Curve = list[tuple[int, float, float]]  # evaluations, seconds, log of the least EDP so far


@dataclass(frozen=True)
class Config:
    """Of evolution: accelerators and generations, and those of mappings within. Of the gradient: starts at a time.

    The gradient goes on until it has had as many evaluations, and as much time, as evolution by importance.
    """

    population: int = 32
    generations: int = 40
    inner_population: int = 16
    inner_generations: int = 10
    starts: int = 64
    steps: int = 100
    rate: float = 0.05
    units: int = 256
    kib: float = 128.0

    @classmethod
    def quick(cls) -> "Config":
        """For less than a minute, nearly all of it compilation."""
        return cls(population=8, generations=4, inner_population=8, inner_generations=4, starts=8, steps=16)


@experiment(
    "naas",
    paper="arXiv 2105.13258",
    summary="accelerator and mapping search: evolution in three encodings beside gradients, on AlexNet's layers",
    data=None,
)
def run(config: Config, context: Context) -> dict[str, Any]:
    layers, envelope = alexnet().stacked, Envelope(config.units, config.kib)
    curves: dict[str, list[Curve]] = {name: [] for name in (*_METHODS.values(), _GRADIENT)}
    for seed in context.seeds:
        for encoding, name in _METHODS.items():
            curves[name].append(_evolved(config, Space(envelope, encoding), layers, seed))
        last = curves[_METHODS[IMPORTANCE]][-1][-1]
        curves[_GRADIENT].append(_descended(config, envelope, layers, seed, last[0], last[1]))
        shown = ", ".join(f"{name} {np.exp(found[-1][-1][2]):.3g}" for name, found in curves.items())
        context.say(f"seed {seed}: {shown}")
    evaluations = min(found[-1][0] for runs in curves.values() for found in runs)
    seconds = min(found[-1][1] for runs in curves.values() for found in runs)
    found = {
        name: {
            "equal evaluations": [_least(curve, 0, evaluations) for curve in runs],
            "equal time": [_least(curve, 1, seconds) for curve in runs],
            "evaluations": [curve[-1][0] for curve in runs],
            "seconds": [curve[-1][1] for curve in runs],
        }
        for name, runs in curves.items()
    }
    claims = _claims(found)
    context.say(*claims)
    context.console.print(_table(found, evaluations, seconds))
    _draw(context, curves)
    return {"claims": claims, "found": found, "evaluations": evaluations, "equal_seconds": seconds, "curves": curves}


def _evolved(config: Config, space: Space, layers: Any, seed: int) -> Curve:
    options = dict(
        space=space,
        population=config.population,
        inner_population=config.inner_population,
        inner_generations=config.inner_generations,
    )
    designs = config.population * config.inner_population * config.inner_generations
    key = jax.random.key(seed)
    normal = Normal.start(jnp.zeros(space.hardware_size), 1.0)
    jax.block_until_ready(outer_generation(normal, layers, key, **options))  # compile

    def generation(normal, number):
        return outer_generation(normal, layers, jax.random.fold_in(key, number), **options)

    curve, best, start = [], np.inf, time.perf_counter()
    for number in range(config.generations):
        normal, least = generation(normal, number)
        best = min(best, float(least))
        curve.append(((number + 1) * designs, time.perf_counter() - start, best))
    return curve


def _descended(config: Config, envelope: Envelope, layers: Any, seed: int, evaluations: int, seconds: float) -> Curve:
    options = dict(envelope=envelope, starts=config.starts, steps=config.steps, rate=config.rate)
    key, designs = jax.random.key(seed), config.starts * config.steps
    descend(layers, key, **options).block_until_ready()  # compile
    curve, best, start = [], np.inf, time.perf_counter()
    while not curve or curve[-1][0] < evaluations or curve[-1][1] < seconds:
        best = min(best, float(descend(layers, jax.random.fold_in(key, len(curve)), **options)))
        curve.append(((len(curve) + 1) * designs, time.perf_counter() - start, best))
    return curve


def _least(curve: Curve, column: int, limit: float) -> float:
    """Energy times delay of the best design within a limit; of the first point if none is."""
    return float(np.exp(min([point[2] for point in curve if point[column] <= limit] or [curve[0][2]])))


def _claims(found: dict[str, dict[str, list[float]]]) -> list[str]:
    """The paper's two claims, and the gradient's standing, by ratios of medians over seeds."""

    def ratio(worse: str, better: str, at: str) -> float:
        return float(np.median(found[worse][at]) / np.median(found[better][at]))

    wide, even = _METHODS[IMPORTANCE], "equal evaluations"
    gain, coding = ratio(_METHODS[SIZING], wide, even), ratio(_METHODS[INDEX], wide, even)
    by_time = ratio(wide, _GRADIENT, "equal time")
    return [
        f"{_verdict(gain >= 1.2)}: sizes, parallel loops and orders together reach {gain:.2f} times less energy times "
        "delay than sizes alone (claimed: 1.4 to 3.5)",
        f"{_verdict(coding > 1)}: orders by importance reach {coding:.2f} times less than orders by index",
        f"the gradient ends at {1 / ratio(wide, _GRADIENT, even):.2f} times the energy times delay of evolution by "
        f"importance at equal evaluations, at {1 / by_time:.2f} times at equal time",
    ]


def _verdict(holds: bool) -> str:
    return "Reproduced" if holds else "Not reproduced"


def _table(found: dict[str, dict[str, list[float]]], evaluations: int, seconds: float) -> Table:
    title = (
        f"energy x delay, MAC energies x cycles, median of {len(next(iter(found.values()))['seconds'])} seeds (range)"
    )
    columns = "search", f"after {evaluations:,} evaluations", f"after {seconds:.2f} s", "evaluations a second"
    table = _tables.blank(title, columns)
    for name, each in found.items():
        spans = [
            f"{np.median(x):.3e} ({min(x):.2e} to {max(x):.2e})"
            for x in (each["equal evaluations"], each["equal time"])
        ]
        pace = np.median(np.array(each["evaluations"]) / np.array(each["seconds"]))
        table.add_row(name, *spans, f"{pace:,.0f}")
    return table


def _draw(context: Context, curves: dict[str, list[Curve]]) -> None:
    """The best so far by evaluations and by seconds: medians over seeds."""
    for column, label, name in ((0, "evaluations", "evaluations"), (1, "seconds", "seconds")):
        figure, axes = _plots.blank()
        for (method, runs), colour in zip(curves.items(), _plots.COLOURS, strict=False):
            length = min(map(len, runs))
            points = np.array([[point for point in run[:length]] for run in runs])
            median = np.median(points, 0)
            axes.step(median[:, column], np.exp(median[:, 2]), where="post", color=colour, label=method)
        axes.set(xlabel=label, ylabel="least energy x delay", xscale="log", yscale="log")
        axes.legend(frameon=False)
        _plots.save(figure, context.folder / f"edp_by_{name}.png")
