"""A perceptron whose weights a banked memory feeds without waiting: accuracy, reads of the memory, and time.

Sun et al., Load-balanced Gather-scatter Patterns for Sparse Deep Neural Networks, 2021 (arXiv 2112.10898). Its claims:
weights pruned so that every group of them finds its inputs in different banks of a memory are nearly as good as
unstructured ones, and better than blocks; a network of them runs 2 to 3 times as fast as others of the same accuracy.
The paper has GNMT, ResNet-50 and Jasper, and a simulated engine; here it is LeNet-300-100, whose last layer is left
alone and not counted, and of the engine what can be counted: reads of all banks at once.

One network is trained. Then, from it and at each rate, it is pruned by magnitude to every set at once, as the paper
prunes, and retrained within the set for as many steps on the same batches. The time is that of one matrix on this
machine, compiled and dense in turns, which no banked memory feeds.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from rich.table import Table

import jaxcomp as jc
from experiments import _gather_scatter_sets as sets
from experiments import _plots, _tables
from experiments._classifier import Classifier
from experiments._compression_report import Outcome, Row, ahead, curve_point, table
from experiments._kept import kept
from experiments._latency import Latency, forms, measured, times
from experiments._models import LeNet300
from experiments._registry import Context, experiment
from experiments._statistics import percent, points, verdict

_NEAR = 0.3  # points that count as next to nothing
_TIMED = (sets.HORIZONTAL, sets.VERTICAL, sets.FREE, sets.WIDE, sets.TALL)
_DRAWN = (sets.HORIZONTAL, sets.UNEVEN, sets.FREE, sets.BANKED, sets.WIDE, sets.TALL)
_PAPER = "The paper's figures, 2 to 3 times shorter runtime at the same accuracy, are for other networks and an engine."


@dataclass(frozen=True)
class Config:
    """Rounds are of `steps` optimiser steps each; `rates` are weights before by weights kept.

    Latencies are of one matrix of `side` by `side` random weights at the rate `timed_at`.
    """

    batch_size: int = 64
    steps: int = 215  # a quarter of an epoch of MNIST
    learning_rate: float = 1e-3
    pretrain: int = 12
    retrain: int = 6
    rates: tuple[float, ...] = (4.0, 8.0, 16.0)
    side: int = 1024
    timed_at: float = 8.0
    batches: tuple[int, ...] = (1, 32)
    pairs: int = 15

    @classmethod
    def quick(cls) -> "Config":
        """For seconds, most of them compilation."""
        return cls(steps=15, pretrain=4, retrain=2, rates=(8.0,), side=128, batches=(1,), pairs=3)


@dataclass(frozen=True)
class Found:
    """One method at one rate.

    Attributes:
        outcomes: a seed an entry.
        reads: the same, as `_gather_scatter_sets.reads` has them.
        energy: the same, the share of the trained weights' energy that pruning left.
    """

    outcomes: list[Outcome]
    reads: list[dict[str, float]]
    energy: list[float]


@experiment(
    "gather-scatter",
    paper="arXiv 2112.10898",
    summary="LeNet-300-100 pruned for a banked memory, beside blocks and single weights: accuracy, reads and time",
    data="mnist",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    study = _Study(Classifier.of(LeNet300, config, context), config)
    done = functools.partial(kept, context.folder)
    dense = [done(f"dense-{seed}", study.dense, seed) for seed in context.seeds]
    found = {
        rate: {
            method: _found(
                [done(f"{method}-{rate:g}-{seed}", study.pruned, method, rate, seed) for seed in context.seeds]
            )
            for method in (*sets.OURS, *sets.OTHERS)
        }
        for rate in config.rates
    }
    claims = _claims(found)
    context.say(*claims)
    context.console.print(_accuracies(context, found, dense))
    context.console.print(_reads(found))
    latencies = {
        f"{method}, {config.timed_at:g}x": [Latency(**each) for each in done(f"times-{method}", study.times, method)]
        for method in _TIMED
    }
    context.console.print(times(latencies, config.pairs))
    context.say(*forms(latencies))
    _draw(context, found, dense)
    return {"claims": claims, "dense": dense, "found": found, "latencies": latencies}


class _Study:
    """The methods, and what they left."""

    def __init__(self, task: Classifier, config: Config):
        self.task, self.config = task, config
        self.trained = functools.cache(self._trained)

    def pruned(self, method: str, rate: float, seed: int) -> dict[str, Any]:
        """What is left of the trained network, and what the memory has to be read."""
        c, params = self.config, self.trained(seed)
        spec = sets.spec(method, params, rate)
        landed = jc.project(spec, params)
        retrained = self.task.retrained(landed, spec, seed=seed, rounds=c.retrain)
        kernels = jc.assign(params, {sets.MATRICES: jc.Sparse(1.0)})
        counted = self.task.measured(landed, retrained, jc.report(kernels, retrained))
        stored = jc.report(spec, retrained)
        outcome = dataclasses.replace(counted, storage_ratio=stored.storage_ratio, violation=stored.violation)
        return {
            "outcome": outcome,
            "reads": sets.reads(spec, landed, method),
            "energy": sets.energy(landed) / sets.energy(params),
        }

    def dense(self, seed: int) -> float:
        """Test accuracy of the network trained on as pruned ones are, without constraint."""
        on = self.task.retrained(self.trained(seed), {}, seed=seed, rounds=self.config.retrain)
        return self.task.accuracy(on, self.task.data.test)

    def times(self, method: str) -> list[Latency]:
        c = self.config
        params = {"fc1": {"kernel": jax.random.normal(jax.random.key(0), (c.side, c.side))}}
        spec = sets.spec(method, params, c.timed_at)
        params = jc.project(spec, params)
        inputs = [jax.random.normal(jax.random.key(batch), (batch, c.side)) for batch in c.batches]
        return [measured(lambda params, x: x @ params["fc1"]["kernel"], params, spec, x, c.pairs) for x in inputs]

    def _trained(self, seed: int) -> Any:
        return self.task.solved(self.task.init(seed), jc.ADMM({}), seed=seed, rounds=self.config.pretrain).params


def _found(seeds: list[dict[str, Any]]) -> Found:
    return Found(
        outcomes=[Outcome(**each["outcome"]) for each in seeds],
        reads=[each["reads"] for each in seeds],
        energy=[each["energy"] for each in seeds],
    )


def _claims(found: dict[float, dict[str, Found]]) -> list[str]:
    """What the run says of the paper's claims, after retraining."""

    def lead(methods: dict[str, Found], ours: str, theirs: str) -> np.ndarray:
        return ahead(methods[ours].outcomes, methods[theirs].outcomes, "accuracy")

    lines = []
    for rate, methods in found.items():
        for ours in (sets.HORIZONTAL, sets.UNEVEN, sets.SCATTER):
            gap = lead(methods, sets.FREE, ours)
            near = f"{ours} is less than {_NEAR} points behind {sets.FREE} ({points(gap)})"
            lines.append(f"{verdict(_NEAR - gap)}: at {rate:g}x, {near}.")
        for blocks in (sets.WIDE, sets.TALL):
            gain = lead(methods, sets.HORIZONTAL, blocks)
            better = f"{sets.HORIZONTAL} is ahead of {blocks} ({points(gain)} points)"
            lines.append(f"{verdict(gain)}: at {rate:g}x, {better}.")
        for other in (sets.HYBRID, sets.VERTICAL):
            apart = lead(methods, other, sets.HORIZONTAL)
            alike = f"{other} is within {_NEAR} points of {sets.HORIZONTAL} ({points(apart)})"
            lines.append(f"{verdict(_NEAR - np.sign(apart.mean()) * apart)}: at {rate:g}x, {alike}.")
    return lines


def _accuracies(context: Context, found: dict[float, dict[str, Found]], dense: list[float]) -> Table:
    rows = {
        f"{rate:g}x": [
            Row(method, each.outcomes, None if method == sets.FREE else methods[sets.FREE].outcomes)
            for method, each in methods.items()
        ]
        for rate, methods in found.items()
    }
    caption = f"Trained on without pruning: {percent(dense)} %. {_PAPER}"
    return table(context, "LeNet-300-100", rows, rival="free", compared=("accuracy",), caption=caption)


def _reads(found: dict[float, dict[str, Found]]) -> Table:
    """A row a method: means over seeds of what pruning left, before retraining."""
    drawn = _tables.blank(
        f"reads of {sets.BANKS} banks, in units of the fewest that could do",
        ("method", "energy kept %", "in order", "reordered"),
        text=("method",),
        caption="Within a row, or a strip where the set has one: in the order of inputs, and in the best order.",
    )
    for rate, methods in found.items():
        drawn.add_row(f"[bold]{rate:g}x[/]")
        for method, each in methods.items():
            means = (f"{np.mean([one[key] for one in each.reads]):.2f}" for key in ("in_order", "reordered"))
            drawn.add_row(method, percent(each.energy, ".1f"), *means, end_section=method == list(methods)[-1])
    return drawn


def _draw(context: Context, found: dict[float, dict[str, Found]], dense: list[float]) -> None:
    curves = {method: [curve_point(each[method].outcomes, "accuracy") for each in found.values()] for method in _DRAWN}
    _plots.accuracy_against_compression(context.folder / "accuracy.png", curves, dense=float(np.mean(dense)))
