"""A transformer whose matrices have a b-th of the numbers: from scratch, and from one dense network a seed."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jaxcomp as jc
from experiments import _ftrans_kernels as kernels
from experiments import _ftrans_storage as storage
from experiments._ftrans_task import Task
from experiments._trials import best

DENSE, ON, SCRATCH = "dense", "dense, trained on", "from scratch"
DIAGONAL, COLUMN, ROW = (f"projected, {rule}" for rule in kernels.RULES)
ADMM, LOW_RANK = "ADMM", "low rank"
MAGNITUDE, AS_BYTES = "magnitude", "magnitude, as many bytes"
FINETUNED = (DIAGONAL, COLUMN, ROW, ADMM, LOW_RANK, MAGNITUDE, AS_BYTES)

_RULES = dict(zip((DIAGONAL, COLUMN, ROW), kernels.RULES, strict=True))
_ALIKE = {COLUMN: DIAGONAL, ROW: DIAGONAL, ADMM: DIAGONAL, AS_BYTES: MAGNITUDE}  # which share the other's rate
_TUNING = 1000  # the seed of the network that numbers are chosen on


@dataclass(frozen=True)
class Config:
    """Rounds are of `steps` optimiser steps each; `sides` are those of circulant blocks.

    Training from scratch takes `rounds`, and training on from the dense network `finetune`, of which ADMM has half
    before it lands. The rate of every way of training, and ADMM's rho, are chosen by bits a character on validation
    for blocks of side `tuned_at`, on a network that is not used again; those from scratch in so many rounds as
    `tuning`. Evaluation is on so many `windows` of the test split, at even distances, and as many of validation.
    Latencies are medians over so many `pairs` of calls; `layer` is the width and the hidden width of the feed-forward
    block that is timed besides, RoBERTa-base's. With a hidden width of three times the width, matrices have a rank at
    which two factors have just as many numbers as circulant blocks.
    """

    width: int = 128
    hidden: int = 384
    heads: int = 4
    depth: int = 2
    batch_size: int = 16
    length: int = 32
    steps: int = 50
    rounds: int = 32
    finetune: int = 10
    sides: tuple[int, ...] = (4, 8, 16)
    methods: tuple[str, ...] = FINETUNED
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    finetune_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    rho: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    growth: float = 2.0
    tuned_at: int = 8
    tuning: int = 10
    windows: int = 2000
    layer: tuple[int, int] = (768, 3072)
    batches: tuple[int, ...] = (1, 32)
    pairs: int = 15

    def methods_of(self, side: int) -> list[str]:
        """Those that start from the dense network; other rules than the paper's are compared at the least side."""
        return [each for each in self.methods if side == min(self.sides) or each not in (COLUMN, ROW)]

    @classmethod
    def quick(cls) -> "Config":
        """For seconds, most of them compilation: all trainings are of the same length, so as few programs as forms."""
        return cls(
            width=32,
            hidden=96,
            heads=2,
            depth=1,
            steps=30,
            rounds=2,
            finetune=2,
            sides=(8,),
            methods=(DIAGONAL, COLUMN),
            rates=(3e-3,),
            finetune_rates=(3e-3,),
            windows=64,
            layer=(64, 256),
            batches=(1,),
            pairs=3,
        )


@dataclass(frozen=True)
class Outcome:
    """One network on the test split.

    Attributes:
      landed: bits a character before training within the form.
      bits, accuracy: bits a character, and the share of characters foretold, after it.
      half_bits, half_accuracy: the same with every weight rounded to 16 bits.
      numbers: kept of the matrices.
      ratio: weights of the matrices before by `numbers`.
      bytes, half_bytes: of the matrices on disk, with what says where numbers belong; at 32 bits a number, and at 16.
    """

    landed: float
    bits: float
    accuracy: float
    half_bits: float
    half_accuracy: float
    numbers: int
    ratio: float
    bytes: int
    half_bytes: int


class Study:
    """The ways to fewer numbers, and what they left."""

    def __init__(self, task: Task, config: Config):
        self.task, self.config = task, config
        self.trained = functools.cache(self._trained)

    def chosen(self) -> dict[str, float]:
        """The rate of every way of training, and rho, that leave the fewest bits a character on validation."""
        c = self.config
        found = {SCRATCH: _best(c.rates, self._tried, c.tuned_at), DENSE: _best(c.rates, self._tried, 1)}
        for method in (ON, DIAGONAL, *(each for each in (LOW_RANK, MAGNITUDE) if each in c.methods)):
            found[method] = _best(c.finetune_rates, self._tried_on, method, found)
        found |= {each: found[like] for each, like in _ALIKE.items() if like in found}
        return found | ({"rho": _best(c.rho, self._tried_rho, found)} if ADMM in c.methods else {})

    def scratch(self, b: int, seed: int, chosen: dict[str, float]) -> Outcome:
        """What training from scratch gave; for b = 1 the dense network."""
        return self._outcome(self._fresh(b, seed), self.trained(b, seed, chosen[DENSE if b == 1 else SCRATCH]), {})

    def finetuned(self, method: str, b: int, seed: int, chosen: dict[str, float]) -> Outcome:
        """What was left of the dense network, trained on in another form, or for b = 1 as it is."""
        landed, spec, rounds = self.landed(method, b, seed, chosen)
        params = self._on(f"{method} {b}", landed, spec, seed, rounds, chosen[method])
        return self._outcome(landed, params, spec)

    def landed(self, method: str, b: int, seed: int, chosen: dict[str, float]) -> tuple[Any, jc.Spec, int]:
        """The dense network brought to a form, the sets it is held to, and the rounds that are left to train."""
        params, rounds = self.trained(1, seed, chosen[DENSE]), self.config.finetune
        if method == ON:
            return params, {}, rounds
        if method == LOW_RANK:
            return kernels.encoded(params, functools.partial(kernels.factors, b=b)), {}, rounds
        if method in (MAGNITUDE, AS_BYTES):
            matrices = kernels.of_matrices(params)
            density = {
                path: 1 / b if method == MAGNITUDE else storage.affordable(x.size, b) for path, x in matrices.items()
            }
            spec = jc.assign(params, {path: jc.Sparse(kept) for path, kept in density.items()})
            return jc.project(spec, params), spec, rounds
        if method == ADMM:
            first = rounds // 2
            rounds -= first
            spec = jc.assign(params, {kernels.MATRICES: jc.Tied(jc.diagonals(b))})
            solver = jc.ADMM(spec, rho=chosen["rho"], growth=self.config.growth)
            params = self.task.coordinated(params, solver, seed=seed + 1000, rounds=first, rate=chosen[ON])
        rule = _RULES.get(method, kernels.DIAGONAL)
        return kernels.encoded(params, functools.partial(kernels.blocks, b=b, rule=rule)), {}, rounds

    def _fresh(self, b: int, seed: int) -> Any:
        """Index vectors are the first columns of random matrices, so as large as their entries."""
        params = self.task.init(seed)
        if b == 1:
            return params
        return kernels.encoded(params, functools.partial(kernels.blocks, b=b, rule=kernels.COLUMN))

    def _trained(self, b: int, seed: int, rate: float) -> Any:
        options = dict(seed=seed, rounds=self.config.rounds, rate=rate, checkpoints=True)
        return self.task.trained(f"side {b}", self._fresh(b, seed), {}, **options)

    def _on(self, name: str, landed: Any, spec: jc.Spec, seed: int, rounds: int, rate: float) -> Any:
        return self.task.trained(name, landed, spec, seed=seed + 2000, rounds=rounds, rate=rate)

    def _outcome(self, landed: Any, params: Any, spec: jc.Spec) -> Outcome:
        test = self.task.text.test
        bits, accuracy = self.task.bits(params, test)
        half_bits, half_accuracy = self.task.bits(storage.rounded(params), test)
        numbers, weights = storage.numbers(params, spec), storage.numbers(kernels.decoded(params), {})
        return Outcome(
            landed=self.task.bits(landed, test)[0],
            bits=bits,
            accuracy=accuracy,
            half_bits=half_bits,
            half_accuracy=half_accuracy,
            numbers=numbers,
            ratio=weights / numbers,
            bytes=storage.stored(params, spec),
            half_bytes=storage.stored(storage.half(params), spec),
        )

    def _tried(self, rate: float, b: int) -> float:
        options = dict(seed=_TUNING, rounds=self.config.tuning, rate=rate)
        params = self.task.trained(f"tuning side {b}", self._fresh(b, _TUNING), {}, **options)
        return self.task.bits(params, self.task.text.valid)[0]

    def _tried_on(self, rate: float, method: str, chosen: dict[str, float]) -> float:
        landed, spec, rounds = self.landed(method, self.config.tuned_at, _TUNING, chosen)
        params = self._on(f"tuning {method}", landed, spec, _TUNING, rounds, rate)
        return self.task.bits(params, self.task.text.valid)[0]

    def _tried_rho(self, rho: float, chosen: dict[str, float]) -> float:
        return self._tried_on(chosen[ADMM], ADMM, chosen | {"rho": rho})


def _best(values: tuple[float, ...], tried: Callable[..., float], *arguments: Any) -> float:
    """The value of fewest bits; one that stands alone is not tried."""
    return best(values, lambda value: -tried(value, *arguments))
