"""One leaf, written in forms that hold of it and read back."""

import math
import sys
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcomp.constraints.forms import (
    Codes,
    Factors,
    Form,
    Forms,
    Part,
    Patterns,
    Shared,
    Sides,
    Signs,
    Submatrix,
    Support,
    Unlike,
)
from jaxcomp.storage._codes import read_listed, read_scaled, write_codes
from jaxcomp.storage._entries import Entries
from jaxcomp.storage._factors import read_factors, write_factors
from jaxcomp.storage._fields import Fields
from jaxcomp.storage._part import read_part, write_part
from jaxcomp.storage._patterns import read_patterns, write_patterns
from jaxcomp.storage._split import read_nonzero, read_split, write_nonzero, write_sides, write_unlike
from jaxcomp.storage._stream import Node, Sink, Source, distance
from jaxcomp.storage._submatrix import read_submatrix, write_submatrix
from jaxcomp.storage._tied import read_shared, read_signs, write_shared, write_signs

_WRITERS: dict[type[Form], Any] = {
    Part: write_part,
    Support: write_nonzero,
    Patterns: write_patterns,
    Unlike: write_unlike,
    Sides: write_sides,
    Signs: write_signs,
    Shared: write_shared,
    Codes: write_codes,
    Submatrix: write_submatrix,
    Factors: write_factors,
}


def _read_plain(fields: Fields, entries: Entries, source: Source) -> np.ndarray:
    fields.end()
    return source.array(len(entries), entries.dtype, entries.signed)


_READERS: dict[str, Any] = {
    "plain": _read_plain,
    "part": read_part,
    "support": read_nonzero,
    "split": read_split,
    "patterns": read_patterns,
    "signs": read_signs,
    "shared": read_shared,
    "listed": read_listed,
    "scaled": read_scaled,
    "submatrix": read_submatrix,
    "factors": read_factors,
}


class Written(NamedTuple):
    """A leaf as it is kept: without a node, its own bytes; else bytes of which the node says what they are."""

    node: Node | None
    data: np.ndarray
    error: float = 0.0  # of what comes back, as a share of the leaf's norm


def write_leaf(forms: Forms, x: np.ndarray, tolerance: float | None = None) -> Written:
    """In these forms if that is smaller than the leaf as it stands, and comes back.

    Args:
        forms: as `Constraint.forms` gives them.
        x: the leaf.
        tolerance: how far a leaf may come back from what it was, as a share of its norm: at 0 every weight is equal.
            ``None`` is that, but for forms of sums, where it is the rounding of the leaf's dtype.
    """
    if not forms or not x.size or not np.all(np.isfinite(x.astype(np.float64))):
        return Written(None, x)
    tries = [0.0 if tolerance is None else tolerance]
    if tolerance is None and any(form.rounded for form in forms):
        tries.append(float(jnp.finfo(x.dtype).eps))
    return min((_written(forms, x, each) for each in tries), key=lambda found: found.data.nbytes)


def _written(forms: Forms, x: np.ndarray, tolerance: float) -> Written:
    values, entries, sink = x.reshape(-1), Entries.all(x.shape, x.dtype), Sink(_WRITERS, tolerance)
    node, data = sink.write(forms, values, entries), bytes(sink.data)
    if len(data) >= x.nbytes:
        return Written(None, x)
    back = read_leaf(node, data, x.shape, x.dtype, sys.maxsize).reshape(-1)
    if not sink.close(back, values):
        return Written(None, x)
    return Written(node, np.frombuffer(data, np.uint8), distance(back, values) if tolerance else 0.0)


def read_leaf(node: Node, data: bytes, shape: tuple[int, ...], dtype: np.dtype, most: int | None = None) -> np.ndarray:
    """The leaf of this shape and dtype that was written.

    Args:
        most: weights that it and the leaves beside it may have together; by default there are none beside it.

    Raises:
        ValueError: it cannot have been.
    """
    source = Source(_READERS, data, math.prod(shape) if most is None else most)
    values = source.read(node, Entries.all(shape, dtype))
    source.end()
    return values.reshape(shape)
