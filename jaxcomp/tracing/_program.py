"""The program that a model is: its jaxpr, with the leaves and the inputs that go in by path."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxcomp._paths import leaves_by_path, replace


class _Program(NamedTuple):
    jaxpr: Any  # closed: with its constants
    leaves: dict[str, Any]  # they go in first, in this order
    inputs: dict[str, Any]  # and then these
    outputs: Any  # shapes in the pytree that the model returns


def _program(apply: Callable[..., Any], params: Any, inputs: tuple[Any, ...]) -> _Program:
    """Trace ``apply(params, *inputs)`` for the shapes of its arrays; nothing is computed."""
    leaves, given = leaves_by_path(params), leaves_by_path(inputs)

    def run(values: list, data: list) -> Any:
        return apply(
            replace(params, dict(zip(leaves, values, strict=True))),
            *replace(inputs, dict(zip(given, data, strict=True))),
        )

    shapes = [[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in tree.values()] for tree in (leaves, given)]
    jaxpr, outputs = jax.make_jaxpr(run, return_shape=True)(*shapes)
    return _Program(jaxpr, leaves, given, outputs)
