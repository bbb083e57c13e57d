"""A recogniser of spoken digits pruned by every method, from one trained network a seed and for as many steps."""

import functools
from dataclasses import asdict, dataclass
from typing import Any

import jaxcomp as jc
from experiments import _rtmobile_sets as sets
from experiments._classifier import Classifier, Landing, decaying
from experiments._trials import best

TUNING = 1000  # the seed of the network that rho is chosen on
MAGNITUDE = f"{sets.BSP} by magnitude"


@dataclass(frozen=True)
class Config:
    """Rounds are of `steps` optimiser steps each, 0 standing for one epoch; `rates` are weights before by weights kept.

    A method of two stages has half of its rounds in each. rho of every structure is chosen by validation accuracy at
    the rate `tuned_at`, on a network that is not used again. Latencies are of the network trained at each rate, and of
    random weights under the same sets in one as large as the paper's, at `published_rates`.
    """

    batch_size: int = 64
    steps: int = 0
    learning_rate: float = 1e-3
    retrain_rate: float = 3e-3
    frames: int = 32
    units: int = 120
    layers: int = 1
    strips: int = 8
    structures: tuple[str, ...] = sets.STRUCTURES
    pretrain: int = 20
    rounds: int = 12
    retrain: int = 16
    rates: tuple[float, ...] = (4.0, 10.0, 20.0, 29.0)
    circulant: tuple[int, ...] = (8, 16)
    rho: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    growth: float = 1.5
    tuned_at: float = 20.0
    published_units: int = 1024
    published_layers: int = 2
    published_rates: tuple[float, ...] = (10.0, 29.0)
    batches: tuple[int, ...] = (1, 32)
    pairs: int = 15

    @classmethod
    def quick(cls) -> "Config":
        """For seconds, most of them compilation."""
        return cls(
            units=48,
            strips=4,
            structures=(sets.BSP,),
            pretrain=4,
            rounds=4,
            retrain=4,
            rates=(4.0,),
            circulant=(),
            rho=(1e-2,),
            published_units=128,
            published_layers=1,
            published_rates=(10.0,),
            batches=(1,),
            pairs=5,
        )


class Study:
    """The methods, and what they left."""

    def __init__(self, task: Classifier, config: Config):
        self.task, self.config = task, config
        self.template = task.init(0)
        self.trained = functools.cache(self._trained)

    def chosen_rho(self, structure: str) -> float:
        """The rho whose network, retrained, is most accurate on validation."""
        stages = self.stages(structure, self.config.tuned_at)

        def score(rho: float) -> float:
            return self.task.accuracy(self.pruned(stages, TUNING, rho)[1], self.task.data.validation)

        return best(self.config.rho, score)

    def outcome(self, method: str, rate: float, seed: int, rho: float | None) -> dict[str, Any]:
        """What a structure at a rate left; without a rho it is found by magnitude."""
        return self._outcome(self.stages(method.removesuffix(" by magnitude"), rate), seed, rho)

    def circulant(self, block: int, seed: int, rho: float) -> dict[str, Any]:
        """What tying the entries of circulant blocks left."""
        return self._outcome(sets.circulant(self.template, block), seed, rho)

    def dense(self, seed: int) -> float:
        """Test accuracy of the network trained on for as many steps, without constraint."""
        c = self.config
        on = self.task.solved(self.trained(seed), jc.ADMM({}), seed=seed, rounds=c.rounds).params
        return self.task.accuracy(self._retrained(on, {}, seed, c.retrain), self.task.data.test)

    def stages(self, structure: str, rate: float) -> list[jc.Spec]:
        return sets.stages(structure, self.template, rate, self.config.strips)

    def pruned(self, stages: list[jc.Spec], seed: int, rho: float | None) -> tuple[Any, Any]:
        """The network as the last stage landed it, and retrained; without a rho by magnitude, training on before."""
        c, n = self.config, len(stages)
        params, hold = self.trained(seed), None
        for at, spec in enumerate(stages):
            solver = Landing(spec) if rho is None else jc.ADMM(spec, rho=rho, growth=c.growth**n)
            landed = self.task.solved(params, solver, seed=seed + at, rounds=c.rounds // n, hold=hold).params
            params = self._retrained(landed, spec, seed + at, c.retrain // n, hold)
            hold = jc.assign(params, {path: jc.FixedMask() for path in spec})
        return landed, params

    def _outcome(self, stages: list[jc.Spec], seed: int, rho: float | None) -> dict[str, Any]:
        landed, params = self.pruned(stages, seed, rho)
        counted = sets.dense(params) if len(stages) > 1 else stages[0]
        return asdict(self.task.measured(landed, params, jc.report(counted, params)))

    def _trained(self, seed: int) -> Any:
        return self.task.solved(self.task.init(seed), jc.ADMM({}), seed=seed, rounds=self.config.pretrain).params

    def _retrained(self, params: Any, spec: jc.Spec, seed: int, rounds: int, hold: jc.Spec | None = None) -> Any:
        """Within the sets, and those held, at a rate that starts higher than in training: the way back is long."""
        task = self.task
        return jc.solve(
            task.loss,
            params,
            task.batches(seed + 2000, rounds),
            Landing(spec),
            optimizer=decaying(self.config.retrain_rate, rounds * task.steps),
            rounds=0,
            steps=task.steps,
            retrain=rounds,
            hold=hold,
        ).params
