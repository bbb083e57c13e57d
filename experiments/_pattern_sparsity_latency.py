"""What a compressed network takes beside the dense one, and how each of its products is done."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from rich.table import Table

import jaxcomp as jc
from experiments import _tables


@dataclass(frozen=True)
class Times:
    """One network on inputs of one shape, as `jaxcomp.compile` measured it.

    Attributes:
        batch: examples of a call.
        dense_s, compiled_s: of the whole: the median of the dense, and by the median ratio to it.
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
    bytes_ratio: float
    difference: float
    removed: int
    packed: dict[str, str]
    stayed: dict[str, str]
    notes: Sequence[str]


def measured(apply: Callable[[Any, Any], Any], params: Any, spec: jc.Spec, x: Any, pairs: int) -> Times:
    """``apply(params, x)`` and what is made of it, in turns, so many times."""
    compiled = jc.compile(apply, params, spec, x, rounds=pairs)
    report = compiled.report
    difference = np.abs(np.asarray(jax.jit(apply)(params, x)) - np.asarray(compiled(x))).max()
    stayed = [each for each in report.products if each.form == "dense"]
    return Times(
        batch=len(x),
        dense_s=report.dense_s,
        compiled_s=report.seconds,
        bytes_ratio=report.dense_bytes / report.bytes,
        difference=float(difference),
        removed=sum(each.channels for each in report.removed),
        packed={each.name: each.form for each in report.products if each not in stayed},
        stayed={each.name: _best(each.tried) for each in stayed},
        notes=report.notes,
    )


def times(latencies: Mapping[str, Sequence[Times]], pairs: int) -> Table:
    """A row for every network and batch."""
    drawn = _tables.blank(
        "compiled beside dense, on this machine",
        ("network", "batch", "dense ms", "compiled ms", "faster", "smaller", "removed", "packed"),
        text=("network",),
        caption=f"Medians of {pairs} pairs, in turns. Removed: channels. Packed: products of all that are left.",
    )
    for name, found in latencies.items():
        for at, one in enumerate(found):
            drawn.add_row(
                name * (at == 0),
                f"{one.batch}",
                f"{1e3 * one.dense_s:.3f}",
                f"{1e3 * one.compiled_s:.3f}",
                f"{one.dense_s / one.compiled_s:.2f}x",
                f"{one.bytes_ratio:.1f}x",
                f"{one.removed}",
                f"{len(one.packed)} of {len(one.packed) + len(one.stayed)}",
                end_section=at == len(found) - 1,
            )
    return drawn


def forms(latencies: Mapping[str, Sequence[Times]]) -> list[str]:
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
