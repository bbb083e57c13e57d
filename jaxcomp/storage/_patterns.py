"""Kernels that follow a few patterns: the number of each one's, and the weights that it holds."""

import numpy as np

from jaxcomp.constraints.forms import Forms, Patterns
from jaxcomp.storage._entries import Entries
from jaxcomp.storage._fields import Fields, of_view
from jaxcomp.storage._stream import Node, Sink, Source

_PATTERNS = 2**16


def write_patterns(form: Patterns, rest: Forms, values: np.ndarray, entries: Entries, sink: Sink) -> Node | None:
    groups, tap = entries.groups(form.view), entries.elements(form.view)
    masks = np.asarray(form.library) != 0
    masks = masks[masks.any(axis=1)]
    used = np.zeros((groups.total, masks.shape[1]), bool)
    used[groups.of, tap] = values != 0
    masks = np.concatenate([masks, np.ones_like(masks[:1])]) if len(masks) else np.ones((1, used.shape[1]), bool)
    fits = used.astype(np.float32) @ (~masks.T).astype(np.float32) == 0
    number = np.argmin(np.where(fits, masks.sum(axis=1)[None], masks.shape[1] + 1), axis=1)
    if number.max(initial=0) < len(masks) - 1:
        masks = masks[:-1]  # every kernel follows a pattern: none needs all taps
    sink.codes(masks.ravel(), 2)
    sink.codes(number, len(masks))
    chosen = masks[number[groups.of], tap]
    of = sink.write(rest, values[chosen], entries.where(chosen))
    return {"form": "patterns", "view": of_view(form.view), "patterns": len(masks), "of": of}


def read_patterns(fields: Fields, entries: Entries, source: Source) -> np.ndarray:
    view, patterns = fields.view("view"), fields.whole("patterns", 1, _PATTERNS)
    groups, tap = entries.groups(view), entries.elements(view)
    taps = view.split(np.zeros(entries.shape, bool)).shape[2]
    masks = source.codes(patterns * taps, 2).astype(bool).reshape(patterns, taps)
    number = source.codes(groups.total, patterns)
    chosen = masks[number[groups.of], tap]
    values = np.zeros(len(entries), entries.dtype)
    values[chosen] = source.read(fields.any("of"), entries.where(chosen))
    fields.end()
    return values
