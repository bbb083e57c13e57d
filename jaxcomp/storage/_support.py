"""Which groups of every pool are kept: a bit for each group, or the numbers of those that are."""

import numpy as np

from jaxcomp.storage._bits import packed_bytes
from jaxcomp.storage._fields import Fields
from jaxcomp.storage._stream import Node, Sink, Source

_SIZES = 64  # pools of more different sizes take bits


def write_support(kept: np.ndarray, pool: np.ndarray, sink: Sink) -> Node:
    """``kept`` and the pool of every group, ascending: what `read_support` takes, in the smaller of two ways.

    By numbers, pools of one size usually keep equally many: that is a field, and what a pool has less is a code, of no
    bits where all do.
    """
    first, size = _pools(pool)
    counts = np.add.reduceat(kept, first, dtype=np.int64) if len(first) else first
    sizes, of_size = np.unique(size, return_inverse=True)
    usual = np.zeros(len(sizes), np.int64)
    np.maximum.at(usual, of_size, counts)
    fewer = usual[of_size] - counts
    radix, most = int(fewer.max(initial=0)) + 1, int(size.max(initial=1))
    listed = packed_bytes(len(first), radix) + packed_bytes(int(counts.sum()), most)
    if len(sizes) > _SIZES or listed >= packed_bytes(len(kept), 2):
        sink.codes(kept, 2)
        return {"by": "bits"}
    sink.codes(fewer, radix)
    sink.codes((np.arange(len(kept)) - np.repeat(first, size))[kept], most)
    return {"by": "numbers", "kept": [[int(a), int(b)] for a, b in zip(sizes, usual, strict=True)], "radix": radix}


def read_support(node: object, pool: np.ndarray, source: Source) -> np.ndarray:
    """Which groups are kept, given the pool of each."""
    fields = Fields(node, "a support")
    if fields.text("by", "bits|numbers") == "bits":
        fields.end()
        return source.codes(len(pool), 2).astype(bool)
    first, size = _pools(pool)
    usual = {}
    for pair in fields.items("kept"):
        if type(pair) is not list or len(pair) != 2 or any(type(n) is not int for n in pair) or pair[0] in usual:
            raise ValueError("a support's kept must be pairs of a pool's size, each once, and how many it keeps")
        usual[pair[0]] = pair[1]
    if set(usual) != set(size.tolist()) or any(not 0 <= n <= of for of, n in usual.items()):
        raise ValueError(f"a support keeps {str(usual)[:80]} of pools whose sizes are {sorted(set(size.tolist()))[:8]}")
    radix = fields.whole("radix", 1, 1 + max(usual.values(), default=0))
    fields.end()
    counts = np.array([usual[n] for n in size.tolist()], np.int64) - source.codes(len(first), radix)
    if counts.min(initial=0) < 0:
        raise ValueError("a support keeps fewer than no groups of a pool: it is damaged")
    number = source.codes(int(counts.sum()), int(size.max(initial=1)))
    if np.any(number >= np.repeat(size, counts)):
        raise ValueError("a support names a group beyond its pool: it is damaged")
    kept = np.zeros(len(pool), bool)
    kept[np.repeat(first, counts) + number] = True
    if kept.sum() != len(number):
        raise ValueError("a support names a group twice: it is damaged")
    return kept


def _pools(pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each pool begins, and how many groups it has."""
    first = np.flatnonzero(np.diff(pool, prepend=-1))
    return first, np.diff(first, append=len(pool))
