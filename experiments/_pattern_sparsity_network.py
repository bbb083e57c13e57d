"""A small network of the VGG kind, nearly all of whose weights are in 3x3 kernels."""

import jax
from flax import linen as nn

from experiments._models import Conv, max_pool2


class SmallVGG(nn.Module):
    """Five 3x3 convolutions with ReLU, a 2x2 pooling after the first and the third, a dense layer on the mean.

    Layers ``conv1`` to ``conv5`` and ``fc``; with the widths below 69 904 weights for 28x28x1 images.
    """

    num_classes: int = 10
    widths: tuple[int, ...] = (16, 32, 32, 64, 64)
    form: str | None = None  # of the convolutions: see `Conv`

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images ``[n, height, width, channels]`` to logits ``[n, num_classes]``."""
        for number, filters in enumerate(self.widths, 1):
            x = nn.relu(Conv(filters, (3, 3), form=self.form, name=f"conv{number}")(x))
            x = max_pool2(x) if number in (1, 3) else x
        return nn.Dense(self.num_classes, name="fc")(x.mean(axis=(1, 2)))
