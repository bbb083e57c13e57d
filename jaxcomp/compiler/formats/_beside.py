"""Formats beside one another: each gives some of the outputs, and a gather puts them in order."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp.compiler.formats._format import Format
from jaxcomp.compiler.formats._take import take


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Beside(Format):
    """Parts that read the same inputs, their outputs side by side, then outputs of zero, then all put in order.

    Attributes:
        parts: formats of as many inputs each; at least one.
        order: ``[*stack, columns // run]``: where each run of outputs is; None where they are in order.
        run: how many consecutive outputs are put in place together.
        zeros: how many outputs of zero follow those of the parts.
        columns: outputs in all; the parts may have more, where the last strip is filled up.
    """

    parts: tuple[Format, ...]
    order: jax.Array | None
    run: int = dataclasses.field(metadata={"static": True})
    zeros: int = dataclasses.field(metadata={"static": True})
    columns: int = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array, preferred_element_type: Any = None) -> jax.Array:
        outputs = [part(x, preferred_element_type) for part in self.parts]
        if self.zeros:
            outputs.append(jnp.zeros((*x.shape[:-1], self.zeros), outputs[0].dtype))
        y = jnp.concatenate(outputs, axis=-1)
        if self.order is not None:
            y = take(y.reshape(-1, y.shape[-1]), self.order, self.run)
        return y[..., : self.columns].reshape(*x.shape[:-1], self.columns)

    def dense(self) -> np.ndarray:
        parts = [part.dense() for part in self.parts]
        out = np.concatenate([*parts, np.zeros((*parts[0].shape[:-1], self.zeros), parts[0].dtype)], axis=-1)
        if self.order is not None:
            order = np.asarray(self.order)
            order = (order[..., None] * self.run + np.arange(self.run)).reshape(*order.shape[:-1], 1, -1)
            out = np.take_along_axis(out, order, axis=-1)
        return out[..., : self.columns]

    def describe(self) -> str:
        order = "" if self.order is None else ", outputs put in order"
        return " and ".join(part.describe() for part in self.parts) + order
