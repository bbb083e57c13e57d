"""Dataclasses as pytrees, each of a structure of its own."""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

_Class = TypeVar("_Class", bound=type)


def register_dataclass(cls: _Class) -> _Class:
    """Register a dataclass as a pytree: `jax.tree_util.register_dataclass`, by which JAX also tells classes apart.

    Fields with ``metadata={"static": True}`` are part of the structure, all others are children.

    From 0.10.0 to 0.10.2 at least, JAX holds the structures of two classes that it registered itself to be equal where
    their static fields are and they have as many leaves. Their hashes differ, so that `jax.jit` mostly finds the right
    program, and once in a while, without a word, that of the other class: of 300 classes some 40 get a wrong result.

    >>> import dataclasses, jax, jaxcomp as jc
    >>> @jc.register_dataclass
    ... @dataclasses.dataclass(frozen=True)
    ... class Scale:
    ...     by: float
    ...     name: str = dataclasses.field(default="scale", metadata={"static": True})
    >>> jax.tree.map(lambda number: 2 * number, Scale(1.5))
    Scale(by=3.0, name='scale')

    Raises:
        TypeError: if the class is not a dataclass.
        ValueError: if it has a field that its constructor does not take.
    """
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"register_dataclass takes a dataclass, found {cls!r}: decorate it with dataclasses.dataclass")
    if untaken := [field.name for field in dataclasses.fields(cls) if not field.init]:
        raise ValueError(f"{cls.__name__} cannot be rebuilt: its constructor does not take {', '.join(untaken)}")
    static = [field.name for field in dataclasses.fields(cls) if field.metadata.get("static")]
    children = [field.name for field in dataclasses.fields(cls) if not field.metadata.get("static")]
    keys = [jax.tree_util.GetAttrKey(name) for name in children]
    children_of, static_of = _getter(children), _getter(static)

    def flatten(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return children_of(x), static_of(x)

    def flatten_with_keys(x: Any) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
        return tuple(zip(keys, children_of(x), strict=True)), static_of(x)

    def unflatten(fixed: Any, values: Any) -> Any:
        return cls(**dict(zip((*children, *static), (*values, *fixed), strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """A tuple of these attributes, read in C where there are several: a jitted call asks for them each time."""
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda x: tuple(getattr(x, name) for name in names)
