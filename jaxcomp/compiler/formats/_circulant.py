"""Block-circulant matrices: b numbers a block, and products that are done in the frequencies of the blocks."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcomp._pytree import register_dataclass
from jaxcomp.compiler.formats._format import Format, result_dtype
from jaxcomp.compiler.formats._prices import Prices, Proposal

_SIDES = (128, 64, 32, 16, 8, 4)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Circulant(Format):
    """Blocks of side b, each ``block[k, l] = p[(l - k) mod b]`` with ``p`` its first row.

    Such a block multiplies each frequency of its b inputs by a number. The product is three: of every b inputs with
    cosines and sines, of every one of the ``b // 2 + 1`` frequencies with its numbers of all blocks, and back. All
    three are dense products. The published systems use fast transforms, which take fewer multiplications; on a CPU
    XLA does these nine times slower at b = 8, twice at b = 64 (one row, 1024 by 1024, one core).

    Attributes:
        first: ``[*stack, depth // b, columns // b, b]``, the first rows of the blocks.
        spectra: ``[*stack, b // 2 + 1, depth // b, 2 * columns // b]``, their transforms: real parts, then imaginary.
    """

    first: jax.Array
    spectra: jax.Array

    def __call__(self, x: jax.Array, preferred_element_type: Any = None) -> jax.Array:
        dtype = result_dtype(x, self.first, preferred_element_type)
        ins, outs, b = self.first.shape
        there, back = _waves(b)
        rows = x.astype(self.spectra.dtype).reshape(-1, ins, b)
        n, frequencies = len(rows), b // 2 + 1
        waves = lax.dot(rows.reshape(-1, b), jnp.asarray(there, rows.dtype)).reshape(n, ins, 2, frequencies)
        waves = waves.transpose(3, 2, 0, 1).reshape(frequencies, 2 * n, ins)
        products = lax.dot_general(waves, self.spectra, (((2,), (1,)), ((0,), (0,))))
        products = products.reshape(frequencies, 2, n, 2, outs)  # parts of the inputs, rows, parts of the weights
        real = products[:, 0, :, 0] - products[:, 1, :, 1]
        imaginary = products[:, 0, :, 1] + products[:, 1, :, 0]
        sums = jnp.stack([real, imaginary]).transpose(2, 3, 0, 1).reshape(-1, 2 * frequencies)
        return lax.dot(sums, jnp.asarray(back, sums.dtype)).astype(dtype).reshape(*x.shape[:-1], outs * b)

    def dense(self) -> np.ndarray:
        first = np.asarray(self.first)
        *stack, ins, outs, b = first.shape
        blocks = first[..., (np.arange(b) - np.arange(b)[:, None]) % b]
        return np.swapaxes(blocks, -3, -2).reshape(*stack, ins * b, outs * b)

    def describe(self) -> str:
        ins, outs, b = self.first.shape[-3:]
        return f"{ins} by {outs} circulant blocks of side {b}"


def propose(matrix: np.ndarray, prices: Prices) -> list[Proposal]:
    """One form, of the largest blocks that are circulant; sides must be divided by the block's."""
    *stack, depth, columns = matrix.shape
    if not jnp.issubdtype(matrix.dtype, jnp.floating) or not np.isfinite(matrix).all():
        return []  # in frequencies one weight is in all outputs
    for b in _SIDES:
        if depth % b or columns % b:
            continue
        blocks = np.swapaxes(matrix.reshape(*stack, depth // b, b, columns // b, b), -3, -2)
        first = blocks[..., 0, :]
        if np.array_equal(blocks[..., 1, :], np.roll(first, 1, axis=-1)) and first.any():
            cost = (2 * depth * columns + (depth + columns) * b * (b + 2)) / b
            return [Proposal(cost, 3, functools.partial(_packed, first))]
    return []


def _packed(first: np.ndarray) -> Circulant:
    spectra = np.moveaxis(np.fft.rfft(first.astype(np.float64)), -1, -3)
    spectra = np.concatenate([spectra.real, spectra.imag], axis=-1)
    return Circulant(jnp.asarray(first), jnp.asarray(spectra.astype(jnp.promote_types(first.dtype, jnp.float32))))


def _waves(b: int) -> tuple[np.ndarray, np.ndarray]:
    """``[b, 2 * (b // 2 + 1)]``, the cosines and sines that make a transform, and ``[2 * (b // 2 + 1), b]`` back."""
    there = np.fft.rfft(np.eye(b))
    back = np.fft.irfft(np.eye(b // 2 + 1), n=b), np.fft.irfft(1j * np.eye(b // 2 + 1), n=b)
    return np.concatenate([there.real, there.imag], axis=1), np.concatenate(back)
