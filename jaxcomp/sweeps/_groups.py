"""Which configurations share a compiled program: numbers are its arguments, all else makes another program."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path


@dataclasses.dataclass(frozen=True)
class Structure:
    """What the members of a group share. Hashable.

    Attributes:
        tree: of the arguments.
        static: leaf by leaf the values that are no arguments of the program, with their types.
        traced: leaf by leaf what the others are: shape, dtype, and whether it is a Python number.
    """

    tree: Any
    static: tuple[tuple[int, type, Any], ...]
    traced: tuple[tuple[int, jax.ShapeDtypeStruct], ...]

    def restored(self, leaves: Sequence[Any]) -> Any:
        """The arguments whose traced leaves are these."""
        found = {i: value for i, _, value in self.static}
        found |= {i: leaf for (i, _), leaf in zip(self.traced, leaves, strict=True)}
        return jax.tree.unflatten(self.tree, [found[i] for i in range(len(found))])

    def structs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes and dtypes of the traced leaves."""
        return tuple(struct for _, struct in self.traced)


@dataclasses.dataclass(frozen=True)
class Group:
    """Configurations with one structure, which one compiled program serves.

    Traced, so free to differ, are Python's numbers and arrays, but for those of `static` keywords. Integers and floats
    at one place are all taken as floats. Strings, functions, ``None``, members of enumerations and the static fields of
    solvers and constraints are part of the structure, and so are the shapes and dtypes of arrays.

    Attributes:
        indices: of the configurations, in their order.
        structure: what they share.
        members: their traced leaves, ``[configurations][leaves]``, on the host.
    """

    indices: tuple[int, ...]
    structure: Structure
    members: tuple[tuple[Any, ...], ...]

    def stacked(self) -> tuple[Any, ...]:
        """The traced leaves with a leading axis of configurations."""
        return stack(self.members)


def stack(members: Sequence[Any]) -> Any:
    """Pytrees of arrays as one with a leading axis."""

    def together(*leaves: Any) -> Any:
        if _is_key(leaves[0]):
            data = jnp.asarray(np.stack([jax.random.key_data(leaf) for leaf in leaves]))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaves[0]))
        return np.stack([np.asarray(leaf) for leaf in leaves])

    return jax.tree.map(together, *members)


def constants(args: tuple) -> tuple[Structure, tuple[Any, ...]]:
    """What all members are given alike: arrays are traced, anything else, numbers too, is static."""
    flat, tree = tree_flatten_with_path(args)
    places = [i for i, (_, leaf) in enumerate(flat) if isinstance(leaf, np.ndarray | np.generic | jax.Array)]
    fixed = [i for i in range(len(flat)) if i not in set(places)]
    static = tuple((i, type(flat[i][1]), _hashable(flat[i][1], flat[i][0])) for i in fixed)
    arrays = tuple(flat[i][1] for i in places)
    structs = [jax.ShapeDtypeStruct(x.shape, _struct([x]).dtype, sharding=_placed(x)) for x in arrays]
    return Structure(tree, static, tuple(zip(places, structs, strict=True))), arrays


def _placed(array: Any) -> Any:
    """Where an array has been put on purpose."""
    return array.sharding if isinstance(array, jax.Array) and array.committed else None


def groups(configs: Sequence[Mapping[str, Any]], static: Iterable[str] = ()) -> tuple[Group, ...]:
    """The groups of some configurations, in the order of their first members."""
    static = frozenset(static)
    absent = sorted(static - {name for config in configs for name in config})
    if absent:
        raise ValueError(f"static names {absent}, which no configuration has")
    found: dict[tuple[Any, tuple], list[tuple[int, list[Any]]]] = {}
    for i, config in enumerate(configs):
        flat, tree = tree_flatten_with_path(dict(config))
        shared: list[tuple[int, type | None, Any]] = []
        leaves = []
        for place, (keys, leaf) in enumerate(flat):
            if keys[0].key in static or not _is_traced(leaf):
                shared.append((place, type(leaf), _hashable(leaf, keys)))
            else:
                shared.append((place, None, _kind(leaf)))
                leaves.append(leaf)
        found.setdefault((tree, tuple(shared)), []).append((i, leaves))
    return tuple(_group(tree, shared, members) for (tree, shared), members in found.items())


def _group(tree: Any, shared: Sequence[tuple], members: Sequence[tuple[int, list[Any]]]) -> Group:
    """Of members whose leaves are the same (place, type, value), or the same (place, None, kind)."""
    static = tuple(entry for entry in shared if entry[1] is not None)
    places = [place for place, kind, _ in shared if kind is None]
    columns = list(zip(*(leaves for _, leaves in members), strict=True))
    structs = [_struct(column) for column in columns]
    arrays = [[_array(x, struct) for x in column] for column, struct in zip(columns, structs, strict=True)]
    rows = tuple(zip(*arrays, strict=True)) if arrays else ((),) * len(members)
    structure = Structure(tree, static, tuple(zip(places, structs, strict=True)))
    return Group(tuple(i for i, _ in members), structure, rows)


def _is_traced(leaf: Any) -> bool:
    return isinstance(leaf, bool | int | float | complex | np.ndarray | np.generic | jax.Array)


def _is_number(leaf: Any) -> bool:
    """Whether it is Python's own, without a dtype; numpy's float64 is a float too."""
    return isinstance(leaf, int | float) and not isinstance(leaf, bool)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)


def _kind(leaf: Any) -> Any:
    """What must agree within a group."""
    if _is_number(leaf):
        return "number"
    if isinstance(leaf, bool | complex):
        return type(leaf)
    return leaf.shape, leaf.dtype


def _struct(column: Sequence[Any]) -> jax.ShapeDtypeStruct:
    leaf = column[0]
    kind: type
    if _is_number(leaf):
        kind = float if any(isinstance(x, float) for x in column) else int
    elif isinstance(leaf, bool | complex):
        kind = type(leaf)
    elif _is_key(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    else:
        return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))
    return jax.ShapeDtypeStruct((), jax.dtypes.canonicalize_dtype(kind), weak_type=kind is not bool)


def _array(leaf: Any, struct: jax.ShapeDtypeStruct) -> Any:
    if _is_key(leaf):
        return leaf
    try:
        return np.asarray(leaf, struct.dtype)
    except OverflowError as error:
        remedy = "enable 64 bits in jax, or name its keyword in static"
        raise ValueError(f"{leaf} in a configuration does not fit {struct.dtype}: {remedy}") from error


def _hashable(leaf: Any, keys: tuple) -> Any:
    try:
        hash(leaf)
    except TypeError as error:
        path = keystr(keys, simple=True, separator=".")
        raise ValueError(
            f"{path} is {leaf!r}, which is neither a number nor hashable: give an array, a tuple or a frozen dataclass"
        ) from error
    return leaf
