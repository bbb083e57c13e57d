"""Progressive ADMM pruning and quantization of LeNet-5, beside magnitude pruning with the same budget.

Ye et al., Progressive DNN Compression: A Key to Achieve Ultra-High Weight Pruning and Quantization Rates using ADMM,
2019 (arXiv 1903.09769), on the base method of Zhang et al., ECCV 2018 (arXiv 1804.03294).

One network is trained, then compressed to two ratios. Progressively: ADMM, hard projection and masked retraining to
the first ratio; then, with the zeros held, the same again to the second; then ADMM quantization of what is left.
Beside it, from the same trained network and for as many rounds: one-shot magnitude pruning with masked retraining,
gradual magnitude pruning, ADMM straight to the second ratio, and the dense network merely trained on.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax
import rich.box
from rich.table import Table

import jaxcomp as jc
from experiments import _plots
from experiments._classifier import Classifier, gradual_magnitude
from experiments._models import LeNet5
from experiments._registry import Context, experiment
from experiments._statistics import standard_error

_LAYERS = ("conv1", "conv2", "fc1", "fc2")
_PAPER = (
    'Of the paper, on MNIST: 246x with "almost zero loss" (its abstract). The kept fractions at 71.2x are those of the '
    "authors' code; what accuracy it reached is not known here."
)
_PRUNE_EVERY = 10  # times a round that gradual pruning moves its masks


@dataclass(frozen=True)
class Config:
    """Rounds are of `steps` optimiser steps each, 0 standing for one epoch; `first` and `second` are kept fractions."""

    batch_size: int = 64
    steps: int = 215  # a quarter of an epoch of MNIST
    learning_rate: float = 1e-3
    pretrain: int = 24
    rounds: int = 20
    retrain: int = 12
    rho: float = 3e-4
    growth: float = 1.2
    first: tuple[float, float, float, float] = (0.2, 0.08, 0.009, 0.07)
    second: tuple[float, float, float, float] = (0.16, 0.03, 0.00195, 0.028)
    bits: int = 4
    quantize: int = 8

    @classmethod
    def quick(cls) -> "Config":
        """For a few minutes on a small data set."""
        return cls(steps=50, pretrain=8, rounds=10, retrain=6, growth=1.4, quantize=4)

    def __post_init__(self):
        if min(self.rounds, self.pretrain, self.batch_size) < 1:
            raise ValueError("rounds, pretrain and batch_size must be at least 1")


@experiment(
    "progressive-admm",
    paper="arXiv 1903.09769",
    summary="LeNet-5 pruned and quantized by ADMM in steps, beside magnitude pruning",
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
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for seed in context.seeds:
        for name, outcome in methods.run(seed).items():
            found[name].append(outcome)
    _draw(context, found)
    summary = _summary(found)
    context.console.print(_table(context, summary))
    verdicts = _verdicts(found)
    for line in verdicts:
        context.console.print(line, highlight=False)
    return {"methods": summary, "verdicts": verdicts, "history": found["ADMM, progressive 2"][0]["history"]}


class _Methods:
    """Every method of the comparison, on one trained network a seed."""

    def __init__(self, task: Classifier, config: Config):
        self.task, self.config = task, config
        template = task.init(0)
        self.first, self.second = (_spec(template, density) for density in (config.first, config.second))
        every = max(task.steps // _PRUNE_EVERY, 1)
        self.gradual = {  # built once: each optimiser object is a compilation
            rounds: optax.chain(task.constant, gradual_magnitude(spec, rounds * task.steps // every * every, every))
            for rounds, spec in ((config.rounds, self.first), (2 * config.rounds, self.second))
        }

    def run(self, seed: int) -> dict[str, dict[str, Any]]:
        task, c = self.task, self.config
        trained = task.run("pretraining", task.init(seed), jc.ADMM({}), seed=seed, rounds=c.pretrain).params
        one = dict(seed=seed, rounds=c.rounds, retrain=c.retrain)
        two = dict(seed=seed, rounds=2 * c.rounds, retrain=2 * c.retrain)
        found = {"dense": task.run("dense", trained, jc.ADMM({}), **two)}

        for at, spec, budget in (("1", self.first, one), ("2", self.second, two)):
            landing = dict(seed=seed, retrain=budget["rounds"] + budget["retrain"])
            found[f"magnitude, one shot {at}"] = task.run(f"magnitude {at}", trained, jc.ADMM(spec), **landing)
            gradual = task.run(
                f"gradual {at}",
                trained,
                jc.ADMM({}),
                optimizer=self.gradual[budget["rounds"]],
                seed=seed,
                rounds=budget["rounds"],
            )
            found[f"magnitude, gradual {at}"] = task.run(
                f"gradual {at} end", gradual.params, jc.ADMM(spec), seed=seed, retrain=budget["retrain"]
            )
        found["ADMM, one shot 2"] = task.run("ADMM 2", trained, self._admm(self.second), **two)

        # What the paper proposes: the second ratio from the first, whose zeros stay.
        found["ADMM, progressive 1"] = task.run("ADMM 1", trained, self._admm(self.first), **one)
        middle = found["ADMM, progressive 1"].params
        found["ADMM, progressive 2"] = task.run("ADMM 1 to 2", middle, self._admm(self.second), hold=self.first, **one)
        for at in ("1", "2"):
            pruned = found[f"ADMM, progressive {at}"].params
            found[f"ADMM, quantized {at}"] = self._quantized(at, pruned, seed)

        outcomes = {name: self._measured(result) for name, result in found.items()}
        for at in ("1", "2"):  # the second stage continues the first, and its residuals are drawn after them
            outcomes[f"ADMM, progressive {at}"]["weights"] = found[f"ADMM, progressive {at}"].params
        before = outcomes["ADMM, progressive 1"]["history"]
        outcomes["ADMM, progressive 2"]["history"] = before + outcomes["ADMM, progressive 2"]["history"]
        return outcomes

    def _admm(self, spec: jc.Spec) -> jc.ADMM:
        return jc.ADMM(spec, rho=self.config.rho, growth=self.config.growth)

    def _quantized(self, at: str, pruned: Any, seed: int) -> jc.Result:
        """Levels for the weights that are left, a scale a layer; zeros stay, their place is in the index."""
        kept = jc.assign(pruned, {r".*/kernel": jc.FixedMask()})
        levels = jc.Quantized(jc.Uniform(self.config.bits, zero=False))
        spec = {path: jc.Chain(mask, levels) for path, mask in kept.items()}
        rounds = dict(rounds=self.config.quantize, retrain=self.config.quantize // 2)
        return self.task.run(f"quantization {at}", pruned, self._admm(spec), hold=kept, seed=seed, **rounds)

    def _measured(self, result: jc.Result) -> dict[str, Any]:
        report, test = result.report, self.task.data.test
        return {
            "landed": self.task.accuracy(result.landed, test),
            "accuracy": self.task.accuracy(result.params, test),
            "kept": report.nonzeros if report.constrained else None,
            "ratio": report.weight_ratio if report.constrained else 1.0,
            "storage_ratio": report.storage_ratio,
            "violation": report.violation,
            "diverged": result.diverged,
            "history": result.history,
        }


def _spec(params: Any, density: tuple[float, ...]) -> jc.Spec:
    return jc.assign(params, {f"{layer}/kernel": jc.Sparse(d) for layer, d in zip(_LAYERS, density, strict=True)})


def _summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Means over seeds, and standard errors of the accuracy."""
    summary = {}
    for name, outcomes in found.items():
        each = {key: [o[key] for o in outcomes] for key in ("accuracy", "landed", "storage_ratio", "violation")}
        means = {key: float(np.mean(values)) for key, values in each.items()}
        fixed = {key: outcomes[0][key] for key in ("kept", "ratio")}
        diverged = any(o["diverged"] for o in outcomes)
        error = standard_error(each["accuracy"])
        summary[name] = fixed | means | {"error": error, "accuracies": each["accuracy"], "diverged": diverged}
    return summary


def _table(context: Context, summary: dict[str, dict[str, Any]]) -> Table:
    seeds, n = len(context.seeds), len(context.data.test)
    table = Table(
        title=f"LeNet-5 on {context.data.name}, {n:,} test images, mean of {seeds} seed{'s' * (seeds > 1)}",
        caption=_PAPER,
        box=rich.box.SIMPLE_HEAD,
    )
    table.add_column("method", no_wrap=True)
    for column in ("kept", "weights\nonly", "stored", "just\npruned %", "retrained %", "to\ndense"):
        table.add_column(column, justify="right", no_wrap=True)
    dense = summary["dense"]["accuracy"]
    for name in sorted(summary, key=lambda name: summary[name]["ratio"]):
        s = summary[name]
        spread = "" if s["error"] is None else f" ± {100 * s['error']:.2f}"
        table.add_row(
            name.rstrip("12 "),
            "all" if s["kept"] is None else f"{s['kept']:,}",
            f"{s['ratio']:.1f}x",
            f"{s['storage_ratio']:.1f}x",
            "-" if name == "dense" else f"{100 * s['landed']:.2f}",
            f"{100 * s['accuracy']:.2f}{spread}",
            f"{100 * (s['accuracy'] - dense):+.2f}",
        )
    return table


def _verdicts(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What the run says of the claims, in words, for and against."""
    accuracy = {name: np.array([o["accuracy"] for o in outcomes]) for name, outcomes in found.items()}
    lines = []
    for at in ("1", "2"):
        ours = accuracy[f"ADMM, progressive {at}"]
        ratio = found[f"ADMM, progressive {at}"][0]["ratio"]
        rivals = [name for name in accuracy if name.endswith(at) and not name.startswith(("ADMM, p", "ADMM, q"))]
        for name in ["dense", *rivals]:
            lines.append(
                f"{ratio:.1f}x: ADMM, progressive against {name.rstrip('12 ')}: {_compared(ours - accuracy[name])}"
            )
    return lines


def _compared(difference: np.ndarray) -> str:
    """Paired by seed: the same trained network and the same batches on both sides."""
    mean, error = 100 * difference.mean(), standard_error(list(100 * difference))
    if error is None:
        return f"{mean:+.2f} points (one seed)"
    verdict = "better" if mean > error else "worse" if mean < -error else "no difference beyond a standard error"
    return f"{mean:+.2f} ± {error:.2f} points: {verdict}"


def _draw(context: Context, found: dict[str, list[dict[str, Any]]]) -> None:
    curves: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for name, outcomes in found.items():
        if name == "dense" or "quantized" in name:
            continue
        for key, label in (("accuracy", name[:-2]), ("landed", f"{name[:-2]}, straight after pruning")):
            if key == "landed" and name.split(" ")[1] == "gradual":
                continue  # its last pruning step is a small one: "straight after" means something else
            values = [o[key] for o in outcomes]
            curves[label].append((outcomes[0]["ratio"], float(np.mean(values)), standard_error(values) or 0.0))
    dense = float(np.mean([o["accuracy"] for o in found["dense"]]))
    retrained = {name: points for name, points in curves.items() if "straight" not in name}
    straight = {name: points for name, points in curves.items() if "straight" in name}
    _plots.accuracy_against_compression(context.folder / "accuracy.png", retrained, dense=dense)
    _plots.accuracy_against_compression(context.folder / "accuracy_before_retraining.png", straight, dense=dense)

    history = [record for record in found["ADMM, progressive 2"][0]["history"] if record["stage"] == "solve"]
    starts = [i for i, record in enumerate(history) if record["round"] == 0]
    residuals = {"primal": [r["primal"] for r in history], "dual": [r["dual"] for r in history]}
    _plots.residuals(context.folder / "residuals.png", residuals, starts)
    weights = found["ADMM, progressive 1"][0]["weights"]
    kernels = {f"{layer}/kernel": np.asarray(weights[layer]["kernel"]) for layer in _LAYERS}
    _plots.kept_weights(context.folder / "kept_weights.png", kernels)
