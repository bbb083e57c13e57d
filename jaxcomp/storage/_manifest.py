"""What the manifest says of every leaf: its shape, its dtype and its form."""

import json
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcomp.storage._fields import Fields, parse
from jaxcomp.storage._stream import Node

VERSION = 1
_DTYPES = {  # by what safetensors calls them
    **{"BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
}
CODES = {name: code for code, name in _DTYPES.items()}


class Leaf(NamedTuple):
    """One leaf as the manifest has it; without a node its tensor is the leaf itself."""

    shape: tuple[int, ...]
    dtype: np.dtype
    node: Node | None

    @property
    def bytes(self) -> int:
        """Of the leaf as it stands."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_manifest(leaves: dict[str, Leaf]) -> bytes:
    """A line a leaf, so that a difference of two shows which."""
    lines = []
    for path, leaf in leaves.items():
        said = {"shape": leaf.shape, "dtype": leaf.dtype.name} | ({"as": leaf.node} if leaf.node else {})
        lines.append(f"{json.dumps(path)}: {json.dumps(said, separators=(',', ':'))}")
    body = ",\n".join(lines)
    return f'{{"format": "jaxcomp", "version": {VERSION}, "leaves": {{\n{body}\n}}}}\n'.encode()


def read_manifest(text: bytes, limit: int) -> dict[str, Leaf]:
    """The inverse.

    Raises:
        ValueError: it is no manifest of this version, or its leaves take more bytes than the limit.
    """
    fields = Fields(parse(text, "the manifest"), "the manifest")
    fields.text("format", "jaxcomp")
    version = fields.whole("version", 1)
    if version != VERSION:
        raise ValueError(
            f"the manifest is of version {version}, this jaxcomp reads {VERSION}: install the one it needs"
        )
    found: Any = fields.any("leaves")
    fields.end()
    if type(found) is not dict:
        raise ValueError("the manifest: leaves must be an object, a field for every leaf")
    leaves = {path: _leaf(path, said) for path, said in found.items()}
    total = sum(leaf.bytes for leaf in leaves.values())
    if total > limit:
        raise ValueError(
            f"the leaves take {total:,} bytes of memory, the limit is {limit:,}: raise it if you trust them"
        )
    return leaves


def _leaf(path: str, said: Any) -> Leaf:
    what = f"leaf {path[:80]!r}"
    fields = Fields(said, what)
    shape = fields.shape("shape")
    dtype = fields.text("dtype", "|".join(CODES))
    node = fields.any("as") if "as" in said else None
    fields.end()
    if node is not None and 0 in shape:  # its other sizes are bounded by nothing
        raise ValueError(f"{what} of shape {list(shape)} has no weights, but a form")
    return Leaf(shape, jnp.dtype(dtype), node)
