"""Where the results of a sweep come from: what must agree for two sweeps to share them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from jaxcomp._checkpoint import _shape, _value
from jaxcomp.sweeps._identity import code_key, name_of


def provenance(fn: Callable, prepare: Callable | None, version: str | None, args: tuple) -> dict[str, Any]:
    """Names of functions and what they do, every argument in a line, as JSON can hold it; what differs can be named.

    With a version what functions do does not count, here and among the arguments.
    """

    def said(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            whole = not isinstance(value, jax.Array) or value.is_fully_addressable
            return _value(value) if whole else _shape(value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return name_of(value) if version is not None else f"{name_of(value)}, code {code_key(value)[:12]}"

    return {
        "version": version,
        "fn": said(fn),
        "prepare": said(prepare),
        "args": {
            keystr(keys, simple=True, separator="/"): said(leaf) for keys, leaf in tree_flatten_with_path(args)[0]
        },
    }
