"""One trained network, and every way to choose its bits: what each may ask, and what its choice is worth."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcomp as jc
from experiments import _haq_network as network
from experiments._data import Dataset
from experiments._haq_agent import Agent, to_bits, walled

LEAST, MOST = 2, 8
WIDTHS = range(LEAST, MOST + 1)
_BATCH = 16  # images that the device runs at once


class Numbers(NamedTuple):
    """Of images a step, steps, images of a query, rates, and episodes at random."""

    batch_size: int
    steps: int
    learning_rate: float
    query_steps: int
    query_images: int
    query_rate: float
    final_steps: int
    final_rate: float
    warm_up: int


class Study:
    """A policy is bits ``[layers, 2]``, of weights and of what comes in; the first and the last layer keep eight.

    Args:
      data: images.
      numbers: how long everything takes.
      seed: of the network, the batches and the agent.
    """

    def __init__(self, data: Dataset, numbers: Numbers, seed: int):
        self.data, self.numbers, self.seed = data, numbers, seed
        self.layers = tuple(network.layers(*data.train.image.shape[2:], data.num_classes))
        self.device = jc.BitSerial.cloud()
        self.workload = network.workload(self.layers, _BATCH)
        self.fixed = np.zeros((len(self.layers), 2), bool)
        self.fixed[[0, -1]] = True
        w, a = (jnp.asarray(bits, jnp.float32) for bits in zip(*itertools.product(WIDTHS, WIDTHS), strict=True))
        cycles = jax.vmap(lambda w, a: self.device.cycles(self.workload.stacked, jc.Stored(w, a)), out_axes=1)(w, a)
        self.cycles = np.asarray(cycles, np.float64).reshape(len(self.layers), len(WIDTHS), len(WIDTHS))
        self._programs = _programs(self.layers, numbers.learning_rate)
        images, labels = (x[: numbers.query_images] for x in (data.validation.image, data.validation.label))
        self._seen = jnp.asarray(images), jnp.asarray(labels)
        self._calibration = jnp.asarray(data.train.image[: 2 * numbers.batch_size])
        self.params = self._programs.train(
            network.init(self.layers, jax.random.key(seed)), self._batches(0, numbers.steps)
        )

    def uniform(self, bits: int) -> np.ndarray:
        return np.where(self.fixed, MOST, bits)

    def cost(self, policy: np.ndarray) -> float:
        """Cycles."""
        return float(self.cycles[np.arange(len(policy)), policy[:, 0] - LEAST, policy[:, 1] - LEAST].sum())

    def accuracy(self, policy: np.ndarray | None) -> float:
        """Of the test images once finetuned; as trained, in floating point, without a policy."""
        found = (self.params, None)
        if policy is not None:
            found = self._tuned(policy, self._batches(1, self.numbers.final_steps), self.numbers.final_rate)
        size, test = len(self._seen[1]), self.data.test  # of what is compiled already
        chunks = [(test.image[i : i + size], test.label[i : i + size]) for i in range(0, len(test), size)]
        return sum(int(self._programs.measured(*found, *chunk)[0]) for chunk in chunks) / len(test)

    def asked(self, policy: np.ndarray) -> float:
        """A query: validation accuracy after a few steps."""
        numbers = self.numbers
        found = self._tuned(policy, self._batches(2, numbers.query_steps), numbers.query_rate)
        return int(self._programs.measured(*found, *self._seen)[0]) / len(self._seen[1])

    @functools.cached_property
    def alone(self) -> np.ndarray:
        """What the loss on validation images is above that of eight bits, ``[layers, 2, bits]``, each width alone."""
        policies, places = [self.uniform(MOST)], []
        for layer, side, bits in itertools.product(range(len(self.layers)), range(2), WIDTHS):
            if not self.fixed[layer, side] and bits < MOST:
                policy = self.uniform(MOST)
                policy[layer, side] = bits
                policies.append(policy)
                places.append((layer, side, bits - LEAST))
        quantized = [self._quantized(policy) for policy in policies]
        losses = np.array([self._programs.measured(self.params, q, *self._seen)[1] for q in quantized])
        found = np.zeros((*self.fixed.shape, len(WIDTHS)), np.float32)
        found[tuple(zip(*places, strict=True))] = losses[1:] - losses[0]
        return found

    @property
    def queries(self) -> int:
        """How many policies `alone` measures."""
        return 1 + int((~self.fixed).sum()) * (len(WIDTHS) - 1)

    def allocated(self, budget: float, method: str) -> np.ndarray:
        """The policy of `jaxcomp.allocate` on what every width costs alone, as if losses added up."""
        values = jc.choices(weight_bits=WIDTHS, activation_bits=WIDTHS)
        ends = jnp.asarray(self.fixed.any(axis=1))
        sensitivity = jax.tree_util.Partial(_losses, jnp.asarray(self.alone), ends)
        seconds = budget / self.device.clock_hz
        found = jc.allocate(self.workload, self.device, sensitivity, seconds, values, method=method)
        return np.stack([found.stored.weight_bits, found.stored.activation_bits], axis=1).astype(int)

    def searched(self, budget: float, queries: int, learn: bool) -> np.ndarray:
        """The policy of the best of as many queries: the agent's, or with none, random ones behind the same wall."""
        agent = Agent(self._features(), self.seed, self.numbers.warm_up if learn else queries)
        reference, best = self.asked(self.uniform(MOST)), (-1.0, self.uniform(LEAST))
        for _ in range(queries):
            actions = agent.actions()
            policy = np.where(self.fixed, MOST, to_bits(actions, LEAST, MOST).reshape(-1, 2))
            policy = walled(policy, self.fixed, self.cycles, budget, LEAST)
            accuracy = self.asked(policy)
            agent.learn(actions, 10 * (accuracy - reference))  # a tenth of percentage points
            best = max(best, (accuracy, policy), key=lambda pair: pair[0])
        return best[1]

    def _features(self) -> np.ndarray:
        """Of every step, two a layer, scaled to 0 to 1; the agent adds its last action."""
        rows = [
            (x.depthwise, x.inputs, x.outputs, x.stride, x.kernel, np.prod(x.shape), x.inputs * x.side**2, i, side)
            for i, x in enumerate(self.layers)
            for side in (1, 0)
        ]
        table = np.array(rows, np.float64)
        low, high = table.min(0), table.max(0)
        return (table - low) / np.maximum(high - low, 1e-9)

    def _batches(self, purpose: int, steps: int) -> tuple[jax.Array, jax.Array]:
        random = np.random.default_rng((self.seed, purpose))
        rows = random.integers(len(self.data.train), size=(steps, self.numbers.batch_size))
        return jnp.asarray(self.data.train.image[rows]), jnp.asarray(self.data.train.label[rows])

    def _quantized(self, policy: np.ndarray) -> network.Quantization:
        return self._programs.calibrate(self.params, self._calibration, *jnp.asarray(policy, jnp.float32).T)

    def _tuned(self, policy: np.ndarray, batches: tuple, rate: float) -> tuple[Any, network.Quantization]:
        quantized, length = self._quantized(policy), self.numbers.query_steps
        state = network.at_rest(self.params, quantized)
        for i in range(0, len(batches[1]), length):  # as many at a time as a query takes: one program for both
            state = self._programs.tune(state, quantized, tuple(x[i : i + length] for x in batches), rate)
        return state.params, quantized._replace(activation_clips=state.clips)


class _Programs(NamedTuple):
    """Compiled: training, calibrating, finetuning, and how many are right, with the loss."""

    train: Any
    calibrate: Any
    tune: Any
    measured: Any


@functools.cache  # once for all seeds
def _programs(layers: tuple[network.Layer, ...], rate: float) -> _Programs:
    def measured(params, quantized, images, labels):
        scores = network.logits(layers, params, images, quantized)
        return jnp.sum(scores.argmax(-1) == labels), network.cross_entropy(scores, labels)

    train = functools.partial(network.trained, layers, rate=rate)
    programs = (train, functools.partial(network.calibrated, layers), functools.partial(network.finetuned, layers))
    return _Programs(*map(jax.jit, (*programs, measured)))


def _losses(alone: jax.Array, ends: jax.Array, stored: jc.Stored) -> jax.Array:
    """Of layers at any bits, straight between whole ones; infinite for the first and the last below the most."""
    both = jnp.stack([jnp.broadcast_to(bits, ends.shape) for bits in (stored.weight_bits, stored.activation_bits)], 1)
    widths = jnp.arange(LEAST, MOST + 1.0)
    losses = jax.vmap(jax.vmap(jnp.interp, (0, None, 0)), (0, None, 0))(both, widths, alone)
    return jnp.where(ends & (jnp.min(both, axis=1) < MOST), jnp.inf, jnp.sum(losses, axis=1))
