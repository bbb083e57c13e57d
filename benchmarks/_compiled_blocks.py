"""A product with 32 by 32 blocks by its own kernel, in 32 bits and in eight, on one core and two; and by XLA, in parts.

XLA's batched product alone is what is left if gathering its inputs and adding up its outputs took no time at all.
There eight bits are tried as weights that are widened before the product, and as a product of integers throughout, for
which the inputs would have to be rounded too, which is not counted.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import _compiled_products as products
from benchmarks._timing import in_turns_apart, pin, ratio

SHAPE, STRUCTURE, SIDE = (1024, 1024), "32 by 32 blocks, 10 %", 32
ROWS = 1, 64
_PEER = "ONNX Runtime, dense"


def measure(repeats: int) -> tuple[dict[str, Any], Table]:
    """Microseconds of every program, and as a share of the dense product by ONNX Runtime on as many cores."""
    columns = "rows", "program", "cores", "µs", "of ONNX Runtime, dense"
    table, figures = Table(*columns, title="a product with 32 by 32 blocks, a tenth of 1024²"), {}
    for rows in ROWS:
        cases: dict[tuple[str, int], Callable] = {}
        for cores in (1, 2):
            cases[_PEER, cores] = functools.partial(products.onnx_session, False, SHAPE, STRUCTURE, rows, cores)
            for bits in (32, 8):
                cases[f"own kernel, {bits} bits", cores] = functools.partial(_kernel, bits, rows, cores)
            cases["blocks by XLA", cores] = functools.partial(_by_xla, rows, cores)
        cases |= {(f"XLA's product alone, {kind}", 1): functools.partial(_alone, kind, rows) for kind in _KINDS}
        builders = {f"{program}, {cores}": build for (program, cores), build in cases.items()}
        times = in_turns_apart(builders, repeats, warm=True)
        for program, cores in cases:
            time, us = times[f"{program}, {cores}"], 1e6 / products.calls(SHAPE, rows)
            share = ratio(time, times[f"{_PEER}, {cores}"])
            figures[f"{program}, {rows} rows, {cores} cores"] = {"us": us * time.median, "of_dense": share}
            table.add_row(str(rows), program, str(cores), f"{us * time.median:.1f}", f"{share:.3f}")
        table.add_section()
    return figures, table


def _blocks(rows: int) -> Any:
    from jaxcomp.compiler.formats import candidates

    found = candidates(products.matrix(SHAPE, STRUCTURE), rows, portable=True)
    (blocks,) = (form for form in found if type(form).__name__ == "Blocks")
    return blocks


def _by_xla(rows: int, cores: int) -> Callable[[], Any]:
    pin(cores)
    return products.jitted(_blocks(rows), SHAPE, rows)


def _kernel(bits: int, rows: int, cores: int) -> Callable[[], Any]:
    """The same blocks; in eight bits with whole multiples of a scale for each output."""
    pin(cores)
    from jaxcomp.compiler.formats import candidates

    matrix = products.matrix(SHAPE, STRUCTURE)
    if bits == 8:
        scale = np.maximum(np.abs(matrix).max(axis=0), 1) / 127
        matrix = np.rint(matrix / scale).astype(np.float32) * scale
    found = candidates(matrix, rows)
    (form,) = (form for form in found if hasattr(form, "kernel") and ("in 8 bits" in form.describe()) == (bits == 8))
    return products.jitted(form, SHAPE, rows)


def _alone(kind: str, rows: int) -> Callable[[], Any]:
    pin(1)
    import jax
    from jax import lax

    count = len(_blocks(rows).values)
    (given, kept, widened, summed), rng = _KINDS[kind], np.random.default_rng(0)
    x = jax.device_put(rng.integers(-127, 128, (count, rows, SIDE)).astype(given))
    weights = jax.device_put(rng.integers(-127, 128, (count, SIDE, SIDE)).astype(kept))

    @jax.jit
    def program(weights: Any, x: Any) -> Any:
        numbers = (((2,), (1,)), ((0,), (0,)))
        return lax.dot_general(x, weights.astype(widened), numbers, preferred_element_type=summed)

    return products.repeated(lambda: program(weights, x), products.calls(SHAPE, rows), jax.block_until_ready)


_KINDS = {  # dtypes of the inputs, of the weights as they are kept and as they are multiplied, and of the sums
    "f32": ("float32", "float32", "float32", "float32"),
    "weights int8, widened": ("float32", "int8", "float32", "float32"),
    "int8 throughout": ("int8", "int8", "int8", "int32"),
}
