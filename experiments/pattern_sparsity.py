"""A convolutional network whose 3x3 kernels follow a few patterns, and of which some are left out: accuracy and time.

Ma et al., PCONV, AAAI 2020 (arXiv 1909.05073); Ma et al., An Image Enhancing Pattern-based Sparsity for Real-time
Inference on Mobile Devices, ECCV 2020 (arXiv 2001.07710); Niu et al., PatDNN, ASPLOS 2020 (arXiv 2001.00138). Their
claims: kernels of four weights in one of eight patterns lose no accuracy, or gain some; with whole kernels left out
besides, some 8x, little is lost; and a compiler that knows the patterns makes it fast. The papers have VGG-16 and
ResNet-50 on ImageNet; here it is a network of 70 000 weights, nearly all in 3x3 kernels, and no figure compares.

One network is trained. Then, from it, ADMM under every set trains for as many steps on the same batches, with the same
rho, is pruned hard and retrained within the set. The first convolution and the dense layer are left alone and not
counted. Whole filters go with their channels of the next layer, so that fewer of them have to go: as many weights are
left. The time is that of the whole network on this machine, compiled and dense in turns, for random weights under the
same sets: in the network that was trained, and in a wider one.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from rich.table import Table

import jaxcomp as jc
from experiments import _pattern_sparsity_sets as sets
from experiments import _plots
from experiments._classifier import Classifier
from experiments._compression_report import Outcome, Row, ahead, curve_point, table, values
from experiments._kept import kept
from experiments._latency import Latency, forms, measured, times
from experiments._models import FORMS
from experiments._pattern_sparsity_network import SmallVGG
from experiments._registry import Context, experiment
from experiments._statistics import percent, points, verdict
from experiments._trials import best

_TUNING = 1000  # the seed of the network that rho is chosen on
_AT_ONCE = (*sets.LIBRARIES, sets.FREE)  # compared where every kernel is kept
_FEWER = (sets.OWN, sets.FREE, sets.FILTERS)  # and where kernels are left out
_PAPER = (
    "Of PatDNN, top-5 on ImageNet, from memory: VGG-16 91.7 %, with 8 patterns 92.3 %, with 8 patterns and 3.6x "
    "connectivity 91.6 %."
)

Found = dict[str, dict[str, list[Outcome]]]  # by rate and method, a seed an entry


@dataclass(frozen=True)
class Config:
    """Rounds are of `steps` optimiser steps each; `connectivity` is kernels before by kernels kept.

    rho is chosen by validation accuracy, retrained, for patterns with connectivity, on a network that is not used
    again, and serves all sets. Accuracies are of the first so many `images` of a split. Latencies are of random
    weights, in a network as wide as the trained one and in one whose convolutions have `wide` filters.
    """

    batch_size: int = 64
    steps: int = 40
    learning_rate: float = 2e-3
    pretrain: int = 18
    rounds: int = 6
    retrain: int = 4
    connectivity: float = 3.6
    rho: tuple[float, ...] = (1e-2, 1e-1)
    growth: float = 1.5
    images: int = 4000
    wide: tuple[int, ...] = (64, 128, 128, 256, 256)
    batches: tuple[int, ...] = (1, 32)
    pairs: int = 9

    @classmethod
    def quick(cls) -> "Config":
        """For seconds, most of them compilation."""
        return cls(steps=10, pretrain=4, rounds=2, retrain=2, rho=(1e-1,), images=200, wide=(), batches=(1,), pairs=3)


@experiment(
    "pattern-sparsity",
    paper="arXiv 2001.07710",
    summary="3x3 kernels in patterns, some left out, beside whole filters and single weights: accuracy, and time",
    data="fashion_mnist",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    context = dataclasses.replace(context, data=context.data.evaluated_on(config.images))
    study = _Study(Classifier.of(SmallVGG, config, context), config)
    done = functools.partial(kept, context.folder)
    rho = done("rho", study.chosen_rho)
    context.say(f"best of {len(config.rho)}: rho {rho:g}")
    dense = [done(f"dense-{seed}", study.dense, seed) for seed in context.seeds]
    rates = {1.0: _AT_ONCE, config.connectivity: _FEWER}
    found = {
        _rate(connectivity): {
            method: [
                Outcome(**done(f"{method}-{connectivity:g}-{seed}", study.outcome, method, connectivity, seed, rho))
                for seed in context.seeds
            ]
            for method in methods
        }
        for connectivity, methods in rates.items()
    }
    kernels = [done(f"kernels-{seed}", study.kernels, seed) for seed in context.seeds]
    claims = [*_claims(found, dense), *_of_kernels(kernels)]
    context.say(*claims)
    context.console.print(_accuracies(context, found, dense))
    latencies = {
        name: [Latency(**each) for each in done(f"times-{name}", make)] for name, make in study.networks().items()
    }
    context.console.print(times(latencies, config.pairs))
    context.say(*forms(latencies))
    _draw(context, found, dense)
    return {
        "claims": claims,
        "rho": rho,
        "dense": dense,
        "found": found,
        "kernels": kernels,
        "latencies": latencies,
    }


class _Study:
    """The methods, and what they left."""

    def __init__(self, task: Classifier, config: Config):
        self.task, self.config = task, config
        self.trained = functools.cache(self._trained)

    def chosen_rho(self) -> float:
        """The rho whose network of patterns with connectivity, retrained, is most accurate on validation."""

        def score(rho: float) -> float:
            spec = self.spec(sets.OWN, self.config.connectivity, _TUNING)
            return self.task.accuracy(self._pruned(spec, _TUNING, rho)[1], self.task.data.validation)

        return best(self.config.rho, score)

    def outcome(self, method: str, connectivity: float, seed: int, rho: float) -> Outcome:
        """What a method left; weights are counted in the kernels, what is stored in all leaves."""
        spec = self.spec(method, connectivity, seed)
        landed, params = self._pruned(spec, seed, rho)
        kernels = jc.assign(params, {sets.KERNELS: jc.Sparse(1.0)})
        counted = self.task.measured(landed, params, jc.report(kernels, params))
        stored = jc.report(spec, params)
        return dataclasses.replace(counted, storage_ratio=stored.storage_ratio, violation=stored.violation)

    def dense(self, seed: int) -> float:
        """Test accuracy of the network trained on for as many steps, without constraint."""
        c = self.config
        on = self.task.solved(self.trained(seed), jc.ADMM({}), seed=seed, rounds=c.rounds).params
        on = self.task.retrained(on, {}, seed=seed, rounds=c.retrain)
        return self.task.accuracy(on, self.task.data.test)

    def kernels(self, seed: int) -> dict[str, Any]:
        """What is said of trained kernels: how many have the centre among the largest, and what libraries hold."""
        params = self.trained(seed)
        return {"centre": sets.with_centre(params), "energy": sets.energy(params)}

    def networks(self) -> dict[str, Callable[[], list[Latency]]]:
        """By name, what times a network under the sets that leave kernels out; what its weights are does not matter."""
        c = self.config
        widths = {"small": SmallVGG.widths} | ({"wide": c.wide} if c.wide else {})
        return {
            f"{name}, {method}": functools.partial(self._times, each, method)
            for name, each in widths.items()
            for method in _FEWER
        }

    def spec(self, method: str, connectivity: float, seed: int) -> jc.Spec:
        return sets.spec(method, self._apply(self.task.model), self.trained(seed), self._image, connectivity)

    def _times(self, widths: tuple[int, ...], method: str) -> list[Latency]:
        """Of the ways to convolve that `Conv` has, the one that is the faster dense."""
        c, images = self.config, self.task.data.train.image
        models = [SmallVGG(self.task.data.num_classes, widths, form) for form in FORMS]
        params = models[0].init(jax.random.key(0), self._image)["params"]
        spec = sets.spec(method, self._apply(models[0]), params, self._image, c.connectivity)
        params = jc.project(spec, params)
        return [
            min(
                (measured(self._apply(model), params, spec, images[:batch], c.pairs) for model in models),
                key=lambda each: each.dense_s,
            )
            for batch in c.batches
        ]

    @property
    def _image(self) -> np.ndarray:
        return self.task.data.train.image[:1]

    @staticmethod
    def _apply(model: SmallVGG) -> Callable[[Any, Any], jax.Array]:
        return lambda params, x: model.apply({"params": params}, x)

    def _pruned(self, spec: jc.Spec, seed: int, rho: float) -> tuple[Any, Any]:
        """The trained network as ADMM landed it, and retrained."""
        c = self.config
        solver = jc.ADMM(spec, rho=rho, growth=c.growth)
        landed = self.task.solved(self.trained(seed), solver, seed=seed, rounds=c.rounds).params
        return landed, self.task.retrained(landed, spec, seed=seed, rounds=c.retrain)

    def _trained(self, seed: int) -> Any:
        return self.task.solved(self.task.init(seed), jc.ADMM({}), seed=seed, rounds=self.config.pretrain).params


def _rate(connectivity: float) -> str:
    return f"{sets.rate(connectivity):.3g}x"


def _claims(found: Found, dense: list[float]) -> list[str]:
    """What the run says of the papers' claims."""
    (at_once, every), (fewer, some) = found.items()

    def gain(methods: dict[str, list[Outcome]], ours: str, theirs: str) -> np.ndarray:
        return ahead(methods[ours], methods[theirs], "accuracy")

    lines = []
    for method in (sets.OWN, sets.DESIGNED):
        lost = 100 * (np.array(dense) - values(every[method], "accuracy"))
        lines.append(f"{verdict(0.2 - lost)}: at {at_once}, {method} lose less than 0.2 points ({points(lost)}).")
    for ours, theirs in ((sets.DESIGNED, sets.RANDOM), (sets.OWN, sets.RANDOM), (sets.RANDOM, sets.ONE)):
        lead = gain(every, ours, theirs)
        lines.append(f"{verdict(lead)}: at {at_once}, {ours} are ahead of {theirs} ({points(lead)} points).")
    lead = gain(some, sets.OWN, sets.FILTERS)
    lines.append(
        f"{verdict(lead - 1)}: at {fewer}, patterns are more than 1 point ahead of {sets.FILTERS} ({points(lead)})."
    )
    gap = gain(some, sets.FREE, sets.OWN)
    lines.append(f"{verdict(1 - gap)}: at {fewer}, {sets.FREE} is less than 1 point ahead of patterns ({points(gap)}).")
    return lines


def _of_kernels(kernels: list[dict[str, Any]]) -> list[str]:
    """What trained kernels look like, before any pruning."""
    centre = percent([each["centre"] for each in kernels], ".1f")
    held = ", ".join(
        f"{name} {percent([each['energy'][name] for each in kernels], '.1f')} %" for name in sets.LIBRARIES
    )
    of_random = f"{100 * sets.ENTRIES / 9:.1f}"
    return [
        f"The centre is among the {sets.ENTRIES} largest of {centre} % of trained kernels, of random ones {of_random}.",
        f"Of their energy is left by {held}.",
    ]


def _accuracies(context: Context, found: Found, dense: list[float]) -> Table:
    rows = {
        rate: [
            Row(method, outcomes, None if method == sets.OWN else methods[sets.OWN])
            for method, outcomes in methods.items()
        ]
        for rate, methods in found.items()
    }
    caption = f"Trained on without pruning: {percent(dense)} %. {_PAPER}"
    options = dict(rival="its own", compared=("accuracy",), caption=caption)
    return table(context, "a network of 3x3 kernels", rows, **options)


def _draw(context: Context, found: Found, dense: list[float]) -> None:
    methods = dict.fromkeys(method for each in found.values() for method in each)
    curves = {
        method: [curve_point(each[method], "accuracy") for each in found.values() if method in each]
        for method in methods
    }
    _plots.accuracy_against_compression(context.folder / "accuracy.png", curves, dense=float(np.mean(dense)))
