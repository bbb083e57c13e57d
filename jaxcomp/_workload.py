"""What a model computes: its matrix products, each with the leaf that feeds it, and the tensors between them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp._table import Table


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product of a model, a convolution counted as one; or many of them, in arrays of one shape.

    ``repeat * groups`` independent products ``[rows, depth] @ [depth, columns]``, where

        rows = batch * out_h * out_w,   depth = inputs / groups * kernel_h * kernel_w,   columns = outputs / groups.

    Every number is a leaf: an int, a float, an array or a tracer; so a cost may be differentiated by the number of
    channels, and the products of a whole workload be one `Product` of arrays (`Workload.stacked`).

    Attributes:
        name: where in the program it stands; a tuple of names when stacked.
        path: of the leaf that feeds it, or ``None`` where two activations are multiplied; a tuple when stacked.
        batch: images, or rows of a dense layer.
        groups: independent products: the groups of a convolution (its channels if depthwise), the batch axes of a
            product of activations.
        inputs, outputs: channels, of all groups together.
        kernel_h, kernel_w: 1 for a dense layer.
        in_h, in_w, out_h, out_w: pixels, without padding; 1 for a dense layer.
        stride: in pixels; where the two differ, the vertical one.
        repeat: how often it is run: steps of the scans around it.
        weighted: 1 where a leaf, or a constant of the program, feeds it; 0 where both sides are activations.
        copies: how often weights as many as its own have to be stored for it: once; as often as there are layers in a
            stack that is scanned; never where an earlier product has stored them, or where none feed it.
    """

    name: Any = dataclasses.field(metadata={"static": True})
    path: Any = dataclasses.field(metadata={"static": True})
    batch: Any
    groups: Any
    inputs: Any
    outputs: Any
    kernel_h: Any = 1
    kernel_w: Any = 1
    in_h: Any = 1
    in_w: Any = 1
    out_h: Any = 1
    out_w: Any = 1
    stride: Any = 1
    repeat: Any = 1
    weighted: Any = 1
    copies: Any = 1

    @property
    def rows(self) -> Any:
        return self.batch * self.out_h * self.out_w

    @property
    def depth(self) -> Any:
        return self.inputs * self.kernel_h * self.kernel_w / self.groups

    @property
    def columns(self) -> Any:
        return self.outputs / self.groups

    @property
    def macs(self) -> Any:
        """Multiplications, each with an addition."""
        return self.repeat * self.rows * self.depth * self.outputs

    @property
    def weights(self) -> Any:
        """Numbers on the right side of the product: weights, or activations where none feed it."""
        return self.depth * self.outputs

    @property
    def reads(self) -> Any:
        """Activations that come in, once."""
        return self.batch * self.inputs * self.in_h * self.in_w

    @property
    def writes(self) -> Any:
        """Activations that go out."""
        return self.batch * self.outputs * self.out_h * self.out_w

    @property
    def depthwise(self) -> Any:
        """Whether every channel has a filter of its own and nothing is summed over channels."""
        return (self.groups > 1) & (self.groups == self.inputs)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An activation that is stored between products.

    Moments are numbers of products: ``i`` is while product ``i`` runs, ``i + 0.5`` between it and the next one.

    Attributes:
        name: where it comes from.
        elements: numbers in it.
        born: the moment it is written: that of a product, or of something between two (a pooling, a lookup); -1 for an
            input of the model.
        dies: the moment it is last needed; the number of products for an output of the model.
        read: the last product that reads it, -1 if none does. A residual dies later: it waits for its addition.
    """

    name: str
    elements: int
    born: float
    dies: float
    read: int = -1


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Rows taken from a table that is a leaf, as an embedding does: no multiplications, but bytes.

    Attributes:
        name: where in the program it stands.
        path: of the table.
        rows: looked up in one run of the model.
        width: numbers in a row.
    """

    name: str
    path: str
    rows: int
    width: int


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Workload:
    """The products of a model in the order they run, and the activations that live between them; print it.

    Attributes:
        products: one by one.
        tensors: activations, for the memory that they need together.
        unattributed: products with weights that no one leaf is known to feed, and why.
        lookups: in tables.
        leaves: paths of all leaves that the program reads, each with its number of elements: what is stored beside
            the weights of products.
        notes: where a count rests on an assumption: loops of unknown length, branches, products of two leaves.
    """

    products: tuple[Product, ...]
    tensors: tuple[Tensor, ...] = dataclasses.field(default=(), metadata={"static": True})
    unattributed: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    lookups: tuple[Lookup, ...] = dataclasses.field(default=(), metadata={"static": True})
    leaves: tuple[tuple[str, int], ...] = dataclasses.field(default=(), metadata={"static": True})
    notes: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    def __len__(self) -> int:
        return len(self.products)

    def __iter__(self) -> Iterator[Product]:
        return iter(self.products)

    @property
    def macs(self) -> Any:
        return sum(product.macs for product in self.products)

    @property
    def stacked(self) -> Product:
        """All products as one, every number an array ``[products]`` of float32, names and paths tuples."""
        fields = [field.name for field in dataclasses.fields(Product) if field.name not in ("name", "path")]
        return Product(
            tuple(product.name for product in self.products),
            tuple(product.path for product in self.products),
            **{f: jnp.stack([jnp.asarray(getattr(p, f), jnp.float32) for p in self.products]) for f in fields},
        )

    @property
    def live(self) -> list[int]:
        """The most elements of activations that exist together while every product runs, or until the next one."""
        change = np.zeros(2 * len(self) + 4, np.int64)  # at every half step, from -1 on
        for tensor in self.tensors:
            change[round(2 * tensor.born) + 2] += tensor.elements
            change[round(2 * tensor.dies) + 3] -= tensor.elements
        alive = np.cumsum(change)
        first = alive[:2].max()
        most = np.maximum(alive[2:-2:2], alive[3:-1:2])
        return [int(max(elements, first if number == 0 else 0)) for number, elements in enumerate(most)]

    def table(self) -> Table:
        """A row a product, and the total."""
        columns = ["product", "leaf", "groups", "rows", "depth", "columns", "repeat", "M MACs", "weights", "live"]
        table = Table("workload", columns)
        for product, live in zip(self.products, self.live, strict=True):
            shape = (product.groups, product.rows, product.depth, product.columns, product.repeat)
            cells = [f"{number:,.6g}" if number < 1e6 else f"{number:,.0f}" for number in shape]
            weights = f"{product.weights:,.0f}" if product.weighted else "-"
            table.row(product.name, product.path or "-", *cells, _millions(product.macs), weights, f"{live:,}")
        weights = f"{sum(p.weights * p.copies * p.weighted for p in self.products):,.0f}"
        table.row("total", *["-"] * 6, _millions(self.macs), weights, f"{max(self.live, default=0):,}")
        return table

    def __str__(self) -> str:
        lines = [str(self.table())]
        lines += [f"lookup: {x.name}: {x.rows:,} rows of {x.width:,} from {x.path}" for x in self.lookups]
        lines += [f"unattributed: {line}" for line in self.unattributed]
        lines += [f"note: {line}" for line in self.notes]
        return "\n".join(lines)

    def __rich__(self):
        return self.table().__rich__()


def _millions(macs: Any) -> str:
    return f"{macs / 1e6:,.3f}"
