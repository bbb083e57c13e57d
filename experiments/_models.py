"""Small classifiers in flax.linen, in forms that are also quick on a CPU."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

FORMS = ("matmul", "convolution")


class Conv(nn.Module):
    """``flax.linen.Conv`` in two dimensions, computed in the form that suits the backend.

    Names, shapes, layout and initial values of the parameters are those of flax, so weights move freely
    between the two: ``kernel`` ``[height, width, in, out]`` and ``bias`` ``[out]``.

    Attributes:
      features: number of output channels.
      kernel_size: height and width.
      strides: step in height and width; one number serves both.
      padding: "SAME" or "VALID".
      use_bias: whether to add a bias.
      dtype: type of the computation; by default what the input and the parameters promote to.
      param_dtype: type of the parameters.
      form: "matmul" gathers patches by slicing and multiplies once; "convolution" is XLA's own operation.
        The default is "matmul" on a CPU, where XLA's convolution is slow inside a loop, and "convolution"
        elsewhere.
    """

    features: int
    kernel_size: Sequence[int]
    strides: int | Sequence[int] = 1
    padding: str = "SAME"
    use_bias: bool = True
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32
    form: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[n, height, width, in]`` to ``[n, new height, new width, features]``."""
        where = self.name or "Conv"
        form = self.form or ("matmul" if jax.default_backend() == "cpu" else "convolution")
        if form not in FORMS:
            raise ValueError(f"{where}: form is {form!r}, expected one of {FORMS} or None.")
        if x.ndim != 4:
            raise ValueError(f"{where}: input has shape {x.shape}, expected [n, height, width, channels].")
        shape = (*self.kernel_size, x.shape[-1], self.features)
        strides = (self.strides,) * 2 if isinstance(self.strides, int) else tuple(self.strides)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        conv = _conv_by_matmul if form == "matmul" else _conv_by_xla
        y = conv(x, kernel, strides, self.padding)
        return y if bias is None else y + bias.reshape(1, 1, 1, -1)


def _conv_by_xla(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: str) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)


def _conv_by_matmul(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: str) -> jax.Array:
    """The convolution of ``x`` with ``kernel`` as one matrix product.

    Patches are gathered along the width first and along the height second: kh + kw slices do what kh * kw
    would, forwards and, where it matters most, backwards.
    """
    kh, kw, _, features = kernel.shape
    pads = lax.padtype_to_pads(x.shape[1:3], (kh, kw), strides, padding)
    if any(map(any, pads)):
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))

    x = jnp.concatenate(_windows(x, kw, strides[1], axis=2), axis=-1)
    x = jnp.concatenate(_windows(x, kh, strides[0], axis=1), axis=-1)
    return x @ kernel.reshape(-1, features)


def _windows(x: jax.Array, size: int, stride: int, axis: int) -> list[jax.Array]:
    """For each offset in a window of ``size``, the elements that the windows have there."""
    count = (x.shape[axis] - size) // stride + 1
    return [lax.slice_in_dim(x, offset, offset + (count - 1) * stride + 1, stride, axis) for offset in range(size)]


def max_pool2(x: jax.Array) -> jax.Array:
    """Maximum over 2x2 squares: ``[n, 2 h, 2 w, c]`` to ``[n, h, w, c]``.

    Equals ``nn.max_pool(x, (2, 2), (2, 2))``. Tied elements share the gradient, where that one gives it all
    to the first. Its gradient is elementwise, not the scatter that a window reduction's gradient needs.
    """
    n, height, width, channels = x.shape
    if height % 2 or width % 2:
        raise ValueError(
            f"max_pool2: height and width of {x.shape} must be even; use flax.linen.max_pool for other sizes."
        )
    x = x.reshape(n, height // 2, 2, width // 2, 2, channels)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[..., 0, :], x[..., 1, :])


class LeNet5(nn.Module):
    """The LeNet-5 of the pruning papers: 430 500 weights for 28x28x1 images, biases not counted.

    Two 5x5 convolutions of 20 and 50 filters without padding, each with ReLU and 2x2 pooling, then 500 hidden
    units and the class scores: layers ``conv1``, ``conv2``, ``fc1``, ``fc2``, each with ``kernel`` and
    ``bias``. With ``train=True`` and a "dropout" key, dropout acts on the hidden units.
    """

    num_classes: int = 10
    dropout_rate: float = 0.5
    form: str | None = None  # of the convolutions: see `Conv`

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images ``[n, height, width, channels]`` to logits ``[n, num_classes]``."""
        x = max_pool2(nn.relu(Conv(20, (5, 5), padding="VALID", form=self.form, name="conv1")(x)))
        x = max_pool2(nn.relu(Conv(50, (5, 5), padding="VALID", form=self.form, name="conv2")(x)))
        x = nn.relu(nn.Dense(500, name="fc1")(x.reshape(len(x), -1)))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="fc2")(x)


class LeNet300(nn.Module):
    """LeNet-300-100: a perceptron of 266 200 weights for 28x28x1 images, layers ``fc1``, ``fc2``, ``fc3``."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images ``[n, height, width, channels]`` to logits ``[n, num_classes]``; ignores ``train``."""
        x = x.reshape(len(x), math.prod(x.shape[1:]))
        x = nn.relu(nn.Dense(300, name="fc1")(x))
        x = nn.relu(nn.Dense(100, name="fc2")(x))
        return nn.Dense(self.num_classes, name="fc3")(x)
