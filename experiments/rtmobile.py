"""A GRU on spoken digits, its matrices pruned by columns of blocks and then by rows: accuracy, and real time.

Dong et al., RTMobile: Beyond Real-Time Mobile Acceleration of RNNs for Speech Recognition, DAC 2020 (arXiv 2002.11474).
Its claims: pruned in two steps by ADMM, columns within strips of rows first and whole rows next, a GRU loses next to
nothing at 10x and little at 29x; and the structure makes it fast. The paper's network has two layers of 1024 units and
reads TIMIT, which is licensed; here it has one of 120 and reads the Free Spoken Digit Dataset, so that accuracy is of
utterances and no figure compares with a phone error rate. The released code cuts rows within strips of columns in its
second step; here rows go whole, as the paper's text has it.

One network is trained. Then, from it and at each rate, every structure keeps as many weights and trains for as many
steps, by ADMM or by magnitude. The time is that of the whole network on this machine, compiled and dense in turns: of
the trained one, and of random weights under the same sets in one of the paper's size.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.table import Table

import jaxcomp as jc
from experiments import _plots, _speech
from experiments import _rtmobile_sets as sets
from experiments._classifier import Classifier
from experiments._compression_report import Outcome, Row, ahead, curve_point, table, values
from experiments._kept import kept
from experiments._latency import Latency, measured, times
from experiments._registry import Context, experiment
from experiments._rtmobile_network import SpeechGRU
from experiments._rtmobile_study import MAGNITUDE, Config, Study
from experiments._statistics import percent, points, verdict

_PAPER = (
    "Of the paper, phone error rates on TIMIT: 18.8 % at 10x, 19.5 % at 20x, 19.6 % at 29x, 21.5 % at 80x (logs of the "
    "released models); dense about 18.8 %."
)

Found = dict[float, dict[str, list[Outcome]]]  # by rate and method, a seed an entry


@experiment(
    "rtmobile",
    paper="arXiv 2002.11474",
    summary="a GRU on spoken digits pruned by columns of blocks and by rows: accuracy, and time as compiled",
    data=None,
)
def run(config: Config, context: Context) -> dict[str, Any]:
    context = dataclasses.replace(context, data=_speech.load(config.frames))
    task = Classifier.of(functools.partial(SpeechGRU, config.units, config.layers), config, context)
    study = Study(task, config)
    done = functools.partial(kept, context.folder)
    rho = {structure: done(f"rho-{structure}", study.chosen_rho, structure) for structure in config.structures}
    shown = ", ".join(f"{structure} {value:g}" for structure, value in rho.items())
    context.say(f"rho, best of {len(config.rho)}: {shown}")
    dense = [done(f"dense-{seed}", study.dense, seed) for seed in context.seeds]
    found: Found = {}
    for rate in config.rates:
        weights = rho | {MAGNITUDE: None}
        found[rate] = {
            method: [
                Outcome(**done(f"{method}-{rate:g}x-{seed}", study.outcome, method, rate, seed, weight))
                for seed in context.seeds
            ]
            for method, weight in weights.items()
        }
    tied = {
        f"block-circulant, {block}": [
            Outcome(**done(f"circulant-{block}-{seed}", study.circulant, block, seed, rho[sets.BSP]))
            for seed in context.seeds
        ]
        for block in config.circulant
    }
    claims = _claims(found, tied, dense)
    context.say(*claims)
    context.console.print(_accuracies(context, found, tied, dense))
    _draw(context, found, tied, dense)
    latencies = _latencies(study, config, done)
    context.console.print(times(latencies, config.pairs))
    return {
        "claims": claims,
        "rho": rho,
        "dense": dense,
        "found": found,
        "tied": tied,
        "latencies": latencies,
    }


def _latencies(study: Study, config: Config, done: Callable[..., Any]) -> dict[str, list[Latency]]:
    """By network: what every batch takes. Values do not matter to time, so they are random."""
    small, large = study.task.model, SpeechGRU(config.published_units, config.published_layers)
    random = large.init(jax.random.key(0), np.zeros((1, 1, _speech.FEATURES), np.float32))["params"]
    networks = [(small, study.template, rate) for rate in config.rates]
    networks += [(large, random, rate) for rate in config.published_rates]
    return {
        f"{model.layers} x {model.units} units, {sets.exact_rate(params, rate):.1f}x": [
            Latency(**done(f"time-{model.units}-{rate:g}x-{batch}", _latency, config, model, params, rate, batch))
            for batch in config.batches
        ]
        for model, params, rate in networks
    }


def _latency(config: Config, model: SpeechGRU, params: Any, rate: float, batch: int) -> dict[str, Any]:
    stages = sets.stages(sets.BSP, params, rate, config.strips)
    for spec in stages:
        params = jc.project(spec, params)
    x = jax.random.normal(jax.random.key(batch), (batch, config.frames, _speech.FEATURES))
    return dataclasses.asdict(measured(functools.partial(_applied, model), params, stages[0], x, config.pairs))


def _applied(model: SpeechGRU, params: Any, x: jax.Array) -> jax.Array:
    return model.apply({"params": params}, x)


def _claims(found: Found, tied: dict[str, list[Outcome]], dense: list[float]) -> list[str]:
    """What the run says of the paper's claims, and of what is expected of the structure."""
    lines = []
    for methods in found.values():
        ours = methods[sets.BSP]
        at = f"at {_size(ours)} {sets.BSP}"
        lost = 100 * (np.array(dense) - values(ours, "accuracy"))
        lines.append(f"{verdict(1 - lost)}: {at} loses less than 1 point ({points(lost)}).")
        for rival in (sets.WHOLE, MAGNITUDE):
            if rival in methods:
                gain = ahead(ours, methods[rival], "accuracy")
                lines.append(f"{verdict(gain)}: {at} is ahead of {rival} ({points(gain)} points).")
        if sets.FREE in methods:
            gap = ahead(methods[sets.FREE], ours, "accuracy")
            lines.append(f"{verdict(2 - gap)}: {at} is less than 2 points behind unstructured ({points(-gap)}).")
    for name, outcomes in tied.items():
        above = [methods[sets.BSP] for methods in found.values() if methods[sets.BSP][0].ratio > outcomes[0].ratio]
        if above:
            ours = min(above, key=lambda each: each[0].ratio)
            gain = ahead(ours, outcomes, "accuracy")
            at = f"at {_size(ours)} {sets.BSP}"
            lines.append(f"{verdict(gain)}: {at} is ahead of {name}, at {_size(outcomes)} ({points(gain)} points).")
    return lines


def _accuracies(context: Context, found: Found, tied: dict[str, list[Outcome]], dense: list[float]) -> Table:
    rows = {
        _size(methods[sets.BSP]): [
            Row(method, outcomes, None if method == sets.BSP else methods[sets.BSP])
            for method, outcomes in methods.items()
        ]
        for methods in found.values()
    }
    rows |= {_size(outcomes): [Row(name, outcomes)] for name, outcomes in tied.items()}
    caption = f"By ADMM but where it says magnitude. Trained on without pruning: {percent(dense)} %. {_PAPER}"
    return table(context, "GRU", rows, rival="BSP", compared=("accuracy",), caption=caption, sizes=False)


def _size(outcomes: list[Outcome]) -> str:
    return f"{outcomes[0].ratio:.1f}x"


def _draw(context: Context, found: Found, tied: dict[str, list[Outcome]], dense: list[float]) -> None:
    shown = [method for method in found[min(found)] if method != sets.COLUMNS]  # there are six colours
    curves = {method: [curve_point(methods[method], "accuracy") for methods in found.values()] for method in shown}
    if tied:
        curves["block-circulant"] = [curve_point(outcomes, "accuracy") for outcomes in tied.values()]
    _plots.accuracy_against_compression(context.folder / "accuracy.png", curves, dense=float(np.mean(dense)))
