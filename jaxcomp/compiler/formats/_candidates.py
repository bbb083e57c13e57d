"""All formats that a matrix suits, checked against it."""

import numpy as np

from jaxcomp.compiler import native
from jaxcomp.compiler.formats import (
    _blocks,
    _circulant,
    _coded,
    _gathered,
    _lists,
    _pallas,
    _ragged,
    _scattered,
    _strips,
)
from jaxcomp.compiler.formats._format import Format
from jaxcomp.compiler.formats._prices import Prices

_FAMILIES = _strips, _blocks, _pallas, _scattered, _gathered, _circulant, _coded
_KERNELS = _ragged, _lists
_NEAR = 2.0  # times the cheapest, calls and all: what is expected to cost more is not built
_MOST = 4


def candidates(matrix: np.ndarray, rows: int | None = 8, portable: bool = False) -> list[Format]:
    """Packed forms of a matrix, each of which holds it to the last bit (but for the signs of zeros).

    Structure is read from the values: which outputs share their inputs, which are zero. What was read is put together
    again and compared, so a form that does not hold the matrix is never a candidate. Weights that are zero are left
    out of the products: an input that is not finite then makes no NaN there, as it does in the dense product.

    Args:
        matrix: ``[*stack, depth, columns]``, concrete; the stack (steps of a scan, groups) shares one structure.
        rows: how many rows it will be multiplied with; None to look for the smallest forms, not for the fastest.
        portable: only what XLA does by itself.

    Returns:
        The few that are expected to be fastest for so many rows, best first, to be measured; none where none is
        expected to be faster than the dense product.

    >>> matrix = np.zeros((256, 128), np.float32)
    >>> matrix[::8, :64] = 1
    >>> matrix[1::8, 64:] = 2
    >>> [each.describe() for each in candidates(matrix, portable=True)]
    ['2 strips of 64 outputs, 32 of 256 inputs each', '1 strip of 128 outputs, 64 of 256 inputs each']
    """
    prices = Prices.of(rows)
    dense = matrix.shape[-2] * matrix.shape[-1]
    own = not portable and matrix.dtype == np.float32 and not native.missing()
    families = (*_KERNELS, *_FAMILIES) if own else _FAMILIES
    proposals = [each for family in families for each in family.propose(matrix, prices) if each.cost < dense]
    totals = [each.cost + each.calls * prices.call for each in proposals]
    order = sorted(range(len(totals)), key=totals.__getitem__)[:_MOST]
    built = [proposals[number].build() for number in order if totals[number] <= _NEAR * min(totals)]
    return [each for each in built if np.array_equal(each.dense(), matrix)]
