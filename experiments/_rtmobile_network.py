"""A recogniser of spoken words: gated recurrent layers over frames of features, averaged and classified."""

import jax
from flax import linen as nn


class SpeechGRU(nn.Module):
    """Layers of gated recurrent units, each with six matrices, and a dense layer on the mean of the last one's states.

    ``r = s(W_ir x + W_hr h)``, ``z = s(W_iz x + W_hz h)``, ``n = tanh(W_in x + r (W_hn h))``, ``h' = (1 - z) n + z h``,
    with biases: the reset gate acts after the product. The leaves are ``gru1/ir/kernel`` and so on.
    """

    units: int = 128
    layers: int = 2
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps features ``[n, frames, features]`` to logits ``[n, num_classes]``."""
        for layer in range(1, self.layers + 1):
            x = nn.RNN(nn.GRUCell(self.units, name=f"gru{layer}"))(x)
        return nn.Dense(self.num_classes, name="out")(x.mean(axis=1))
