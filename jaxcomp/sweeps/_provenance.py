"""Where the results of a sweep come from: what must agree for two sweeps to share them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxcomp._fingerprint import leaves_of, shape_of, value_of
from jaxcomp.sweeps._identity import code_key, name_of


def provenance(fn: Callable, prepare: Callable | None, version: str | None, args: tuple) -> dict[str, Any]:
    """Names of functions and what they do, every argument in a line, as JSON can hold it; what differs can be named.

    With a version what functions do does not count, here and among the arguments.
    """

    def said(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            whole = not isinstance(value, jax.Array) or value.is_fully_addressable
            return value_of(value) if whole else shape_of(value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return name_of(value) if version is not None else f"{name_of(value)}, code {code_key(value)[:12]}"

    return {
        "version": version,
        "fn": said(fn),
        "prepare": said(prepare),
        "args": {path: said(leaf) for path, leaf in leaves_of(args).items()},
    }
