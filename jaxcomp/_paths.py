"""Leaves of any pytree by their '/'-joined path, so that state and rules never depend on the tree's structure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
from jax.tree_util import GetAttrKey, keystr, tree_flatten_with_path


def _flatten(tree: Any) -> tuple[list[str], list[Any], Any]:
    """Paths, leaves and structure."""
    flat, structure = tree_flatten_with_path(tree)
    siblings = Counter(keys[:-1] for keys, _ in flat)

    def path(keys: tuple) -> str:
        # nnx wraps a weight in a Variable whose one field `value` says nothing: 'conv/kernel' in nnx and linen alike.
        wrapped = len(keys) > 1 and keys[-1] == GetAttrKey("value") and siblings[keys[:-1]] == 1
        return keystr(keys[:-1] if wrapped else keys, simple=True, separator="/")

    return [path(keys) for keys, _ in flat], [leaf for _, leaf in flat], structure


def is_array(leaf: Any) -> bool:
    """Whether a leaf holds numbers; typed random keys have a shape and a dtype, but none."""
    return (
        hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    )


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The array leaves of a tree; anything else (functions, strings, random keys) is left out.

    Raises:
        ValueError: two leaves have one path, as those of ``{"a/b": x, "a": {"b": y}}``.

    >>> leaves_by_path({"conv": {"kernel": jax.numpy.ones(3)}}).keys()
    dict_keys(['conv/kernel'])
    """
    paths, leaves, _ = _flatten(tree)
    arrays = [(path, leaf) for path, leaf in zip(paths, leaves, strict=True) if is_array(leaf)]
    shared = [path for path, times in Counter(path for path, _ in arrays).items() if times > 1]
    if shared:
        raise ValueError(
            f"several leaves share the path {shared[0]!r}: rename one, since leaves are told by their path"
        )
    return dict(arrays)


def select(tree: Any, paths: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves at these paths.

    Raises:
        ValueError: the tree has no leaf at one of them.
    """
    leaves = leaves_by_path(tree)
    missing = [path for path in paths if path not in leaves]
    if missing:
        raise ValueError(
            f"no leaf at {missing} in this tree, whose leaves are {list(leaves)}: "
            "make the spec with jaxcomp.assign on a tree of the same structure"
        )
    return {path: leaves[path] for path in paths}


def replace(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """The tree with the leaves at these paths exchanged."""
    paths, old, structure = _flatten(tree)
    return jax.tree.unflatten(structure, [leaves.get(path, leaf) for path, leaf in zip(paths, old, strict=True)])
