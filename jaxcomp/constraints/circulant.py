"""Block-circulant matrices by their first columns: b numbers a block instead of b², products by FFT.

The set is ``Tied(diagonals(b))``. A leaf's matrix ``W``, outputs by inputs, is cut into b by b blocks, and in a member
every block is ``W_ij[k, l] = p_ij[(k - l) mod b]`` with ``p_ij`` its first column: its product with a vector is a
circular convolution, ``W_ij x = irfft(rfft(p_ij) rfft(x))``. Sides that b does not divide are padded.

References: Ding et al., CirCNN: Accelerating and Compressing Deep Neural Networks Using Block-Circulant Weight
Matrices, MICRO 2017; Li et al., FTRANS: Energy-Efficient Acceleration of Transformers using FPGA, ISLPED 2020.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.constraints._views import Layout, diagonals

_MATRIX = Layout("oi")


def pack(x: jax.Array, b: int, layout: Layout | None = None) -> jax.Array:
    """The first columns of a member's blocks, ``[block rows, block columns, b]``.

    Args:
        x: a member of ``Tied(diagonals(b))``; project other leaves first. (Of each diagonal one weight is read.)
        b: side of a block.
        layout: how the leaf is laid out; by default flax's for its rank.

    Raises:
        ValueError: the leaf's matrix is smaller than a block.

    >>> pack(jnp.array([[1.0, 2.0], [2.0, 1.0]]), 2, Layout("oi")).tolist()
    [[[1.0, 2.0]]]
    """
    matrix = (layout or Layout.of(x.ndim)).to_matrix(x)
    view = diagonals(b, _MATRIX)
    # Where a block is cut off at the edge of the matrix, its first column is not all there: read any real weight.
    real = np.argmax(view.split(np.ones(matrix.shape, np.int8)), axis=2)[0]
    return view.split(matrix)[0, np.arange(real.size), real].reshape(*_blocks(matrix.shape, b), b)


def unpack(packed: jax.Array, shape: tuple[int, ...], layout: Layout | None = None) -> jax.Array:
    """The leaf of this shape whose blocks have these first columns: `pack`'s inverse, to the last bit.

    >>> unpack(jnp.array([[[1.0, 2.0, 3.0]]]), (3, 3), Layout("oi")).tolist()
    [[1.0, 3.0, 2.0], [2.0, 1.0, 3.0], [3.0, 2.0, 1.0]]
    """
    layout = layout or Layout.of(len(shape))
    matrix_shape, b = layout.matrix_shape(shape), packed.shape[-1]
    expected = (*_blocks(matrix_shape, b), b)
    if packed.shape != expected:
        raise ValueError(f"a leaf of shape {shape} has first columns of shape {expected}, found {packed.shape}")
    parts = jnp.broadcast_to(packed.reshape(1, -1, 1), (1, packed.size, b))
    return layout.from_matrix(diagonals(b, _MATRIX).merge(parts, matrix_shape), shape)


def apply(packed: jax.Array, inputs: jax.Array, outputs: int | None = None) -> jax.Array:
    """The product of the matrix with inputs, by FFT: one of each block of inputs, one back for each of outputs.

    Args:
        packed: first columns, ``[block rows, block columns, b]``.
        inputs: ``[..., inputs]`` with at most ``block columns * b`` of them; the inputs of a convolution's matrix are
            its patches.
        outputs: how many there are; by default ``block rows * b``.

    Returns:
        ``[..., outputs]`` in the wider of the two dtypes; computed in float32 at least.

    >>> apply(jnp.array([[[1.0, 2.0, 3.0]]]), jnp.array([1.0, 0.0, 0.0])).round().astype(int).tolist()
    [1, 2, 3]
    """
    rows, columns, b = packed.shape
    *batch, n = inputs.shape
    if not columns * b - b < n <= columns * b:
        least, most = columns * b - b + 1, columns * b
        raise ValueError(f"{columns} blocks of {b} columns take {least} to {most} inputs, found {n}")
    if outputs is not None and not 1 <= outputs <= rows * b:
        raise ValueError(f"{rows} blocks of {b} rows give 1 to {rows * b} outputs, found {outputs}")
    dtype = jnp.promote_types(packed.dtype, inputs.dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    padded = jnp.pad(inputs.astype(wide), [(0, 0)] * len(batch) + [(0, columns * b - n)])
    spectrum = jnp.fft.rfft(padded.reshape(*batch, columns, b))
    products = jnp.einsum("ijf,...jf->...if", jnp.fft.rfft(packed.astype(wide)), spectrum)
    return jnp.fft.irfft(products, n=b).reshape(*batch, rows * b)[..., :outputs].astype(dtype)


def multiplications(outputs: int, inputs: int, b: int) -> tuple[int, float]:
    """Real products that a matrix takes times one vector: dense, and by FFT with the spectra of the weights stored.

    A real FFT of b points is counted as ``b log2 b`` products (radix 2, half of a complex one), a complex product as
    four, of which each pair of blocks takes ``b // 2 + 1``.

    >>> multiplications(1024, 1024, 16)
    (1048576, 155648.0)
    """
    rows, columns = _blocks((outputs, inputs), b)
    return outputs * inputs, (rows + columns) * b * math.log2(b) + 4 * rows * columns * (b // 2 + 1)


def _blocks(matrix_shape: tuple[int, ...], b: int) -> tuple[int, int]:
    """Rows and columns of blocks."""
    outputs, inputs = matrix_shape
    return -(-outputs // b), -(-inputs // b)
