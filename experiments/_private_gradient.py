"""Differential privacy: clipped examples, noisy gradients, and what they are worth."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jax.typing import ArrayLike
from scipy.special import gammaln, logsumexp, xlog1py, xlogy

import jaxcomp as jc


def clipped(model: nn.Module, max_norm: float) -> Callable[[Any, tuple], jax.Array]:
    """The mean cross-entropy of a batch ``(images, labels, ...)``, every example's gradient cut to `max_norm`.

    The gradient of what it returns is the mean of the cut ones: an example's loss is multiplied by ``min(1, max_norm /
    ||its gradient||)``, held fixed. The norms come from one more pass, in which no example's gradient is written out.

    Args:
      model: of `flax.linen.Dense` layers with biases and of what has no parameters; maps images to logits.
      max_norm: Euclidean, over all leaves together.
    """

    def loss(params, batch):
        losses = _losses(model, params, batch)
        weights = jnp.minimum(1, max_norm / jnp.maximum(gradient_norms(model, params, batch), 1e-12))
        return jnp.mean(lax.stop_gradient(weights) * losses)

    return loss


def gradient_norms(model: nn.Module, params: Any, batch: tuple) -> jax.Array:
    """The norm of every example's gradient.

    That of a dense layer is the outer product of what comes in, with a 1 for the bias, and of the derivative by what
    goes out; its norm is the product of theirs (Goodfellow, Efficient Per-Example Gradient Computations, 2015).
    """

    def total(added):
        came_in = {}

        def watch(call, arguments, keywords, context):
            out = call(*arguments, **keywords)
            if not isinstance(context.module, nn.Dense):
                return out
            came_in[context.module.name] = arguments[0]
            return out + added[context.module.name]

        with nn.intercept_methods(watch):
            return jnp.sum(_losses(model, params, batch)), came_in

    nothing = {name: jnp.zeros((len(batch[0]), *layer["bias"].shape)) for name, layer in params.items()}
    derivative, came_in = jax.grad(total, has_aux=True)(nothing)
    squares = [(1 + _squares(came_in[name])) * _squares(derivative[name]) for name in params]
    return jnp.sqrt(sum(squares, jnp.float32(0)))


def _squares(rows: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(rows), axis=1)


def _losses(model: nn.Module, params: Any, batch: tuple) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(model.apply({"params": params}, batch[0]), batch[1])


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoisyGradient:
    """A drop-in for `jax.value_and_grad` that adds normal noise to every entry: ``grad=`` of `jaxcomp.solve`.

    Attributes:
      deviation: of the noise; DP-SGD's is noise multiplier times clipping norm over batch size.
      seed: of the noise; every step draws anew.
    """

    deviation: ArrayLike
    seed: ArrayLike

    def __call__(self, objective: Callable, has_aux: bool = False) -> Callable:
        def estimate(params, step):
            value, gradient = jax.value_and_grad(objective, has_aux=has_aux)(params, step)
            key = jax.random.fold_in(jax.random.key(self.seed), step)
            noise = optax.tree.random_like(key, gradient, jax.random.normal)
            return value, jax.tree.map(lambda g, n: g + self.deviation * n, gradient, noise)

        return estimate


def epsilon(noise_multiplier: float, share: float, steps: int, delta: float) -> float:
    """The epsilon of (epsilon, delta)-differential privacy of so many noisy steps, each on a `share` of the examples.

    Rényi divergences of the sampled Gaussian mechanism at whole orders from 2 to 256, added over steps, turned into
    (epsilon, delta) by Mironov's proposition 3. They are of batches that every example joins independently; batches
    of a shuffled order are counted as though they were.

    References: Abadi et al., Deep Learning with Differential Privacy, CCS 2016; Mironov, Talwar and Zhang, Rényi
    Differential Privacy of the Sampled Gaussian Mechanism, 2019 (equation 3 of section 3.3).
    """

    def divergence(order: int) -> float:
        k = np.arange(order + 1.0)
        choose = gammaln(order + 1.0) - gammaln(k + 1) - gammaln(order - k + 1)
        terms = choose + xlog1py(order - k, -share) + xlogy(k, share) + k * (k - 1) / (2 * noise_multiplier**2)
        return float(logsumexp(terms)) / (order - 1)

    return min(steps * divergence(order) + math.log(1 / delta) / (order - 1) for order in range(2, 257))
