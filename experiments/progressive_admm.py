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

import jaxcomp as jc
from experiments import _plots
from experiments._classifier import Classifier, gradual_magnitude
from experiments._compression_report import Outcome, Row, ahead, curve_point, summary, table, values
from experiments._models import LeNet5
from experiments._registry import Context, experiment
from experiments._statistics import points, standard_error

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
    task = Classifier.of(LeNet5, config, context)
    methods = _Methods(task, config)
    runs: dict[str, list[jc.Result]] = defaultdict(list)
    for seed in context.seeds:
        for name, result in methods.run(seed).items():
            runs[name].append(result)
    found = {
        name: [task.measured(result.landed, result.params, result.report) for result in results]
        for name, results in runs.items()
    }
    first, second = (runs[f"ADMM, progressive {at}"][0] for at in ("1", "2"))
    history = first.history + second.history  # the second stage continues the first
    _draw(context, found, history, first.params)
    rows = [
        Row(name.rstrip("12 "), found[name], None if name == "dense" else found["dense"])
        for name in sorted(found, key=lambda name: found[name][0].ratio)
    ]
    context.console.print(table(context, "LeNet-5", {"": rows}, rival="dense", compared=("accuracy",), caption=_PAPER))
    verdicts = _verdicts(found)
    context.say(*verdicts)
    means = {
        name: summary(outcomes) | {"diverged": any(result.diverged for result in runs[name])}
        for name, outcomes in found.items()
    }
    return {"methods": means, "verdicts": verdicts, "history": history}


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

    def run(self, seed: int) -> dict[str, jc.Result]:
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
        return found

    def _admm(self, spec: jc.Spec) -> jc.ADMM:
        return jc.ADMM(spec, rho=self.config.rho, growth=self.config.growth)

    def _quantized(self, at: str, pruned: Any, seed: int) -> jc.Result:
        """Levels for the weights that are left, a scale a layer; zeros stay, their place is in the index."""
        kept = jc.assign(pruned, {r".*/kernel": jc.FixedMask()})
        levels = jc.Quantized(jc.Uniform(self.config.bits, zero=False))
        spec = {path: jc.Chain(mask, levels) for path, mask in kept.items()}
        rounds = dict(rounds=self.config.quantize, retrain=self.config.quantize // 2)
        return self.task.run(f"quantization {at}", pruned, self._admm(spec), hold=kept, seed=seed, **rounds)


def _spec(params: Any, density: tuple[float, ...]) -> jc.Spec:
    return jc.assign(params, {f"{layer}/kernel": jc.Sparse(d) for layer, d in zip(_LAYERS, density, strict=True)})


def _verdicts(found: dict[str, list[Outcome]]) -> list[str]:
    """What the run says of the claims, in words, for and against."""
    lines = []
    for at in ("1", "2"):
        ours = found[f"ADMM, progressive {at}"]
        rivals = [name for name in found if name.endswith(at) and not name.startswith(("ADMM, p", "ADMM, q"))]
        for name in ["dense", *rivals]:
            compared = _compared(ahead(ours, found[name], "accuracy"))
            lines.append(f"{ours[0].ratio:.1f}x: ADMM, progressive against {name.rstrip('12 ')}: {compared}")
    return lines


def _compared(gains: np.ndarray) -> str:
    mean, error = gains.mean(), standard_error(gains)
    if error is None:
        return f"{mean:+.2f} points (one seed)"
    verdict = "better" if mean > error else "worse" if mean < -error else "no difference beyond a standard error"
    return f"{points(gains)} points: {verdict}"


def _draw(context: Context, found: dict[str, list[Outcome]], history: list[dict[str, Any]], first: Any) -> None:
    """Accuracies, the residuals of both stages, and the weights that the first one kept."""
    pruned = {name: outcomes for name, outcomes in found.items() if name != "dense" and "quantized" not in name}
    retrained: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    straight: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for name, outcomes in pruned.items():
        retrained[name[:-2]].append(curve_point(outcomes, "accuracy"))
        if "gradual" not in name:  # its last pruning step is a small one: "straight after" means something else
            straight[f"{name[:-2]}, straight after pruning"].append(curve_point(outcomes, "landed"))
    dense = float(values(found["dense"], "accuracy").mean())
    _plots.accuracy_against_compression(context.folder / "accuracy.png", retrained, dense=dense)
    _plots.accuracy_against_compression(context.folder / "accuracy_before_retraining.png", straight, dense=dense)

    solved = [record for record in history if record["stage"] == "solve"]
    starts = [i for i, record in enumerate(solved) if record["round"] == 0]
    residuals = {key: [record[key] for record in solved] for key in ("primal", "dual")}
    _plots.residuals(context.folder / "residuals.png", residuals, starts)
    kernels = {f"{layer}/kernel": np.asarray(first[layer]["kernel"]) for layer in _LAYERS}
    _plots.kept_weights(context.folder / "kept_weights.png", kernels)
