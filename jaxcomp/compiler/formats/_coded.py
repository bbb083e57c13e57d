"""Weights as whole numbers of one byte, each output with a scale: a quarter of the memory to read."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcomp._pytree import register_dataclass
from jaxcomp.compiler.formats._format import Format, dot, result_dtype, sum_dtype
from jaxcomp.compiler.formats._prices import Prices, Proposal

_LARGEST = 127
_SHARE = 0.75  # of the time of a dense product that is read from memory
_LEAST_BYTES = 2**24  # below, dense weights stay in the cache, and converting costs more than reading saves
_WIDTHS = (256, 128, 64)  # outputs that are converted at a time, so that they stay in the cache until they are used


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Coded(Format):
    """``codes * scale``, the codes converted a few outputs at a time on the way into the product.

    Faster only where dense weights are read from memory rather than from the cache: of 4096 by 4096 a product with
    8 rows took 0.53 of the dense time on one core, with one row 0.99; of 1024 by 1024 it is slower. Codes of fewer
    bits run in this form too: what they save more is left to the storage.

    Attributes:
        codes: int8 ``[*stack, tiles, depth, width]``, outputs in tiles.
        scale: ``[*stack, columns]``, by output.
    """

    codes: jax.Array
    scale: jax.Array

    def __call__(self, x: jax.Array, preferred_element_type: Any = None) -> jax.Array:
        dtype = result_dtype(x, self.scale, preferred_element_type)
        rows = x.reshape(-1, x.shape[-1])
        wide = sum_dtype(dtype)

        def tile(codes: jax.Array) -> jax.Array:
            return dot(rows, codes.astype(x.dtype), (1, 0), wide)

        y = lax.map(tile, self.codes).transpose(1, 0, 2).reshape(len(rows), -1)
        return (y * self.scale[None].astype(wide)).astype(dtype).reshape(*x.shape[:-1], -1)

    def dense(self) -> np.ndarray:
        codes, scale = np.asarray(self.codes), np.asarray(self.scale)
        matrix = np.moveaxis(codes, -3, -2).reshape(*codes.shape[:-3], codes.shape[-2], -1)
        return (matrix.astype(scale.dtype) * scale[..., None, :]).astype(scale.dtype)

    def describe(self) -> str:
        tiles, depth, width = self.codes.shape[-3:]
        return f"8-bit codes, {depth} by {tiles * width}, a scale for each output"


def propose(matrix: np.ndarray, prices: Prices) -> list[Proposal]:
    """One form for a large matrix whose outputs are whole multiples, up to 127, of a scale each."""
    *stack, depth, columns = matrix.shape
    width = next((width for width in _WIDTHS if columns % width == 0), None)
    small = depth * columns * matrix.itemsize < _LEAST_BYTES
    if small or width is None or not jnp.issubdtype(matrix.dtype, jnp.floating):
        return []
    if (coded := in_eight_bits(matrix)) is None:
        return []
    codes, scale = coded
    tiles = np.moveaxis(codes.reshape(*stack, depth, -1, width), -2, -3)
    cost = depth * columns * _SHARE
    return [Proposal(cost, 1, lambda: Coded(jnp.asarray(tiles), jnp.asarray(scale)))]


def in_eight_bits(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes ``[*stack, depth, columns]`` and a scale for every output that give the matrix back, if such are found."""
    if np.unique(np.abs(matrix[..., :1])).size > _LARGEST + 1:
        return None  # one look at one output spares most matrices the search
    scale = _scales(matrix)
    with np.errstate(all="ignore"):
        codes = np.rint(np.where(scale[..., None, :] > 0, matrix / scale[..., None, :], 0))
        exact = (np.abs(codes) <= _LARGEST).all() and (codes.astype(matrix.dtype) * scale[..., None, :] == matrix).all()
    return (codes.astype(np.int8), scale) if exact else None


def _scales(matrix: np.ndarray) -> np.ndarray:
    """``[*stack, columns]``: of each output the scale that gives its weights back to the last bit, if one is found.

    Levels next to one another differ by the scale, so the least difference says how many scales the largest weight
    is; that weight divided by this number is the scale but for rounding, and numbers beside it are tried too.
    """
    sizes = np.abs(matrix)
    ordered = np.sort(sizes, axis=-2)
    gaps = np.diff(ordered, axis=-2, prepend=np.zeros_like(ordered[..., :1, :])).astype(np.float32)
    least = np.min(np.where(gaps > 0, gaps, np.inf), axis=-2)
    largest = ordered[..., -1, :]
    with np.errstate(all="ignore"):
        near = (largest / np.maximum(np.rint(largest.astype(np.float32) / least), 1)).astype(matrix.dtype)
    up, down = np.nextafter(near, np.array(np.inf, near.dtype)), np.nextafter(near, np.array(0, near.dtype))
    found, missing = near, np.ones(near.shape, bool)
    for scale in (near, up, down):
        with np.errstate(all="ignore"):
            again = np.rint(sizes / scale[..., None, :]) * scale[..., None, :]
        exact = (again == sizes).all(axis=-2)
        found = np.where(missing & exact, scale, found)
        missing &= ~exact
    return found
