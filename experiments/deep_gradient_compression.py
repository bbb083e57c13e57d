"""Deep gradient compression: workers that send each other a thousandth of their gradients, beside simpler schemes.

Lin et al., Deep Gradient Compression, ICLR 2018 (arXiv 1712.01887).

Several workers, simulated side by side, train one perceptron on the data set; in every step each has a batch of its
own and sends what its scheme lets through. Every scheme at every density gets the same steps and batches, and the best
of the same learning rates by validation accuracy, on a seed that the table does not use.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxcomp as jc
from experiments import _exchange_report as report
from experiments._data import Dataset, Split
from experiments._registry import Context, experiment

_TUNING_SEED = 10_000  # far from those of the table


@dataclass(frozen=True)
class Config:
    """`batch_size` is a worker's; each scheme tries all `rates`; a warm-up takes `warm_up` steps from a quarter on."""

    workers: int = 4
    batch_size: int = 32
    steps: int = 860  # two epochs of MNIST
    densities: tuple[float, ...] = (0.1, 0.01, 0.001)
    rates: tuple[float, ...] = (0.025, 0.05, 0.1, 0.2)
    warm_up: int = 100
    momentum: float = 0.9
    hidden: tuple[int, ...] = (128, 64)

    @classmethod
    def quick(cls) -> "Config":
        """For seconds on a small data set."""
        return cls(steps=150, densities=(0.001,), rates=(0.05, 0.1), warm_up=16)

    def __post_init__(self):
        if min(self.workers, self.batch_size, self.steps) < 1 or not (self.densities and self.rates):
            raise ValueError("workers, batch_size and steps must be at least 1, densities and rates not empty")


@dataclass(frozen=True)
class Scheme:
    """What is sent, and where momentum is.

    Attributes:
      values: of a sent gradient: "all" of its entries, or "sparse", "binary", or "sparse binary" ones.
      correction: whether workers accumulate velocities; else gradients, and momentum acts on their mean.
      mask_below: what was sent loses its velocity, in layers that send a smaller share than this.
      warm_up: whether the density comes down in four steps.
    """

    values: str = "sparse"
    correction: bool = True
    mask_below: float = 0.05
    warm_up: bool = False


SCHEMES = {
    "dense": Scheme("all"),
    "binary": Scheme("binary"),
    "gradient dropping": Scheme(correction=False),
    "momentum correction": Scheme(mask_below=0.0),
    "DGC": Scheme(),
    "DGC, warm-up": Scheme(warm_up=True),
    "DGC, binary values": Scheme("sparse binary"),
}


class Perceptron(nn.Module):
    """Layers ``fc1``, ``fc2``, …, of which the last gives the class scores."""

    hidden: tuple[int, ...]
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(len(x), -1)
        for i, size in enumerate(self.hidden, 1):
            x = nn.relu(nn.Dense(size, name=f"fc{i}")(x))
        return nn.Dense(self.num_classes, name=f"fc{len(self.hidden) + 1}")(x)


@experiment(
    "deep-gradient-compression",
    paper="arXiv 1712.01887",
    summary="workers exchange sparse and binary gradients, beside momentum descent and gradient dropping",
)
def run(config: Config, context: Context) -> dict[str, Any]:
    task = _Task(config, context.data)
    rows: list[report.Row] = []
    for name, scheme in SCHEMES.items():
        for density in config.densities if "sparse" in scheme.values else (1.0,):
            tried = {rate: task.run(scheme, density, rate, _TUNING_SEED).validation for rate in config.rates}
            rate = max(tried, key=lambda rate: tried[rate])
            outcomes = [task.run(scheme, density, rate, seed) for seed in context.seeds]
            rows.append(report.Row(name, density, rate, tried, [task.measured(o) for o in outcomes]))
            context.say(f"{rows[-1].title}: {100 * rows[-1].mean('accuracy'):.2f} %")
    lines = report.verdicts(rows)
    context.say(*lines)
    context.console.print(report.table(config.workers, config.batch_size, config.steps, context, rows))
    report.draw(context.folder / "accuracy.png", rows)
    return {"rows": [row.to_dict() for row in rows], "verdicts": lines}


class Trained(NamedTuple):
    """What came of one run; the last three are an entry a step, means over the workers."""

    params: Any
    validation: float
    loss: np.ndarray
    bits: np.ndarray
    moved: np.ndarray


class _Task:
    """One network, data set and budget for all schemes."""

    def __init__(self, config: Config, data: Dataset):
        self.config, self.data = config, data
        self.model = Perceptron(config.hidden, data.num_classes)
        self.train = jnp.asarray(data.train.image), jnp.asarray(data.train.label)

    def run(self, scheme: Scheme, density: float, rate: float, seed: int) -> Trained:
        c = self.config
        params = self.model.init(jax.random.key(seed), self.train[0][:1])["params"]
        order = jc.shuffled(self.train, c.workers * c.batch_size, c.steps, seed).order
        order = order.reshape(c.steps, c.workers, c.batch_size)
        params, history = self._train(scheme, params, self.train, order, density, rate)
        return Trained(params, self.accuracy(params, self.data.validation), *map(np.asarray, history))

    def measured(self, trained: Trained) -> dict[str, float]:
        """What the table tells; the only look at the test images."""
        size = sum(x.size for x in jax.tree.leaves(trained.params))
        return {
            "accuracy": self.accuracy(trained.params, self.data.test),
            "loss": float(trained.loss[-max(len(trained.loss) // 10, 1) :].mean()),
            "ratio": float(32 * size / trained.bits.mean()),
            "ratio_at_the_end": float(32 * size / trained.bits[-1]),
            "moved": float(trained.moved.mean()),
        }

    def accuracy(self, params: Any, split: Split) -> float:
        return float(self._accuracy(params, split.image, split.label))

    @functools.cached_property
    def _accuracy(self) -> Callable:
        return jax.jit(lambda params, x, y: jnp.mean(self._logits(params, x).argmax(-1) == y))

    @functools.cached_property
    def _train(self) -> Callable:
        """One program a scheme: densities and learning rates are numbers in it."""

        def train(scheme, params, data, order, density, rate):
            exchange, server = _optimizers(scheme, params, density, rate, self.config)

            def step(carry, rows):
                params, states, server_state = carry

                def worker(state, rows):
                    loss, gradient = jax.value_and_grad(self._loss)(params, data[0][rows], data[1][rows])
                    mean, state = exchange.update(gradient, state)
                    return loss, mean, state

                # Each worker has a batch and a state of its own; the mean is everybody's.
                losses, mean, states = jax.vmap(worker, axis_name="workers", out_axes=(0, None, 0))(states, rows)
                updates, server_state = server.update(mean, server_state, params)
                moved = jnp.mean(jnp.concatenate([jnp.ravel(x != 0) for x in jax.tree.leaves(mean)]))
                carry = optax.apply_updates(params, updates), states, server_state
                return carry, (jnp.mean(losses), jnp.mean(states.bits), moved)

            states = jax.vmap(lambda _: exchange.init(params))(jnp.arange(self.config.workers))
            (params, _, _), history = jax.lax.scan(step, (params, states, server.init(params)), order)
            return params, history

        return jax.jit(train, static_argnums=0)

    def _loss(self, params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(self._logits(params, x), y).mean()

    def _logits(self, params: Any, x: jax.Array) -> Any:
        return self.model.apply({"params": params}, x)


def _optimizers(scheme: Scheme, params: Any, density: Any, rate: Any, config: Config):
    """What every worker does to its gradient, and what is done with the mean."""

    def spec(taken):
        level = max(config.warm_up // 4, 1)
        warm = optax.exponential_decay(0.25, level, 0.25, staircase=True, end_value=density)
        kept = jc.Sparse(warm(taken) if scheme.warm_up else density)
        binary = jc.Quantized(jc.Binary())
        sets = {"sparse": kept, "binary": binary, "sparse binary": jc.Chain(kept, binary)}
        return jc.assign(params, {r".*/kernel": sets[scheme.values]}) if scheme.values in sets else {}

    exchange = jc.exchange(
        spec,
        momentum=config.momentum if scheme.correction else 0.0,
        mask_below=scheme.mask_below,
        axis_name="workers",
    )
    falling = optax.cosine_decay_schedule(rate, config.steps)
    return exchange, optax.sgd(falling, momentum=None if scheme.correction else config.momentum)
