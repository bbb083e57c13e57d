"""How a matrix is kept while it is trained: by the index vectors of circulant blocks, or by two factors."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxcomp as jc

MATRICES = r"(.*/)?(query|key|value|output|up|down)/kernel"

DIAGONAL, COLUMN, ROW = "wrapped diagonals", "first column", "row means"
RULES = (DIAGONAL, COLUMN, ROW)


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """Index vectors ``[block rows, block columns, b]``, the first columns of circulant blocks."""

    vectors: jax.Array

    def matrix(self) -> jax.Array:
        """``[inputs, outputs]``, as flax has it."""
        rows, columns, b = self.vectors.shape
        return jc.circulant.unpack(self.vectors, (columns * b, rows * b))


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spectra:
    """Fourier transforms of index vectors, complex ``[block rows, block columns, b // 2 + 1]``, to multiply with."""

    values: jax.Array
    b: int = dataclasses.field(metadata={"static": True})

    def product(self, x: jax.Array) -> jax.Array:
        """``x @ matrix``, by fast transforms of inputs and outputs."""
        waves = jnp.fft.rfft(x.reshape(*x.shape[:-1], -1, self.b))
        products = jnp.einsum("ijf,...jf->...if", self.values, waves)
        return jnp.fft.irfft(products, n=self.b).reshape(*x.shape[:-1], -1)


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factors:
    """``left [inputs, rank]`` and ``right [rank, outputs]``, whose product is the matrix."""

    left: jax.Array
    right: jax.Array

    def matrix(self) -> jax.Array:
        return self.left @ self.right

    def product(self, x: jax.Array) -> jax.Array:
        """``x @ matrix``, by one factor after the other."""
        return x @ self.left @ self.right


def blocks(kernel: jax.Array, b: int, rule: str = DIAGONAL) -> Blocks:
    """The index vectors of a matrix's blocks; b divides its sides.

    Args:
        kernel: ``[inputs, outputs]``.
        b: side of a block.
        rule: `DIAGONAL`, the means along wrapped diagonals, gives the nearest circulant blocks. `COLUMN` takes the
            first column, as CirCNN and C-LSTM do. `ROW` takes the mean of every row, which is what equation (3) of
            FTRANS says where it is taken by the letter.
    """
    if rule == ROW:
        inputs, outputs = kernel.shape
        means = jnp.mean(kernel.T.reshape(outputs // b, b, inputs // b, b), axis=3)
        return Blocks(means.transpose(0, 2, 1))
    nearest = jc.Tied(jc.diagonals(b)).project(kernel) if rule == DIAGONAL else kernel
    return Blocks(jc.circulant.pack(nearest, b))


def spectra(kernel: jax.Array, b: int) -> Spectra:
    """Of the nearest circulant blocks."""
    return Spectra(jnp.fft.rfft(blocks(kernel, b).vectors), b)


def factors(kernel: jax.Array, b: int) -> Factors:
    """The nearest matrix of as many numbers as circulant blocks of side b have, as two factors of equal norm."""
    left, values, right = jnp.linalg.svd(kernel, full_matrices=False)
    rank = rank_of(kernel.shape, b)
    root = jnp.sqrt(values[:rank])
    return Factors(left[:, :rank] * root[None], root[:, None] * right[:rank])


def rank_of(shape: tuple[int, ...], b: int) -> int:
    """The highest at which two factors have no more numbers than circulant blocks of side b."""
    inputs, outputs = shape
    return inputs * outputs // (b * (inputs + outputs))


def of_matrices(params: Any) -> dict[str, jax.Array]:
    """By path, the matrices of the network that are compressed, or the numbers that they are kept as."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {_name(path): leaf for path, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if re.fullmatch(f"{MATRICES}(/.*)?", name)}


def encoded(params: Any, encode: Callable[[jax.Array], Blocks | Spectra | Factors]) -> Any:
    """With every matrix in another form; embeddings, norms, biases and the head stay as they are."""
    found = of_matrices(params)
    return jax.tree_util.tree_map_with_path(lambda path, x: encode(x) if _name(path) in found else x, params)


def decoded(params: Any) -> Any:
    """With every matrix as it stands."""

    def is_kept(x: Any) -> bool:
        return isinstance(x, Blocks | Factors)

    return jax.tree.map(lambda x: x.matrix() if is_kept(x) else x, params, is_leaf=is_kept)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
