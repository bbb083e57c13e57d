"""What a compressed network takes beside the dense one of the same weights, timed in turns."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from rich.table import Table

import jaxcomp as jc
from experiments import _tables

_LEAST_S = 0.005  # of one timing: a shorter call is repeated within it


@dataclass(frozen=True)
class Latency:
    """One network on inputs of one shape.

    Attributes:
      batch: examples of a call.
      dense_s, compiled_s: medians over the pairs.
      faster: the median over the pairs of dense by compiled.
      bytes_ratio: bytes of all parameters, dense by compiled.
      difference: the largest between an output of the one and of the other.
    """

    batch: int
    dense_s: float
    compiled_s: float
    faster: float
    bytes_ratio: float
    difference: float


def measured(apply: Callable[[Any, Any], Any], params: Any, spec: jc.Spec, x: Any, pairs: int) -> Latency:
    """``apply(params, x)``, jitted, and what `jaxcomp.compile` makes of it, one after the other so many times."""
    compiled, jitted = jc.compile(apply, params, spec, x), jax.jit(apply)
    calls = (lambda: jitted(params, x)), (lambda: compiled(x))
    dense_output, output = (np.asarray(call()) for call in calls)
    repeats = [_repeats(call) for call in calls]
    timings = [tuple(map(_seconds, calls, repeats)) for _ in range(pairs)]
    dense_s, compiled_s = (statistics.median(each) for each in zip(*timings, strict=True))
    return Latency(
        batch=len(x),
        dense_s=dense_s,
        compiled_s=compiled_s,
        faster=statistics.median(a / b for a, b in timings),
        bytes_ratio=_bytes(params) / _bytes(compiled.params),
        difference=float(np.abs(dense_output - output).max()),
    )


def times(latencies: Mapping[str, Sequence[Latency]], pairs: int) -> Table:
    """A row for every network and batch."""
    table = _tables.blank(
        "compiled beside dense, on this machine",
        ("network", "batch", "dense ms", "compiled ms", "faster", "smaller"),
        text=("network",),
        caption=f"Medians of {pairs} pairs, in turns.",
    )
    for name, found in latencies.items():
        for at, one in enumerate(found):
            cells = f"{1e3 * one.dense_s:.3f}", f"{1e3 * one.compiled_s:.3f}", f"{one.faster:.2f}x"
            last = at == len(found) - 1
            table.add_row(name * (at == 0), f"{one.batch}", *cells, f"{one.bytes_ratio:.1f}x", end_section=last)
    return table


def _repeats(call: Callable[[], Any]) -> int:
    return max(1, round(_LEAST_S / _seconds(call, 1)))


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / repeats


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
