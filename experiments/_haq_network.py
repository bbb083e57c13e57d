"""A small network with depthwise blocks whose weights and activations are quantized at bits that are data."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxcomp as jc

_BLOCKS = ((24, 1), (48, 2), (48, 1), (64, 2))  # channels out and stride of each depthwise block
_STEM = 12
_SHARES = np.linspace(0.15, 1.0, 18, dtype=np.float32)  # of the largest value, among which clips are sought
_SAMPLE = 4096  # values of a layer that clips are sought on
_FEW = 5  # below so many bits values are clipped where the squared error is least


class Layer(NamedTuple):
    """A convolution, or the dense layer at the end (kernel 1, stride 0)."""

    name: str
    depthwise: bool
    inputs: int
    outputs: int
    stride: int
    kernel: int
    side: int
    out_side: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.kernel, self.kernel, 1 if self.depthwise else self.inputs, self.outputs)


class Quantization(NamedTuple):
    """Of every layer: bits of weights and of what comes in, and where both are clipped; arrays ``[layers]``."""

    weight_bits: jax.Array
    activation_bits: jax.Array
    weight_clips: jax.Array
    activation_clips: jax.Array


def layers(side: int, channels: int, classes: int) -> list[Layer]:
    """Of the network for images of this size."""
    half = -(-side // 2)
    found = [Layer("stem", False, channels, _STEM, 2, 3, side, half)]
    inputs, side = _STEM, half
    for i, (outputs, stride) in enumerate(_BLOCKS, 1):
        out = -(-side // stride)
        found.append(Layer(f"depthwise{i}", True, inputs, inputs, stride, 3, side, out))
        found.append(Layer(f"pointwise{i}", False, inputs, outputs, 1, 1, out, out))
        inputs, side = outputs, out
    return [*found, Layer("dense", False, inputs, classes, 0, 1, 1, 1)]


def workload(network: Sequence[Layer], batch: int) -> jc.Workload:
    """Its products for a batch of images."""
    return jc.Workload(
        tuple(
            jc.Product(
                layer.name,
                f"{layer.name}/kernel",
                batch,
                layer.inputs if layer.depthwise else 1,
                layer.inputs,
                layer.outputs,
                layer.kernel,
                layer.kernel,
                layer.side,
                layer.side,
                layer.out_side,
                layer.out_side,
                max(layer.stride, 1),
            )
            for layer in network
        )
    )


def init(network: Sequence[Layer], key: jax.Array) -> dict[str, Any]:
    """Fresh weights, of He's variance."""
    params = {}
    for layer, k in zip(network, jax.random.split(key, len(network)), strict=True):
        fan = np.prod(layer.shape[:3])
        kernel = jax.random.normal(k, layer.shape) * np.sqrt(2 / fan).astype(np.float32)
        params[layer.name] = {"kernel": kernel, "bias": jnp.zeros(layer.outputs)}
    return params


def logits(
    network: Sequence[Layer], params: Any, images: jax.Array, quantized: Quantization | None = None
) -> jax.Array:
    """Class scores; quantized, with gradients that pass rounding straight through."""
    return _run(network, params, images, quantized)[0]


def _run(network, params, x, quantized=None):
    """The scores, and what comes into every layer."""
    seen = []
    for i, layer in enumerate(network):
        if layer is network[-1]:
            x = jnp.mean(x, axis=(1, 2), keepdims=True)
        seen.append(x)
        kernel, bias = params[layer.name]["kernel"], params[layer.name]["bias"]
        if quantized is not None:
            kernel = _signed(kernel, quantized.weight_clips[i], quantized.weight_bits[i])
            x = _unsigned(x, quantized.activation_clips[i], quantized.activation_bits[i]) if i else x  # images have 8
        x = _convolved(x, kernel, layer) + bias[None, None, None, :]
        x = x if layer is network[-1] else jax.nn.relu(x)
    return x[:, 0, 0, :], seen


def _convolved(x: jax.Array, kernel: jax.Array, layer: Layer) -> jax.Array:
    """As shifted slices, which a CPU does faster than its convolution."""
    if layer.kernel == 1:
        return x @ kernel[0, 0]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    span = (layer.out_side - 1) * layer.stride + 1

    def window(i, j):
        return x[:, i : i + span : layer.stride, j : j + span : layer.stride]

    places = [(i, j) for i in range(3) for j in range(3)]
    if layer.depthwise:
        return sum(window(i, j) * kernel[i, j, 0][None, None, None, :] for i, j in places)
    return jnp.concatenate([window(i, j) for i, j in places], -1) @ kernel.reshape(-1, layer.outputs)


def _through(x: jax.Array, rounded: jax.Array) -> jax.Array:
    return x + lax.stop_gradient(rounded - x)


def _signed(x: jax.Array, clip: jax.Array, bits: jax.Array) -> jax.Array:
    scale = clip / (2.0 ** (bits - 1) - 1)
    x = jnp.clip(x, -clip, clip) / scale
    return _through(x, jnp.round(x)) * scale


def _unsigned(x: jax.Array, clip: jax.Array, bits: jax.Array) -> jax.Array:
    """Clipped so that the clip, too, has a gradient."""
    levels = 2.0**bits - 1
    x = 0.5 * (jnp.abs(x) - jnp.abs(x - clip) + clip) / clip * levels
    return _through(x, jnp.round(x)) / levels * clip


def calibrated(network, params, images, weight_bits, activation_bits) -> Quantization:
    """Clips at the largest value for five bits and more, else where the squared error is least, on these images."""
    _, seen = _run(network, params, images)

    def clip(x, bits, quantize):
        sample = jnp.ravel(x)[:: max(x.size // _SAMPLE, 1)]
        tried = (jnp.max(jnp.abs(x)) + 1e-6) * _SHARES
        errors = jax.vmap(lambda c: jnp.mean(jnp.square(quantize(sample, c, bits) - sample)))(tried)
        return jnp.where(bits < _FEW, tried[jnp.argmin(errors)], tried[-1])

    weights = [clip(params[layer.name]["kernel"], weight_bits[i], _signed) for i, layer in enumerate(network)]
    inputs = [clip(x, activation_bits[i], _unsigned) for i, x in enumerate(seen)]
    return Quantization(weight_bits, activation_bits, jnp.stack(weights), jnp.stack(inputs))


def trained(network, params, batches, rate: float):
    """Adam at a rate that falls along half a cosine, one step a batch; not quantized."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, len(batches[1])))

    def step(state, batch):
        params, moments = state
        gradient = jax.grad(lambda p: cross_entropy(logits(network, p, batch[0]), batch[1]))(params)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), None

    return lax.scan(step, (params, optimizer.init(params)), batches)[0][0]


class Tuning(NamedTuple):
    """Weights and clips of activations on their way, and their momenta."""

    params: Any
    clips: jax.Array
    momenta: Any


def at_rest(params, quantized: Quantization) -> Tuning:
    free = (params, quantized.activation_clips)
    return Tuning(*free, jax.tree.map(jnp.zeros_like, free))


def finetuned(network, state: Tuning, quantized: Quantization, batches, rate) -> Tuning:
    """By SGD with momentum 0.9 and weight decay 4e-5, one step a batch."""

    def step(state, batch):
        def loss(free):
            bits = quantized._replace(activation_clips=free[1])
            return cross_entropy(logits(network, free[0], batch[0], bits), batch[1])

        free = (state.params, state.clips)
        gradient = jax.tree.map(lambda g, x: g + 4e-5 * x, jax.grad(loss)(free), free)
        momenta = jax.tree.map(lambda m, g: 0.9 * m + g, state.momenta, gradient)
        params, clips = jax.tree.map(lambda x, m: x - rate * m, free, momenta)
        return Tuning(params, jnp.maximum(clips, 1e-3), momenta), None

    return lax.scan(step, state, batches)[0]


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()
