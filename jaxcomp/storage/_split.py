"""Groups of several classes, each class in forms of its own: zeros and others, tied and free, of either sign."""

from typing import Any

import numpy as np

from jaxcomp.constraints import elements
from jaxcomp.constraints.forms import Forms, Shared, Sides, Signs, Support, Unlike
from jaxcomp.storage._entries import Entries, Groups
from jaxcomp.storage._fields import Fields, of_view
from jaxcomp.storage._stream import Node, Sink, Source
from jaxcomp.storage._support import read_support, write_support


def write_nonzero(form: Support, rest: Forms, values: np.ndarray, entries: Entries, sink: Sink) -> Node | None:
    groups = entries.groups(form.view)
    kept = np.zeros(groups.total, bool)
    kept[groups.of[values != 0]] = True
    if kept.all():
        return None
    support = write_support(kept, groups.pool, sink)
    chosen = kept[groups.of]
    of = sink.write(rest, values[chosen], entries.where(chosen))
    return {"form": "support", "view": of_view(form.view), "support": support, "of": of}


def read_nonzero(fields: Fields, entries: Entries, source: Source) -> np.ndarray:
    groups = entries.groups(fields.view("view"))
    chosen = read_support(fields.any("support"), groups.pool, source)[groups.of]
    values = np.zeros(len(entries), entries.dtype)
    values[chosen] = source.read(fields.any("of"), entries.where(chosen))
    fields.end()
    return values


def write_unlike(form: Unlike, rest: Forms, values: np.ndarray, entries: Entries, sink: Sink) -> Node | None:
    groups = entries.groups(form.view)
    low, high = extent(np.abs(values), groups)
    states = np.where(high == 0, 0, np.where(low == high, 1, 2))
    tied = Signs(elements()), Shared(form.view), *rest
    return _write(form.view, states, (None, tied, rest), values, entries, sink)


def write_sides(form: Sides, rest: Forms, values: np.ndarray, entries: Entries, sink: Sink) -> Node | None:
    below = extent(values, entries.groups(form.view))[0] < 0
    return _write(form.view, below.astype(int), (rest, rest), values, entries, sink)


def _write(view, states, classes: tuple[Forms | None, ...], values, entries, sink) -> Node:
    """The state of every group, and the weights of every class: nothing of the one without forms, which is zero."""
    groups, there = entries.groups(view), np.unique(states)
    sink.codes(np.searchsorted(there, states), max(len(there), 1))
    of: list[Node | None] = []
    for state in there:
        chosen, forms = (states == state)[groups.of], classes[state]
        of.append(None if forms is None else sink.write(forms, values[chosen], entries.where(chosen)))
    return {"form": "split", "view": of_view(view), "of": of}


def read_split(fields: Fields, entries: Entries, source: Source) -> np.ndarray:
    groups, of = entries.groups(fields.view("view")), fields.items("of", 1)
    fields.end()
    states = source.codes(groups.total, len(of))
    values = np.zeros(len(entries), entries.dtype)
    for state, node in enumerate(of):
        chosen = (states == state)[groups.of]
        if node is not None:
            values[chosen] = source.read(node, entries.where(chosen))
    return values


def extent(values: np.ndarray, groups: Groups) -> tuple[Any, Any]:
    """The least and the largest value of every group."""
    wide = values.astype(np.promote_types(values.dtype, np.float32))
    low, high = np.full(groups.total, np.inf, wide.dtype), np.full(groups.total, -np.inf, wide.dtype)
    np.minimum.at(low, groups.of, wide)
    np.maximum.at(high, groups.of, wide)
    return low, high
