"""What the weights of a group have in common: one sign, or one value."""

import dataclasses

import numpy as np

from jaxcomp.constraints.forms import Forms, Shared, Signs
from jaxcomp.storage._entries import Entries
from jaxcomp.storage._fields import Fields, of_view
from jaxcomp.storage._split import extent
from jaxcomp.storage._stream import Node, Sink, Source


def write_signs(form: Signs, rest: Forms, values: np.ndarray, entries: Entries, sink: Sink) -> Node | None:
    groups = entries.groups(form.view)
    low, high = extent(values, groups)
    if not entries.signed or np.any((low < 0) & (high > 0)):
        return None
    sink.codes(low < 0, 2)
    of = sink.write(rest, np.abs(values), dataclasses.replace(entries, signed=False))
    return {"form": "signs", "view": of_view(form.view), "of": of}


def read_signs(fields: Fields, entries: Entries, source: Source) -> np.ndarray:
    groups = entries.groups(fields.view("view"))
    below = source.codes(groups.total, 2).astype(bool)
    values = source.read(fields.any("of"), dataclasses.replace(entries, signed=False))
    fields.end()
    return np.where(below[groups.of] & (values != 0), -values, values)


def write_shared(form: Shared, rest: Forms, values: np.ndarray, entries: Entries, sink: Sink) -> Node | None:
    groups = entries.groups(form.view)
    low, high = extent(values, groups)
    if np.any(low != high):
        return None
    one = _one_of_each(groups.of)
    of = sink.write(rest, values[one], entries.where(one))
    return {"form": "shared", "view": of_view(form.view), "of": of}


def read_shared(fields: Fields, entries: Entries, source: Source) -> np.ndarray:
    groups = entries.groups(fields.view("view"))
    values = source.read(fields.any("of"), entries.where(_one_of_each(groups.of)))
    fields.end()
    return values[groups.of]


def _one_of_each(group: np.ndarray) -> np.ndarray:
    """The first entry of every group."""
    return np.unique(group, return_index=True)[1]
