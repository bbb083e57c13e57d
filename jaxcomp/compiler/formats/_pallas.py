"""Blocks by a kernel of their own: what is gathered and what is added up never leaves the core that works on it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas

from jaxcomp._pytree import register_dataclass
from jaxcomp.compiler.formats import _blocks
from jaxcomp.compiler.formats._blocks import Blocks
from jaxcomp.compiler.formats._format import Format, result_dtype, sum_dtype
from jaxcomp.compiler.formats._prices import Prices, Proposal

_ROWS = 16  # in a tile: the fewest that a tensor core takes
_PLATFORMS = ("gpu", "tpu")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class FusedBlocks(Blocks):
    """`Blocks` of which one kernel does all: a tile of rows goes through the blocks of one strip of outputs.

    Elsewhere than on an accelerator the kernel is interpreted, which is for tests alone. Its derivative is that of
    the plain form. Not measured yet on any accelerator: it is proposed beside the plain form, where it compiles, and
    taken only where it turns out faster.
    """

    def __call__(self, x: jax.Array, preferred_element_type: Any = None) -> jax.Array:
        dtype = result_dtype(x, self.values, preferred_element_type)
        plain = Blocks(self.values, self.source, self.target, self.depth, self.columns)

        @jax.custom_jvp
        def product(x: jax.Array) -> jax.Array:
            return _product(plain, x.reshape(-1, self.depth), dtype).reshape(*x.shape[:-1], self.columns)

        product.defjvp(lambda primals, tangents: (product(*primals), plain(tangents[0], dtype)))
        return product(x)

    def describe(self) -> str:
        return f"{super().describe()}, by one kernel"


def propose(matrix: np.ndarray, prices: Prices) -> list[Proposal]:
    """What `Blocks` proposes, on accelerators, where the kernel compiles."""
    if jax.default_backend() not in _PLATFORMS:
        return []
    return [
        Proposal(each.cost, 1, functools.partial(_fused, each.build))
        for each in _blocks.propose(matrix, prices)
        if _compiles(each.build())
    ]


def _fused(build: Callable[[], Format]) -> FusedBlocks:
    plain = build()
    assert isinstance(plain, Blocks)
    return FusedBlocks(plain.values, plain.source, plain.target, plain.depth, plain.columns)


def _compiles(form: Format) -> bool:
    assert isinstance(form, Blocks)
    one = form
    for _ in range(form.values.ndim - 3):
        one = jax.tree.map(lambda leaf: leaf[0], one)
    try:
        _product.lower(one, jax.ShapeDtypeStruct((1, one.depth), one.values.dtype), one.values.dtype).compile()
    except Exception:  # Pallas and its compilers have no common error for what they cannot do
        return False
    return True


@functools.partial(jax.jit, static_argnums=2)
def _product(form: Blocks, x: jax.Array, dtype: Any) -> jax.Array:
    """``[rows, columns]``."""
    _, run, width = form.values.shape
    rows, strips = len(x), form.columns // width
    wide = sum_dtype(dtype)
    starts = jnp.searchsorted(form.target, jnp.arange(strips + 1)).astype(jnp.int32)

    def kernel(starts: Any, source: Any, x: Any, values: Any, out: Any) -> None:
        strip = pallas.program_id(1)

        def step(block: jax.Array, total: jax.Array) -> jax.Array:
            read = x[:, pallas.ds(source[block] * run, run)]
            return total + jnp.dot(read, values[block], preferred_element_type=wide)

        total = lax.fori_loop(starts[strip], starts[strip + 1], step, jnp.zeros((_ROWS, width), wide))
        out[...] = total.astype(dtype)

    padded = jnp.pad(x, ((0, -rows % _ROWS), (0, 0)))
    whole = pallas.no_block_spec
    y = pallas.pallas_call(
        kernel,
        grid=(len(padded) // _ROWS, strips),
        in_specs=[whole, whole, pallas.BlockSpec((_ROWS, form.depth), lambda row, _: (row, 0)), whole],
        out_specs=pallas.BlockSpec((_ROWS, width), lambda row, strip: (row, strip)),
        out_shape=jax.ShapeDtypeStruct((len(padded), form.columns), dtype),
        interpret=jax.default_backend() not in _PLATFORMS,
    )(starts, form.source, padded, form.values)
    return y[:rows]
