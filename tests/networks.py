"""Networks whose multiplications are published or follow from a formula, for what traces them."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

relu6 = jax.nn.relu6


class BasicBlock(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.width, (3, 3), self.stride, padding=1, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
        y = nn.Conv(self.width, (3, 3), padding=1, use_bias=False)(y)
        y = nn.BatchNorm(use_running_average=True)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.width, (1, 1), self.stride, use_bias=False, name="shortcut")(x)
            x = nn.BatchNorm(use_running_average=True)(x)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """He et al., Deep residual learning, CVPR 2016: 1.8e9 multiplications at 224 pixels."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (7, 7), 2, padding=3, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for width in (64, 128, 256, 512):
            for block in range(2):
                x = BasicBlock(width, 2 if width > 64 and block == 0 else 1)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


def rounded(channels: float) -> int:
    """To the nearest multiple of eight, and not below nine tenths."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class Unit(nn.Module):
    """A convolution, its batch normalization, and its activation."""

    width: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    activation: Any = relu6

    @nn.compact
    def __call__(self, x):
        size, padding = (self.kernel, self.kernel), self.kernel // 2
        x = nn.Conv(
            self.width, size, self.stride, padding=padding, feature_group_count=self.groups, use_bias=False, name="conv"
        )(x)
        return self.activation(nn.BatchNorm(use_running_average=True, name="norm")(x))


class MobileNetV1(nn.Module):
    """Howard et al., 2017. Channels go into every pointwise convolution and the classifier: what AMC chooses."""

    channels: Sequence[int] = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    strides: Sequence[int] = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)

    @nn.compact
    def __call__(self, x):
        x = Unit(self.channels[0], 3, 2)(x)
        for width, stride in zip(self.channels[1:], self.strides, strict=True):
            x = Unit(width)(Unit(x.shape[-1], 3, stride, groups=x.shape[-1])(x))
        return nn.Dense(1000)(x.mean((1, 2)))


class InvertedResidual(nn.Module):
    width: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x):
        wide = self.expansion * x.shape[-1]
        y = Unit(wide, name="expand")(x) if self.expansion > 1 else x
        y = Unit(wide, 3, self.stride, groups=wide, name="depthwise")(y)
        y = Unit(self.width, activation=lambda x: x, name="project")(y)
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """Sandler et al., CVPR 2018: 3.0e8 multiplications at 224 pixels. The last convolution has ``last`` channels."""

    factor: float = 1.0
    last: int = 1280

    @nn.compact
    def __call__(self, x):
        x = Unit(rounded(32 * self.factor), 3, 2)(x)
        stages = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        for expansion, width, blocks, stride in stages:
            for block in range(blocks):
                x = InvertedResidual(rounded(width * self.factor), stride if block == 0 else 1, expansion)(x)
        x = Unit(self.last)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


class Recurrent(nn.Module):
    """A gated recurrent unit over time, and a class for every step."""

    width: int = 256
    classes: int = 39

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes)(nn.RNN(nn.GRUCell(self.width))(x))


class EncoderLayer(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(num_heads=self.heads)(x))
        return nn.LayerNorm()(x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(x))))


class Bert(nn.Module):
    """Devlin et al., NAACL 2019: the encoder, by default of the base size."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 30522

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(self.vocabulary, self.width, name="words")(tokens)
        x = x + nn.Embed(512, self.width, name="places")(jnp.arange(tokens.shape[1]))[None]
        x = nn.LayerNorm()(x)
        for _ in range(self.layers):
            x = EncoderLayer(self.heads)(x)
        return x


def variables(network: nn.Module, x: Any) -> Any:
    """The shapes of a network's parameters and statistics."""
    return jax.eval_shape(network.init, jax.random.key(0), x)


def image(size: int, batch: int = 1) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)


def tokens(length: int, batch: int = 1) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, length), jnp.int32)
