"""What the matrices of a network take to store, in whatever form they are kept; pruned weights that take as much."""

import math
import tempfile
from typing import Any

import jax
import jax.numpy as jnp

import jaxcomp as jc
from experiments import _ftrans_kernels as kernels

_WORD_BITS = 32


def numbers(params: Any, spec: jc.Spec) -> int:
    """How many numbers of the matrices are kept: of those under a set, the ones that are not zero."""
    found = kernels.of_matrices(params)
    return sum(int(jnp.count_nonzero(x)) if path in spec else x.size for path, x in found.items())


def stored(params: Any, spec: jc.Spec) -> int:
    """Bytes of the matrices in a file: their numbers, and where sets prune what says where these belong."""
    found = kernels.of_matrices(params)
    with tempfile.TemporaryDirectory() as folder:
        saved = jc.save(f"{folder}/model", params, spec)
    return sum(leaf.bytes for leaf in saved.leaves if leaf.path in found)


def affordable(weights: int, b: int) -> float:
    """The density at which pruned weights take the bytes of circulant blocks of side b, or the next lower.

    What says where they belong counts: a bit for every weight, or a number of bits for each that is kept, as
    `jaxcomp.footprint` has it.
    """
    bits, address = _WORD_BITS * weights / b, math.ceil(math.log2(weights))
    return max((bits - weights) // _WORD_BITS, bits // (_WORD_BITS + address)) / weights


def half(params: Any) -> Any:
    """Numbers of 16 bits."""
    return jax.tree.map(lambda x: x.astype(jnp.float16), params)


def rounded(params: Any) -> Any:
    """Numbers of 32 bits that 16 would do for."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), half(params))
