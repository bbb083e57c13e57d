"""LeNet-5 pruned in whole filters and units for arrays of 32 x 32 memristors, then put on their conductances.

Yuan et al., An Ultra-Efficient Memristor-Based DNN Framework with Structured Weight Pruning and Quantization Using
ADMM, ISLPED 2019 (arXiv 1908.11691). Its claims: 17.7, 37 and 105 times fewer weights cost no accuracy, little, and
less than a point; 5 or 6 bits on top cost 0.1 to 0.3; and arrays save area and power at the rate of the pruning.

One network is trained. Then, from it and for every rate, ADMM or one-shot pruning and retraining, with as many steps
and the same batches in all. ADMM's networks go on with ADMM towards the states of cells, none of which is zero, while
what is pruned stays so. A filter goes with the weights that read it, so fc1 shrinks with conv2, and nothing is left
that is never read.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxcomp as jc
from experiments import _plots, _tables
from experiments._classifier import Classifier
from experiments._compression_report import values
from experiments._models import LeNet5
from experiments._registry import Context, experiment
from experiments._statistics import percent, points, verdict
from jaxcomp import Crossbar, Stored, stored, trace

# Kept filters of conv1 and of conv2, and units of fc1; with each go the weights that read it in the next layer.
_KEPT = {"19x": (8, 18, 64), "39x": (6, 16, 32), "105x": (4, 6, 32)}
_PIXELS = 16  # of a channel of conv2 where fc1 reads it
_MOST = {"19x": 0.2, "39x": 0.5, "105x": 1.0}  # points that may be lost; published: none, negligible, less than 1
_PUBLISHED = "Published: 93.97 % of area and 96.96 % of power at 5 bits, at a rate not known here."


@dataclass(frozen=True)
class Config:
    """Rounds are of `steps` optimiser steps each; one-shot pruning retrains for ADMM's rounds as well.

    A cell's conductances are evenly spaced from `low` to 1, a weight of b bits having ``2^(b - 1)`` of them a sign.
    Accuracies are on the first so many `images` of the test split.
    """

    batch_size: int = 32
    steps: int = 30
    learning_rate: float = 1e-3
    pretrain: int = 12
    rounds: int = 4
    retrain: int = 2
    levels: int = 2
    rates: tuple[str, ...] = ("19x", "39x", "105x")
    rho: float = 1e-2
    growth: float = 1.5
    levels_rho: float = 1e-1
    bits: tuple[int, ...] = (6, 5)
    low: float = 0.1
    images: int = 2000

    @classmethod
    def quick(cls) -> "Config":
        """For seconds on a small data set, most of them compilation."""
        return cls(steps=20, pretrain=4, rounds=2, retrain=2, levels=1, rates=("39x",), bits=(5,), images=400)


@dataclass(frozen=True)
class Outcome:
    """One network pruned, in shares of test images classified right.

    Attributes:
        accuracy: retrained.
        levels: by bits, on conductances.
        saved: share of arrays, so of their area and power with what serves them, saved of the dense network at 9
            bits, by bits.
    """

    accuracy: float
    levels: dict[int, float]
    saved: dict[int, float]


Found = dict[str, list[Outcome]]  # by rate, a seed an entry


@experiment(
    "memristor",
    paper="arXiv 1908.11691",
    summary="LeNet-5 in whole arrays of memristors: structured pruning, conductances, area and power saved",
    data="mnist",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    task = Classifier.of(LeNet5, config, context)
    study = _Study(task, config)
    dense, found, one_shot = [], {rate: [] for rate in config.rates}, {rate: [] for rate in config.rates}
    for seed in context.seeds:
        dense.append(study.accuracy(study.dense(seed)))
        for rate in config.rates:
            found[rate].append(study.outcome(seed, rate))
            one_shot[rate].append(study.accuracy(study.pruned(seed, rate, None)))
        context.say(f"seed {seed} done")
    rates = {rate: study.rate(rate) for rate in config.rates}
    claims = _claims(config, found, one_shot, dense)
    context.say(*claims)
    context.console.print(_table(config, context, found, one_shot, dense, rates))
    _draw(context, config, found, rates)
    return {"claims": claims, "dense": dense, "found": found, "one_shot": one_shot, "rates": rates}


class _Study:
    """Networks pruned both ways, put on conductances, and their arrays."""

    def __init__(self, task: Classifier, config: Config):
        self.task, self.config = task, config
        self._template = task.init(0)
        image = task.data.test.image[:1]
        self._work = trace(lambda p, x: task.model.apply({"params": p}, x), self._template, image)
        self.trained = functools.cache(self._trained)

    def dense(self, seed: int) -> Any:
        """The network trained on without constraint, for as many steps as both ways have."""
        return self.task.retrained(self.trained(seed), {}, seed=seed, rounds=self.config.rounds + self.config.retrain)

    def pruned(self, seed: int, rate: str, rho: float | None) -> Any:
        """By ADMM, or without rho at once; retrained."""
        spec, params = self.spec(rate), self.trained(seed)
        rounds, retrain = self.config.rounds, self.config.retrain
        if rho is None:
            return self.task.retrained(jc.project(spec, params), spec, seed=seed, rounds=rounds + retrain)
        solver = jc.ADMM(spec, rho=rho, growth=self.config.growth)
        params = self.task.solved(params, solver, seed=seed, rounds=rounds).params
        return self.task.retrained(params, spec, seed=seed, rounds=retrain)

    def outcome(self, seed: int, rate: str) -> Outcome:
        """Of ADMM, pruned and then on conductances."""
        params = self.pruned(seed, rate, self.config.rho)
        levels, saved = {}, {}
        for bits in self.config.bits:
            spec = self._on_conductances(bits)
            solver = jc.ADMM(spec, rho=self.config.levels_rho, growth=self.config.growth)
            options = dict(seed=seed + 3000, rounds=self.config.levels, hold=self.spec(rate))
            landed = self.task.solved(params, solver, **options).params
            levels[bits] = self.accuracy(landed)
            saved[bits] = self.saved(jc.footprint(spec, landed))
        return Outcome(self.accuracy(params), levels, saved)

    def accuracy(self, params: Any) -> float:
        """Share of test images classified right."""
        return self.task.accuracy(params, self.task.data.test.first(self.config.images))

    def saved(self, footprints: dict[str, jc.Footprint]) -> float:
        """Share of arrays that compression saves, beside the dense network of 9 bits.

        An array has the same peripherals before and after, so area and power at full activity fall by the same share.
        """
        device = Crossbar.memristor()
        before, after = (
            float(jnp.sum(device.crossbars(self._work.stacked, s)))
            for s in (Stored(weight_bits=9.0), stored(self._work, footprints))
        )
        return 1 - after / before

    def spec(self, rate: str) -> jc.Spec:
        first, filters, units = _KEPT[rate]
        chain = jc.JointChain(
            jc.Coupled(
                jc.Sparse(first / 20, jc.outputs()), {"conv1/kernel": jc.outputs(), "conv2/kernel": jc.inputs()}
            ),
            jc.Coupled(
                jc.Sparse(filters / 50, jc.outputs()),
                {"conv2/kernel": jc.outputs(), "fc1/kernel": jc.folded(50)},
            ),
            jc.Coupled(jc.Sparse(units / 500, jc.outputs()), {"fc1/kernel": jc.outputs(), "fc2/kernel": jc.inputs()}),
        )
        return jc.assign(self._template, {r".*/kernel": chain})

    def rate(self, rate: str) -> float:
        """Weights before by weights kept."""
        first, filters, units = _KEPT[rate]
        return 430_500 / (25 * first + 25 * first * filters + _PIXELS * filters * units + 10 * units)

    def _on_conductances(self, bits: int) -> jc.Spec:
        states = jc.Conductances(self.config.low, 1.0, 2 ** (bits - 1))
        return jc.assign(self._template, {r".*/kernel": jc.Quantized(states)})

    def _trained(self, seed: int) -> Any:
        return self.task.solved(self.task.init(seed), jc.ADMM({}), seed=seed, rounds=self.config.pretrain).params


def _claims(config: Config, found: Found, one_shot: dict[str, list[float]], dense: list[float]) -> list[str]:
    """What the run says of the paper's claims."""
    lines = []
    for rate, outcomes in found.items():
        pruned = values(outcomes, "accuracy")
        lost = 100 * (np.array(dense) - pruned)
        most = _MOST[rate]
        lines.append(f"{verdict(most - lost)}: {rate} costs at most {most:g} points ({points(lost)}).")
        gain = 100 * (pruned - np.array(one_shot[rate]))
        lines.append(f"{verdict(gain)}: ADMM is ahead of one-shot at {rate} ({points(gain)} points).")
        for bits in config.bits:
            more = 100 * (pruned - np.array([o.levels[bits] for o in outcomes]))
            lines.append(f"{verdict(0.3 - more)}: {bits} bits at {rate} cost at most 0.3 points more ({points(more)}).")
    return lines


def _table(config: Config, context: Context, found: Found, one_shot, dense, rates) -> Table:
    seeds = len(context.seeds)
    columns = ["weights", "one-shot %", "ADMM %", *(f"{bits} bits %" for bits in config.bits)]
    columns += [f"saved\n{bits} bits %" for bits in config.bits] + ["1 - 1/rate\n%"]
    table = _tables.blank(
        f"LeNet-5 on {context.data.name}, {config.images:,} test images, mean of {seeds} seeds",
        columns,
        caption=f"Trained on: {percent(dense)} %. {_PUBLISHED}",
    )
    for rate, outcomes in found.items():
        cells = [percent(one_shot[rate]), percent(values(outcomes, "accuracy"))]
        cells += [percent([o.levels[bits] for o in outcomes]) for bits in config.bits]
        cells += [f"{100 * np.mean([o.saved[bits] for o in outcomes]):.2f}" for bits in config.bits]
        cells.append(f"{100 * (1 - 1 / rates[rate]):.2f}")
        table.add_row(f"{rates[rate]:.1f}x", *cells)
    return table


def _draw(context: Context, config: Config, found: Found, rates: dict[str, float]) -> None:
    figure, axes = _plots.blank()
    curves = {"pruned": lambda o: o.accuracy}
    curves |= {f"on {bits} bits": lambda o, bits=bits: o.levels[bits] for bits in config.bits}
    for (name, read), colour, marker in zip(curves.items(), _plots.COLOURS, _plots.MARKERS, strict=False):
        shares = [[read(o) for o in outcomes] for outcomes in found.values()]
        _plots.seeded(axes, [rates[rate] for rate in found], shares, color=colour, marker=marker, label=name)
    axes.set_xscale("log")
    axes.set_xticks([rates[rate] for rate in found], [f"{rates[rate]:.0f}×" for rate in found])
    axes.set_xlabel("weights before / weights kept")
    axes.set_ylabel("test accuracy (%)")
    axes.legend(frameon=False)
    _plots.save(figure, context.folder / "accuracy.png")
