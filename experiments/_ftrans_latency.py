"""The time that block-circulant matrices take on this machine: compiled, by fast transforms, and as two factors."""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from rich.table import Table

import jaxcomp as jc
from experiments import _ftrans_kernels as kernels
from experiments import _tables
from experiments._ftrans_network import FeedForward
from experiments._latency import Latency, in_turns, measured

FFT, LOW_RANK = "by FFT", "low rank"


@dataclass(frozen=True)
class Beside:
    """A form of a network on inputs of one shape, beside the dense one of as many inputs and outputs.

    Attributes:
      batch: examples of a call.
      multiplications: of the products, for one example, by those of the dense network.
      faster: the median over pairs, in turns, of the time of the dense network by that of this form.
    """

    batch: int
    multiplications: float
    faster: float


def compiled(apply: Callable[[Any, Any], Any], params: Any, b: int, x: jax.Array, pairs: int) -> Latency:
    """What `jaxcomp.compile` makes of weights brought to circulant blocks of side b."""
    spec = jc.assign(params, {kernels.MATRICES: jc.Tied(jc.diagonals(b))})
    return measured(apply, jc.project(spec, params), spec, x, pairs)


def feed_forward(layer: tuple[int, int]) -> tuple[Callable[[Any, Any], Any], Any]:
    """A feed-forward block of this width and hidden width, as ``apply(params, x)``, and random weights."""
    width, hidden = layer
    block = FeedForward(hidden)
    params = jax.jit(block.init)(jax.random.key(0), jnp.zeros((1, width)))["params"]
    return lambda params, x: block.apply({"params": params}, x), params


def beside(params: Any, form: str, b: int, x: jax.Array, pairs: int) -> Beside:
    """A feed-forward block whose products go through spectra or factors, never through the matrix."""
    encode = kernels.spectra if form == FFT else kernels.factors
    kept = kernels.encoded(params, functools.partial(encode, b=b))
    jitted = jax.jit(_through)
    calls = (lambda: jitted(params, x)), (lambda: jitted(kept, x))
    ratios = [dense / other for dense, other in in_turns(calls, pairs)]
    shapes = [params[name]["kernel"].shape for name in ("up", "down")]
    return Beside(len(x), multiplications(shapes, form, b), statistics.median(ratios))


def multiplications(shapes: Sequence[tuple[int, int]], form: str, b: int) -> float:
    """Real products of an input with matrices ``[inputs, outputs]`` in a form, by those of the dense ones."""
    counted = [jc.circulant.multiplications(outputs, inputs, b) for inputs, outputs in shapes]
    if form == LOW_RANK:
        counted = [(i * o, kernels.rank_of((i, o), b) * (i + o)) for i, o in shapes]
    dense, other = map(sum, zip(*counted, strict=True))
    return other / dense


def table(found: Mapping[str, Sequence[Beside]], pairs: int) -> Table:
    """A row for every form and batch."""
    drawn = _tables.blank(
        "feed-forward, products through the numbers that are kept, beside dense",
        ("form", "batch", "multiplications", "faster"),
        caption=f"Medians of {pairs} pairs, in turns. Below 1x: slower than dense.",
    )
    for name, each in found.items():
        for at, one in enumerate(each):
            cells = f"{one.batch}", f"{one.multiplications:.3f}x", f"{one.faster:.2f}x"
            drawn.add_row(name * (at == 0), *cells, end_section=at == len(each) - 1)
    return drawn


def _through(params: Any, x: jax.Array) -> jax.Array:
    def dense(name: str, x: jax.Array) -> jax.Array:
        kernel = params[name]["kernel"]
        product = x @ kernel if isinstance(kernel, jax.Array) else kernel.product(x)
        return product + params[name]["bias"][None]

    return dense("down", nn.gelu(dense("up", x)))
