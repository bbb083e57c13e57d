"""How the loops of a convolution are laid over a memory hierarchy: factors, spatial split and order by level."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp._workload import Product
from jaxcomp.hwmodels._mode import Exact, Mode

DIMENSIONS = "NKCPQRS"  # batch, outputs, inputs, output rows and columns, kernel rows and columns


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Mapping:
    """Where every loop of a convolution runs; level 0 is next to the multipliers, the last one is outside the chip.

    The last axis of every array is the loop: batch, outputs, inputs, output rows and columns, kernel rows and columns
    (`DIMENSIONS`, "NKCPQRS"). Axes before the two named are the products', so a mapping of a whole workload has
    arrays ``[products, levels, 7]``. All are leaves: `jax.vmap` takes many mappings, `jax.grad` goes by real factors.

    The outermost level has no factors of its own: it runs what the others leave, ``ceil(size / product of the
    others)``, so that a mapping fits a layer of any size.

    Attributes:
        temporal: ``[levels - 1, 7]``, steps that a level runs one after the other, without the outermost.
        spatial: ``[levels, 7]``, what runs at once in the units below a level.
        importance: ``[levels, 7]``, any real numbers: of two loops of one level the more important is outside. Loops
            of equal importance stand in the order of `DIMENSIONS`.

    >>> mapping = Mapping.parse("L3[WIO] K8 P7 - L2[WI] N1 K4X - L1[O] Q28 C16X - L0[W] P4")
    >>> print(mapping.text(Product("conv", None, 1, 1, 16, 32, out_h=28, out_w=28), ("W", "O", "WI", "WIO")))
    L3[WIO] K8 P7 - L2[WI] N1 K4X - L1[O] Q28 C16X - L0[W] P4
    """

    temporal: Any
    spatial: Any
    importance: Any

    @classmethod
    def parse(cls, text: str) -> "Mapping":
        """A mapping from Timeloop's notation: levels from the outermost, loops from the outermost, "K4X" spatial.

        Raises:
            ValueError: a level or a loop that cannot be read; a loop twice in one level.
        """
        parts = [part.split() for part in reversed(text.split(" - "))]
        shape = (len(parts), len(DIMENSIONS))
        temporal, spatial, importance = np.ones(shape), np.ones(shape), np.zeros(shape)
        for level, (head, *loops) in enumerate(parts):
            if not re.fullmatch(rf"L{level}\[\w*\]", head):
                raise ValueError(f"level {head!r} of {text!r}; expected 'L{level}[...]': levels from the outermost")
            seen = set()
            for place, loop in enumerate(loops):
                found = re.fullmatch(rf"([{DIMENSIONS}])(\d+)(X?)", loop)
                if not found or found.groups()[::2] in seen:
                    raise ValueError(f"loop {loop!r} in {head} of {text!r}; expected each once, like 'K4' or 'K4X'")
                seen.add(found.groups()[::2])
                where = level, DIMENSIONS.index(found[1])
                (spatial if found[3] else temporal)[where] = int(found[2])
                if not found[3]:
                    importance[where] = len(loops) - place
        return cls(*(np.float32(array) for array in (temporal[:-1], spatial, importance)))

    def text(self, product: Product, keeps: tuple[str, ...]) -> str:
        """One mapping of one product in Timeloop's notation; `keeps` are the tensors that every level holds."""
        steps, spatial, importance = (np.asarray(x) for x in (self.steps(product), self.spatial, self.importance))
        lines = []
        for level, held in enumerate(keeps):
            order = np.argsort(-importance[level], kind="stable")
            loops = [f"{DIMENSIONS[d]}{steps[level, d]:g}" for d in order if steps[level, d] > 1] or ["N1"]
            loops += [f"{DIMENSIONS[d]}{spatial[level, d]:g}X" for d in order if spatial[level, d] > 1]
            lines.append(f"L{level}[{held}] {' '.join(loops)}")
        return " - ".join(reversed(lines))

    @property
    def levels(self) -> int:
        return jnp.shape(self.spatial)[-2]

    def steps(self, product: Product, mode: Mode = Exact()) -> jax.Array:
        """Temporal factors ``[levels, 7]`` of all levels, those of the outermost from the layer's sizes."""
        temporal, whole = jnp.asarray(self.temporal), sizes(product)
        inside = jnp.prod(temporal, -2) * jnp.prod(jnp.asarray(self.spatial), -2)
        whole, inside = (jnp.broadcast_to(x, jnp.broadcast_shapes(whole.shape, inside.shape)) for x in (whole, inside))
        # A share of a step below one is no saving: a tile larger than the layer is still brought in once.
        outermost = mode.ceil(jnp.maximum(whole / inside, 1.0))[..., None, :]
        temporal = jnp.broadcast_to(temporal, (*outermost.shape[:-2], *temporal.shape[-2:]))
        return jnp.concatenate([temporal, outermost], -2)


def sizes(product: Product) -> jax.Array:
    """The extents of the seven loops of one group, on a last axis."""
    loops = (
        product.batch,
        product.outputs / product.groups,
        product.inputs / product.groups,
        product.out_h,
        product.out_w,
        product.kernel_h,
        product.kernel_w,
    )
    return jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(loop, jnp.float32) for loop in loops)), -1)
