"""What a tree is, in words that JSON can hold and that another process finds again, and where two trees differ."""

import hashlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.tree_util import keystr, tree_flatten_with_path


def leaves_of(tree: Any) -> dict[str, Any]:
    """By '/'-joined path."""
    return {keystr(keys, simple=True, separator="/"): leaf for keys, leaf in tree_flatten_with_path(tree)[0]}


def shape_of(leaf: Any) -> str:
    return f"{leaf.dtype.name}{list(leaf.shape)}"


def shapes_of(tree: Any) -> dict[str, str]:
    return {path: shape_of(leaf) for path, leaf in leaves_of(tree).items()}


def value_of(leaf: Any) -> Any:
    """A scalar as it is, an array by shape and digest."""
    keys = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    leaf = jax.random.key_data(leaf) if keys else leaf
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # the digest is of all that processes hold
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    value = np.asarray(leaf)
    digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:12]
    return value.item() if value.ndim == 0 else f"{shape_of(value)} {digest}"


def values_of(tree: Any) -> dict[str, Any]:
    return {path: value_of(leaf) for path, leaf in leaves_of(tree).items()}


def differing(found: Any, expected: Any, path: str = "") -> list[str]:
    """A line for everything that two dicts of dicts do not share."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [*expected, *(key for key in found if key not in expected)]
        return [line for k in keys for line in differing(found.get(k), expected.get(k), f"{path}/{k}".strip("/"))]
    same = found == expected or (found != found and expected != expected)
    return [] if same else [f"{path}: found {found}, expected {expected}"]
