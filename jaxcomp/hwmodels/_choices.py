"""What may be chosen for every leaf of a model, and what it costs on a device."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass
from jaxcomp._workload import Workload
from jaxcomp.hwmodels._device import Device
from jaxcomp.hwmodels._mode import Exact, Mode
from jaxcomp.hwmodels._stored import Stored

COSTS = ("latency_s", "energy_j", "weight_bytes", "activation_bytes")


def choices(**values: Iterable[float]) -> dict[str, np.ndarray]:
    """All combinations of values of fields of `Stored`, as `allocate` takes them.

    >>> {name: numbers.tolist() for name, numbers in choices(weight_bits=[4, 8], activation_bits=[8]).items()}
    {'weight_bits': [4.0, 8.0], 'activation_bits': [8.0, 8.0]}
    """
    rows = np.asarray(list(itertools.product(*values.values())), np.float32)
    return dict(zip(values, rows.T, strict=True))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """Items that choose, one for every leaf and one for every product without a leaf, and what their choices cost.

    Attributes:
        workload, device: what runs where.
        values: of fields of `Stored`, ``{field: [choices]}``.
        stored: the other fields.
        leaves: the item of every product.
        cost: the field of `Cost` that has a budget.
    """

    workload: Workload
    device: Device
    values: dict[str, jax.Array]
    stored: Stored
    leaves: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    cost: str = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls, workload: Workload, device: Device, values: Mapping[str, ArrayLike], stored: Stored, cost: str
    ) -> "Problem":
        """Raises ValueError for unknown fields or costs and for shapes that do not fit."""
        known = [field.name for field in dataclasses.fields(Stored)]
        arrays = {name: jnp.asarray(x, jnp.float32) for name, x in values.items()}
        unknown, shapes = sorted(set(arrays) - set(known)), {name: x.shape for name, x in arrays.items()}
        if unknown or not arrays:
            raise ValueError(f"choices are of {unknown or 'nothing'}, expected fields of Stored: {', '.join(known)}")
        if len(set(shapes.values())) > 1 or any(len(shape) != 1 or not shape[0] for shape in shapes.values()):
            raise ValueError(f"choices must be arrays of one length, found {shapes}; jaxcomp.choices makes them")
        if cost not in COSTS:
            raise ValueError(f"cost is {cost!r}, expected one of {COSTS}")
        if not len(workload):
            raise ValueError("the workload has no products: there is nothing to choose")
        names = [i if product.path is None else product.path for i, product in enumerate(workload)]
        order = {name: item for item, name in enumerate(dict.fromkeys(names))}
        return cls(workload, device, arrays, stored, tuple(order[name] for name in names), cost)

    @property
    def items(self) -> int:
        return max(self.leaves) + 1

    @property
    def count(self) -> int:
        """Of choices."""
        return len(next(iter(self.values.values())))

    @property
    def additive(self) -> bool:
        """Whether the cost is a sum over products."""
        return type(self.device).cost is Device.cost and self.cost != "activation_bytes"

    def spread(self, items: jax.Array) -> jax.Array:
        """Of products, what is given of items."""
        return items[np.asarray(self.leaves)]

    def joined(self, products: jax.Array) -> jax.Array:
        """Of items, sums of what is given of products."""
        return jax.ops.segment_sum(products, np.asarray(self.leaves), self.items)

    def stored_as(self, fields: Mapping[str, jax.Array]) -> Stored:
        """How products are stored, by fields ``[items]``."""
        return dataclasses.replace(self.stored, **{name: self.spread(x) for name, x in fields.items()})

    def chosen(self, choice: jax.Array) -> Stored:
        """How products are stored, by the choice of every item."""
        return self.stored_as({name: x[choice] for name, x in self.values.items()})

    def total(self, stored: Stored, mode: Mode = Exact()) -> jax.Array:
        """What everything costs."""
        return getattr(self.device.cost(self.workload, stored, mode), self.cost)

    def of_each(self, act: Callable[[Stored], jax.Array]) -> jax.Array:
        """``[products, choices]``: ``act`` gives ``[products]`` for one choice that all make."""
        numbers = jnp.arange(self.count)
        return jax.vmap(lambda k: act(self.chosen(jnp.broadcast_to(k, (self.items,)))), out_axes=1)(numbers)

    def costs(self) -> jax.Array:
        """``[items, choices]``, where costs add up."""
        stacked = self.workload.stacked
        times = stacked.copies if self.cost == "weight_bytes" else 1  # as `Device.cost` counts

        def cost(stored):
            return getattr(self.device.cost(self.workload, stored).products, self.cost) * times

        return self.joined(self.of_each(cost))

    def after(self, choice: jax.Array) -> jax.Array:
        """``[items, choices]``: what everything costs if one item alone changes its choice."""

        def cost(item, number):
            return self.total(self.chosen(choice.at[item].set(number)))

        return jax.vmap(jax.vmap(cost, (None, 0)), (0, None))(jnp.arange(self.items), jnp.arange(self.count))

    def cheapest(self, allowed: jax.Array) -> jax.Array:
        """The choice of least cost of every item among those ``[items, choices]`` allowed.

        Where costs do not add up: while all others make the one choice that is the cheapest for all.
        """
        if self.additive:
            costs = self.costs()
        else:
            alike = jnp.broadcast_to(jnp.arange(self.count)[:, None], (self.count, self.items))
            uniform = jax.vmap(lambda choice: self.total(self.chosen(choice)))(alike)
            costs = self.after(alike[jnp.argmin(uniform)])
        return jnp.argmin(jnp.where(allowed, costs, jnp.inf), axis=1)
