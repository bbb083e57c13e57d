"""Exact top-k with a traced k against ``numpy.partition``, on one core and a million weights.

``numpy.partition`` finds the threshold; `select_top` also breaks ties and returns the mask.
"""

import os
from typing import Any

import numpy as np
from rich.table import Table

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX starts its threads

import jax
import jax.numpy as jnp

from benchmarks._timing import in_turns, ratio
from jaxcomp import select_top

SIZE = 1_000_000


def measure(repeats: int) -> tuple[dict[str, Any], Table]:
    """Median milliseconds and the ratio of the two, turn by turn."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=SIZE).astype(np.float32)
    arrays = {"normal": normal, "rounded": np.round(normal, 2), "nine in ten zero": normal * (rng.random(SIZE) < 0.1)}
    ours = jax.jit(lambda x, k: select_top(jnp.abs(x), k))
    table = Table(
        "weights", "kept %", "jaxcomp ms", "numpy.partition ms", "ratio", title="select_top, 1e6 weights, 1 core"
    )
    rows = []
    for name, array in arrays.items():
        on_device = jnp.asarray(array)
        for density in (0.001, 0.01, 0.05, 0.1, 0.5):
            k = round(density * SIZE)
            programs = {
                "ours": lambda x=on_device, k=k: ours(x, k).block_until_ready(),
                "numpy": lambda x=array, k=k: np.partition(np.abs(x), SIZE - k),
            }
            times = in_turns(programs, 5 * repeats)
            row = {
                "weights": name,
                "density": density,
                "ours_ms": 1e3 * times["ours"].median,
                "numpy_ms": 1e3 * times["numpy"].median,
                "ratio": ratio(times["ours"], times["numpy"]),
            }
            rows.append(row)
            figures = (f"{row[key]:.2f}" for key in ("ours_ms", "numpy_ms", "ratio"))
            table.add_row(name, f"{100 * density:g}", *figures)
    return {"rows": rows, "compilations": ours._cache_size()}, table
