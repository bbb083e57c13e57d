"""Where the time of a product with 32 by 32 blocks goes, and what eight bits would make of it; one core.

The batched product alone is what is left if gathering its inputs and adding up its outputs took no time at all. Eight
bits are tried as weights that are widened before the product, and as a product of integers throughout, for which the
inputs would have to be rounded too, which is not counted.
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


def measure(repeats: int) -> tuple[dict[str, Any], Table]:
    """Microseconds of every part, and as a share of the dense product by ONNX Runtime and of the f32 part."""
    columns = "rows", "program", "µs", "of ONNX Runtime, dense", "of the f32 product alone"
    table, figures = Table(*columns, title="parts of a product with 32 by 32 blocks, a tenth of 1024², 1 core"), {}
    for rows in ROWS:
        dense = functools.partial(products.onnx_session, False, SHAPE, STRUCTURE, rows, 1)
        builders = {"ONNX Runtime, dense": dense, "blocks, all of it": functools.partial(_whole, rows)}
        builders |= {f"product alone, {kind}": functools.partial(_alone, kind, rows) for kind in _KINDS}
        times = in_turns_apart(builders, repeats)
        peers = times["ONNX Runtime, dense"], times["product alone, f32"]
        for program, time in times.items():
            shares = [ratio(time, peer) for peer in peers]
            us = 1e6 * time.median / products.calls(SHAPE, rows)
            figures[f"{program}, {rows} rows"] = {"us": us, "of_dense": shares[0], "of_product": shares[1]}
            table.add_row(str(rows), program, f"{us:.1f}", *(f"{share:.2f}" for share in shares))
        table.add_section()
    return figures, table


def _blocks(rows: int) -> Any:
    from jaxcomp.compiler.formats import candidates

    (blocks,) = (
        form for form in candidates(products.matrix(SHAPE, STRUCTURE), rows) if type(form).__name__ == "Blocks"
    )
    return blocks


def _whole(rows: int) -> Callable[[], Any]:
    pin(1)
    return products.jitted(_blocks(rows), SHAPE, rows)


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
