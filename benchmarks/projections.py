"""Projections in reads of the array they act on, on one core, beside those of other libraries.

A read is one ``jnp.sum`` of the array, compiled: the least that anything which looks at every weight can take. Each
program takes turns with the read alone: among programs that claim and free large blocks of memory, what one gave back
to the system the next waits for, and most of its time may be that. From 1e7 weights on it is so for every program:
arrays of 32 MB and more are claimed anew at every call. Temporary memory is what XLA sets aside for a program besides
its input and its output, as a multiple of the input. Programs that take seconds are left out at the largest size, and
a decomposition at all but the smallest.

JAXopt, which is no longer maintained, is measured where it is installed (``pip install --no-deps jaxopt``). JAXpruner
is on no package registry, and is left out.
"""

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.table import Table

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX starts its threads

import jax
import jax.numpy as jnp
import optax

from benchmarks._timing import in_turns, ratio
from jaxcomp.constraints import (
    Binary,
    Box,
    Constraint,
    Dykstra,
    L1Ball,
    L2Ball,
    LowRank,
    Polarized,
    PowerOfTwo,
    Quantized,
    Simplex,
    Sparse,
    Ternary,
    Tied,
    Uniform,
    block_columns,
    chunks,
    diagonals,
    elements,
    fragments,
    outputs,
)

SIDES = 320, 1024, 3200  # of square matrices of 1e5, 1e6 and 1e7 weights
DENSITY = 0.1


def measure(repeats: int) -> tuple[dict[str, Any], Table]:
    """Median milliseconds, the same in reads, and temporary memory in inputs."""
    columns = ("weights", "projection", "ms", "reads", "temporary, inputs")
    table, rows = Table(*columns, title="projections of a normal matrix, 1 core"), []
    for side in SIDES:
        for row in _at_size(side, repeats):
            rows.append(row)
            memory = "" if row["temporary"] is None else f"{row['temporary']:.2f}"
            table.add_row(f"{side}²", row["projection"], f"{row['ms']:.2f}", f"{row['reads']:.1f}", memory)
        table.add_section()
    return {"rows": rows}, table


def _at_size(side: int, repeats: int) -> list[dict[str, Any]]:
    array = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    x = jnp.asarray(array)
    read = functools.partial(_run, _compile(jnp.sum, x), x)
    compiled = {name: _compile(program, x) for name, program in _programs(side).items()}
    runs = {name: functools.partial(_run, program, x) for name, program in compiled.items()}
    rows = []
    for name, run in (runs | _others(array)).items():
        times = in_turns({"read": read, "run": run}, repeats)
        row = {"size": side**2, "projection": name, "ms": 1e3 * times["run"].median}
        row |= {"read_ms": 1e3 * times["read"].median, "reads": ratio(times["run"], times["read"])}
        row |= {"temporary": _temporary(compiled[name], x) if name in compiled else None}
        rows.append(row)
    return rows


def _programs(side: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """By the largest side at which they run."""
    total = 0.1 * side**2  # an eighth of the sum of magnitudes
    small: dict[str, Constraint] = {"LowRank(32)": LowRank(32)}
    middle: dict[str, Constraint] = {
        "Quantized(Uniform(4))": Quantized(Uniform(4)),
        "Quantized(PowerOfTwo(4))": Quantized(PowerOfTwo(4)),
        "Quantized(Ternary())": Quantized(Ternary()),
        "Dykstra(L1Ball, Box)": Dykstra(L1Ball(total), Box(-1.0, 1.0)),
    }
    large: dict[str, Constraint] = {
        "Sparse(0.1), elements": Sparse(DENSITY, elements()),
        "Sparse(0.1), outputs": Sparse(DENSITY, outputs()),
        "Sparse(0.5), chunks(4)": Sparse(0.5, chunks(4)),
        "Sparse(0.1), block_columns(8, 8)": Sparse(DENSITY, block_columns(8, 8)),
        "Sparse(0.1), block_columns(8, 64)": Sparse(DENSITY, block_columns(8, 64)),
        "Sparse(0.1), chunks(64)": Sparse(DENSITY, chunks(64)),
        "Polarized(fragments(8))": Polarized(fragments(8)),
        "Tied(diagonals(8))": Tied(diagonals(8)),
        "Quantized(Binary())": Quantized(Binary()),
        "L1Ball": L1Ball(total),
        "L1Ball, outputs": L1Ball(total / side, outputs()),
        "Simplex": Simplex(total),
        "L2Ball": L2Ball(1.0),
        "Box": Box(-1.0, 1.0),
    }
    constraints = large | (middle if side <= SIDES[1] else {}) | (small if side <= SIDES[0] else {})
    programs = {name: constraint.project for name, constraint in constraints.items()}
    if side > SIDES[1]:
        return programs
    return (
        programs
        | {
            "optax l1 ball": lambda x: optax.projections.projection_l1_ball(x, total),
            "optax simplex": lambda x: optax.projections.projection_simplex(x, total),
        }
        | _of_jaxopt(total)
    )


@functools.cache
def _jaxopt() -> Any:
    """The projections of JAXopt; if it is not installed a line says so, once."""
    if importlib.util.find_spec("jaxopt") is None:
        print("jaxopt is not installed: its projections are left out")
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it says that nobody maintains it
        return importlib.import_module("jaxopt.projection")


def _of_jaxopt(total: float) -> dict[str, Callable[[jax.Array], jax.Array]]:
    peer = _jaxopt()
    if peer is None:
        return {}
    return {
        "jaxopt l1 ball": lambda x: peer.projection_l1_ball(x.ravel(), total).reshape(x.shape),
        "jaxopt simplex": lambda x: peer.projection_simplex(x.ravel(), total).reshape(x.shape),
        "jaxopt l2 ball": lambda x: peer.projection_l2_ball(x, 1.0),
        "jaxopt box": lambda x: peer.projection_box(x, (-1.0, 1.0)),
    }


def _others(array: np.ndarray) -> dict[str, Callable[[], object]]:
    """Of the largest tenth of magnitudes: `numpy.partition` finds the threshold alone, `torch.topk` the indices."""
    k = round(DENSITY * array.size)
    others: dict[str, Callable[[], object]] = {
        "numpy.sum": array.sum,
        "numpy.partition": lambda: np.partition(np.abs(array), array.size - k, axis=None),
    }
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)
        tensor = torch.from_numpy(array).ravel()
        others["torch.topk"] = lambda: torch.topk(tensor.abs(), k, sorted=False)
    return others


def _compile(program: Callable[[jax.Array], jax.Array], x: jax.Array) -> Any:
    return jax.jit(program).lower(x).compile()


def _run(program: Any, x: jax.Array) -> None:
    program(x).block_until_ready()


def _temporary(program: Any, x: jax.Array) -> float:
    return program.memory_analysis().temp_size_in_bytes / x.nbytes
