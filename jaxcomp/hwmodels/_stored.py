"""How every product's weights are stored: what of a compressed model a device reads."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass
from jaxcomp._workload import Product, Workload
from jaxcomp.constraints import Footprint


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Stored:
    """The compression of products: numbers that are one for all, or arrays ``[products]``. Every one is a leaf.

    Attributes:
        weight_bits: of a stored weight.
        activation_bits: of an activation, both in and out.
        density: share of weights that are not zero.
        output_density: share of outputs (rows of the matrix, filters) with a weight that is not zero.
        input_density: share of inputs of a filter with a weight that is not zero.
        group_density: share of the constraint's groups (blocks, fragments) with a weight that is not zero.
        activation_density: share of activations coming in that are not zero.
        index_bits: bits per weight of the dense leaf that say where stored weights belong.
        side_bits: bits, in all, of scales, signs and codebooks.
    """

    weight_bits: Any = 8.0
    activation_bits: Any = 8.0
    density: Any = 1.0
    output_density: Any = 1.0
    input_density: Any = 1.0
    group_density: Any = 1.0
    activation_density: Any = 1.0
    index_bits: Any = 0.0
    side_bits: Any = 0.0

    def weight_bytes(self, product: Product) -> Any:
        """Of the weights of products: kept values, indices and side information; 0 where no leaf feeds a product."""
        values = product.weights * (self.density * self.weight_bits + self.index_bits)
        return (values + self.side_bits) / 8 * product.weighted


def stored(
    workload: Workload,
    footprints: Mapping[str, Footprint] | None = None,
    *,
    weight_bits: ArrayLike = 8.0,
    activation_bits: ArrayLike = 8.0,
) -> Stored:
    """How the leaf of every product is stored, as arrays ``[products]``.

    Args:
        workload: from `jaxcomp.trace`.
        footprints: of leaves by path, as `jaxcomp.footprint` gives them. A product whose leaf has none is dense.
        weight_bits: of products whose leaf has no footprint.
        activation_bits: of all activations, or of those of every product.

    Raises:
        ValueError: a footprint of a leaf that the workload does not read.
    """
    footprints = dict(footprints or {})
    known = {product.path for product in workload if product.path} | {path for path, _ in workload.leaves}
    unknown = sorted(set(footprints) - known)
    if unknown:
        raise ValueError(
            f"footprints of {unknown}, which the workload does not read; leaves that it reads: {sorted(known)}"
        )
    shape = (len(workload),)
    bits = jnp.broadcast_to(jnp.asarray(weight_bits, jnp.float32), shape)
    rows = [_of(footprints.get(p.path), bits[i]) for i, p in enumerate(workload)]
    arrays = (
        {name: jnp.stack([jnp.asarray(row[name], jnp.float32) for row in rows]) for name in rows[0]} if rows else {}
    )
    return Stored(**arrays, activation_bits=jnp.broadcast_to(jnp.asarray(activation_bits, jnp.float32), shape))


def _of(leaf: Footprint | None, bits: Any) -> dict[str, Any]:
    if leaf is None:
        return {"weight_bits": bits, **dict.fromkeys(_DENSITIES, 1.0), "index_bits": 0.0, "side_bits": 0.0}
    # Stored values, not non-zeros: a kept group is stored, moved and multiplied whole.
    return {
        "weight_bits": leaf.value_bits,
        "density": leaf.values / leaf.size,
        "output_density": leaf.row_density,
        "input_density": leaf.column_density,
        "group_density": leaf.group_density,
        "index_bits": leaf.index_bits / leaf.size,
        "side_bits": leaf.side_bits,
    }


_DENSITIES = ("density", "output_density", "input_density", "group_density")
