"""What a model costs in silicon: the questions a device answers, and how answers for products add up."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass
from jaxcomp._table import Table
from jaxcomp._workload import Product, Workload
from jaxcomp.hwmodels._mode import Exact, Mode
from jaxcomp.hwmodels._stored import Stored


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ProductCost:
    """What products cost, every number an array of the products' shape.

    Attributes:
        latency_s: seconds, as the device combines the terms.
        latency_terms: seconds that every part alone would need; the largest binds.
        energy_terms: joules, by component.
        weight_bytes: stored weights with indices, scales and signs; of activations none.
        utilization: share of the peak arithmetic in use, or NaN where the device has no such notion.
    """

    latency_s: jax.Array
    latency_terms: dict[str, jax.Array]
    energy_terms: dict[str, jax.Array]
    weight_bytes: jax.Array
    utilization: jax.Array

    @property
    def energy_j(self) -> jax.Array:
        return sum(self.energy_terms.values(), jnp.zeros_like(self.latency_s))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs on a device, in total and by product; print it.

    Attributes:
        latency_s, energy_j, area_mm2: seconds and joules of one run, and square millimetres of silicon. An area that
            the device does not know is NaN; so is energy.
        weight_bytes: of all leaves, each counted once however many products it feeds.
        activation_bytes: the most that is alive at once.
        products: by product, `ProductCost` of arrays ``[products]``.
        names: of the products.
    """

    latency_s: jax.Array
    energy_j: jax.Array
    area_mm2: jax.Array
    weight_bytes: jax.Array
    activation_bytes: jax.Array
    products: ProductCost
    names: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def binds(self) -> list[str]:
        """For every product the name of the term that takes longest."""
        names = list(self.products.latency_terms)
        terms = jnp.stack([jnp.broadcast_to(t, self.products.latency_s.shape) for t in _terms(self.products)])
        return [names[i] for i in jnp.argmax(terms, 0)]

    def table(self) -> Table:
        """A row a product, and the total."""
        table = Table("cost", ["product", "latency us", "binds", "energy uJ", "weight bytes", "utilization"])
        p = jax.device_get(self.products)
        for i, (name, binds) in enumerate(zip(self.names, self.binds, strict=True)):
            row = (p.latency_s[i] * 1e6, p.energy_j[i] * 1e6, p.weight_bytes[i], p.utilization[i])
            cells = [f"{number:,.4g}" for number in row]
            table.row(name, cells[0], binds, *cells[1:])
        totals = (self.latency_s * 1e6, self.energy_j * 1e6, self.weight_bytes)
        cells = [f"{float(number):,.4g}" for number in totals]
        table.row("total", cells[0], "-", *cells[1:], "-")
        return table

    def __str__(self) -> str:
        memory, area = float(self.activation_bytes), float(self.area_mm2)
        return f"{self.table()}\npeak activations {memory:,.0f} bytes, area {area:.4g} mm2"

    def __rich__(self):
        return self.table().__rich__()


def _terms(products: ProductCost) -> list[jax.Array]:
    return list(products.latency_terms.values())


class Device:
    """Hardware. `product` alone makes one; `cost` follows from it.

    Subclasses are frozen dataclasses registered with `jaxcomp.register_dataclass` whose numbers (array rows,
    bandwidths, clock, voltage) are leaves, so that ``jax.vmap`` over devices and ``jax.grad`` by their numbers work.
    Everything is elementwise over the products' shape, so one call does a whole workload, and a vmap many designs.
    """

    def product(self, product: Product, stored: Stored, mode: Mode = Exact()) -> ProductCost:
        """What products cost; every number of `product` and `stored` may be an array, all of one shape."""
        raise NotImplementedError(f"{type(self).__name__} must define product(product, stored, mode)")

    @property
    def area_mm2(self) -> Any:
        """Square millimetres, NaN where it is not known."""
        return jnp.nan

    def live(self, workload: Workload) -> jax.Array:
        """Numbers in memory at once while every product runs, ``[products]``; weights do not count."""
        return jnp.asarray(workload.live, jnp.float32)

    def cost(self, workload: Workload, stored: Stored = Stored(), mode: Mode = Exact()) -> Cost:
        """What a whole model costs: latencies and energies add up, and activations need the most alive at once."""
        stacked = workload.stacked
        found = self.product(stacked, stored, mode)
        shape = (len(workload),)
        found = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.float32), shape), found)
        live = self.live(workload) * stored.activation_bits / 8
        return Cost(
            latency_s=jnp.sum(found.latency_s),
            energy_j=jnp.sum(found.energy_j) if found.energy_terms else jnp.float32(jnp.nan),
            area_mm2=jnp.asarray(self.area_mm2, jnp.float32),
            weight_bytes=jnp.sum(found.weight_bytes * stacked.copies),
            activation_bytes=mode.maximum(*live),
            products=found,
            names=tuple(product.name for product in workload),
        )
