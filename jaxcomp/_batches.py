"""The data of a run: arrays held once, and the order in which batches draw from them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._pytree import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches drawn by index, so that an epoch's order costs integers and not a copy of the data.

    Attributes:
        data: pytree of arrays ``[examples, ...]``.
        order: integers ``[batches, batch size]``.
    """

    data: Any
    order: jax.Array


def shuffled(data: Any, batch_size: int, num_batches: int, seed: int = 0) -> Batches:
    """Batches from one shuffled epoch after another; what an epoch leaves after its last full batch is not used.

    The order is drawn here: random numbers inside a compiled program cost more to compile than the training step.

    Args:
        data: pytree of arrays with one leading length.
        batch_size: examples a batch.
        num_batches: how many batches to draw.
        seed: of the order.

    >>> shuffled(np.arange(10.0), batch_size=4, num_batches=3).order.shape
    (3, 4)
    """
    n = _leading(jax.tree.leaves(data), "the arrays of a data set must have one leading length")
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must lie between 1 and the {n} examples, found {batch_size}")
    if num_batches < 1:
        raise ValueError(f"num_batches must be at least 1, found {num_batches}")
    rng, per_epoch = np.random.default_rng(seed), n // batch_size
    epochs = [
        rng.permutation(n)[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        for _ in range(-(-num_batches // per_epoch))
    ]
    order = np.concatenate(epochs)[:num_batches]
    return Batches(jax.tree.map(jnp.asarray, data), jnp.asarray(order, jnp.int32))


def num_batches(batches: Any) -> int:
    """How many batches there are: the leading axis of the order, or of every array."""
    leaves = [batches.order] if isinstance(batches, Batches) else jax.tree.leaves(batches)
    return _leading(
        leaves,
        "batches must be a pytree of arrays with one leading axis that counts batches, or jaxcomp.shuffled(...)",
    )


def _leading(leaves: list, expected: str) -> int:
    """The length that all leading axes share; scalars and what is no array count as empty."""
    lengths = {leaf.shape[0] if getattr(leaf, "ndim", 0) else 0 for leaf in leaves}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"{expected}; found leading lengths {sorted(lengths)}")
    return lengths.pop()


def batch_at(batches: Any, i: jax.Array) -> Any:
    """The i-th batch; they start over when they run out."""
    i = i % num_batches(batches)
    if isinstance(batches, Batches):
        rows = batches.order[i]
        return jax.tree.map(lambda leaf: leaf[rows], batches.data)
    return jax.tree.map(lambda leaf: leaf[i], batches)
