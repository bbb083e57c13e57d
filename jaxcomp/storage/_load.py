"""Parameters from disk: checked, unpacked, and put where they belong."""

import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._paths import leaves_by_path, replace
from jaxcomp.storage._folder import TENSORS, read_folder, safetensors
from jaxcomp.storage._leaf import read_leaf
from jaxcomp.storage._manifest import CODES, Leaf, read_manifest

_LIMIT = 1 << 35


def load(path: str | os.PathLike, like: Any = None, *, limit: int = _LIMIT) -> Any:
    """The parameters that `jaxcomp.save` kept in a folder.

    No constraint is needed and no code of the folder is run: there is no pickle in it, names of files are not read from
    it, and what it says is checked before it is done.

    Args:
        path: of the folder.
        like: a tree of the same paths, shapes and dtypes (of arrays or `jax.ShapeDtypeStruct`), in whose structure they
            come back; what else it holds stays. Left out, they come back as dicts within dicts, by the '/' in their
            paths.
        limit: bytes of memory that the leaves may take: a small file can name very large ones.

    Returns:
        JAX arrays; NumPy ones of the dtypes that JAX would narrow (of 64 bits, unless ``jax_enable_x64`` is set).

    Raises:
        ValueError: the folder is not one that `save` wrote, or not as it was written: truncated, edited, of another
            version; its leaves take more than the limit; or they do not fit ``like``. What was found, and what was
            expected, is named.
        ImportError: safetensors is not installed.

    >>> import tempfile
    >>> from jaxcomp.storage import save
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     saved = save(f"{folder}/model", {"fc": [jnp.ones((2, 2)), jnp.zeros(2)]})
    ...     load(f"{folder}/model", like={"fc": [jnp.zeros((2, 2)), jnp.ones(2)]})["fc"][1].tolist()
    [0.0, 0.0]
    """
    folder = Path(path)
    text, data = read_folder(folder)
    try:
        leaves = read_manifest(text, limit)
        tensors = _tensors(data, leaves)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if like is not None:
        _check_fit(folder, leaves, leaves_by_path(like))
    found, most = {}, sum(math.prod(leaf.shape) for leaf in leaves.values())
    for name, leaf in leaves.items():
        try:
            found[name] = _array(leaf, tensors[name], most)
        except ValueError as error:
            raise ValueError(f"{folder}: leaf {name!r}: {error}") from None
    return _nested(folder, found) if like is None else replace(like, found)


def _tensors(data: bytes, leaves: dict[str, Leaf]) -> dict[str, bytes]:
    """The bytes of every leaf, once it is sure that they are as many as they should be."""
    reader = safetensors("safetensors")
    try:
        tensors = dict(reader.deserialize(data))
    except Exception as error:  # whatever the reader makes of damaged files
        raise ValueError(f"{TENSORS} is no safetensors file: {error}") from None
    if set(tensors) != set(leaves):
        odd = sorted(set(tensors) ^ set(leaves))
        raise ValueError(f"{TENSORS} and the manifest name different leaves, as {odd[:5]}")
    for name, leaf in leaves.items():
        dtype, shape, size = tensors[name]["dtype"], tuple(tensors[name]["shape"]), len(tensors[name]["data"])
        expected = (CODES[leaf.dtype.name], leaf.shape) if leaf.node is None else ("U8", (size,))
        if (dtype, shape) != expected:
            raise ValueError(
                f"leaf {name!r} is {dtype}{list(shape)} in {TENSORS}, expected {expected[0]}{list(expected[1])}"
            )
    return {name: bytes(tensor["data"]) for name, tensor in tensors.items()}


def _array(leaf: Leaf, data: bytes, most: int) -> Any:
    if leaf.node is None:
        x = np.frombuffer(data, leaf.dtype).reshape(leaf.shape)
    else:
        x = read_leaf(leaf.node, data, leaf.shape, leaf.dtype, most)
    return jnp.asarray(x) if jax.dtypes.canonicalize_dtype(x.dtype) == x.dtype else x.copy()


def _check_fit(folder: Path, leaves: dict[str, Leaf], like: dict[str, Any]) -> None:
    missing, extra = sorted(set(like) - set(leaves)), sorted(set(leaves) - set(like))
    if missing or extra:
        raise ValueError(
            f"{folder} does not fit the tree: it lacks leaves {missing[:5]} and has {extra[:5]} beside; "
            "give a tree of the model that was saved, or none"
        )
    for name, leaf in leaves.items():
        found, wanted = (leaf.dtype.name, leaf.shape), (np.dtype(like[name].dtype).name, tuple(like[name].shape))
        if found != wanted:
            raise ValueError(
                f"{folder}: leaf {name!r} is {found[0]}{list(found[1])}, the tree has {wanted[0]}{list(wanted[1])}"
            )


def _nested(folder: Path, leaves: dict[str, Any]) -> Any:
    """Dicts within dicts; the leaf itself if it was the whole tree."""
    if list(leaves) == [""]:
        return leaves[""]
    tree: dict[str, Any] = {}
    for path, x in leaves.items():
        *above, name = path.split("/")
        at = tree
        for key in above:
            at = at.setdefault(key, {})
            if not isinstance(at, dict):
                break
        if not isinstance(at, dict) or name in at:
            raise ValueError(f"{folder}: leaf {path!r} lies within another leaf: pass the tree it came from as like=")
        at[name] = x
    return tree
