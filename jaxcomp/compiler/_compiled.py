"""A model that has been compiled: its packed parameters, what it does with them, and what was measured."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import jaxpr_as_fun

from jaxcomp._paths import leaves_by_path
from jaxcomp._pytree import register_dataclass
from jaxcomp._table import Table
from jaxcomp.compiler._shrink import Removals


@dataclasses.dataclass(frozen=True)
class ProductReport:
    """How one product of the model is done.

    Attributes:
        name: where it stands in the model.
        leaves: the paths that its weights come from.
        form: what was chosen; "dense" where nothing was faster.
        dense_bytes, bytes: of its weights before and after.
        dense_s, seconds: that it takes dense, and as chosen, each alone on this machine.
        tried: all that was measured, dense first.
    """

    name: str
    leaves: tuple[str, ...]
    form: str
    dense_bytes: int
    bytes: int
    dense_s: float
    seconds: float
    tried: tuple[tuple[str, float], ...] = ()

    @property
    def speedup(self) -> float:
        return self.dense_s / self.seconds

    @property
    def as_it_was(self) -> "ProductReport":
        """The same product left dense, whatever was found faster for it alone."""
        return dataclasses.replace(self, form="dense", bytes=self.dense_bytes, seconds=self.dense_s)


@dataclasses.dataclass(frozen=True)
class CompiledReport:
    """How every product of a model with constrained weights is done; print it.

    Attributes:
        products: one by one.
        removed: channels that were removed beforehand.
        dense_s, seconds: what a call of the whole model takes, dense and as compiled: measured, not added up.
        dense_bytes, bytes: of all parameters before and after.
        notes: constrained leaves that no product reads, and the like.
    """

    products: tuple[ProductReport, ...]
    removed: Removals
    dense_s: float
    seconds: float
    dense_bytes: int
    bytes: int
    notes: tuple[str, ...] = ()

    @property
    def speedup(self) -> float:
        return self.dense_s / self.seconds

    def table(self) -> Table:
        """A row a product, and the whole."""
        columns = ["product", "leaf", "format", "dense bytes", "bytes", "dense us", "us", "faster"]
        gone = [f"{each.channels} of {each.coupling.size} of {each.leaves}" for each in self.removed if each.channels]
        notes = [f"channels removed: {'; '.join(gone)}"] * bool(gone) + [*self.notes]
        table = Table("compiled", columns, caption="\n".join(notes) or None)
        for each in self.products:
            table.row(each.name, ", ".join(each.leaves), each.form, *_figures(each))
        table.row("whole model", "", "", *_figures(self))
        return table

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self):
        return self.table().__rich__()


def _figures(each: ProductReport | CompiledReport) -> Sequence[str]:
    sizes = f"{each.dense_bytes:,}", f"{each.bytes:,}"
    if math.isnan(each.seconds):
        return *sizes, "-", "-", "-"
    return *sizes, f"{1e6 * each.dense_s:,.1f}", f"{1e6 * each.seconds:,.1f}", f"{each.speedup:.2f}x"


@dataclasses.dataclass(frozen=True)
class Program:
    """A jaxpr of the leaves, the packed products and the inputs, in this order."""

    jaxpr: Any
    inputs: tuple[tuple[str, tuple[int, ...], str], ...]
    outputs: Any

    def __call__(self, params: Any, *inputs: Any) -> Any:
        given = leaves_by_path(inputs)
        found = tuple((path, tuple(x.shape), str(x.dtype)) for path, x in given.items())
        if found != self.inputs:
            raise ValueError(f"compiled for inputs {self.inputs}, found {found}: compile again for these shapes")
        flat = [*jax.tree.leaves(params), *given.values()]
        return jax.tree.unflatten(self.outputs, jaxpr_as_fun(self.jaxpr)(*flat))

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """A model whose constrained products run packed: call it with the inputs it was compiled for, or others like them.

    It is a pytree, whose arrays are `params`, and a pure function of them: under `jax.jit`, `jax.vmap` and `jax.grad`
    by its inputs it does what any function does.

    Attributes:
        params: ``{"leaves": {path: array}, "products": {name: packed}}``: the leaves that are still read as they
            were, and the weights of the products that are done otherwise.
        program: what is done with them.
        report: what was measured.
    """

    params: Any
    program: Program = dataclasses.field(metadata={"static": True})
    report: Any = dataclasses.field(metadata={"static": True}, compare=False)

    def __call__(self, *inputs: Any) -> Any:
        """The outputs of the model, compiled at the first call."""
        return _call(self.program, self.params, *inputs)


_call = jax.jit(lambda program, params, *inputs: program(params, *inputs), static_argnums=0)
