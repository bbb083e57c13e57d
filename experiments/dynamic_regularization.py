"""Reweighted and dynamic regularisation of LeNet-5, beside fixed penalties and ADMM with the same budget.

Zhang et al., A Unified DNN Weight Compression Framework Using Reweighted Optimization Methods, 2020 (arXiv 2004.05531);
columns of blocks as in Ma et al., BLK-REW, 2020 (arXiv 2001.08357).

One network a seed is trained, then compressed by every method in as many rounds of the same steps, and retrained. No
layer is given a rate: one number a method is chosen, among as many trials for each, on the validation data of a seed
that is not reported: the one that leaves the fewest weights within a tolerance of the dense accuracy. ADMM gets the
rates that reweighting found. Dynamic regularisation goes on from its network, in as many rounds again, to one that is
as sparse and quantized at once.
"""

import functools
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optax
import rich.box
from matplotlib.figure import Figure
from rich.table import Table

import jaxcomp as jc
from experiments._classifier import Classifier
from experiments._models import LeNet5
from experiments._registry import Context, experiment
from experiments._statistics import standard_error, with_error

_KERNELS = r".*/kernel"
_AT_GIVEN_RATES = ("admm", "dynamic")
_TUNING = 1000  # the seed that strengths are chosen on
_FLAT = 1e3  # an epsilon that makes every weight of the penalty the same: the plain lasso
_BINS = np.linspace(-5, 0, 51)  # of log10 |w|
_PAPER = (
    "Of the paper, on MNIST: up to 630x for LeNet-5 (abstract of its journal version); its accuracy is not known here."
)


@dataclass(frozen=True)
class Config:
    """Rounds are of `steps` optimiser steps each; tuples are the trials of each method's one number."""

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
    lasso: tuple[float, ...] = (2e-4, 2.5e-4, 3e-4)
    reweighted: tuple[float, ...] = (1e-5, 1.5e-5, 2e-5)
    group_lasso: tuple[float, ...] = (1e-3, 1.2e-3, 1.4e-3)
    reweighted_blocks: tuple[float, ...] = (5e-5, 7e-5, 1e-4)
    admm: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    dynamic: tuple[float, ...] = (3e-6, 1e-5, 2e-5)

    @classmethod
    def quick(cls) -> "Config":
        """For seconds on a small data set: one trial of a few methods, so that nothing is chosen."""
        return cls(
            steps=20,
            pretrain=5,
            lasso=(1e-4,),
            reweighted=(3e-5,),
            group_lasso=(),
            reweighted_blocks=(),
            admm=(1e-2,),
            dynamic=(),
        )

    def __post_init__(self):
        if len({len(trials) for trials in self.trials().values()}) > 1:
            raise ValueError(f"every method needs as many trials, found {self.trials()}")
        if not self.reweighted or not self.lasso:
            raise ValueError("lasso and reweighted need a trial at least: the others are set beside them")

    def trials(self) -> dict[str, tuple[float, ...]]:
        """The numbers to try of every method that takes part."""
        names = ("lasso", "reweighted", "group_lasso", "reweighted_blocks", "admm", "dynamic")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


@experiment(
    "dynamic-regularization",
    paper="arXiv 2004.05531",
    summary="LeNet-5 pruned by reweighted penalties that find each layer's rate, beside fixed ones and ADMM",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    task = Classifier(
        LeNet5(context.data.num_classes),
        context.data,
        batch_size=config.batch_size,
        steps=config.steps,
        learning_rate=config.learning_rate,
        folder=(context.folder / "checkpoints").absolute(),
        console=context.console,
    )
    methods = _Methods(task, config)
    chosen, trials = methods.tune(_TUNING)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for seed in context.seeds:
        for name, result in methods.run(seed, chosen).items():
            found[name].append(methods.measured(result))
    summary = _summary(found)
    verdicts = _verdicts(found, config)
    for line in verdicts:
        context.console.print(line, highlight=False)
    context.console.print(_table(context, config, summary))
    _draw(context.folder / "sizes.png", found, config.threshold)
    return {"methods": summary, "verdicts": verdicts, "chosen": chosen, "trials": trials}


class _Methods:
    """Every method of the comparison, by name a function of the trained network, its seed and the method's number."""

    def __init__(self, task: Classifier, config: Config):
        self.task, self.config = task, config
        template = task.init(0)
        self.weights = jc.assign(template, {_KERNELS: jc.Sparse(1.0)})
        self.blocks = jc.assign(template, {_KERNELS: jc.Sparse(1.0, jc.block_columns(*config.block, free=True))})
        self.sgd = optax.sgd(config.sgd, momentum=0.9)
        self.reweighted = functools.cache(self._with_proximal)  # an optimiser is a compilation: one for all seeds

    def tune(self, seed: int) -> tuple[dict[str, float], dict[str, list[dict[str, float]]]]:
        """The best number of every method on validation data, and what each trial came to."""
        c, validation = self.config, self.task.data.validation
        if all(len(numbers) == 1 for numbers in c.trials().values()):
            return {name: number for name, (number,) in c.trials().items()}, {}
        trained = self._trained(seed)
        goal = self.task.accuracy(self._run("dense", trained, jc.ADMM({}), seed).params, validation) - c.tolerance
        chosen, trials = {}, {}
        rates: Any = None
        for name, numbers in c.trials().items():
            results = [self._method(name, trained, seed, number, rates) for number in numbers]
            accuracy = [self.task.accuracy(result.params, validation) for result in results]
            kept = [result.report.nonzeros for result in results]
            good = [i for i, a in enumerate(accuracy) if a >= goal]
            # at given rates, and where no trial reaches the goal, the most accurate one; else the smallest that does
            free = name not in _AT_GIVEN_RATES and good
            best = min(good, key=kept.__getitem__) if free else int(np.argmax(accuracy))
            chosen[name] = numbers[best]
            trials[name] = [dict(number=n, accuracy=a, kept=k) for n, a, k in zip(numbers, accuracy, kept, strict=True)]
            self.task.console.print(f"{name}: {numbers[best]:g} of", *trials[name], highlight=False, soft_wrap=True)
            if name == "reweighted":
                rates = results[best].params
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
            optimizer = self.sgd
            kept = {path: jc.Sparse(share) for path, share in _shares(self.weights, rates).items()}
            if name == "admm":
                solver = jc.ADMM({**kept}, rho=number)
            else:
                levels = jc.Quantized(jc.Uniform(c.bits))
                both: jc.Spec = {path: jc.Chain(set_, levels) for path, set_ in kept.items()}
                solver = jc.DynamicRegularization(both, strength=number, epsilon=c.epsilon**2)
        else:
            solver, optimizer = self.reweighted(name, number)
        options = dict(optimizer=optimizer, metrics=lambda params, _: _sizes(params, c.threshold), progress=False)
        start = rates if name == "dynamic" else trained
        return self._run(f"{name} {number:g}", start, solver, seed, **options)

    def _with_proximal(self, name: str, strength: float) -> tuple[jc.Reweighted, optax.GradientTransformation]:
        """A reweighted or fixed penalty, whose proximal steps follow those of SGD and leave exact zeros."""
        spec = self.weights if name in ("lasso", "reweighted") else self.blocks
        flat = name in ("lasso", "group_lasso")
        strength, epsilon = (_FLAT * strength, _FLAT) if flat else (strength, self.config.epsilon)
        solver = jc.Reweighted(spec, strength, epsilon, threshold=self.config.threshold, decoupled=True)
        return solver, optax.chain(self.sgd, jc.proximal(solver, self.config.steps))

    def _trained(self, seed: int) -> Any:
        start = self.task.init(seed)
        return self.task.run("pretraining", start, jc.ADMM({}), seed=seed, rounds=self.config.pretrain).params

    def _run(self, name: str, params: Any, solver: jc.Solver, seed: int, **options: Any) -> jc.Result:
        c = self.config
        options = {"optimizer": self.sgd} | options
        return self.task.run(name, params, solver, seed=seed, rounds=c.rounds, retrain=c.retrain, **options)

    def measured(self, result: jc.Result) -> dict[str, Any]:
        report, test = result.report, self.task.data.test
        return {
            "landed": self.task.accuracy(result.landed, test),
            "accuracy": self.task.accuracy(result.params, test),
            "kept": report.nonzeros if report.constrained else None,
            "ratio": report.weight_ratio if report.constrained else 1.0,
            "storage_ratio": report.storage_ratio,
            "layers": {leaf.path: leaf.nonzeros for leaf in report.constrained},
            "rounds": [record["metrics"] for record in result.history if "metrics" in record],
        }


def _shares(spec: jc.Spec, params: Any) -> dict[str, float]:
    """The fraction of weights that is not zero in every leaf."""
    return {leaf.path: leaf.nonzeros / leaf.size for leaf in jc.report(spec, params).constrained}


def _sizes(params: Any, threshold: float) -> dict[str, float]:
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


def _summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Means over seeds, and the standard error of the accuracy."""
    summary: dict[str, dict[str, Any]] = {}
    for name, outcomes in found.items():
        keys = ("accuracy", "landed", "ratio", "storage_ratio")
        each = {key: [outcome[key] for outcome in outcomes] for key in keys}
        kept = None if name == "dense" else float(np.mean([outcome["kept"] for outcome in outcomes]))
        paths = outcomes[0]["layers"]
        summary[name] = {
            **{key: float(np.mean(values)) for key, values in each.items()},
            "kept": kept,
            "error": standard_error(each["accuracy"]),
            "accuracies": each["accuracy"],
            "ratios": each["ratio"],
            "layers": {path: float(np.mean([outcome["layers"][path] for outcome in outcomes])) for path in paths},
            "gaps": [float(np.mean(gap)) for gap in zip(*_rounds(outcomes, "gap"), strict=True)],
            "undecided": [float(np.mean(share)) for share in zip(*_rounds(outcomes, "undecided"), strict=True)],
        }
    return summary


def _rounds(outcomes: list[dict[str, Any]], key: str) -> list[list[float]]:
    return [[sizes[key] for sizes in outcome["rounds"]] for outcome in outcomes]


def _verdicts(found: dict[str, list[dict[str, Any]]], config: Config) -> list[str]:
    """What the run says of the claims, in words, for and against."""
    of = {
        name: {key: np.array([outcome[key] for outcome in outcomes]) for key in ("accuracy", "landed", "ratio")}
        for name, outcomes in found.items()
    }
    reweighted, dense = of["reweighted"], of["dense"]["accuracy"]
    lost, ratio = 100 * float(np.mean(dense - reweighted["accuracy"])), float(np.mean(reweighted["ratio"]))
    gaps = np.mean(_rounds(found["reweighted"], "gap"), axis=0)
    drop = 100 * float(np.mean(reweighted["accuracy"] - reweighted["landed"]))
    lines = [
        f"100x within 0.5 points: {_yes(ratio >= 100 and lost <= 0.5)}, {ratio:.0f}x at {lost:.2f} points",
        f"thresholding alone costs less than a point: {_yes(drop < 1)}, {drop:.2f} to retrained",
        f"the gap grows more than 5 times in {config.rounds} rounds: {_yes(gaps[-1] > 5 * gaps[0])}, "
        f"from {gaps[0]:.1f} to {gaps[-1]:.4g}",
    ]
    pairs = (("reweighted", "lasso"), ("reweighted", "admm"), ("reweighted_blocks", "group_lasso"))
    return lines + [_compared(of, one, other) for one, other in pairs if other in of and one in of]


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def _compared(of: dict[str, dict[str, np.ndarray]], one: str, other: str) -> str:
    factor = np.log(of[one]["ratio"] / of[other]["ratio"])
    error = standard_error(factor)
    times = f"{np.exp(factor.mean()):.2f}" + ("" if error is None else f" (x/ {np.exp(error):.2f})")
    landed, retrained = (_points(of[one][key] - of[other][key]) for key in ("landed", "accuracy"))
    return f"{one} against {other}: {times} times the rate, {landed} just pruned, {retrained} retrained"


def _points(difference: np.ndarray) -> str:
    """Paired by seed: the same trained network and the same batches on both sides."""
    return with_error(100 * difference, "+.2f") + " points"


def _table(context: Context, config: Config, summary: dict[str, dict[str, Any]]) -> Table:
    seeds, n = len(context.seeds), len(context.data.test)
    table = Table(
        title=f"LeNet-5 on {context.data.name}, {n:,} test images, mean of {seeds} seed{'s' * (seeds > 1)}",
        caption=_PAPER,
        box=rich.box.SIMPLE_HEAD,
    )
    table.add_column("method", no_wrap=True)
    for column in ("kept", "weights\nonly", "stored", "just\npruned %", "retrained %", "to\ndense"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, s in summary.items():
        spread = "" if s["error"] is None else f" ± {100 * s['error']:.2f}"
        table.add_row(
            _TITLES[name].format(config.bits),
            "all" if s["kept"] is None else f"{s['kept']:,.0f}",
            f"{s['ratio']:.1f}x",
            f"{s['storage_ratio']:.1f}x",
            "-" if name == "dense" else f"{100 * s['landed']:.2f}",
            f"{100 * s['accuracy']:.2f}{spread}",
            f"{100 * (s['accuracy'] - summary['dense']['accuracy']):+.2f}",
        )
    return table


def _draw(path: Path, found: dict[str, list[dict[str, Any]]], threshold: float) -> None:
    """Histograms of the magnitudes of all weights after every round, of the first seed."""
    figure = Figure(figsize=(9.6, 3.8), dpi=130, layout="constrained")
    shades = ("#9ecae1", "#6baed6", "#2171b5", "#08306b")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, ("lasso", "reweighted"), strict=True):
        rounds = found[name][0]["rounds"]
        for i, sizes in enumerate(rounds):
            counts = [sizes[f"bin {j}"] for j in range(len(_BINS) - 1)]
            colour = shades[-1 - (len(rounds) - 1 - i) % len(shades)]
            axes.stairs(np.maximum(counts, 0.5), 10**_BINS, color=colour, linewidth=1.5, label=f"after round {i + 1}")
        axes.axvline(threshold, color="#D55E00", linestyle="--", linewidth=1.2, label="threshold")
        axes.set(xscale="log", yscale="log", xlabel="magnitude of a weight (leftmost: zeros)", title=_TITLES[name])
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("weights")
    panels[0].legend(frameon=False, loc="upper left", bbox_to_anchor=(0.08, 1), fontsize=8)
    figure.savefig(path, format="png")
