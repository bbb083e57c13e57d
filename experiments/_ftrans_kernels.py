"""How a matrix is kept while it is trained: by the index vectors of circulant blocks, or by two factors."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxcomp as jc

MATRICES = r"(.*/)?(query|key|value|output|up|down)/kernel"

DIAGONAL, COLUMN, ROW = "wrapped diagonals", "first column", "row means"
RULES = (DIAGONAL, COLUMN, ROW)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """Index vectors ``[block rows, block columns, b]``, the first columns of circulant blocks."""

    vectors: jax.Array

    def matrix(self) -> jax.Array:
        """``[inputs, outputs]``, as flax has it."""
        rows, columns, b = self.vectors.shape
        return jc.circulant.unpack(self.vectors, (columns * b, rows * b))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factors:
    """``left [inputs, rank]`` and ``right [rank, outputs]``, whose product is the matrix."""

    left: jax.Array
    right: jax.Array

    def matrix(self) -> jax.Array:
        return self.left @ self.right


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


def encoded(params: Any, encode: Callable[[jax.Array], Blocks | Factors]) -> Any:
    """With every matrix of the network in another form; embeddings, norms, biases and the head stay as they are."""
    found = jc.assign(params, {MATRICES: jc.Sparse(1.0)})

    def one(path: Any, leaf: jax.Array) -> Any:
        return encode(leaf) if jax.tree_util.keystr(path, simple=True, separator="/") in found else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def decoded(params: Any) -> Any:
    """With every matrix as it stands."""
    forms = Blocks | Factors
    return jax.tree.map(lambda x: x.matrix() if isinstance(x, forms) else x, params, is_leaf=lambda x: isinstance(x, forms))
