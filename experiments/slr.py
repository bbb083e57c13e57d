"""Surrogate Lagrangian relaxation beside ADMM, dynamic regularisation and magnitude pruning, at four rates.

Gurevin et al., Enabling Retrain-free Deep Neural Network Pruning using Surrogate Lagrangian Relaxation, IJCAI 2021
(arXiv 2012.10079). Its claim: pruned hard, networks trained by SLR are more accurate than those trained by ADMM, the
more so the higher the rate, so that little or no retraining is needed. The paper has ResNets and detectors; this is
LeNet-300-100, whose last layer stays dense, as in the authors' setting, and counts as kept.

One network is trained. Then, from it and at each rate, every method trains for as many rounds on the same batches
with the same optimiser and sets, is pruned hard and retrained for a few rounds. The numbers of every method are chosen
among as many trials, by validation accuracy straight after hard pruning at the highest rate, on a network that is not
used again; SLR has the trials of ADMM, and a first dual step as long as ADMM's. One-shot magnitude pruning has no
numbers: training goes on without constraint and ends in the same projection. SLR and ADMM run twice: with a constant
rho, as in the paper, and with one that grows after every round.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax

import jaxcomp as jc
from experiments import _plots
from experiments._classifier import Classifier, gradual_magnitude
from experiments._compression_report import Outcome, Row, ahead, curve_point, table, values
from experiments._models import LeNet300
from experiments._registry import Context, experiment
from experiments._statistics import percent, points, verdict

_TUNING = 1000  # the seed of the network that numbers are chosen on
_ONE_SHOT, _GRADUAL, _DYNAMIC = "one-shot magnitude", "gradual magnitude", "dynamic"
_ADMM, _SLR = "ADMM, growing rho", "SLR, growing rho"
_ADMM_CONSTANT, _SLR_CONSTANT = "ADMM, constant rho", "SLR, constant rho"
_PAIRS = {_ADMM: _SLR, _ADMM_CONSTANT: _SLR_CONSTANT}
_WORDS = "Reproduced", "Not reproduced"

Found = dict[str, list[Outcome]]  # of every method, a seed an entry


@dataclass(frozen=True)
class Config:
    """Rounds are of `steps` optimiser steps each, 0 standing for one epoch; `rates` are weights before by weights kept.

    The trials of a method are all combinations of its values: half decades of its weight, and of the usual ones
    otherwise. ADMM and SLR have the same; SLR's s0 is in units of rho. Gradual pruning moves its masks every so many
    steps, in this share of the rounds.
    """

    batch_size: int = 64
    steps: int = 215  # a quarter of an epoch of MNIST
    learning_rate: float = 1e-3
    pretrain: int = 12
    rounds: int = 20
    retrain: int = 4
    rates: tuple[float, ...] = (10.0, 20.0, 50.0, 100.0)
    gradual_every: tuple[int, ...] = (20, 100)
    gradual_share: tuple[float, ...] = (0.5, 0.75, 1.0)
    dynamic_strength: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    constant_rho: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    growing_rho: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    growth: tuple[float, ...] = (1.2, 1.4)
    s0: float = 1.0

    @classmethod
    def quick(cls) -> "Config":
        """For seconds on a small data set, most of them compilation."""
        return cls(
            steps=20,
            pretrain=8,
            rounds=8,
            retrain=2,
            rates=(50.0,),
            gradual_every=(20,),
            gradual_share=(0.75,),
            dynamic_strength=(1e-4,),
            constant_rho=(1e-2,),
            growing_rho=(1e-2,),
            growth=(1.5,),
        )


@experiment(
    "slr",
    paper="arXiv 2012.10079",
    summary="LeNet-300-100 pruned by SLR, beside ADMM, dynamic regularisation and magnitude",
    data="mnist",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    task = Classifier.of(LeNet300, config, context)
    comparison = _Comparison(task, config)
    tried = comparison.tried(max(config.rates))
    chosen = {method: max(trials, key=lambda trial: trial["validation"]) for method, trials in tried.items()}
    for method, best in chosen.items():
        shown = ", ".join(f"{name} {value:.3g}" for name, value in best.items())
        context.say(f"best of {len(tried[method])}: {method}: {shown}")
    pruned = {rate: comparison.pruned(rate, chosen, context.seeds) for rate in config.rates}
    found = {
        rate: {
            method: [comparison.measured(params, rate, seed) for params, seed in zip(each, context.seeds, strict=True)]
            for method, (each, _) in methods.items()
        }
        for rate, methods in pruned.items()
    }
    dense = [task.accuracy(comparison.dense(seed), context.data.test) for seed in context.seeds]
    claims = _claims(found)
    context.say(*claims)
    caption = f"Trained on without pruning: {percent(dense)} %. No figure of the paper is for this network."
    sections = {f"{rate:g}x": _rows(outcomes) for rate, outcomes in found.items()}
    context.console.print(
        table(
            context,
            "LeNet-300-100",
            sections,
            rival="SLR",
            compared=("landed", "accuracy"),
            caption=caption,
            sizes=False,
        )
    )
    _draw(context, found, dense)
    residuals = {method: primal for method, (_, primal) in pruned[max(config.rates)].items() if primal is not None}
    _plots.residuals(context.folder / "residuals.png", residuals)
    return {"claims": claims, "dense": dense, "found": found, "tried": tried}


class _Comparison:
    """Every method of the comparison, from one trained network a seed."""

    def __init__(self, task: Classifier, config: Config):
        self.task, self.config = task, config
        self._template = task.init(0)
        self._kernels = jc.assign(self._template, {r".*/kernel": jc.Sparse(1.0)})
        self._gradual = functools.cache(self._gradual_pruning)  # an optimiser is a compilation
        self.trained, self.dense = functools.cache(self._trained), functools.cache(self._dense)

    def tried(self, rate: float) -> dict[str, list[dict[str, float]]]:
        """For each method its trials, with their validation accuracy straight after hard pruning."""
        tried: dict[str, list[dict[str, float]]] = {}
        for method, trials in self._trials().items():
            tried[method] = []
            for numbers in trials:
                params = self._prune(method, rate, numbers, (_TUNING,))[0].params
                score = self.task.accuracy(params, self.task.data.validation)
                tried[method].append(numbers | {"validation": score})
        return tried

    def pruned(
        self, rate: float, chosen: dict[str, dict[str, float]], seeds: tuple[int, ...]
    ) -> dict[str, tuple[list[Any], Any]]:
        """Of every method its pruned networks, a seed an entry, and the residuals of the first if it has any."""
        spec = self._spec(rate)
        found: dict[str, tuple[list[Any], Any]] = {
            _ONE_SHOT: ([jc.project(spec, self.dense(seed)) for seed in seeds], None)
        }
        for method, best in chosen.items():
            numbers = {name: value for name, value in best.items() if name != "validation"}
            solutions = self._prune(method, rate, numbers, seeds)
            residuals = solutions[0].history["primal"] if _is_splitting(method) else None
            found[method] = [solution.params for solution in solutions], residuals
        return found

    def measured(self, params: Any, rate: float, seed: int) -> Outcome:
        """What hard pruning left, and a few rounds of masked retraining at a decaying rate after it."""
        retrained = self.task.retrained(params, self._spec(rate), seed=seed, rounds=self.config.retrain)
        return self.task.measured(params, retrained, jc.report(self._kernels, retrained))

    def _trials(self) -> dict[str, list[dict[str, float]]]:
        c = self.config
        constant = [{"rho": rho} for rho in c.constant_rho]
        growing = [{"rho": rho, "growth": g} for rho, g in itertools.product(c.growing_rho, c.growth)]
        return {
            _GRADUAL: [{"every": e, "share": s} for e, s in itertools.product(c.gradual_every, c.gradual_share)],
            _DYNAMIC: [{"strength": strength} for strength in c.dynamic_strength],
            _ADMM_CONSTANT: constant,
            _SLR_CONSTANT: [trial | {"s0": c.s0 * trial["rho"]} for trial in constant],
            _ADMM: growing,
            _SLR: [trial | {"s0": c.s0 * trial["rho"]} for trial in growing],
        }

    def _prune(self, method: str, rate: float, numbers: dict[str, Any], seeds: tuple[int, ...]) -> list[jc.Solution]:
        """The method run to its end, hard pruning, from the trained network of every seed."""
        spec, optimizer = self._spec(rate), self.task.constant
        solver: jc.Solver = jc.ADMM({})
        if method == _GRADUAL:
            optimizer = self._gradual(rate, **numbers)
        elif method == _DYNAMIC:
            solver = jc.DynamicRegularization(spec, **numbers)
        elif method in _PAIRS:
            solver = jc.ADMM(spec, **numbers)
        else:
            solver = jc.SLR(spec, **numbers)
        options = dict(rounds=self.config.rounds, optimizer=optimizer)
        return [self.task.solved(self.trained(seed), solver, seed=seed, **options) for seed in seeds]

    def _trained(self, seed: int) -> Any:
        """The network that all methods start from."""
        return self.task.solved(self.task.init(seed), jc.ADMM({}), seed=seed, rounds=self.config.pretrain).params

    def _dense(self, seed: int) -> Any:
        """The same, trained on for as many rounds as the methods have."""
        return self.task.solved(self.trained(seed), jc.ADMM({}), seed=seed, rounds=self.config.rounds).params

    def _gradual_pruning(self, rate: float, every: int, share: float) -> optax.GradientTransformation:
        steps = int(share * self.config.rounds * self.task.steps) // every * every
        return optax.chain(self.task.constant, gradual_magnitude(self._spec(rate), steps, every))

    def _spec(self, rate: float) -> jc.Spec:
        """The first two layers pruned alike, so that with the last one a weight in `rate` is kept."""
        sizes = [layer["kernel"].size for _, layer in sorted(self._template.items())]
        density = (sum(sizes) / rate - sizes[-1]) / sum(sizes[:-1])
        return jc.assign(self._template, {r"fc[12]/kernel": jc.Sparse(density)})


def _is_splitting(method: str) -> bool:
    return method in _PAIRS or method in _PAIRS.values()


def _claims(found: dict[float, Found]) -> list[str]:
    """What the run says of the paper's claim, straight after hard pruning."""
    first, last = min(found), max(found)
    lines = []
    for admm, ours in _PAIRS.items():
        low, high = (ahead(found[rate][ours], found[rate][admm], "landed") for rate in (first, last))
        lines.append(f"{verdict(high, *_WORDS)}: {ours}, is ahead of ADMM at {last:g}x ({points(high)} points).")
        if last > first:
            lead = f"{ours}: its lead over ADMM grows from {first:g}x to {last:g}x"
            lines.append(f"{verdict(high - low, *_WORDS)}: {lead} ({points(high - low)} points).")
    means = {method: values(outcomes, "landed").mean() for method, outcomes in found[last].items()}
    best = max((method for method in means if not method.startswith("SLR")), key=means.__getitem__)
    over = ahead(found[last][_rival(best)], found[last][best], "landed")
    lead = f"SLR is ahead of the best other at {last:g}x, {best}"
    lines.append(f"{verdict(over, *_WORDS)}: {lead} ({points(over)} points).")
    return lines


def _rival(method: str) -> str:
    """The SLR that a method is set beside: the one with the same kind of rho."""
    return _PAIRS.get(method, _SLR)


def _draw(context: Context, found: dict[float, Found], dense: list[float]) -> None:
    shown = sorted(set(found[max(found)]) - {_ONE_SHOT})  # so far below that the others would be one line
    for key, name in (("landed", "accuracy_before_retraining"), ("accuracy", "accuracy")):
        curves = {method: [curve_point(each[method], key) for each in found.values()] for method in shown}
        _plots.accuracy_against_compression(context.folder / f"{name}.png", curves, dense=float(np.mean(dense)))


def _rows(outcomes: Found) -> list[Row]:
    ours = set(_PAIRS.values())
    return [
        Row(method, each, None if method in ours else outcomes[_rival(method)]) for method, each in outcomes.items()
    ]
