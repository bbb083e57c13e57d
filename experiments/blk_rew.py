"""A convolutional and a recurrent network pruned by columns of blocks of every size: reweighted group lasso and others.

Ma et al., BLK-REW: A Unified Block-based DNN Pruning Framework using Reweighted Regularization Method, 2020 (arXiv
2001.08357). Its claim is that one method serves convolutions and recurrent layers: rows or columns are pruned within
blocks, each block keeps what a reweighted penalty leaves of it, and the finer the blocks the more accurate the network.
The paper's networks were VGG-16, ResNets and a GRU on TIMIT; its figures are not known here.

One network is trained. Then, from it, a penalty makes groups small, and straight after it as many weights of every
layer are kept: the largest groups wherever they are, so that blocks keep unequal numbers. The same run serves all kept
fractions; each is retrained for as many steps. The penalty is reweighted after every round or not (group lasso), and
its price of a weight is chosen on 8x8 blocks, at the least kept fraction, by validation accuracy of a network not used
again; magnitude has no penalty and trains on meanwhile. The last two are run on 8x8 blocks alone.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from rich.table import Table

import jaxcomp as jc
from experiments import _plots, _speech
from experiments._classifier import Classifier
from experiments._compression_report import Outcome, Row, ahead, curve_point, table
from experiments._kept import kept
from experiments._latency import Latency, measured, times
from experiments._models import Conv, max_pool2
from experiments._registry import Context, experiment
from experiments._rtmobile_network import SpeechGRU
from experiments._statistics import percent, points, verdict
from experiments._trials import best

_TUNING = 1000  # the seed of the network that prices are chosen on
_FLAT = 1e3  # an epsilon that makes every weight of the penalty the same: the plain group lasso
_REWEIGHTED, _LASSO, _MAGNITUDE = "reweighted", "group lasso", "magnitude"
_BLOCKS = "8x8 blocks"
_VIEWS = {  # from coarse to fine; a convolution is a matrix of filters by channels and taps
    "whole columns": jc.inputs(taps=True),
    "16x16 blocks": jc.block_columns(16, 16, free=True),
    _BLOCKS: jc.block_columns(8, 8, free=True),
    "unstructured": jc.elements(),
}

Found = dict[float, dict[str, list[Outcome]]]  # by kept fraction and method, a seed an entry


@dataclass(frozen=True)
class Config:
    """Rounds are of `steps` optimiser steps each; prices are of a weight and a step."""

    networks: tuple[str, ...] = ("cnn", "gru")
    batch_size: int = 64
    steps: int = 100
    learning_rate: float = 1e-3
    pretrain: int = 8
    rounds: int = 5
    retrain: int = 3
    kept: tuple[float, ...] = (0.25, 0.125)
    views: tuple[str, ...] = tuple(_VIEWS)
    epsilon: float = 1e-3
    reweighted: tuple[float, ...] = (1e-6, 3e-6, 1e-5)
    lasso: tuple[float, ...] = (1e-5, 3e-5, 1e-4)
    units: int = 120
    batches: tuple[int, ...] = (1, 32)
    pairs: int = 15

    @classmethod
    def quick(cls) -> "Config":
        """For seconds on a small data set, most of them compilation."""
        return cls(
            networks=("cnn",),
            steps=20,
            pretrain=3,
            rounds=3,
            retrain=1,
            kept=(0.25,),
            views=(_BLOCKS,),
            reweighted=(3e-6,),
            lasso=(3e-5,),
            batches=(1,),
            pairs=5,
        )


class SmallVgg(nn.Module):
    """Three 3x3 convolutions of 8, 16 and 32 filters, halving the image twice, and 64 hidden units."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images ``[n, height, width, channels]`` to logits ``[n, num_classes]``."""
        x = max_pool2(nn.relu(Conv(8, (3, 3), name="conv1")(x)))
        x = max_pool2(nn.relu(Conv(16, (3, 3), name="conv2")(x)))
        x = nn.relu(Conv(32, (3, 3), name="conv3")(x))
        x = nn.relu(nn.Dense(64, name="fc1")(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes, name="out")(x)


@experiment(
    "blk-rew",
    paper="arXiv 2001.08357",
    summary="columns of blocks pruned by reweighted group lasso, in a convolutional and in a recurrent network",
    data="fashion_mnist",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    models: dict[str, tuple[Callable[..., nn.Module], str]] = {
        "cnn": (SmallVgg, r"(conv[23]|fc1)/kernel"),
        "gru": (functools.partial(SpeechGRU, config.units, 1), r"gru1/[ih][rzn]/kernel"),
    }
    metrics: dict[str, Any] = {}
    for name in config.networks:
        model, pruned = models[name]
        its_own = dataclasses.replace(context, data=_speech.load() if name == "gru" else context.data)
        study = _Study(Classifier.of(model, config, its_own), config, pruned)
        metrics[name] = _run(name, study, config, its_own)
    return metrics


def _run(name: str, study: "_Study", config: Config, context: Context) -> dict[str, Any]:
    """Of one network: its methods side by side, what that says, and what it takes."""

    def done(what: str, make: Callable[..., Any], *arguments: Any) -> Any:
        return kept(context.folder, f"{name}-{what}", make, *arguments)

    def chosen(how: str, prices: tuple[float, ...]) -> float:
        return best(prices, lambda price: done(f"trial-{how}-{price:g}", study.score, how, price))

    prices = {
        _REWEIGHTED: chosen(_REWEIGHTED, config.reweighted),
        _LASSO: chosen(_LASSO, config.lasso),
        _MAGNITUDE: None,
    }
    context.say(f"{name}: price of a weight and a step: " + ", ".join(f"{how} {p:g}" for how, p in prices.items() if p))
    dense = [done(f"dense-{seed}", study.dense, seed) for seed in context.seeds]
    found: Found = {fraction: {} for fraction in config.kept}
    for view in config.views:
        for how, price in prices.items():
            if how != _REWEIGHTED and view != _BLOCKS:
                continue
            for seed in context.seeds:
                outcomes = done(f"{view}-{how}-{seed}", study.outcomes, view, how, seed, price)
                for fraction, outcome in zip(config.kept, outcomes, strict=True):
                    found[fraction].setdefault(f"{view}, {how}", []).append(Outcome(**outcome))
    claims = _claims(name, found)
    context.say(*claims)
    context.console.print(_accuracies(name, context, found, dense))
    _draw(name, context, found, dense)
    latencies = {
        f"{name}, {_BLOCKS}, {fraction:g} kept": [
            Latency(**done(f"time-{fraction:g}-{batch}", study.latency, fraction, batch)) for batch in config.batches
        ]
        for fraction in config.kept
    }
    context.console.print(times(latencies, config.pairs))
    return {"claims": claims, "prices": prices, "dense": dense, "found": found, "latencies": latencies}


class _Study:
    """One network under every penalty and set."""

    def __init__(self, task: Classifier, config: Config, pruned: str):
        self.task, self.config, self.pruned, self.template = task, config, pruned, task.init(0)
        self.trained = functools.cache(self._trained)
        self.trained_on, self.penalized = functools.cache(self._trained_on), functools.cache(self._penalized)

    def score(self, how: str, price: float) -> float:
        """Validation accuracy after a price, pruned to the least kept fraction and retrained."""
        params = self.penalized(_BLOCKS, how, _TUNING, price)
        params = self._retrained(params, self._spec(_BLOCKS, min(self.config.kept)), _TUNING)
        return self.task.accuracy(params, self.task.data.validation)

    def outcomes(self, view: str, how: str, seed: int, price: float | None) -> list[dict[str, Any]]:
        """What is left at every kept fraction; by magnitude where there is no price."""
        params = self.trained_on(seed) if price is None else self.penalized(view, how, seed, price)
        found = []
        for fraction in self.config.kept:
            spec = self._spec(view, fraction)
            after = self._retrained(params, spec, seed)
            found.append(asdict(self.task.measured(jc.project(spec, params), after, jc.report(spec, after))))
        return found

    def dense(self, seed: int) -> float:
        """Test accuracy of the network trained on for as many steps, without constraint."""
        params = self._retrained(self.trained_on(seed), {}, seed)
        return self.task.accuracy(params, self.task.data.test)

    def latency(self, fraction: float, batch: int) -> dict[str, Any]:
        """Of the network under its sets; values do not matter to time, so it is not retrained."""
        spec = self._spec(_BLOCKS, fraction)
        params, x = jc.project(spec, self.trained(0)), jnp.asarray(self.task.data.test.image[:batch])
        return asdict(measured(self._apply, params, spec, x, self.config.pairs))

    def _apply(self, params: Any, x: jax.Array) -> jax.Array:
        return self.task.model.apply({"params": params}, x)

    def _trained(self, seed: int) -> Any:
        return self.task.solved(self.task.init(seed), jc.ADMM({}), seed=seed, rounds=self.config.pretrain).params

    def _trained_on(self, seed: int) -> Any:
        return self._after_rounds(seed, jc.ADMM({}))

    def _penalized(self, view: str, how: str, seed: int, price: float) -> Any:
        return self._after_rounds(seed, self._penalty(view, how, price))

    def _after_rounds(self, seed: int, solver: jc.Solver) -> Any:
        return self.task.solved(self.trained(seed), solver, seed=seed, rounds=self.config.rounds).params

    def _penalty(self, view: str, how: str, price: float) -> jc.Reweighted:
        """The price of a group is that of its weights, whatever its size: one price serves all views."""
        spec = self._spec(view, 1.0)
        epsilon, scale = (_FLAT, _FLAT) if how == _LASSO else (self.config.epsilon, 1.0)
        leaves = {path: self._leaf(path) for path in spec}
        strength = {
            path: price * scale * leaf.size / _VIEWS[view].sizes(leaf.shape).total for path, leaf in leaves.items()
        }
        return jc.Reweighted(spec, strength, epsilon, decoupled=True)

    def _retrained(self, params: Any, spec: jc.Spec, seed: int) -> Any:
        return self.task.retrained(params, spec, seed=seed, rounds=self.config.retrain)

    def _spec(self, view: str, density: float) -> jc.Spec:
        return jc.assign(self.template, {self.pruned: jc.Sparse(density, _VIEWS[view])})

    def _leaf(self, path: str) -> jax.Array:
        return functools.reduce(lambda tree, key: tree[key], path.split("/"), self.template)


def _claims(name: str, found: Found) -> list[str]:
    """What the run says of what must hold, retrained."""
    pairs = [
        *((f"{_BLOCKS}, {_REWEIGHTED}", f"{_BLOCKS}, {other}") for other in (_LASSO, _MAGNITUDE)),
        (f"{_BLOCKS}, {_LASSO}", f"{_BLOCKS}, {_MAGNITUDE}"),
        *((f"{fine}, {_REWEIGHTED}", f"{coarse}, {_REWEIGHTED}") for coarse, fine in itertools.pairwise(_VIEWS)),
    ]
    lines = []
    for fraction, methods in found.items():
        for better, worse in pairs:
            if better in methods and worse in methods:
                gain = ahead(methods[better], methods[worse], "accuracy")
                claim = f"{name}, {fraction:g} kept: {better}, ahead of {worse} ({points(gain)} points)"
                lines.append(f"{verdict(gain)}: {claim}.")
    return lines


def _accuracies(name: str, context: Context, found: Found, dense: list[float]) -> Table:
    blocks = f"{_BLOCKS}, {_REWEIGHTED}"
    rows = {
        f"{fraction:g} kept": [
            Row(method, outcomes, None if method == blocks else methods[blocks]) for method, outcomes in methods.items()
        ]
        for fraction, methods in found.items()
    }
    title = {"cnn": "SmallVgg", "gru": "GRU"}[name]
    caption = f"Trained on without pruning: {percent(dense)} %. The paper's own figures are not known here."
    return table(context, title, rows, rival="8x8 blocks", compared=("accuracy",), caption=caption, sizes=False)


def _draw(name: str, context: Context, found: Found, dense: list[float]) -> None:
    shown = [method for method in found[max(found)] if method.startswith(_BLOCKS) or method.endswith(_REWEIGHTED)]
    curves = {method: [curve_point(methods[method], "accuracy") for methods in found.values()] for method in shown}
    path = context.folder / f"accuracy-{name}.png"
    _plots.accuracy_against_compression(path, curves, dense=float(np.mean(dense)))
