"""A language model: a transformer that foretells the next character from those before it."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class FeedForward(nn.Module):
    """``W_down gelu(W_up x + b_up) + b_down``."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.gelu(nn.Dense(self.hidden, name="up")(x))
        return nn.Dense(x.shape[-1], name="down")(hidden)


class Attention(nn.Module):
    """Every place attends to itself and to those before it; query, key, value and output are a matrix each."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        split = (*x.shape[:-1], self.heads, width // self.heads)
        query, key, value = (nn.Dense(width, name=name)(x).reshape(split) for name in ("query", "key", "value"))
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return nn.Dense(width, name="output")(mixed.reshape(x.shape))


class Transformer(nn.Module):
    """Layers of attention and feed-forward, each on what a layer norm gives and added to what it was given.

    Places are learned vectors, so that texts are at most as long as the one it was initialised with.
    """

    alphabet: int
    width: int = 128
    hidden: int = 384
    heads: int = 4
    depth: int = 2

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits ``[rows, length, alphabet]`` of the characters that follow ``tokens [rows, length]``."""
        x = nn.Embed(self.alphabet, self.width, name="characters")(tokens.astype(jnp.int32))
        x += self.param("places", nn.initializers.normal(0.02), x.shape[1:])[None]
        for layer in range(self.depth):
            x = Layer(self.hidden, self.heads, name=f"layer{layer}")(x)
        return nn.Dense(self.alphabet, name="head")(nn.LayerNorm(name="norm")(x))


class Layer(nn.Module):
    """Of a `Transformer`."""

    hidden: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x += Attention(self.heads, name="attention")(nn.LayerNorm(name="before_attention")(x))
        return x + FeedForward(self.hidden, name="feedforward")(nn.LayerNorm(name="before_feedforward")(x))
