"""The structure of a result as JSON: dicts, lists, tuples, and classes that are pytrees by their fields."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax

from jaxcomp.sweeps._identity import name_of

_CONSTANTS = (bool, int, float, str)


def skeleton(tree: Any) -> tuple[Any, list[Any]]:
    """A description that `build` reads and JSON can hold, and the leaves.

    Raises:
        ValueError: a part of the tree is of a class that is no dataclass or named tuple.
    """
    leaves: list[Any] = []
    return _described(tree, leaves, ""), leaves


def build(structure: Any, leaves: Sequence[Any]) -> Any:
    """The tree with this description and these leaves.

    Raises:
        ValueError: a class in it is not there: its module is not imported, or has it no more.
    """
    if structure is None:
        return None
    kind, held = structure["is"], structure.get("of")
    match kind:
        case "leaf":
            return leaves[held]
        case "dict":
            return {name: build(child, leaves) for name, child in held}
        case "list":
            return [build(child, leaves) for child in held]
        case "tuple":
            return tuple(build(child, leaves) for child in held)
    parts = {name: build(child, leaves) for name, child in held} | structure["static"]
    return _class(kind)(**parts)


def _described(node: Any, leaves: list[Any], path: str) -> Any:
    def of(items: Any) -> list:
        return [[name, _described(child, leaves, f"{path}.{name}".strip("."))] for name, child in items]

    if node is None:
        return None
    if jax.tree_util.all_leaves([node]):
        leaves.append(node)
        return {"is": "leaf", "of": len(leaves) - 1}
    if type(node) is dict and all(isinstance(name, str | int) for name in node):
        return {"is": "dict", "of": of(node.items())}
    if type(node) in (list, tuple):
        return {"is": type(node).__name__, "of": [child for _, child in of(enumerate(node))]}
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return {"is": _importable(node, path), "of": of(zip(node._fields, node, strict=True)), "static": {}}
    if dataclasses.is_dataclass(node):
        fields = {field.name: field for field in dataclasses.fields(node)}
        static = {name: getattr(node, name) for name, field in fields.items() if field.metadata.get("static")}
        odd = {name: value for name, value in static.items() if value is not None and type(value) not in _CONSTANTS}
        if not odd:
            dynamic = [(name, getattr(node, name)) for name in fields if name not in static]
            return {"is": _importable(node, path), "of": of(dynamic), "static": static}
    raise ValueError(
        f"{path or 'the result'} is a {name_of(type(node))}, which a store cannot describe: return dicts, lists, "
        "tuples, named tuples, and dataclasses whose static fields are numbers or strings"
    )


def _importable(node: Any, path: str) -> str:
    name = f"{type(node).__module__}:{type(node).__qualname__}"
    if "<" in name:
        raise ValueError(f"{path or 'the result'} is of a class made in a function, {name}: move it into the module")
    return name


def _class(name: str) -> Any:
    """A class of a module that is imported already: a store runs nothing that the program would not run without it."""
    module, qualname = name.split(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not (dataclasses.is_dataclass(found) or hasattr(found, "_fields")):
        raise ValueError(f"the store holds a {qualname} of {module}: import that module before you read the result")
    return found
