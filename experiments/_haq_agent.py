"""HAQ's agent: deep deterministic policy gradients over bits, layer by layer, and its wall that keeps the budget."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

_WIDTH, _BATCH, _TAU, _BASELINE = 300, 64, 0.01, 0.5
_SIGMA, _DECAY = 0.5, 0.99


def walled(bits: np.ndarray, fixed: np.ndarray, costs: np.ndarray, budget: float, least: int) -> np.ndarray:
    """The policy with bits taken away until it costs no more than the budget.

    Sweeps go from the last layer to the first, and take one bit of the activations, then one of the weights.

    Args:
      bits: ``[layers, 2]``, of weights and of activations.
      fixed: ``[layers, 2]``, what may not change.
      costs: ``[layers, bits, bits]``, from `least` bits on.
      budget: of the sum.
      least: bits.
    """
    bits, layers = bits.copy(), np.arange(len(bits))

    def cost():
        return costs[layers, bits[:, 0] - least, bits[:, 1] - least].sum()

    while cost() > budget:
        before = bits.copy()
        for layer in reversed(layers):
            for side in (1, 0):
                if bits[layer, side] > least and not fixed[layer, side]:
                    bits[layer, side] -= 1
                    if cost() <= budget:
                        return bits
        if (bits == before).all():
            raise ValueError(f"budget {budget:g} cannot be met: the fewest bits cost {cost():g}")
    return bits


def to_bits(actions: np.ndarray, least: int, most: int) -> np.ndarray:
    """Bits of actions between 0 and 1."""
    return np.clip(np.round((most - least + 1) * actions + least - 0.5), least, most).astype(int)


class _State(NamedTuple):
    actor: Any
    critic: Any
    actor_target: Any
    critic_target: Any
    moments: Any
    baseline: jax.Array


class Agent:
    """Actor and critic with a memory of transitions; every transition of an episode has the episode's reward.

    Args:
      features: ``[steps, features]`` of the steps of an episode, between 0 and 1; the action before is appended.
      seed: of weights and noise.
      warm_up: episodes of uniformly random actions.
    """

    def __init__(self, features: np.ndarray, seed: int, warm_up: int):
        self.features, self.warm_up, self.episodes = jnp.asarray(features, jnp.float32), warm_up, 0
        self._random = np.random.default_rng(seed)
        self._memory: list[tuple[np.ndarray, ...]] = []
        inputs = features.shape[1] + 1
        actor, critic = _init(jax.random.key(seed), inputs)
        self.state = _State(actor, critic, actor, critic, (_ACTOR.init(actor), _CRITIC.init(critic)), jnp.float32(0))

    def actions(self) -> np.ndarray:
        """One for every step: random at first, then the actor's with noise that shrinks."""
        count = len(self.features)
        if self.episodes < self.warm_up:
            return self._random.uniform(size=count)
        sigma = _SIGMA * _DECAY ** (self.episodes - self.warm_up)
        noise = self._random.integers(2**31)
        return np.asarray(_rollout(self.state.actor, self.features, sigma, jax.random.key(noise)))

    def learn(self, actions: np.ndarray, reward: float) -> None:
        """One update for every transition of the episode, once the first episodes are over."""
        before = np.concatenate([[0.0], actions[:-1]])
        states = np.concatenate([np.asarray(self.features), before[:, None]], axis=1)
        done = np.arange(len(actions)) == len(actions) - 1
        after = np.concatenate([states[1:], states[-1:]])
        self._memory += zip(states, actions[:, None], np.full(len(actions), reward), after, done, strict=True)
        self._memory = self._memory[-128 * len(actions) :]
        self.episodes += 1
        if self.episodes <= self.warm_up:
            return
        rows = self._random.integers(len(self._memory), size=(len(actions), _BATCH))
        columns = [np.asarray(column, np.float32) for column in zip(*self._memory, strict=True)]
        self.state = _learnt(self.state, tuple(jnp.asarray(column[rows]) for column in columns))


_ACTOR, _CRITIC = optax.adam(1e-4), optax.adam(1e-3)


def _init(key: jax.Array, inputs: int) -> tuple[Any, Any]:
    keys = jax.random.split(key, 7)

    def dense(key, fan_in, fan_out):
        bound = 1 / np.sqrt(fan_in)
        return jax.random.uniform(key, (fan_in, fan_out), jnp.float32, -bound, bound), jnp.zeros(fan_out)

    actor = [dense(keys[0], inputs, _WIDTH), dense(keys[1], _WIDTH, _WIDTH), dense(keys[2], _WIDTH, 1)]
    critic = [dense(keys[3], inputs, _WIDTH), dense(keys[4], 1, _WIDTH), dense(keys[5], _WIDTH, _WIDTH)]
    return actor, [*critic, dense(keys[6], _WIDTH, 1)]


def _affine(x: jax.Array, layer: tuple[jax.Array, jax.Array]) -> jax.Array:
    return x @ layer[0] + jnp.broadcast_to(layer[1], (*x.shape[:-1], layer[1].shape[0]))


def _act(actor: Any, states: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(_affine(jax.nn.relu(_affine(states, actor[0])), actor[1]))
    return jax.nn.sigmoid(_affine(hidden, actor[2]))


def _value(critic: Any, states: jax.Array, actions: jax.Array) -> jax.Array:
    joined = jax.nn.relu(_affine(states, critic[0]) + _affine(actions, critic[1]))
    return _affine(jax.nn.relu(_affine(joined, critic[2])), critic[3])[..., 0]


@jax.jit
def _rollout(actor: Any, features: jax.Array, sigma: jax.Array, key: jax.Array) -> jax.Array:
    """Actions, each drawn from a normal around the actor's that is cut off at 0 and 1."""

    def step(before, given):
        feature, key = given
        mean = _act(actor, jnp.append(feature, before)[None])[0, 0]
        action = mean + sigma * jax.random.truncated_normal(key, (0 - mean) / sigma, (1 - mean) / sigma)
        return action, action

    return lax.scan(step, jnp.float32(0), (features, jax.random.split(key, len(features))))[1]


@jax.jit
def _learnt(state: _State, batches: tuple[jax.Array, ...]) -> _State:
    """A step of critic and actor for every batch; the targets follow slowly."""

    def step(state, batch):
        states, actions, rewards, after, done = batch
        mean = jnp.mean(rewards)
        first = state.baseline == 0
        baseline = jnp.where(first, mean, _BASELINE * mean + (1 - _BASELINE) * state.baseline)
        later = _value(state.critic_target, after, _act(state.actor_target, after))
        wanted = lax.stop_gradient(rewards - baseline + (1 - done) * later)

        def error(critic):
            return jnp.mean(jnp.square(_value(critic, states, actions) - wanted))

        updates, second = _CRITIC.update(jax.grad(error)(state.critic), state.moments[1])
        critic = optax.apply_updates(state.critic, updates)
        slope = jax.grad(lambda actor: -jnp.mean(_value(critic, states, _act(actor, states))))(state.actor)
        updates, one = _ACTOR.update(slope, state.moments[0])
        actor = optax.apply_updates(state.actor, updates)
        near = functools.partial(jax.tree.map, lambda new, old: _TAU * new + (1 - _TAU) * old)
        targets = near(actor, state.actor_target), near(critic, state.critic_target)
        return _State(actor, critic, *targets, (one, second), baseline), None

    return lax.scan(step, state, batches)[0]
