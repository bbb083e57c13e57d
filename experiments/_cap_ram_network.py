"""A small convolutional network of whole numbers, whose every product goes through a macro's columns."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

WEIGHT_BITS = 4
LEVELS = 8  # of activations
# Kernel, inputs, outputs, stride; 14 040 weights, of 4 bits 56 160 bits.
LAYERS = {"conv1": (5, 1, 8, 2), "conv2": (5, 8, 16, 2), "fc1": (4, 16, 40, 1), "fc2": (1, 40, 10, 1)}

Matmul = Callable[[str, jax.Array, jax.Array], jax.Array]  # of a layer's name, levels and whole weights


def init(key: jax.Array) -> dict[str, dict[str, jax.Array]]:
    """Fresh weights ``[inputs, outputs]``, biases, and the full scales of the activations that come in."""
    params = {}
    for number, (name, (side, inputs, outputs, _)) in enumerate(LAYERS.items()):
        depth = side * side * inputs
        weights = jax.random.normal(jax.random.fold_in(key, number), (depth, outputs)) * (2 / depth) ** 0.5
        params[name] = {
            "kernel": weights,
            "bias": jnp.zeros(outputs),
            "scale": jnp.float32(1.0 if number == 0 else 2.0),
        }
    return params


def apply(params: Any, images: jax.Array, matmul: Matmul) -> jax.Array:
    """Logits of images ``[n, 28, 28, 1]``, each layer a product of levels 0 to 7 with odd numbers from -15 to 15."""
    x = images
    for name, (side, _, outputs, stride) in LAYERS.items():
        layer = params[name]
        levels, whole = _levels(_windows(x, side, stride) / layer["scale"]), _whole(layer["kernel"])
        unit = layer["scale"] / (LEVELS - 1) * _spread(layer["kernel"]) / (2**WEIGHT_BITS - 1)
        rows = levels.reshape(-1, levels.shape[-1])
        y = matmul(name, rows, whole).reshape(*levels.shape[:-1], outputs) * unit
        y = y + layer["bias"].reshape(1, 1, 1, -1)
        x = jax.nn.relu(y)
    return y.reshape(len(images), -1)


def _windows(x: jax.Array, side: int, stride: int) -> jax.Array:
    """``[n, h, w, c]`` to ``[n, new h, new w, side * side * c]``, by slices, so not by a product."""
    high, wide = ((size - side) // stride * stride + 1 for size in x.shape[1:3])
    corners = [(down, right) for down in range(side) for right in range(side)]
    slices = [x[:, down : down + high : stride, right : right + wide : stride] for down, right in corners]
    return jnp.concatenate(slices, axis=-1)


def _spread(w: jax.Array) -> jax.Array:
    """What the largest whole weight stands for: 2.5 standard deviations, so few are clipped."""
    return lax.stop_gradient(2.5 * jnp.std(w))


def _whole(w: jax.Array) -> jax.Array:
    """The nearest odd number, with the gradient of what it stands for: of plus and minus ones there is no zero."""
    largest = 2**WEIGHT_BITS - 1
    scaled = jnp.clip(w / _spread(w), -1, 1) * largest
    return _straight(scaled, jnp.clip(2 * jnp.floor(scaled / 2) + 1, -largest, largest))


def _levels(x: jax.Array) -> jax.Array:
    """The nearest level, with the gradient of what it stands for."""
    scaled = jnp.clip(x, 0, 1) * (LEVELS - 1)
    return _straight(scaled, jnp.round(scaled))


def _straight(x: jax.Array, rounded: jax.Array) -> jax.Array:
    return x + lax.stop_gradient(rounded - x)
