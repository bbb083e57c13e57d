"""Values of a traced program that follow from leaves alone: worked out once, and only where a product asks."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

Place = tuple[int, ...]  # where an operation stands: its number in the program, and in the programs around it


class Known:
    """An array that no input of the model has a part in.

    Attributes:
        leaves: paths of the leaves that it follows from.
        loops: the scans over whose steps it varies, outermost first.
        array: its value, worked out when first read; with a leading axis for the steps of every such scan.
    """

    def __init__(self, leaves: frozenset[str], loops: tuple[Place, ...], compute: Callable[[], jax.Array]):
        self.leaves, self.loops, self._compute = leaves, loops, compute

    @functools.cached_property
    def array(self) -> jax.Array:
        with jax.ensure_compile_time_eval():
            return self._compute()

    def step(self, loop: Place) -> "Known":
        """What a step of a scan sees of it: the axis after those of the loops around is that of the steps."""
        return Known(self.leaves, (*self.loops, loop), lambda: self.array)


def leaf(path: str, x: Any) -> Known:
    return Known(frozenset([path]), (), lambda: jax.numpy.asarray(x))


def constant(x: Any) -> Known:
    return Known(frozenset(), (), lambda: x)


def derived(eqn: Any, operands: Sequence[Known]) -> list[Known]:
    """What an operation makes of known values, which need not vary over the same loops."""
    leaves = frozenset[str]().union(*(operand.leaves for operand in operands))
    loops = tuple(sorted({loop for operand in operands for loop in operand.loops}, key=len))

    @functools.cache
    def outputs() -> list[jax.Array]:
        run: Callable[..., list[jax.Array]] = functools.partial(bind, eqn)
        for loop in reversed(loops):
            run = jax.vmap(run, in_axes=[0 if loop in operand.loops else None for operand in operands])
        return run(*(operand.array for operand in operands))

    return [Known(leaves, loops, functools.partial(lambda i: outputs()[i], i)) for i in range(len(eqn.outvars))]


def bind(eqn: Any, *args: Any) -> list[Any]:
    """An operation as it was traced, on these values."""
    found = eqn.primitive.get_bind_params(eqn.params)
    functions, params = found if isinstance(found, tuple) else ((), found)  # as JAX did and as it does
    outs = eqn.primitive.bind(*functions, *args, **params)
    return list(outs) if eqn.primitive.multiple_results else [outs]
