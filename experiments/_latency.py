"""What a compressed network takes beside the dense one of the same weights, timed in turns, and how it is done."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from rich.table import Table

import jaxcomp as jc
from experiments import _tables

_LEAST_S = 0.005  # of one timing


@dataclass(frozen=True)
class Latency:
    """One network on inputs of one shape.

    Attributes:
        batch: examples of a call.
        dense_s, compiled_s: medians over the pairs.
        faster: the median over the pairs of dense by compiled.
        bytes_ratio: bytes of all parameters in memory, dense by compiled.
        difference: the largest between an output of the one and of the other.
        removed: channels that are gone before products are packed.
        packed: of every product that does not run dense: what it runs as.
        stayed: of every other the best that was tried, and its time by the dense; empty where none was worth a try.
        notes: of the compiler.
    """

    batch: int
    dense_s: float
    compiled_s: float
    faster: float
    bytes_ratio: float
    difference: float
    removed: int = 0
    packed: Mapping[str, str] = field(default_factory=dict)
    stayed: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def measured(apply: Callable[[Any, Any], Any], params: Any, spec: jc.Spec, x: Any, pairs: int) -> Latency:
    """``apply(params, x)``, jitted, and what `jaxcomp.compile` makes of it, one after the other so many times."""
    compiled, jitted = jc.compile(apply, params, spec, x), jax.jit(apply)
    report = compiled.report
    calls = (lambda: jitted(params, x)), (lambda: compiled(x))
    dense_output, output = (np.asarray(call()) for call in calls)
    timings = in_turns(calls, pairs)
    dense_s, compiled_s = (statistics.median(each) for each in zip(*timings, strict=True))
    stayed = [each for each in report.products if each.form == "dense"]
    return Latency(
        batch=len(x),
        dense_s=dense_s,
        compiled_s=compiled_s,
        faster=statistics.median(a / b for a, b in timings),
        bytes_ratio=report.dense_bytes / report.bytes,
        difference=float(np.abs(dense_output - output).max()),
        removed=sum(each.channels for each in report.removed),
        packed={each.name: each.form for each in report.products if each not in stayed},
        stayed={each.name: _best(each.tried) for each in stayed},
        notes=report.notes,
    )


def in_turns(calls: Sequence[Callable[[], Any]], rounds: int) -> list[tuple[float, ...]]:
    """Seconds of all calls in every round, one after the other; a short call is repeated within a timing."""
    repeats = [max(1, round(_LEAST_S / _seconds(call, 2))) for call in calls]
    return [tuple(map(_seconds, calls, repeats)) for _ in range(rounds)]


def times(latencies: Mapping[str, Sequence[Latency]], pairs: int) -> Table:
    """A row for every network and batch."""
    table = _tables.blank(
        "compiled beside dense, on this machine",
        ("network", "batch", "dense ms", "compiled ms", "faster", "smaller", "removed", "packed"),
        text=("network",),
        caption=f"Medians of {pairs} pairs, in turns. Removed: channels. Packed: products of all that are left.",
    )
    for name, found in latencies.items():
        for at, one in enumerate(found):
            packed, stayed = len(one.packed), len(one.stayed)
            table.add_row(
                name * (at == 0),
                f"{one.batch}",
                f"{1e3 * one.dense_s:.3f}",
                f"{1e3 * one.compiled_s:.3f}",
                f"{one.faster:.2f}x",
                f"{one.bytes_ratio:.1f}x",
                f"{one.removed}",
                f"{packed} of {packed + stayed}",
                end_section=at == len(found) - 1,
            )
    return table


def forms(latencies: Mapping[str, Sequence[Latency]]) -> list[str]:
    """A line for every product and batch: what it runs as, or why it stayed dense."""
    return [
        f"{name}, batch {one.batch}: {line}"
        for name, found in latencies.items()
        for one in found
        for line in (
            *(f"{product}: {form}" for product, form in one.packed.items()),
            *(
                f"{product}: dense ({best or 'no form is expected to be faster'})"
                for product, best in one.stayed.items()
            ),
            *one.notes,
        )
    ]


def _best(tried: Sequence[tuple[str, float]]) -> str:
    """The fastest of what was tried beside the dense product, which comes first."""
    if len(tried) < 2:
        return ""
    form, seconds = min(tried[1:], key=lambda each: each[1])
    return f"{form} takes {seconds / tried[0][1]:.2f} times as long"


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / repeats
