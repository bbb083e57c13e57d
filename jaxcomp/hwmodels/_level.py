"""A level of a memory hierarchy: what it keeps, how much, how fast, at what energy."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Level:
    """Memories of one kind, each above `fanout` units of the level below.

    Attributes:
        name: of its latency and energy terms; static.
        keeps: the tensors it holds, of "W", "I" and "O": weights, inputs, outputs; static.
        fanout: units of the level below (multipliers, below level 0) that one memory feeds.
        capacity_kib: of one memory.
        words_per_cycle: of one memory, in and out together.
        access_pj, access_pj_per_kib: energy of a word in or out: a constant, and so much for each KiB of capacity.
        unrolls: loops that the closed-form dataflow lays over the fan-out, of "NKCPQRS"; static.
        grows: loops that the closed-form dataflow lengthens in this level, first to last and inside out; static.
    """

    name: str = dataclasses.field(metadata={"static": True})
    keeps: str = dataclasses.field(metadata={"static": True})
    fanout: Any = 1.0
    capacity_kib: Any = jnp.inf
    words_per_cycle: Any = jnp.inf
    access_pj: Any = 0.0
    access_pj_per_kib: Any = 0.0
    unrolls: str = dataclasses.field(default="", metadata={"static": True})
    grows: str = dataclasses.field(default="", metadata={"static": True})

    @property
    def word_pj(self) -> Any:
        """Energy of a word in or out; memory without bounds has no capacity that it could depend on."""
        capacity = jnp.where(jnp.isinf(self.capacity_kib), 0.0, self.capacity_kib)
        return self.access_pj + self.access_pj_per_kib * capacity
