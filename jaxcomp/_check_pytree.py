"""What is asked of every class that is plugged in, be it a constraint, a solver or a device: that it is a pytree."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax


def check_pytree(x: Any, require: Callable[[Any, str], None]) -> None:
    """Call ``require(holds, claim)`` for all that JAX and sweeps rely on in a pytree, until one does not hold."""
    leaves, structure = jax.tree.flatten(x)
    require(
        not any(leaf is x for leaf in leaves),
        "is not a pytree: register the class with jaxcomp.register_dataclass",
    )
    require(
        not _taken_for_another(x),
        "is what JAX takes another class for: register the class with jaxcomp.register_dataclass, not with JAX's own",
    )
    try:
        hash(structure)
        jax.tree.unflatten(structure, [object()] * len(leaves))
    except Exception as error:
        require(False, f"has static fields without a hash, or reads leaves when rebuilt: {error}")
    again = jax.tree.unflatten(structure, leaves)
    same = len({structure, jax.tree.structure(again)}) == 1
    require(
        same and all(a is b for a, b in zip(jax.tree.leaves(again), leaves, strict=True)),
        "comes back changed from jax.tree.flatten and unflatten",
    )
    for name, field in getattr(x, "__dataclass_fields__", {}).items():
        fixed = field.metadata.get("static") and isinstance(getattr(x, name), float)
        require(not fixed, f"has a static number, {name}: every value of it compiles anew; make it a leaf")


def _taken_for_another(x: Any) -> bool:
    """Whether JAX holds the structure of ``x`` to be that of another class with the same fields."""
    if not dataclasses.is_dataclass(x):
        return False
    cls: Any = type(x)
    twin: Any = object.__new__(_alike(cls))
    for field in dataclasses.fields(x):
        object.__setattr__(twin, field.name, getattr(x, field.name))
    structure: Any = jax.tree.structure(x)
    return structure == jax.tree.structure(twin)


@functools.cache  # what is registered stays so
def _alike(cls: Any) -> type:
    return jax.tree_util.register_dataclass(type(cls.__name__, (cls,), {}))  # noqa: TID251
