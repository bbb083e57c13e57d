"""Ways to train a classifier that tell less of who was in its training data, each by public pieces of jaxcomp alone."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import lax

import jaxcomp as jc
from experiments import _membership, _private_gradient
from experiments._membership import Population
from experiments._models import LeNet300

_CLIP = 1.0  # of an example's gradient, in DP-SGD
_SAMPLES = ("members", "validation", "test")
_PLAIN = jc.ADMM({})


@dataclasses.dataclass(frozen=True)
class Config:
    """What every method may spend, and the settings each has to choose from: tuples, one trial an entry.

    Attributes:
      members: images to fit, and as many in each of the other samples; see `_membership.draw`.
      noise: deviation of the noise on pixels.
      batch_size, learning_rate: of Adam, the same for all.
      steps: optimiser steps a round, after each of which ADMM projects.
      pretrain, rounds, retrain: rounds of dense training, of ADMM, and with the zeros held. What does not prune trains
        for as many in all.
      warm: rounds before an attacker joins that is in the loop from the beginning.
      turns: steps of an attacker in the loop after every step of the network.
      rho, growth: of ADMM.
      tolerance: accuracy that a defence may cost. Of the trials that cost no more on the validation sample, the one
        with the lowest attack accuracy there is chosen.
      stopped: shares of the rounds after which training stops early.
      private: noise multipliers of DP-SGD.
      games: weights of the attacker's gain.
      densities: kept shares of the weights of every layer but the last, which has 0.4 % of them.
      both: a density and a weight of the gain, one after the other, for every trial.
    """

    members: int = 1000
    noise: float = 0.0
    batch_size: int = 100
    learning_rate: float = 1e-3
    steps: int = 5
    pretrain: int = 120
    rounds: int = 60
    retrain: int = 60
    warm: int = 20
    turns: int = 2
    rho: float = 1e-3
    growth: float = 1.02
    tolerance: float = 0.03
    stopped: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    private: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    games: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    densities: tuple[float, ...] = (0.1, 0.05, 0.02, 0.01)
    both: tuple[float, ...] = (0.05, 3.0, 0.05, 10.0, 0.02, 3.0, 0.02, 10.0)

    @classmethod
    def quick(cls) -> "Config":
        """For seconds on the small data set, made hard by noise."""
        return cls(
            members=400,
            noise=0.5,
            pretrain=40,
            rounds=30,
            retrain=30,
            warm=10,
            growth=1.05,
            stopped=(0.1, 0.3),
            private=(0.5, 1.0),
            games=(1.0, 3.0),
            densities=(0.1, 0.05),
            both=(0.1, 1.0, 0.05, 1.0),
        )

    def __post_init__(self):
        trials = {len(self.stopped), len(self.private), len(self.games), len(self.densities), len(self.both) / 2}
        if len(trials) != 1:
            raise ValueError(
                "stopped, private, games and densities must have as many entries, and both twice as many: every "
                "method is to have as many trials"
            )

    @property
    def total(self) -> int:
        """Rounds in all."""
        return self.pretrain + self.rounds + self.retrain


class Trial(NamedTuple):
    """A method with a setting, and the network that came of it."""

    method: str
    setting: str  # the entry of the configuration that it tries; that of "pruned, game" has a comma too
    params: Any


class Defences:
    """All methods with all their settings, on one model."""

    def __init__(self, config: Config, num_classes: int):
        self.config, self.num_classes = config, num_classes
        self.model = LeNet300(num_classes)
        self.optimizer = optax.adam(config.learning_rate)  # one object, and one game a weight: each new one compiles
        self.players = optax.adam(config.learning_rate)
        self.clipped = _private_gradient.clipped(self.model, _CLIP)
        self.game = functools.cache(self._game)
        self._answers = jax.jit(self._logits)

    def trials(self, people: Population, seed: int) -> Iterator[Trial]:
        """Every trial, trained on the members."""
        c = self.config
        train = functools.partial(self._train, people, seed)
        fresh = self.model.init(jax.random.key(seed), people.members.image[:1])["params"]

        yield Trial("dense", "", train(fresh, c.total).params)
        for share in c.stopped:
            yield Trial("stopped early", f"{share:g}", train(fresh, round(share * c.total)).params)
        for noise in c.private:
            grad = _private_gradient.NoisyGradient(noise * _CLIP / c.batch_size, seed)
            yield Trial("DP-SGD", f"{noise:g}", train(fresh, c.total, loss=self.clipped, grad=grad).params)

        play = functools.partial(self._train, people, seed, steps=1)  # the attacker moves after every step
        warm = train(fresh, c.warm).params
        for weight in c.games:
            solution = play(warm, (c.total - c.warm) * c.steps, self._adversary(seed), loss=self.game(weight))
            yield Trial("game", f"{weight:g}", solution.params)

        trained = train(fresh, c.pretrain).params
        for density in c.densities:
            spec = _spec(trained, density)
            landed = train(trained, c.rounds, self._admm(spec)).params
            yield Trial("pruned", f"{density:g}", train(landed, c.retrain, hold=spec).params)
        for density, weight in zip(c.both[::2], c.both[1::2], strict=True):
            spec, game, adversary = _spec(trained, density), self.game(weight), self._adversary(seed)
            both = jc.Combined(adversary, jc.Every(c.steps, self._admm(spec)))
            landed = play(trained, c.rounds * c.steps, both, loss=game)
            adversary = dataclasses.replace(adversary, start=landed.state[0].player.value)  # who goes on with the game
            final = play(landed.params, c.retrain * c.steps, adversary, loss=game, hold=spec).params
            yield Trial("pruned, game", f"{density:g}, {weight:g}", final)

    def measured(self, params: Any, people: Population, seed: int) -> dict[str, Any]:
        """Accuracies of a network and of its attackers; those on `validation` are to choose by."""
        logits = {name: np.asarray(self._answers(params, getattr(people, name).image)) for name in _SAMPLES}
        labels = {name: getattr(people, name).label for name in _SAMPLES}
        kernels = [np.asarray(x) for x in jax.tree.leaves(params) if x.ndim > 1]
        return {
            "kept": sum(map(np.count_nonzero, kernels)) / sum(x.size for x in kernels),
            "accuracy": {name: float(np.mean(logits[name].argmax(1) == labels[name])) for name in _SAMPLES},
            "attack": {
                name: _membership.attack((logits["members"], labels["members"]), (logits[name], labels[name]), seed)
                for name in _SAMPLES[1:]
            },
        }

    def epsilon(self, noise: float, members: int) -> float:
        """Of DP-SGD with this noise multiplier, at a delta of one over the number of members."""
        c = self.config
        return _private_gradient.epsilon(noise, c.batch_size / members, c.total * c.steps, 1 / members)

    def _train(
        self,
        people: Population,
        seed: int,
        params: Any,
        rounds: int,
        solver: jc.Solver = _PLAIN,
        *,
        loss: Callable | None = None,
        steps: int | None = None,
        **options: Any,
    ) -> jc.Solution:
        """So many rounds on the members; an attacker in the loop sees as many of the reference in every batch."""
        c, steps = self.config, steps or self.config.steps
        data = (people.members.image, people.members.label, people.reference.image, people.reference.label)
        batches = jc.shuffled(data, c.batch_size, rounds * steps, seed)
        run = dict(optimizer=self.optimizer, rounds=rounds, steps=steps) | options
        return jc.solve(loss or self._loss, params, batches, solver, **run)

    def _admm(self, spec: jc.Spec) -> jc.ADMM:
        return jc.ADMM(spec, rho=self.config.rho, growth=self.config.growth)

    def _adversary(self, seed: int) -> jc.Adversary:
        start = _membership.attacker(self.num_classes, seed)
        return jc.Adversary(start, turns=self.config.turns, optimizer=self.players)

    def _logits(self, params: Any, image: Any) -> Any:
        return self.model.apply({"params": params}, image)

    def _loss(self, params: Any, batch: tuple) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(self._logits(params, batch[0]), batch[1]).mean()

    def _game(self, weight: float) -> Callable:
        """Cross-entropy and so much of the attacker's gain; the network plays by the members alone (Nasr et al.)."""

        def loss(players: tuple, batch: tuple) -> jax.Array:
            params, attacker = players
            x, y, others, theirs = batch
            logits, aside = self._logits(params, x), lax.stop_gradient(self._logits(params, others))
            inside = _membership.score(attacker, _membership.features_of(logits, y))
            outside = _membership.score(attacker, _membership.features_of(aside, theirs))
            gain = (jax.nn.log_sigmoid(inside).mean() + jax.nn.log_sigmoid(-outside).mean()) / 2
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean() + weight * gain

        return loss


def _spec(params: Any, density: float) -> jc.Spec:
    return jc.assign(params, {r"fc[12]/kernel": jc.Sparse(density)})
