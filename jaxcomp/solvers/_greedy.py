"""The best of finitely many flips, a few at a time: attacks on graphs, masks, circuits."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcomp._pytree import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Flips:
    """What `greedy` found.

    Attributes:
        bits: after the flips, in the shape and dtype of those given.
        order: positions in the flattened bits, in the order of the flips, int32 ``[budget]``; -1 where there was none.
        values: before every round of flips, float32 ``[rounds]``.
    """

    bits: jax.Array
    order: jax.Array
    values: jax.Array


def greedy(
    value: Callable[..., jax.Array],
    bits: jax.Array,
    *args: Any,
    budget: int,
    each: int = 1,
    allowed: jax.Array | None = None,
    grad: Callable = jax.value_and_grad,
) -> Flips:
    """Maximise a function of bits within a budget of flips: ``max value(x) subject to ||x - bits||_0 <= budget``.

    Round by round every bit gets a score, ``(1 - 2 x_i) g_i`` with g from `grad`: what flipping it promises to add. The
    `each` best that are allowed and have not been flipped are flipped, if they promise anything, and scored anew. With
    ``each=1`` and `EachFlip` this is the greedy method whose value for a submodular function without losses is at
    least ``1 - 1/e`` of the best; for a sum of terms of one bit each the result is the best of all.

    Pure: call it within `jax.jit`, and hand over data in `args`, not through a closure.

    Args:
        value: ``value(bits, *args)``, of float32 bits; defined between 0 and 1 too where `grad` differentiates it.
        bits: 0 or 1, of any shape and dtype.
        args: what else `value` takes.
        budget: how many flips at most. Static.
        each: how many between two scores: a round costs one call of `grad`. Static.
        allowed: booleans in the shape of `bits`; by default all may be flipped.
        grad: `jax.value_and_grad`, which sees into `value`; `EachFlip`, which tries every flip; `ZerothOrder`, which
            tries random combinations; called as ``grad(f)(bits, round)``.

    Raises:
        ValueError: a budget or a count below 1, or `allowed` of another shape.

    >>> gains = jnp.array([1.0, -2.0, 3.0, 0.5])
    >>> found = greedy(lambda x, gains: gains @ x, jnp.array([0, 1, 0, 0]), gains, budget=2)
    >>> found.bits.tolist(), found.order.tolist()
    ([0, 0, 1, 0], [2, 1])

    References: Nemhauser, Wolsey and Fisher, An Analysis of Approximations for Maximizing Submodular Set Functions,
    1978; Xu et al., Towards an Efficient and General Framework of Robust Training for Graph Neural Networks, ICASSP
    2020 (its inner maximisation; how many flips it makes between two scores is not known to us).
    """
    for name, found in (("budget", budget), ("each", each)):
        if not isinstance(found, int) or found < 1:
            raise ValueError(f"{name} must be a whole number, at least 1, found {found!r}")
    if allowed is not None and allowed.shape != bits.shape:
        raise ValueError(f"allowed has shape {allowed.shape}, expected that of the bits, {bits.shape}")
    at_once = min(each, budget, bits.size)
    rounds = -(-budget // at_once)

    def round(carry, r):
        x, free = carry
        here, slope = grad(lambda x, r: value(x.reshape(bits.shape), *args))(x, r)
        promised, places = lax.top_k(jnp.where(free, (1 - 2 * x) * slope, -jnp.inf), at_once)
        flip = (promised > 0) & (r * at_once + jnp.arange(at_once) < budget)
        x = x.at[places].set(jnp.where(flip, 1 - x[places], x[places]))
        free = free.at[places].set(free[places] & ~flip)
        return (x, free), (jnp.where(flip, places, -1), jnp.asarray(here, jnp.float32))

    free = jnp.ones(bits.size, bool) if allowed is None else jnp.ravel(allowed)
    start = jnp.ravel(bits).astype(jnp.float32), free
    (x, _), (order, values) = lax.scan(round, start, jnp.arange(rounds))
    return Flips(x.astype(bits.dtype).reshape(bits.shape), order.ravel()[:budget].astype(jnp.int32), values)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class EachFlip:
    """Differences by flipping each bit alone: a drop-in for `jax.value_and_grad` at bits, which asks for values only.

    ``g_i = (f(x with bit i flipped) - f(x)) / (1 - 2 x_i)``, one query for each bit and one for x. Of a function that
    is linear in every single bit this is its gradient.

    Args:
        chunk: how many flips are tried together (vmapped), by default all; memory grows with it. Static.

    >>> EachFlip()(lambda x: 3 * x[0] - 2 * x[0] * x[1])(jnp.array([1.0, 1.0]))[1].tolist()
    [1.0, -2.0]
    """

    chunk: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __call__(self, f: Callable, *, has_aux: bool = False) -> Callable:
        """``estimate(bits, ...)``; f gets all of the arguments."""
        if self.chunk is not None and (not isinstance(self.chunk, int) or self.chunk < 1):
            raise ValueError(f"chunk must be a whole number, at least 1, found {self.chunk!r}")

        def estimate(bits: jax.Array, *args: Any) -> tuple[Any, jax.Array]:
            def value(x):
                out = f(x.reshape(bits.shape), *args)
                return (out[0] if has_aux else out), out

            x = jnp.ravel(bits)
            here, out = value(x)
            chunk = self.chunk or x.size
            # One at a time is not vmapped at all: a function in Python may not allow it.
            batch_size = chunk if chunk > 1 else None
            flipped = lax.map(lambda i: value(x.at[i].set(1 - x[i]))[0], jnp.arange(x.size), batch_size=batch_size)
            return out, ((flipped - here) / (1 - 2 * x)).astype(x.dtype).reshape(bits.shape)

        return estimate
