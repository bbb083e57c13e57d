"""Small classifiers to attack, of several kinds, and how they are trained."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

import jaxcomp as jc
from experiments._classifier import decaying
from experiments._data import Split
from experiments._models import Conv, max_pool2

_CHUNK = 500  # images classified at once

Forward = Callable[[Any, jax.Array], jax.Array]  # weights and images to logits


class Perceptron(nn.Module):
    """One hidden layer."""

    num_classes: int = 10
    width: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images ``[n, height, width, channels]`` to logits ``[n, num_classes]``."""
        x = nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(x)


class AllConvolutional(nn.Module):
    """Strides instead of pooling, and at the end a convolution as large as what is left of a 28x28 image."""

    num_classes: int = 10
    widths: Sequence[int] = (16, 32, 32)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images to logits."""
        for width in self.widths:
            x = nn.relu(Conv(width, (3, 3), strides=2)(x))
        return Conv(self.num_classes, x.shape[1:3], padding="VALID")(x).reshape(len(x), self.num_classes)


class LeNet(nn.Module):
    """6 and 16 filters of 5x5, each with pooling, then 84 hidden units; for images of 28x28."""

    num_classes: int = 10
    hidden: int = 84

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images to logits."""
        for width in (6, 16):
            x = max_pool2(nn.relu(Conv(width, (5, 5), padding="VALID")(x)))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(x)


def cross_entropies(forward: Forward, params: Any, image: jax.Array, label: jax.Array) -> jax.Array:
    """One an image."""
    return optax.softmax_cross_entropy_with_integer_labels(forward(params, image), label)


def trained(
    model: nn.Module,
    split: Split,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    risks: Callable[..., jax.Array] = cross_entropies,
    solver: jc.Solver | None = None,
) -> Any:
    """Weights after so many Adam steps, at a rate that falls to zero along a half cosine.

    Args:
      model: what to train.
      split: labelled images.
      steps: of Adam.
      batch_size: images a step.
      learning_rate: the first.
      seed: of weights and batches.
      risks: ``risks(forward, params, images, labels)``, with the logits ``forward(params, images)``. Without a solver
        its mean is what is minimised. A function that lives on, for every other one is compiled anew.
      solver: for several risks; it coordinates after every step.
    """
    params = model.init(jax.random.key(seed), split.image[:1])["params"]
    batches = jc.shuffled((split.image, split.label), batch_size, steps, seed)
    loss, optimizer = _loss(model, risks, solver is None), decaying(learning_rate, steps)
    rounds: dict[str, Any] = dict(rounds=1, steps=steps) if solver is None else dict(rounds=steps, steps=1)
    return jc.solve(loss, params, batches, solver or jc.ADMM({}), optimizer=optimizer, **rounds).params


@functools.cache
def _loss(model: nn.Module, risks: Callable[..., jax.Array], mean: bool) -> Callable[..., jax.Array]:
    def loss(params, batch):
        found = risks(functools.partial(forward, model), params, *batch)
        return found.mean() if mean else found

    return loss


def forward(model: nn.Module, params: Any, image: jax.Array) -> jax.Array:
    """Logits."""
    logits: Any = model.apply({"params": params}, image)
    return logits


def right(model: nn.Module, params: Any, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Which images are classified right."""
    starts = range(0, len(label), _CHUNK)
    found = [_predicted(model, params, image[start : start + _CHUNK]) for start in starts]
    return np.concatenate(found) == label


@functools.partial(jax.jit, static_argnums=0)
def _predicted(model, params, image):
    return forward(model, params, image).argmax(axis=-1)
