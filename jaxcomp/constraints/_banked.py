"""A leaf as a memory of several banks sees it: strips of outputs, and of each output the inputs of every bank."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.constraints._layout import Layout
from jaxcomp.constraints._view import View


@dataclasses.dataclass(frozen=True)
class Banked:
    """The arrangement of a leaf's weights in ``[strips, rows, banks, depth]``. Static.

    Input c lies in bank ``c mod banks``, whatever the tap. Among the places of a bank, missing channels of the last
    block come last; the last strip is filled up with rows of zeros.
    """

    banks: int
    rows: int
    layout: Layout | None

    @property
    def view(self) -> View:
        """A pool is one output's inputs of one bank."""
        name = f"gather({self.banks}, rows={self.rows})"
        return View(name, self.rows, self.banks, "Rrc", "Ct", "", taps="axis", layout=self.layout)

    def cells(self, x: Any, order: Any = None) -> Any:
        """The leaf arranged; its outputs are taken in an order if one is given."""
        parts = self.view.split(x)
        lines = parts.reshape(-1, self.banks, parts.shape[1])
        if order is not None:
            lines = lines[self._filled_up(order, len(lines))]
        return lines.reshape(-1, self.rows, *lines.shape[1:])

    def leaf(self, cells: Any, shape: tuple[int, ...], order: Any = None) -> Any:
        """The inverse of `cells` for a leaf of this shape."""
        lines = cells.reshape(-1, *cells.shape[2:])
        if order is not None:
            order = self._filled_up(order, len(lines))
            lines = lines[(jnp if isinstance(order, jax.Array) else np).argsort(order)]
        return self.view.merge(lines.reshape(-1, lines.shape[2], 1), shape)

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Outputs, channels and taps of a leaf of this shape."""
        return (self.layout or Layout.of(len(shape))).sizes(shape)

    def depths(self, shape: tuple[int, ...]) -> np.ndarray:
        """How many inputs every bank holds, the smallest last."""
        _, channels, taps = self.sizes(shape)
        return taps * -((np.arange(self.banks) - channels) // self.banks)

    @staticmethod
    def _filled_up(order: Any, lines: int) -> Any:
        return (jnp if isinstance(order, jax.Array) else np).concatenate([order, np.arange(len(order), lines)])


def groups_needed(used: Any) -> jax.Array:
    """How many groups the non-zeros of each strip need: a group has room for one a bank, for as many of each row."""
    _, rows, banks, _ = used.shape
    by_row, by_bank = (jnp.max(jnp.sum(used, axis=axes), axis=1) for axes in ((2, 3), (1, 3)))
    return jnp.maximum(-(-by_row * rows // banks), by_bank)
