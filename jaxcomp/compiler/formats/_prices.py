"""What the parts of a product cost, in multiplications of a dense one: only to choose which forms are worth building.

The figures are from one core of the machine of the benchmark, float32, 1024 by 1024: a multiplication takes 0.011 ns a
row, and reading a weight as long as four of them; an entry gathered by itself 0.35 ns, in a run of 32 or as one of
many added to a row 0.13 ns; an operation of its own 2 us. Kernels of our own were priced against the same products.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxcomp.compiler.formats._format import Format


class Prices(NamedTuple):
    """For a row, in the time that a multiplication takes, the reading of its weight included.

    Attributes:
        gathered: an entry gathered by itself.
        copied: one of a run of entries, gathered or added.
        call: an operation of its own.
        listed: a weight with an input of its own, by a kernel.
        coded: a weight of eight bits, by a kernel.
        place: a number that says which input is meant, by a kernel.
    """

    gathered: float
    copied: float
    call: float
    listed: float
    coded: float
    place: float

    @staticmethod
    def of(rows: int | None) -> "Prices":
        """For so many rows; for none in particular what matters is bytes, and a number is an index or a weight."""
        if rows is None:
            return Prices(1.0, 0.0, 0.0, listed=1.0, coded=0.25, place=1.0)
        return Prices(
            30 * rows / (rows + 4), 12 * rows / (rows + 4), 2e5 / (rows + 4), listed=3.0, coded=0.95, place=0.0
        )


class Proposal(NamedTuple):
    """A form that a matrix may take.

    Attributes:
        cost: what a row is expected to cost, calls aside.
        calls: operations of its own.
        build: makes the form.
    """

    cost: float
    calls: float
    build: Callable[[], Format]
