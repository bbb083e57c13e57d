"""A leaf as a part of the vector that it makes with others: groups may begin in one leaf and end in the next."""

import dataclasses
import math

import numpy as np

from jaxcomp.constraints.forms import Forms, Part, in_order, of_any_shape
from jaxcomp.storage._entries import Entries
from jaxcomp.storage._fields import Fields
from jaxcomp.storage._stream import Node, Sink, Source


def write_part(form: Part, rest: Forms, values: np.ndarray, entries: Entries, sink: Sink) -> Node:
    """Of the forms after it, only those are kept that hold of the vector too."""
    of = sink.write(in_order(form.of, of_any_shape(rest)), values, _within(entries, form.origin, form.size))
    return {"form": "part", "origin": form.origin, "size": form.size, "of": of}


def read_part(fields: Fields, entries: Entries, source: Source) -> np.ndarray:
    size = fields.whole("size", 1, source.most)
    origin = fields.whole("origin", 0, size - math.prod(entries.shape))
    values = source.read(fields.any("of"), _within(entries, origin, size))
    fields.end()
    return values


def _within(entries: Entries, origin: int, size: int) -> Entries:
    return dataclasses.replace(entries, shape=(size,), places=entries.places + origin)
