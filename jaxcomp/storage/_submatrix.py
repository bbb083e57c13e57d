"""What is left of a leaf's matrix without some rows and columns, as a leaf of its own."""

import dataclasses
from typing import Any

import numpy as np

from jaxcomp.constraints import Layout
from jaxcomp.constraints.forms import Forms, Submatrix, in_order, of_submatrix
from jaxcomp.storage._entries import Entries
from jaxcomp.storage._fields import Fields, of_layout
from jaxcomp.storage._stream import Node, Sink, Source
from jaxcomp.storage._support import read_support, write_support


def write_submatrix(form: Submatrix, rest: Forms, values: np.ndarray, entries: Entries, sink: Sink) -> Node | None:
    """Of the forms after it, only those are kept that hold of the matrix of kept rows and columns."""
    matrix = (form.layout or Layout.of(len(entries.shape))).matrix_shape(entries.shape)
    lines = [np.isin(np.arange(n), kept) for n, kept in zip(matrix, (form.outputs, form.inputs), strict=True)]
    chosen, inner = _within(form.layout, lines, entries)
    if np.any(values[~chosen] != 0):
        return None
    supports = [write_support(kept, np.zeros(len(kept), np.int64), sink) for kept in lines]
    of = sink.write(in_order(form.of, of_submatrix(rest)), values[chosen], inner)
    return {"form": "submatrix", "layout": of_layout(form.layout), "kept": supports, "of": of}


def read_submatrix(fields: Fields, entries: Entries, source: Source) -> np.ndarray:
    layout, supports = fields.layout("layout"), fields.items("kept", 2)
    matrix = (layout or Layout.of(len(entries.shape))).matrix_shape(entries.shape)
    lines = [read_support(kept, np.zeros(n, np.int64), source) for kept, n in zip(supports, matrix, strict=True)]
    chosen, inner = _within(layout, lines, entries)
    values = np.zeros(len(entries), entries.dtype)
    values[chosen] = source.read(fields.any("of"), inner)
    fields.end()
    return values


def _within(layout: Layout | None, lines: list[np.ndarray], entries: Entries) -> tuple[np.ndarray, Entries]:
    """Which entries lie in kept rows and columns, and these as entries of the matrix of kept ones."""
    layout = layout or Layout.of(len(entries.shape))
    matrix = layout.matrix_shape(entries.shape)
    number: Any = np.arange(matrix[0] * matrix[1]).reshape(matrix)
    number = layout.from_matrix(number, entries.shape).reshape(-1)
    row, column = np.divmod(number[entries.places], max(matrix[1], 1))
    chosen = lines[0][row] & lines[1][column]
    row, column = (np.cumsum(kept)[at[chosen]] - 1 for kept, at in zip(lines, (row, column), strict=True))
    shape = int(lines[0].sum()), int(lines[1].sum())
    return chosen, dataclasses.replace(entries, shape=shape, places=row * shape[1] + column)
