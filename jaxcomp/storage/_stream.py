"""What a leaf is written to and read from: bytes in a row, and beside them a tree of nodes that says what they are.

A node is JSON: the name of a form, its fields, and the nodes of what it leaves to others. How long each piece is
follows from these and from what was read before, so that there are no offsets or lengths to be wrong.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from jaxcomp.constraints.forms import Form, Forms
from jaxcomp.storage._bits import pack, packed_bytes, unpack
from jaxcomp.storage._entries import Entries
from jaxcomp.storage._fields import Fields

Node = dict[str, Any]
_DEPTH = 24  # nodes within nodes


class Writer(Protocol):
    """Writes what is left of a leaf in a form and in those after it; ``None``, and no bytes, if it does not hold."""

    def __call__(self, form: Any, rest: Forms, values: np.ndarray, entries: Entries, sink: "Sink") -> Node | None: ...


class Reader(Protocol):
    """Reads the values of these entries; raises `ValueError` at whatever cannot have been written."""

    def __call__(self, fields: Fields, entries: Entries, source: "Source") -> np.ndarray: ...


class Sink:
    """Where one leaf is written.

    Args:
        writers: of each type of form.
        tolerance: how far values may come back from what they were, as a share of their norm.
    """

    def __init__(self, writers: Mapping[type[Form], Writer], tolerance: float):
        self.data, self.tolerance, self._writers = bytearray(), tolerance, writers

    def write(self, forms: Forms, values: np.ndarray, entries: Entries) -> Node:
        """In the first form that holds, with those after it; as they stand if none does."""
        for i, form in enumerate(forms):
            node = self._writers[type(form)](form, forms[i + 1 :], values, entries, self)
            if node is not None:
                return node
        self.array(values, entries.signed)
        return {"form": "plain"}

    def codes(self, numbers: np.ndarray, radix: int) -> None:
        self.data += pack(numbers, radix)

    def array(self, values: np.ndarray, signed: bool = True) -> None:
        """Values at the width of their dtype, or magnitudes without the bit of their sign."""
        bits = 8 * values.dtype.itemsize
        whole = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
        self.data += whole.astype(whole.dtype.newbyteorder("<")).tobytes() if signed else pack(whole, 2 ** (bits - 1))

    def close(self, found: np.ndarray, values: np.ndarray) -> bool:
        """Whether one may come back for the other."""
        return np.array_equal(found, values) if not self.tolerance else distance(found, values) <= self.tolerance


class Source:
    """Where one leaf is read from.

    Args:
        readers: of each name of a form.
        data: the bytes.
        most: weights that the leaf and those beside it may have together.
    """

    def __init__(self, readers: Mapping[str, Reader], data: bytes, most: int):
        self._readers, self._data, self.most, self._at, self._depth = readers, data, most, 0, 0

    def read(self, node: Any, entries: Entries) -> np.ndarray:
        fields = Fields(node, "a form")
        name = fields.text("form")
        if name not in self._readers:
            raise ValueError(f"form {name[:40]!r} is unknown, expected one of {sorted(self._readers)}")
        if self._depth >= _DEPTH:
            raise ValueError(f"forms are nested deeper than {_DEPTH}: the manifest was not written by jaxcomp")
        self._depth += 1
        values = self._readers[name](fields, entries, self)
        self._depth -= 1
        return values

    def codes(self, count: int, radix: int) -> np.ndarray:
        return unpack(self._take(packed_bytes(count, radix)), count, radix)

    def array(self, count: int, dtype: np.dtype, signed: bool = True) -> np.ndarray:
        bits = 8 * dtype.itemsize
        if not signed:
            return self.codes(count, 2 ** (bits - 1)).astype(f"u{dtype.itemsize}").view(dtype)
        whole = np.frombuffer(self._take(count * dtype.itemsize), f"<u{dtype.itemsize}")
        return whole.astype(f"u{dtype.itemsize}").view(dtype)

    def end(self) -> None:
        if self._at < len(self._data):
            raise ValueError(f"{len(self._data) - self._at} of {len(self._data)} bytes are left over: it is damaged")

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise ValueError(
                f"{count} bytes are needed at {self._at} of {len(self._data)}: some are missing, or the form is another"
            )
        self._at += count
        return self._data[self._at - count : self._at]


def distance(found: np.ndarray, values: np.ndarray) -> float:
    """Of what came back from what it was, as a share of the norm of that."""
    found, values = (np.asarray(one, np.float64) for one in (found, values))
    norm = np.linalg.norm(values)
    return float(np.linalg.norm(found - values) / (norm if norm else 1.0))
