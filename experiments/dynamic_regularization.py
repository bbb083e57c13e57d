"""Reweighted and dynamic regularisation of LeNet-5, beside fixed penalties and ADMM with the same budget.

Zhang et al., A Unified DNN Weight Compression Framework Using Reweighted Optimization Methods, 2020 (arXiv 2004.05531);
columns of blocks as in Ma et al., BLK-REW, 2020 (arXiv 2001.08357).

One network a seed is trained, then compressed by every method in as many rounds of the same steps, and retrained. No
layer is given a rate: one number a method is chosen, in as many trials for each, on the validation data of a seed that
is not reported: the one that leaves the fewest weights within a tolerance of the dense accuracy. All penalties are
sought by halving the same four decades. ADMM gets the rates that reweighting found, and the most accurate of its
trials. Dynamic regularisation goes on from that network, in as many rounds again, to one that is as sparse and
quantized at once.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optax
from matplotlib.figure import Figure

import jaxcomp as jc
from experiments import _plots
from experiments._classifier import Classifier
from experiments._compression_report import Outcome, Row, ahead, summary, table, values
from experiments._models import LeNet5
from experiments._registry import Context, experiment
from experiments._statistics import points, standard_error

_KERNELS = r".*/kernel"
_AT_GIVEN_RATES = ("admm", "dynamic")
_TUNING = 1000  # the seed that strengths are chosen on
_FLAT = 1e3  # an epsilon that makes every weight of the penalty the same: the plain lasso
_BINS = np.linspace(-5, 0, 51)  # of log10 |w|
_PAPER = (
    "Of the paper, on MNIST: up to 630x for LeNet-5 (abstract of its journal version); its accuracy is not known here."
)

Sizes = dict[str, float]  # of all weights, after a round


@dataclass(frozen=True)
class Config:
    """Rounds are of `steps` optimiser steps each.

    Of a penalty's number two bounds are given, between which `trials` halvings, on a logarithmic scale, look for the
    largest that is accurate enough; of ADMM's and of dynamic regularisation's the trials themselves. A method without
    either takes no part.
    """

    batch_size: int = 32
    steps: int = 200
    learning_rate: float = 1e-3  # of Adam, before and after
    sgd: float = 0.05  # and of SGD with momentum, under the penalties
    pretrain: int = 8
    rounds: int = 4
    retrain: int = 2
    epsilon: float = 1e-3
    threshold: float = 1e-2
    block: tuple[int, int] = (10, 25)
    bits: int = 4
    tolerance: float = 0.005
    trials: int = 6
    lasso: tuple[float, ...] = (1e-6, 1e-2)
    reweighted: tuple[float, ...] = (1e-6, 1e-2)
    group_lasso: tuple[float, ...] = (1e-6, 1e-2)
    reweighted_blocks: tuple[float, ...] = (1e-6, 1e-2)
    admm: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    dynamic: tuple[float, ...] = (3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4)

    @classmethod
    def quick(cls) -> "Config":
        """For seconds on a small data set: one trial of a few methods, so that nothing is chosen."""
        return cls(
            steps=20,
            pretrain=5,
            trials=1,
            lasso=(1e-4, 1e-4),
            reweighted=(3e-5, 3e-5),
            group_lasso=(),
            reweighted_blocks=(),
            admm=(1e-2,),
            dynamic=(),
        )

    def __post_init__(self):
        for name, numbers in self.methods().items():
            if len(numbers) != (self.trials if name in _AT_GIVEN_RATES else 2):
                raise ValueError(
                    f"{name} needs two bounds, or at given rates {self.trials} numbers: as many trials as the others; "
                    f"found {numbers}"
                )
        if not self.reweighted or not self.lasso:
            raise ValueError("lasso and reweighted must take part: the others are set beside them")

    def methods(self) -> dict[str, tuple[float, ...]]:
        """The numbers given of every method that takes part."""
        names = ("lasso", "reweighted", "group_lasso", "reweighted_blocks", "admm", "dynamic")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


@experiment(
    "dynamic-regularization",
    paper="arXiv 2004.05531",
    summary="LeNet-5 pruned by reweighted penalties that find each layer's rate, beside fixed ones and ADMM",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    task = Classifier.of(LeNet5, config, context)
    methods = _Methods(task, config)
    chosen, trials = methods.tune(_TUNING)
    found: dict[str, list[Outcome]] = defaultdict(list)
    sizes: dict[str, list[list[Sizes]]] = defaultdict(list)  # by seed and round
    for seed in context.seeds:
        for name, result in methods.run(seed, chosen).items():
            found[name].append(task.measured(result.landed, result.params, result.report))
            sizes[name].append([record["metrics"] for record in result.history if "metrics" in record])
    verdicts = _verdicts(found, sizes["reweighted"])
    context.say(*verdicts)
    rows = [
        Row(_TITLES[name].format(config.bits), outcomes, None if name == "dense" else found["dense"])
        for name, outcomes in found.items()
    ]
    context.console.print(table(context, "LeNet-5", {"": rows}, rival="dense", compared=("accuracy",), caption=_PAPER))
    _draw(context.folder / "sizes.png", sizes, config.threshold)
    means = {
        name: summary(outcomes) | {key: list(_mean(sizes[name], key)) for key in ("gap", "undecided")}
        for name, outcomes in found.items()
    }
    return {"methods": means, "verdicts": verdicts, "chosen": chosen, "trials": trials}


class _Methods:
    """Every method of the comparison, by name a function of the trained network, its seed and the method's number."""

    def __init__(self, task: Classifier, config: Config):
        self.task, self.config = task, config
        template = task.init(0)
        self.weights = jc.assign(template, {_KERNELS: jc.Sparse(1.0)})
        self.blocks = jc.assign(template, {_KERNELS: jc.Sparse(1.0, jc.block_columns(*config.block, free=True))})
        self.sgd = optax.sgd(config.sgd, momentum=0.9)

    def tune(self, seed: int) -> tuple[dict[str, float], dict[str, list[dict[str, float]]]]:
        """The best number of every method on validation data, and what each trial came to."""
        c, validation = self.config, self.task.data.validation
        if c.trials == 1:
            return {name: math.sqrt(numbers[0] * numbers[-1]) for name, numbers in c.methods().items()}, {}
        trained = self._trained(seed)
        goal = self.task.accuracy(self._run("dense", trained, jc.ADMM({}), seed).params, validation) - c.tolerance
        chosen: dict[str, float] = {}
        trials: dict[str, list[dict[str, float]]] = {}
        rates: Any = None
        for name, numbers in c.methods().items():
            results: dict[float, jc.Result] = {}
            accuracy: dict[float, float] = {}
            at_given_rates = name in _AT_GIVEN_RATES
            for number in numbers if at_given_rates else _halving(numbers, c.trials, accuracy, goal):
                results[number] = self._method(name, trained, seed, number, rates)
                accuracy[number] = self.task.accuracy(results[number].params, validation)
            kept = {number: result.report.nonzeros for number, result in results.items()}
            good = [number for number in kept if accuracy[number] >= goal]
            # at given rates, and where no trial reaches the goal, the most accurate one; else the smallest that does
            smallest = good and not at_given_rates
            chosen[name] = min(good, key=kept.__getitem__) if smallest else max(accuracy, key=accuracy.__getitem__)
            trials[name] = [dict(number=n, accuracy=accuracy[n], kept=kept[n]) for n in sorted(kept)]
            self.task.console.print(f"{name}: {chosen[name]:.3g} of", *trials[name], highlight=False, soft_wrap=True)
            if name == "reweighted":
                rates = results[chosen[name]].params
        return chosen, trials

    def run(self, seed: int, chosen: dict[str, float]) -> dict[str, jc.Result]:
        trained = self._trained(seed)
        found = {"dense": self._run("dense", trained, jc.ADMM({}), seed)}
        for name, number in chosen.items():
            rates = found["reweighted"].params if name in _AT_GIVEN_RATES else None
            found[name] = self._method(name, trained, seed, number, rates)
        return found

    def _method(self, name: str, trained: Any, seed: int, number: float, rates: Any) -> jc.Result:
        c = self.config
        solver: jc.Solver
        if name in _AT_GIVEN_RATES:  # with as many weights in every layer as reweighting kept
            kept = {path: jc.Sparse(share) for path, share in _shares(self.weights, rates).items()}
            if name == "admm":
                solver = jc.ADMM({**kept}, rho=number)
            else:
                levels = jc.Quantized(jc.Uniform(c.bits))
                both: jc.Spec = {path: jc.Chain(set_, levels) for path, set_ in kept.items()}
                solver = jc.DynamicRegularization(both, strength=number, epsilon=c.epsilon**2)
        else:
            solver = self._penalty(name, number)
        start = rates if name == "dynamic" else trained
        options = dict(metrics=lambda params, _: _sizes(params, c.threshold), progress=False)
        return self._run(f"{name} {number:g}", start, solver, seed, **options)

    def _penalty(self, name: str, strength: float) -> jc.Reweighted:
        """A reweighted or fixed penalty, whose proximal steps follow those of SGD and leave exact zeros."""
        spec = self.weights if name in ("lasso", "reweighted") else self.blocks
        flat = name in ("lasso", "group_lasso")
        strength, epsilon = (_FLAT * strength, _FLAT) if flat else (strength, self.config.epsilon)
        return jc.Reweighted(spec, strength, epsilon, threshold=self.config.threshold, decoupled=True)

    def _trained(self, seed: int) -> Any:
        start = self.task.init(seed)
        return self.task.run("pretraining", start, jc.ADMM({}), seed=seed, rounds=self.config.pretrain).params

    def _run(self, name: str, params: Any, solver: jc.Solver, seed: int, **options: Any) -> jc.Result:
        budget = dict(rounds=self.config.rounds, retrain=self.config.retrain, optimizer=self.sgd)
        return self.task.run(name, params, solver, seed=seed, **budget, **options)


def _halving(bounds: tuple[float, ...], trials: int, found: Mapping[float, float], goal: float) -> Iterator[float]:
    """Numbers that close in, from both bounds, on the largest whose accuracy, as found meanwhile, reaches the goal."""
    low, high = bounds
    for _ in range(trials):
        middle = math.sqrt(low * high)
        yield middle
        low, high = (middle, high) if found[middle] >= goal else (low, middle)


def _shares(spec: jc.Spec, params: Any) -> dict[str, float]:
    """The fraction of weights that is not zero in every leaf."""
    return {leaf.path: leaf.nonzeros / leaf.size for leaf in jc.report(spec, params).constrained}


def _sizes(params: Any, threshold: float) -> Sizes:
    """How the weights lie about the threshold: a histogram of their magnitudes, and the gap between the two sides.

    The gap is the ratio of the smallest of those above to the largest below, each less one weight in a hundred, where
    zeros count as the least magnitude drawn; what is within a factor of 3 of the threshold is undecided.
    """
    sizes = np.concatenate([np.abs(np.ravel(layer["kernel"])) for layer in params.values()])
    above, below = sizes[sizes >= threshold], sizes[sizes < threshold]
    low = float(np.quantile(above, 0.01)) if above.size else threshold
    high = float(np.quantile(below, 0.99)) if below.size else threshold
    counts, _ = np.histogram(np.log10(np.maximum(sizes, 10 ** _BINS[0])), _BINS)
    undecided = float(np.mean((sizes > threshold / 3) & (sizes < threshold * 3)))
    return {"gap": low / max(high, float(10 ** _BINS[0])), "undecided": undecided} | {
        f"bin {i}": float(n) for i, n in enumerate(counts)
    }


_TITLES = {
    "dense": "dense",
    "lasso": "L1",
    "reweighted": "reweighted L1",
    "admm": "ADMM, same rates",
    "group_lasso": "group lasso, blocks",
    "reweighted_blocks": "reweighted, blocks",
    "dynamic": "then dynamic, {} bits",
}


def _mean(sizes: list[list[Sizes]], key: str) -> np.ndarray:
    """Over seeds, by round."""
    return np.mean([[measured[key] for measured in rounds] for rounds in sizes], axis=0)


def _verdicts(found: dict[str, list[Outcome]], sizes: list[list[Sizes]]) -> list[str]:
    """What the run says of the claims, in words, for and against; `sizes` are those of reweighting."""
    reweighted = found["reweighted"]
    lost, ratio = -ahead(reweighted, found["dense"], "accuracy").mean(), values(reweighted, "ratio").mean()
    drop = 100 * (values(reweighted, "accuracy") - values(reweighted, "landed")).mean()
    gaps = _mean(sizes, "gap")
    lines = [
        f"100x within 0.5 points: {_yes(ratio >= 100 and lost <= 0.5)}, {ratio:.0f}x at {lost:.2f} points",
        f"thresholding alone costs less than a point: {_yes(drop < 1)}, {drop:.2f} to retrained",
        f"the gap grows more than 5 times in {len(gaps)} rounds: {_yes(gaps[-1] > 5 * gaps[0])}, "
        f"from {gaps[0]:.1f} to {gaps[-1]:.4g}",
    ]
    pairs = (("reweighted", "lasso"), ("reweighted", "admm"), ("reweighted_blocks", "group_lasso"))
    return lines + [_compared(found, one, other) for one, other in pairs if other in found and one in found]


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def _compared(found: dict[str, list[Outcome]], one: str, other: str) -> str:
    factor = np.log(values(found[one], "ratio") / values(found[other], "ratio"))
    error = standard_error(factor)
    times = f"{np.exp(factor.mean()):.2f}" + ("" if error is None else f" (x/ {np.exp(error):.2f})")
    landed, retrained = (points(ahead(found[one], found[other], key)) + " points" for key in ("landed", "accuracy"))
    return f"{one} against {other}: {times} times the rate, {landed} just pruned, {retrained} retrained"


def _draw(path: Path, sizes: dict[str, list[list[Sizes]]], threshold: float) -> None:
    """Histograms of the magnitudes of all weights after every round, of the first seed."""
    figure = Figure(figsize=(9.6, 3.8), dpi=130, layout="constrained")
    shades = ("#9ecae1", "#6baed6", "#2171b5", "#08306b")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, ("lasso", "reweighted"), strict=True):
        rounds = sizes[name][0]
        for i, measured in enumerate(rounds):
            counts = [measured[f"bin {j}"] for j in range(len(_BINS) - 1)]
            colour = shades[-1 - (len(rounds) - 1 - i) % len(shades)]
            axes.stairs(np.maximum(counts, 0.5), 10**_BINS, color=colour, linewidth=1.5, label=f"after round {i + 1}")
        axes.axvline(threshold, color="#D55E00", linestyle="--", linewidth=1.2, label="threshold")
        axes.set(xscale="log", yscale="log", xlabel="magnitude of a weight (leftmost: zeros)", title=_TITLES[name])
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("weights")
    panels[0].legend(frameon=False, loc="upper left", bbox_to_anchor=(0.08, 1), fontsize=8)
    _plots.save(figure, path)
