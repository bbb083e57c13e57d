"""A matrix of low rank as the two factors of which it is the product, in float64 and then rounded."""

from typing import Any

import numpy as np

from jaxcomp.constraints import Layout
from jaxcomp.constraints.forms import Factors, Forms
from jaxcomp.storage._entries import Entries
from jaxcomp.storage._fields import Fields, of_layout
from jaxcomp.storage._stream import Node, Sink, Source


def write_factors(form: Factors, rest: Forms, values: np.ndarray, entries: Entries, sink: Sink) -> Node | None:
    """Only of a whole leaf, where factors are fewer, and where it need not come back bit for bit: sums round."""
    layout = form.layout or Layout.of(len(entries.shape))
    outputs, inputs = layout.matrix_shape(entries.shape)
    if not sink.tolerance or not entries.is_whole or form.rank * (outputs + inputs) >= len(entries):
        return None
    leaf: Any = values.reshape(entries.shape)
    matrix = np.asarray(layout.to_matrix(leaf), np.float64)
    left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(sizes[: form.rank])
    left, right = left[:, : form.rank] * root[None], root[:, None] * right[: form.rank]
    left, right = left.astype(entries.dtype), right.astype(entries.dtype)
    if not sink.close(_product(left, right, layout, entries), values):
        return None
    for factor in (left, right):
        sink.array(factor.ravel())
    return {"form": "factors", "layout": of_layout(form.layout), "rank": form.rank}


def read_factors(fields: Fields, entries: Entries, source: Source) -> np.ndarray:
    layout = fields.layout("layout") or Layout.of(len(entries.shape))
    outputs, inputs = layout.matrix_shape(entries.shape)
    rank = fields.whole("rank", 0, min(outputs, inputs))
    fields.end()
    if not entries.is_whole:
        raise ValueError("factors are those of a whole leaf, found only a part of one")
    left = source.array(outputs * rank, entries.dtype).reshape(outputs, rank)
    right = source.array(rank * inputs, entries.dtype).reshape(rank, inputs)
    return _product(left, right, layout, entries)


def _product(left: np.ndarray, right: np.ndarray, layout: Layout, entries: Entries) -> Any:
    matrix: Any = left.astype(np.float64) @ right.astype(np.float64)
    return layout.from_matrix(matrix, entries.shape).astype(entries.dtype).reshape(-1)
