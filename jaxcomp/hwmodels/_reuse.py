"""What a mapping moves: the words of every tensor that go in and out of every level of a memory hierarchy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp._workload import Product
from jaxcomp.hwmodels._mapping import DIMENSIONS, Mapping
from jaxcomp.hwmodels._mode import Exact, Mode

RELEVANT = {
    tensor: np.array([d in loops for d in DIMENSIONS])
    for tensor, loops in {"W": "KCRS", "I": "NCPQRS", "O": "NKPQ"}.items()
}


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Reuse:
    """The reuse analysis of a mapping, for one group of a convolution run once.

    Attributes:
        steps, spatial, importance: ``[..., levels, 7]``, as in `Mapping`.
        moves: ``[..., levels, 7]``, one where a loop takes more than one step.
        stride: ``[...]``, of the convolution.
    """

    steps: jax.Array
    spatial: jax.Array
    importance: jax.Array
    moves: jax.Array
    stride: jax.Array

    @classmethod
    def of(cls, mapping: Mapping, product: Product, mode: Mode = Exact()) -> "Reuse":
        steps = mapping.steps(product, mode)
        spatial, importance = (
            jnp.broadcast_to(jnp.asarray(x, jnp.float32), steps.shape) for x in (mapping.spatial, mapping.importance)
        )
        # A loop of one step neither moves a tile nor ends the reuse of what is outside it.
        moves = jnp.minimum(mode.ceil(steps - 1), 1)
        return cls(steps, spatial, importance, moves, jnp.asarray(product.stride, jnp.float32))

    @property
    def levels(self) -> int:
        return self.steps.shape[-2]

    @property
    def iterations(self) -> jax.Array:
        """Steps of all loops: cycles of an array that is never kept waiting."""
        return jnp.prod(self.steps, (-2, -1))

    def units(self, level: int) -> jax.Array:
        """How many of a level's memories are in use; of the multipliers, for level -1."""
        return jnp.prod(self.spatial[..., level + 1 :, :], (-2, -1))

    def extents(self, level: int) -> jax.Array:
        """The extents ``[..., 7]`` of the loops that run within one memory of a level."""
        return jnp.prod((self.steps * self.spatial)[..., : level + 1, :], -2)

    def tile(self, tensor: str, level: int) -> jax.Array:
        """Words of a tensor that one memory of a level holds."""
        return volume(tensor, self.extents(level), self.stride)

    def accesses(self, tensor: str, keeps: tuple[str, ...]) -> dict[int, jax.Array]:
        """Words of a tensor read and written in every level that keeps it, in all its memories together.

        Weights and inputs are read for the level below, one read for all units that want the same word, and written
        when they come from above. Outputs come from below, added up over units on the way: each is written, and read
        before unless it is the first of its sum; a partial sum that leaves comes back later, unless it is the last.
        """
        holders = [level for level, held in enumerate(keeps) if tensor in held]
        found, below, words = {}, -1, self.iterations
        size = self.tile(tensor, self.levels - 1)
        for level in holders:
            served = words * self._spread(tensor, below, level) * self.units(level)
            if level == holders[-1]:
                found[level] = 2 * served - size if tensor == "O" else served
                break
            words = self.tile(tensor, level) * self._fetches(tensor, level)
            brought = words * self.units(level)
            if tensor == "O":
                copies = self.units(level) / self._spread(tensor, level, self.levels - 1)
                found[level] = 2 * served + brought - size * copies
            else:
                found[level] = served + brought
            below = level
        return found

    def _spread(self, tensor: str, below: int, level: int) -> jax.Array:
        """Units of the level below in one of this level that hold different words of a tensor."""
        between = jnp.where(RELEVANT[tensor], self.spatial[..., below + 1 : level + 1, :], 1)
        return jnp.prod(between, (-2, -1))

    def _fetches(self, tensor: str, level: int) -> jax.Array:
        """How many whole tiles a memory is brought in all.

        Loops outside multiply, down to the innermost that the tensor depends on; those further in find the tile in
        place. Where that innermost loop slides a window of inputs, only the new rows or columns come.
        """
        relevant = RELEVANT[tensor]
        fetches = idle = jnp.ones(self.steps.shape[:-2])
        for outer in range(level + 1, self.levels):
            steps, rests = self.steps[..., outer, :], 1 - self.moves[..., outer, :]
            # Whether all loops that the tensor depends on rest inside each loop: then a step brings only what is new.
            rest = jnp.broadcast_to(idle[..., None], steps.shape)
            for loop in np.flatnonzero(relevant).tolist():
                rest = rest * jnp.where(self._inside(loop, outer), rests[..., loop, None], 1)
            between = jnp.prod(self.spatial[..., level + 1 : outer + 1, :], -2)
            fetches = fetches * jnp.prod(1 + (steps - 1) * (1 - rest * (1 - self._new(tensor, level, between))), -1)
            idle = idle * jnp.prod(jnp.where(relevant, rests, 1), -1)
        return fetches

    def _inside(self, loop: int, level: int) -> jax.Array:
        """Whether a loop runs inside each of a level ``[..., 7]``."""
        every = self.importance[..., level, :]
        one = every[..., loop, None]
        return jnp.where(np.arange(len(DIMENSIONS)) < loop, one <= every, one < every)

    def _new(self, tensor: str, level: int, between: jax.Array) -> jax.Array:
        """The share of a tile that is new after a step of each loop ``[..., 7]`` by itself."""
        if tensor != "I":
            return jnp.broadcast_to(jnp.float32(RELEVANT[tensor]), between.shape)
        extents, stride = self.extents(level), self.stride[..., None]
        window = jnp.stack(_window(extents, self.stride) * 2, -1)
        shifts = jnp.concatenate([extents[..., 3:5] * stride, extents[..., 5:7]], -1) * between[..., 3:7]
        whole = jnp.broadcast_to(jnp.float32(RELEVANT[tensor][:3]), (*between.shape[:-1], 3))
        return jnp.concatenate([whole, jnp.minimum(shifts / window, 1)], -1)


def _window(extents: jax.Array, stride: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows and columns of inputs under a tile of outputs and of the kernel."""
    rows, columns = ((extents[..., i] - 1) * stride + extents[..., i + 2] for i in (3, 4))
    return rows, columns


def volume(tensor: str, extents: jax.Array, stride: jax.Array) -> jax.Array:
    """Words of a tensor that loops of these extents ``[..., 7]`` touch."""
    if tensor == "I":
        rows, columns = _window(extents, stride)
        return extents[..., 0] * extents[..., 2] * rows * columns
    return jnp.prod(jnp.where(RELEVANT[tensor], extents, 1), -1)
