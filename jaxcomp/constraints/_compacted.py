"""What is left of a leaf once its empty rows and columns are taken out, as crossbars hold it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._compose import Chain
from jaxcomp.constraints._constraint import Constraint, Footprint, dense_footprint, finite_or_nan
from jaxcomp.constraints._views import Layout, View
from jaxcomp.constraints.forms import Submatrix

_MATRIX = Layout("oi")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Compacted(Constraint):
    """A set of what is left of a leaf's matrix without its empty rows and columns, which stay zero.

    ``{w : w[outputs][:, inputs] in the inner set, every other weight 0}``. A crossbar is filled after pruning: only
    outputs and inputs that still have a weight take a column and a row of it, and the fragments of FORMS are runs of
    these. The projection is exact where that of the inner set is.

    Args:
        inner: the set. Its views see the kept weights as a matrix, outputs by inputs; they need no layout.
        outputs: numbers of the outputs kept. Left out, `fit` (so `jaxcomp.assign`) takes those with a non-zero.
        inputs: numbers of the inputs kept, of the leaf's matrix; likewise.
        layout: how the leaf is laid out; ``None`` is flax's default for its rank.

    >>> from jaxcomp.constraints import fragments, Polarized
    >>> x = jnp.array([[3.0, 0.0, -1.0, -1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 2.0]])
    >>> Compacted(Polarized(fragments(2)), layout=Layout("oi")).fit(x).project(x).tolist()
    [[3.0, 0.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 2.0]]

    References: Yuan et al., FORMS: Fine-grained Polarized ReRAM-based In-situ Computation, ISCA 2021.
    """

    inner: Constraint
    outputs: jax.Array | None = None
    inputs: jax.Array | None = None
    layout: Layout | None = dataclasses.field(default=None, metadata={"static": True})

    def project(self, x: jax.Array) -> jax.Array:
        return finite_or_nan(x, self._scatter(self._inner.project(self.compact(x)), x.shape))

    def compact(self, x: jax.Array) -> jax.Array:
        """The kept weights of a leaf, ``[outputs, inputs]``."""
        outputs, inputs = self._kept()
        # One axis after the other: at once XLA stores a pair of indices for every weight.
        return jnp.take(jnp.take(self._layout(x.shape).to_matrix(x), outputs, axis=0), inputs, axis=1)

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """The inner set's, on what is kept."""
        return self._scatter(self._inner.tangent(self.compact(x), self.compact(v)), x.shape)

    def footprint(self, x: jax.Array) -> Footprint:
        """The inner set's, whose groups are those counted, and which rows and columns are kept."""
        leaf = dense_footprint(x, self.layout)
        inner = self._inner.footprint(self.compact(x))
        matrix, kept = self._layout(x.shape).matrix_shape(x.shape), self._shape(x.shape)
        return dataclasses.replace(
            inner,
            size=leaf.size,
            index_bits=inner.index_bits + sum(map(_address_bits, kept, matrix)),
            row_density=leaf.row_density,
            column_density=leaf.column_density,
        )

    def forms(self, x):
        outputs, inputs = map(np.asarray, self._kept())
        return (Submatrix(self.layout, outputs, inputs, self._inner.forms(self.compact(x))),)

    def fit(self, x: jax.Array) -> "Compacted":
        """Keep the rows and columns of ``x`` that have a non-zero, and fit the inner set to what they hold.

        Raises:
            ValueError: no weight is left, or the inner set cannot apply to so few.
        """
        outputs, inputs = self.outputs, self.inputs
        if outputs is None or inputs is None:
            used = self._layout(x.shape).to_matrix(x) != 0
            if not used.any():
                raise ValueError(f"Compacted found no non-zero weight in a leaf of shape {x.shape}: leave it out")
            outputs = jnp.flatnonzero(used.any(axis=1)) if outputs is None else outputs
            inputs = jnp.flatnonzero(used.any(axis=0)) if inputs is None else inputs
        fitted = Compacted(self._inner, outputs, inputs, self.layout)
        dense = fitted.compact(x)
        fitted.inner.check(dense)
        return dataclasses.replace(fitted, inner=fitted.inner.fit(dense))

    def exact(self, shape: tuple[int, ...]) -> bool:
        return self._inner.exact(self._shape(shape))

    def check(self, x) -> None:
        """Before `fit` the inner set is checked against the whole matrix, since what will be left is not known."""
        super().check(x)
        matrix = self._layout(x.shape).matrix_shape(x.shape)
        for name, kept, most in zip(("outputs", "inputs"), (self.outputs, self.inputs), matrix, strict=True):
            if kept is None or isinstance(kept, jax.core.Tracer):
                continue
            found = np.asarray(kept)
            different = found.ndim == 1 and 0 < found.size == np.unique(found).size
            if not different or found.min() < 0 or found.max() >= most:
                raise ValueError(f"{name} must be different numbers from 0 to {most - 1}, found {found}")
        self._inner.check(jax.ShapeDtypeStruct(self._shape(x.shape), x.dtype))

    @property
    def _inner(self) -> Constraint:
        return _on_matrix(self.inner)

    def _kept(self) -> tuple[jax.Array, jax.Array]:
        if self.outputs is None or self.inputs is None:
            raise ValueError(
                "Compacted does not know yet what is kept: give outputs and inputs, or call fit(x) to take the rows "
                "and columns of x that have a non-zero"
            )
        return self.outputs, self.inputs

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        return self.layout or Layout.of(len(shape))

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Of the kept weights; of the whole matrix as far as what is kept is not known."""
        outputs, inputs = self._layout(shape).matrix_shape(shape)
        return (
            outputs if self.outputs is None else len(self.outputs),
            inputs if self.inputs is None else len(self.inputs),
        )

    def _scatter(self, kept: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The leaf of this shape that holds the kept weights and zeros."""
        outputs, inputs = self._kept()
        layout = self._layout(shape)
        matrix = kept
        for axis, (numbers, n) in enumerate(zip((outputs, inputs), layout.matrix_shape(shape), strict=True)):
            place = jnp.full(n, len(numbers)).at[numbers].set(jnp.arange(len(numbers)))
            matrix = jnp.take(matrix, place, axis=axis, mode="fill", fill_value=0)
        return layout.from_matrix(matrix, shape)


def crossbars(x: jax.Array, rows: int, columns: int, layout: Layout | None = None, compact: bool = True) -> jax.Array:
    """How many crossbars of so many rows and columns a leaf takes, ``ceil(inputs / rows) * ceil(outputs / columns)``.

    Inputs are word lines, rows of the array; outputs are bit lines, columns of it. So pruning filters frees
    columns of arrays, and only whole multiples of their side save area.

    Args:
        x: the leaf.
        rows: inputs of an array.
        columns: outputs of an array; its bit lines over the cells that a weight takes.
        layout: how the leaf is laid out; by default flax's for its rank.
        compact: count only inputs and outputs that have a non-zero weight.

    >>> x = jnp.ones((300, 64)).at[:, 40:].set(0.0)  # 300 inputs, 40 of 64 outputs kept
    >>> int(crossbars(x, 128, 32)), int(crossbars(x, 128, 32, compact=False))
    (6, 6)
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"a crossbar needs at least one row and one column, found {rows} by {columns}")
    used = (layout or Layout.of(x.ndim)).to_matrix(x) != 0
    if not compact:
        used = jnp.ones_like(used)
    outputs, inputs = (jnp.sum(jnp.any(used, axis), dtype=jnp.int32) for axis in (1, 0))
    return -(-inputs // rows) * -(-outputs // columns)


def _on_matrix(value: Any) -> Any:
    """A constraint whose views without a layout are laid out as outputs by inputs."""
    if isinstance(value, View):
        return dataclasses.replace(value, layout=value.layout or _MATRIX)
    if isinstance(value, Chain):
        return Chain(*map(_on_matrix, value.parts))
    if isinstance(value, Constraint) and dataclasses.is_dataclass(value):
        return dataclasses.replace(
            value, **{f.name: _on_matrix(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return value


def _address_bits(kept: int, of: int) -> float:
    """To say which are kept: a bit for each, or a number for each that is kept."""
    return float(min(of, kept * np.ceil(np.log2(max(of, 1)))))
