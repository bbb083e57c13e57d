"""LeNet-5 whose blocks of weights share one magnitude, or are zero: accuracy, bytes, multiplications and time.

Lin et al., Efficient Micro-Structured Weight Unification and Pruning for Neural Network Compression, 2021 (arXiv
2106.08301). Its claims: a block of weights that the hardware multiplies at a time can do with one magnitude and its
signs; found by ADMM, that costs little accuracy; and to unify some blocks and prune others is better than either alone.
The paper's networks are larger and its tables are not known here, so no figure is compared.

One network is trained. Then, from it and for every block and share, ADMM trains, projects hard and retrains within the
set: zeros stay, a unified block keeps its signs and moves by its one magnitude. One-shot projection retrains for as
many steps in all. Blocks are outputs by inputs, of the two layers that hold 98.7 % of the weights; the other two are
left alone, but counted. Magnitudes and free weights have 32 bits. Unifying, pruning and both are compared at equal
numbers of blocks and at equal stored bits, with signs and codes of states.
"""

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import jaxcomp as jc
from experiments import _weight_unification_blocks as blocks
from experiments import _weight_unification_report as report
from experiments import _weight_unification_sets as sets
from experiments._classifier import Classifier
from experiments._kept import kept
from experiments._latency import Latency, forms, times
from experiments._models import LeNet5
from experiments._registry import Context, experiment
from experiments._trials import best
from experiments._weight_unification_report import Found, Outcome, Way
from experiments._weight_unification_sets import ALL, BOTH, HARD, Shares
from experiments._weight_unification_times import HAS_ONNX, Elsewhere, compiled, in_onnx, told

_TUNING = 1000  # the seed of the network that rho is chosen on

Latencies = dict[str, list[Latency]]  # by network, a batch an entry


@dataclass(frozen=True)
class Config:
    """Rounds are of `steps` optimiser steps each; one-shot projection retrains for ADMM's rounds as well.

    rho is chosen by validation accuracy, retrained, on a network that is not used again: with the largest blocks, one
    for unified, one for pruned, one for both. `unified` are shares of blocks. Accuracies are of the first so many
    `images` of a split. Times are of blocks in `timed`, and with `onnx` those of ONNX Runtime too, if its packages are
    there.
    """

    batch_size: int = 32
    steps: int = 40
    learning_rate: float = 1e-3
    pretrain: int = 24
    rounds: int = 4
    retrain: int = 4
    blocks: tuple[str, ...] = tuple(sets.BLOCKS)
    unified: tuple[float, ...] = (0.5, 0.75, 1.0)
    rho: tuple[float, ...] = (1e-2, 1e-1, 1.0)
    growth: float = 1.5
    images: int = 4000
    timed: tuple[str, ...] = ("1x8", "8x8")
    batches: tuple[int, ...] = (1, 32)
    pairs: int = 11
    onnx: bool = True

    @classmethod
    def quick(cls) -> "Config":
        """For seconds, most of them compilation: nothing at once, and nothing timed."""
        few = dict(blocks=("8x8",), unified=(), rho=(1e-1,), timed=(), batches=(1,), pairs=3)
        return cls(steps=10, pretrain=6, rounds=2, retrain=2, images=200, onnx=False, **few)


@experiment(
    "weight-unification",
    paper="arXiv 2106.08301",
    summary="LeNet-5 with blocks of one magnitude, alone and beside pruned ones: accuracy, bytes, products and time",
    data="fashion_mnist",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    context = dataclasses.replace(context, data=context.data.evaluated_on(config.images))
    study = _Study(Classifier.of(LeNet5, config, context), config)
    done = functools.partial(kept, context.folder)
    rho = {kind: done(f"rho-{_file(kind)}", study.chosen_rho, shares) for kind, shares in sets.KINDS.items()}
    context.say(f"best rho of {len(config.rho)}: " + ", ".join(f"{kind} {each:g}" for kind, each in rho.items()))
    dense = [done(f"dense-{seed}", study.dense, seed) for seed in context.seeds]
    facts = {
        block: [done(f"facts-{block}-{seed}", study.facts, block, seed) for seed in context.seeds]
        for block in config.blocks
    }
    found: Found = {block: {} for block in config.blocks}
    for block in config.blocks:
        for way in _plan(config, block):
            found[block][way] = [
                Outcome(**done(f"{_file(way)}-{block}-{seed}", study.outcome, block, way, seed, rho[way.shares.kind]))
                for seed in context.seeds
            ]
        context.say(f"{block} done")
    claims = [*report.of_sets(facts, found), *report.of_accuracies(found)]
    context.say(*claims)
    context.console.print(report.accuracies(context, found, dense))
    report.draw(context.folder / "accuracy.png", found, dense)
    latencies, elsewhere = _timed(study, config, context)
    return {
        "claims": claims,
        "rho": rho,
        "dense": dense,
        "facts": facts,
        "found": found,
        "latencies": latencies,
        "onnx": elsewhere,
    }


def _plan(config: Config, block: str) -> list[Way]:
    """What is done to the blocks, each once: shares unified, and what they are set beside."""
    unified = [Shares(share) for share in config.unified]
    rivals = [shares for level in sets.levels(block) for shares in level if shares]
    by_admm = dict.fromkeys([*unified, *HARD, *rivals])
    return [*map(Way, by_admm), *(Way(shares, one_shot=True) for shares in unified)]


class _Study:
    """What is done to a trained network, and what it leaves."""

    def __init__(self, task: Classifier, config: Config):
        self.task, self.config, self.template = task, config, task.init(0)
        self.trained = functools.cache(self._trained)

    def chosen_rho(self, shares: Shares) -> float:
        """The rho that is most accurate on validation, retrained, with such shares of the largest blocks."""
        block = max(self.config.blocks, key=sets.size)

        def score(rho: float) -> float:
            return self.task.accuracy(self._within(block, Way(shares), _TUNING, rho)[1], self.task.data.validation)

        return best(self.config.rho, score)

    def dense(self, seed: int) -> float:
        """Test accuracy of the network trained on for as many steps, without constraint."""
        on = self.task.retrained(self.trained(seed), {}, seed=seed, rounds=self._all)
        return self.task.accuracy(on, self.task.data.test)

    def facts(self, block: str, seed: int) -> dict[str, Any]:
        """What projecting the trained network does, beside what is said of it."""
        shares = dict.fromkeys([*map(Shares, self.config.unified), ALL])
        return {str(each): blocks.projected(self.trained(seed), block, each) for each in shares}

    def outcome(self, block: str, way: Way, seed: int, rho: float) -> Outcome:
        """What is left of the trained network, and what it takes."""
        landed, params = self._within(block, way, seed, rho)
        spec = sets.spec(params, block, way.shares)
        with tempfile.TemporaryDirectory() as folder:
            saved = jc.save(Path(folder) / "model", params, spec)
        dense, promised = (
            sum(getattr(leaf, key) for leaf in saved.leaves) for key in ("dense_bytes", "footprint_bytes")
        )
        states = {path: blocks.states(leaf, block) for path, leaf in blocks.leaves(params).items()}
        return Outcome(
            landed=self.task.accuracy(landed, self.task.data.test),
            accuracy=self.task.accuracy(params, self.task.data.test),
            stored=dense / promised,
            promised_bytes=promised,
            disk_bytes=saved.bytes,
            multiplications=self._multiplications(states),
            exact=all(blocks.as_many(way.shares, each) for each in states.values()),
        )

    def networks(self) -> Iterator[tuple[str, Any, jc.Spec]]:
        """Those to be timed, which need no training for it."""
        trained = self.trained(0)
        for block, shares in itertools.product(self.config.timed, (ALL, BOTH, HARD[1])):
            spec = sets.spec(trained, block, shares)
            yield f"{block}, {shares}", jc.project(spec, trained), spec

    @property
    def _all(self) -> int:
        return self.config.rounds + self.config.retrain

    def _trained(self, seed: int) -> Any:
        return self.task.solved(self.task.init(seed), jc.ADMM({}), seed=seed, rounds=self.config.pretrain).params

    def _within(self, block: str, way: Way, seed: int, rho: float) -> tuple[Any, Any]:
        """Networks after hard projection and after retraining."""
        c, trained, spec = self.config, self.trained(seed), sets.spec(self.template, block, way.shares)
        if way.one_shot:
            landed, rounds = jc.project(spec, trained), self._all
        else:
            solver = jc.ADMM(spec, rho=rho, growth=c.growth)
            landed, rounds = self.task.solved(trained, solver, seed=seed, rounds=c.rounds).params, c.retrain
        return landed, self.task.retrained(landed, spec, seed=seed, rounds=rounds)

    def _multiplications(self, states: dict[str, blocks.States]) -> float:
        """Of one image: before by after."""
        left = sum(
            macs * states[path].multiplications / states[path].weights if path in states else macs
            for path, macs in self._macs.items()
        )
        return sum(self._macs.values()) / left

    @functools.cached_property
    def _macs(self) -> dict[str, float]:
        """Of one image, by the leaf that feeds them."""
        work = jc.trace(self._apply, self.template, self.task.data.test.image[:1])
        return {product.path: float(product.macs) for product in work}

    def _apply(self, params: Any, x: Any) -> jax.Array:
        return self.task.model.apply({"params": params}, x)


def _timed(study: "_Study", config: Config, context: Context) -> tuple[Latencies, dict[str, list[Elsewhere]]]:
    """Every network and batch, compiled beside dense; and where asked and possible all unified in ONNX Runtime."""
    done, pairs = functools.partial(kept, context.folder), config.pairs
    classes, images = context.data.num_classes, context.data.test.image
    latencies: Latencies = {}
    elsewhere: dict[str, list[Elsewhere]] = {}
    for name, params, spec in study.networks():
        for batch in config.batches:
            x, file = images[:batch], f"{_file(name)}-{batch}"
            latency = done(f"time-{file}", compiled, classes, params, spec, x, pairs)
            latencies.setdefault(name, []).append(Latency(**latency))
            if config.onnx and HAS_ONNX and name.endswith(str(ALL)):
                found = done(f"onnx-{file}", in_onnx, classes, params, x, pairs)
                elsewhere.setdefault(name, []).append(Elsewhere(**found))
    if latencies:
        context.console.print(times(latencies, pairs))
    context.say(*forms(latencies), *told(elsewhere))
    return latencies, elsewhere


def _file(name: Any) -> str:
    """A name without what a file had better not be called."""
    return str(name).replace(" %", "").replace(",", "")
